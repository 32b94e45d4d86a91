"""Bounds for the numbers of a JSON schema: a small model that draws digits freely may not come to an end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST = 10**15 - 1  # fifteen digits: whole numbers that every JSON reader keeps exactly
STEP = 1e-9  # nine digits after the point

# Not `if`, `not` and `contains`: where less matches those, more may match the whole.
_ONE = ("additionalProperties", "items", "then", "else", "unevaluatedProperties")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_ELSEWHERE = {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"}  # what the value may be is said there


def bounded(schema: Any) -> Any:
    """The schema with bounds where it asks for a number and sets none: at most 15 digits before the point, 9 after it,
    no exponent. A bound that the schema sets stays; what fits the result fits the schema. So nothing is added where
    less in a part lets more fit the whole: to `if`, `not`, `contains`, and a `oneOf` whose branches may overlap.

    >>> bounded({"type": "integer", "minimum": 0})
    {'type': 'integer', 'minimum': 0, 'maximum': 999999999999999}
    """
    return schema if _fixed_by_reference(schema, schema) else _bounded(schema, schema)


def _bounded(schema: Any, root: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = dict(schema)
    for key in _ONE:
        if isinstance(found.get(key), Mapping):
            found[key] = _bounded(found[key], root)
    for key in _LIST:
        if isinstance(found.get(key), list) and (key != "oneOf" or _apart(found[key], root)):
            found[key] = [_bounded(part, root) for part in found[key]]
    for key in _NAMED:
        if isinstance(found.get(key), Mapping):
            found[key] = {name: _bounded(part, root) for name, part in found[key].items()}
    kinds = found.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if ("number" in kinds or "integer" in kinds) and not _ELSEWHERE & set(found):
        found |= _bounds(found, fractions="number" in kinds)
    return found


def _fixed_by_reference(part: Any, root: Any) -> bool:
    """Whether something that must stay as it is refers to a place elsewhere in the schema."""
    if isinstance(part, list):
        return any(_fixed_by_reference(inner, root) for inner in part)
    if not isinstance(part, Mapping):
        return False
    fixed = [part[key] for key in ("if", "not", "contains") if key in part]
    branches = part.get("oneOf")
    if isinstance(branches, list) and not _apart(branches, root):
        fixed.append(branches)
    return any(_refers(inner) for inner in fixed) or any(_fixed_by_reference(inner, root) for inner in part.values())


def _refers(part: Any) -> bool:
    if isinstance(part, list):
        return any(map(_refers, part))
    return isinstance(part, Mapping) and ("$ref" in part or any(map(_refers, part.values())))


def _apart(branches: list[Any], root: Any) -> bool:
    """Whether it is plain that no value fits two of the branches: they differ in type, or in a property that each
    demands with values of its own (a tag)."""
    found = [_resolved(branch, root) for branch in branches]
    return all(_differ(one, other) for at, one in enumerate(found) for other in found[:at])


def _resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """The schema, or what it refers to ("#/$defs/Name"); nothing where that cannot be told."""
    if not isinstance(schema, Mapping):
        return {}
    if "$ref" not in schema:
        return schema
    found = root
    for name in str(schema["$ref"]).split("/")[1:]:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) and str(schema["$ref"]).startswith("#/") else {}


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    kinds = [_kinds(schema) for schema in (one, other)]
    if kinds[0] and kinds[1] and not kinds[0] & kinds[1]:
        return True
    tags = [_tags(schema) for schema in (one, other)]
    return any(not tags[0][name] & tags[1][name] for name in tags[0].keys() & tags[1].keys())


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types that fit; empty where any may."""
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return {"number" if kind == "integer" else str(kind) for kind in kinds}


def _tags(schema: Mapping[str, Any]) -> dict[str, set[str]]:
    """The properties that an object must have with one of a few texts."""
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") != "object" or not isinstance(properties, Mapping) or not isinstance(required, list):
        return {}
    found = {}
    for name in required:
        told = properties.get(name) if isinstance(name, str) else None
        values = [] if not isinstance(told, Mapping) else [told["const"]] if "const" in told else told.get("enum")
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            found[name] = set(values)
    return found


def _bounds(schema: Mapping[str, Any], *, fractions: bool) -> dict[str, Any]:
    """The keys to add. Nothing where the schema's own bounds are no numbers, or so far out or so fine that ours could
    leave no number."""
    lowest = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    highest = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    given = [*lowest, *highest]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in given):
        return {}
    if any(abs(value) >= LARGEST or 0 < abs(value) < 1000 * STEP for value in given):
        return {}
    added: dict[str, Any] = {}
    if not lowest:
        added["minimum"] = -LARGEST
    if not highest:
        added["maximum"] = LARGEST
    if fractions and "multipleOf" not in schema and all(_on_steps(value) for value in given):
        added["multipleOf"] = STEP
    return added


def _on_steps(value: float) -> bool:
    """Whether six digits after the point write the value: between two such bounds lies a number of nine."""
    return round(value, 6) == value
