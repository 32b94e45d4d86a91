"""Bounds for the numbers of a JSON schema: a small model that draws digits freely may not come to an end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST = 10**15 - 1  # fifteen digits: whole numbers that every JSON reader keeps exactly
STEP = 1e-9  # nine digits after the point

_ONE = ("additionalProperties", "items", "if", "then", "else", "contains", "unevaluatedProperties")
_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_ELSEWHERE = {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"}  # what the value may be is said there


def bounded(schema: Any) -> Any:
    """The schema with bounds where it asks for a number and sets none: at most 15 digits before the point, 9 after it,
    no exponent. A bound that the schema sets stays; what fits the result fits the schema.

    >>> bounded({"type": "integer", "minimum": 0})
    {'type': 'integer', 'minimum': 0, 'maximum': 999999999999999}
    """
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = dict(schema)
    for key in _ONE:
        if isinstance(found.get(key), Mapping):
            found[key] = bounded(found[key])
    for key in _LIST:
        if isinstance(found.get(key), list):
            found[key] = [bounded(part) for part in found[key]]
    for key in _NAMED:
        if isinstance(found.get(key), Mapping):
            found[key] = {name: bounded(part) for name, part in found[key].items()}
    kinds = found.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if ("number" in kinds or "integer" in kinds) and not _ELSEWHERE & set(found):
        found |= _bounds(found, fractions="number" in kinds)
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
