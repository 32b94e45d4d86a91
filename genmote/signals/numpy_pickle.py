"""Reads a pickled NumPy object (`np.save` of a dictionary, say) without running what the file says.

A pickle is a program that may call anything. Here it meets no function or class of Python or NumPy: the few names that
NumPy's arrays need are stand-ins of ours, which only take notes; every other name is refused. The notes are checked and
then made into arrays of numbers. Dictionaries, lists, tuples, text and numbers come as they are.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from genmote.errors import SignalError

NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
DEPTH = 32  # of lists in lists


def load(path: Path) -> Any:
    """The object in an ``.npy`` file of pickled objects, its arrays read-only. Raises SignalError for anything else."""
    try:
        with open(path, "rb") as file:
            _header(file)
            made = _Reader(file, encoding="latin1").load()
            return _plain(made, {}, 0)
    except SignalError as fault:
        raise SignalError(f"{path}: {_line(fault)}") from None
    except OSError as fault:
        raise SignalError(f"{path} cannot be read ({fault.strerror}): wanted a pickled NumPy array") from None
    except Exception as fault:  # the pickle machine meets a damaged program with a dozen kinds of exception
        raise SignalError(f"{path} is damaged: {type(fault).__name__} {_line(fault)}".rstrip()) from None


def _line(fault: Exception) -> str:
    """A message as one printable line: it may quote the file."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(fault))[:300]


def _header(file: IO[bytes]) -> None:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if shape != () or dtype != np.dtype("O"):
        raise SignalError(f"an array of {dtype} and shape {shape}: wanted one pickled object")


class _Stand:
    """What a name in the pickle stands for. It can be called or named, and nothing can be hung onto it."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise SignalError(f"the pickle wants to change {self.name}: refused")

    def __setstate__(self, state: Any) -> None:
        raise SignalError(f"the pickle wants to change {self.name}: refused")

    def __call__(self, *given: Any) -> Any:
        if self.name == "dtype" and given and isinstance(given[0], str):
            return _Type(given[0])
        if self.name == "_reconstruct" and given and given[0] is ARRAY:
            return _Array()
        if self.name == "encode" and len(given) == 2 and isinstance(given[0], str) and given[1] == "latin1":
            return given[0].encode("latin1")  # how bytes were written for Python 2
        if self.name == "bytes" and not given:
            return b""
        raise SignalError(f"the pickle calls {self.name} as NumPy does not: refused")


ARRAY = _Stand("ndarray")
KNOWN = {
    ("numpy", "ndarray"): ARRAY,
    ("numpy", "dtype"): _Stand("dtype"),
    ("numpy.core.multiarray", "_reconstruct"): _Stand("_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"): _Stand("_reconstruct"),
    ("_codecs", "encode"): _Stand("encode"),
    ("__builtin__", "bytes"): _Stand("bytes"),
}


class _Type:
    """A number's type: its code, then its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise SignalError("a type of numbers is described in an unknown way: refused")
        self.order = state[1]


class _Array:
    """An array: what NumPy would be told of it."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def made(self) -> Any:
        """The array (a view of the pickle's bytes), once everything about it fits; of an array of objects the list of
        them, of one without dimensions the object."""
        if not isinstance(self.state, tuple) or len(self.state) != 5 or not isinstance(self.state[2], _Type):
            raise SignalError("an array is described in an unknown way: refused")
        _, shape, type_, fortran, data = self.state
        if not isinstance(shape, tuple) or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise SignalError(f"an array of shape {shape!r}: wanted whole numbers")
        if type_.code.startswith("O") and isinstance(data, list) and (len(data),) == (shape or (1,)):
            return data if shape else data[0]
        if type_.code not in NUMBERS or not isinstance(data, bytes):
            raise SignalError(f"an array of {type_.code!r}: wanted numbers ({', '.join(sorted(NUMBERS))})")
        dtype = np.dtype(type_.order + type_.code)
        if math.prod(shape) * dtype.itemsize != len(data) or len(shape) > 8:
            raise SignalError(f"an array of shape {shape} of {dtype} in {len(data)} bytes: the sizes do not fit")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


class _Reader(pickle._Unpickler):
    """The machine in Python: its C form allocates whatever a damaged file asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; a name that NumPy's arrays do not need is refused."""
        found = KNOWN.get((module, name))
        if found is None:
            raise SignalError(f"the pickle asks for {module}.{name}: refused, only arrays of numbers are read")
        return found

    def get_extension(self, code: int) -> Any:
        raise SignalError(f"the pickle asks for extension {code}: refused, only arrays of numbers are read")


def _plain(value: Any, seen: dict[int, Any], depth: int) -> Any:
    """`value` with arrays in the place of notes; what is in it twice is made once."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.ndarray)):
        return value
    if depth > DEPTH:
        raise SignalError(f"lists within lists, deeper than {DEPTH}: refused")
    if id(value) in seen:
        return seen[id(value)]
    made: Any
    if isinstance(value, _Array):
        made = _plain(value.made(), seen, depth + 1)
    elif isinstance(value, dict) and all(isinstance(key, (str, int)) for key in value):
        made = {key: _plain(inner, seen, depth + 1) for key, inner in value.items()}
    elif isinstance(value, (list, tuple)):
        made = type(value)(_plain(inner, seen, depth + 1) for inner in value)
    else:
        name = value.name if isinstance(value, _Stand) else type(value).__name__
        raise SignalError(f"the pickle holds {name!r}: wanted arrays, dictionaries, lists, text and numbers")
    seen[id(value)] = made
    return made
