"""Reading a JSON request body: every field is typed and bounded once, and a wrong one is named in the answer.

Fields that nothing here asks for are ignored, as the API does; null counts as absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any

from genmote.web.problem import Problem

_ABSENT: Any = object()


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def parse(raw: bytes) -> Body:
    """The JSON object in `raw`. Raises `Problem` 400 for anything else: broken JSON, NaN, half a surrogate pair."""
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_constant)
        if b"\\u" in raw:
            json.dumps(data, ensure_ascii=False).encode("utf-8")  # half a surrogate pair has no UTF-8 form
    except RecursionError:
        raise Problem(400, "the body nests too deeply: send a flatter JSON object", code="invalid_json") from None
    except UnicodeEncodeError:
        raise Problem(
            400, "the body holds half a surrogate pair (\\ud800 to \\udfff): send whole characters", code="invalid_json"
        ) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, NaN, an integer of thousands of digits
        raise Problem(400, f"the body is not JSON ({error}): send one JSON object", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Problem(400, f"the body is {kind(data)}: send one JSON object", code="invalid_json")
    return Body(data)


def kind(value: Any) -> str:
    """A JSON value's type in words.

    >>> kind(True), kind([1]), kind(None)
    ('a boolean', 'a list', 'null')
    """
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return "null" if value is None else names[type(value)]


def wrong(param: str, got: str, wanted: str) -> Problem:
    """A field's value cannot be used: "n: got 0, wanted an integer from 1 to 8"."""
    return Problem(400, f"{param}: got {got}, wanted {wanted}", param=param, code="invalid_value")


class Body:
    """One JSON object of a request; `at` is its place in the whole ("messages[0].")."""

    def __init__(self, data: dict[str, Any], at: str = "") -> None:
        self.data, self.at = data, at

    def has(self, name: str) -> bool:
        return self.data.get(name) is not None

    def raw(self, name: str) -> Any:
        return self.data.get(name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A finite number in [low, high]."""
        value = self._typed(name, default, (int, float), f"a number from {low:g} to {high:g}")
        if not (math.isfinite(value) and low <= value <= high):
            raise wrong(self.at + name, f"{value}"[:40], f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        found = self.optional_integer(name, low, high)
        return default if found is None else found

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        """An integer in [low, high], or None where the field is absent; 3.0 counts as 3."""
        wanted = f"an integer from {low} to {high}"
        value = self._typed(name, None, (int, float), wanted)
        if value is None:
            return None
        if value != value or value in (math.inf, -math.inf) or value != int(value) or not low <= value <= high:
            raise wrong(self.at + name, f"{value}"[:40], wanted)
        return int(value)

    def boolean(self, name: str, default: bool = False) -> bool:
        return bool(self._typed(name, default, (bool,), "true or false"))

    def text(self, name: str, default: str | None = _ABSENT) -> str | None:
        """A string; without a default the field must be there."""
        return None if (value := self._typed(name, default, (str,), "a string")) is None else str(value)

    def choice(self, name: str, default: str, choices: Collection[str]) -> str:
        value = str(self._typed(name, default, (str,), "a string"))
        if value not in choices:
            raise wrong(self.at + name, repr(value[:40]), "one of " + ", ".join(sorted(choices)))
        return value

    def items(self, name: str, default: list[Any] | None = _ABSENT) -> list[Any] | None:
        """A list; without a default the field must be there."""
        return None if (value := self._typed(name, default, (list,), "a list")) is None else list(value)

    def object(self, name: str) -> Body | None:
        """The object in field `name`, or None where it is absent."""
        value = self._typed(name, None, (dict,), "an object")
        return None if value is None else Body(value, f"{self.at}{name}.")

    def _typed(self, name: str, default: Any, types: tuple[type, ...], wanted: str) -> Any:
        value = self.data.get(name)
        if value is None:
            if default is _ABSENT:
                raise Problem(400, f"{self.at}{name} is missing: give {wanted}", param=self.at + name, code="missing")
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise wrong(self.at + name, kind(value), wanted)
        return value


def strings(body: Body, name: str, most: int) -> tuple[str, ...]:
    """A field that holds a string or a list of strings, without the empty ones; at most `most`."""
    value = body.raw(name)
    if value is None:
        return ()
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise wrong(body.at + name, kind(value), "a string or a list of strings")
    if len(found) > most:
        raise wrong(body.at + name, f"{len(found)} strings", f"at most {most}")
    return tuple(item for item in found if item)


def objects(body: Body, name: str) -> list[Body]:
    """A list of objects, empty where the field is absent."""
    found = body.items(name, [])
    result = []
    for index, item in enumerate(found or ()):
        if not isinstance(item, dict):
            raise wrong(f"{body.at}{name}[{index}]", kind(item), "an object")
        result.append(Body(item, f"{body.at}{name}[{index}]."))
    return result
