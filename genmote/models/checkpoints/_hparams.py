"""Typed, checked look-ups in a config.json: every wrong value is a ModelFileError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genmote.errors import ModelFileError
from genmote.models.gguf_values import one_line


class Hparams:
    """A config.json's values; null counts as absent."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = {name: value for name, value in values.items() if value is not None}

    def inner(self, name: str, default: Mapping[str, Any] | None = None) -> Hparams:
        """An object in the object; ``ModelFileError`` where it is another thing (or absent, without a default)."""
        value = self.values.get(name, default)
        if not isinstance(value, Mapping):
            raise self.fail(f"{name} is {value!r:.80}, wanted an object")
        return Hparams(self.path, value)

    def has(self, name: str) -> bool:
        return name in self.values

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 24) -> int:
        value = self._value(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.fail(f"{name} = {value!r:.80}: wanted a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        value = self._value(name, default)
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise self.fail(f"{name} = {value!r:.80}: wanted a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if type(value) is not bool:
            raise self.fail(f"{name} = {value!r:.80}: wanted true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.fail(f"{name} = {value!r:.80}: wanted text")
        return value

    def must_be(self, name: str, wanted: Any, default: Any, why: str) -> None:
        """Refuse a model whose `name` is not `wanted`, because `why`."""
        value = self.values.get(name, default)
        if value != wanted:
            raise self.fail(f"{name} = {value!r:.80}: {why}; use another model")

    def fail(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {one_line(what)}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name, default)
        if value is None:
            raise self.fail(f"{name} is missing; the folder holds no whole model")
        return value
