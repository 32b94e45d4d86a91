"""A frozen dataclass as a flat table of plain values, and back: what a model file keeps of a codec.

Fields may be int, float, bool, str, tuples of these, arrays, and dataclasses of such fields. A table's values are what
a GGUF file can hold: numbers (floats of 64 bits, so that nothing is rounded), text, lists of text, arrays of one axis;
an array of more axes has its shape beside it. An empty array or tuple is left out.

>>> @dataclass(frozen=True)
... class Scale:
...     unit: str
...     edges: NDArray[np.float32]
>>> table = flat(Scale("mV", np.zeros((2, 3), np.float32)), "scale.")
>>> {key: table[key] for key in ("scale.unit", "scale.edges.shape")}
{'scale.unit': 'mV', 'scale.edges.shape': array([2, 3])}
>>> built(Scale, table, "scale.").edges.shape
(2, 3)
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError

T = TypeVar("T")
__all__ = ["NDArray", "built", "dataclass", "flat"]
PLAIN: dict[type, type] = {int: np.int64, float: np.float64, bool: np.bool_}


def flat(instance: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass as plain values, each under `prefix` and its name."""
    hints = typing.get_type_hints(type(instance))
    table: dict[str, Any] = {}
    for field in fields(instance):
        key, value, hint = prefix + field.name, getattr(instance, field.name), hints[field.name]
        if is_dataclass(value):
            table |= flat(value, key + ".")
        elif isinstance(value, str):
            table[key] = value
        elif isinstance(value, np.ndarray):
            if value.ndim != 1:
                table[key + ".shape"] = np.array(value.shape, np.int64)
            if value.size:
                table[key] = value.reshape(-1)
        elif typing.get_origin(hint) is tuple:
            item = typing.get_args(hint)[0]
            if value:
                table[key] = list(value) if item is str else np.array(value, PLAIN[item])
        else:
            table[key] = PLAIN[hint](value)
    return table


def built(cls: type[T], table: Mapping[str, Any], prefix: str = "") -> T:
    """The instance that `flat` made the table of. SignalError where the table holds no such thing."""
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]  # mypy: any class
        given[field.name] = _value(hints[field.name], table, prefix + field.name)
    made = cls(**given)
    for fault in made.faults() if hasattr(made, "faults") else ():
        raise SignalError(f"a codec with {prefix}{fault}; write the model file again")
    return made


def _value(hint: Any, table: Mapping[str, Any], key: str) -> Any:
    if is_dataclass(hint):
        return built(typing.cast(type, hint), table, key + ".")
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin is np.ndarray:
            dtype = typing.get_args(inner[1])[0]
            values = np.array(list(table.get(key, ())), dtype)
            shape = tuple(int(size) for size in table.get(key + ".shape", values.shape))
            if math.prod(shape) != values.size or any(size < 0 for size in shape):
                raise ValueError
            return values.reshape(shape)
        if origin is tuple:
            return tuple(_plain(inner[0], item) for item in table.get(key, ()))
        value = table[key]
        if origin is typing.Literal:
            if value not in inner:
                raise ValueError
            return value
        return _plain(hint, value)
    except KeyError:
        raise SignalError(f"a codec without {key}: wanted all that its fit wrote; write the model file again") from None
    except (TypeError, ValueError, OverflowError):
        told = repr(table.get(key))
        raise SignalError(
            f"a codec with {key}={told[:60]}: wanted what its fit wrote; write the model file again"
        ) from None


def _plain(kind: type, value: Any) -> Any:
    fits = {int: int | np.integer, float: float | np.floating | int, bool: bool | np.bool_, str: str}[kind]
    if not isinstance(value, fits) or (kind is not bool and isinstance(value, bool)):
        raise ValueError
    return kind(value)
