"""The values in a GGUF file's header: scalars, strings and arrays, read from a memory map with every bound checked."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError

Bytes = NDArray[np.uint8]


class ValueType(NamedTuple):
    """A type of metadata value; ``dtype`` is None for strings and arrays."""

    name: str
    dtype: np.dtype[Any] | None = None


VALUE_TYPES: dict[int, ValueType] = {
    0: ValueType("uint8", np.dtype("u1")),
    1: ValueType("int8", np.dtype("i1")),
    2: ValueType("uint16", np.dtype("<u2")),
    3: ValueType("int16", np.dtype("<i2")),
    4: ValueType("uint32", np.dtype("<u4")),
    5: ValueType("int32", np.dtype("<i4")),
    6: ValueType("float32", np.dtype("<f4")),
    7: ValueType("bool", np.dtype("u1")),
    8: ValueType("string"),
    9: ValueType("array"),
    10: ValueType("uint64", np.dtype("<u8")),
    11: ValueType("int64", np.dtype("<i8")),
    12: ValueType("float64", np.dtype("<f8")),
}
BOOL, STRING, ARRAY = 7, 8, 9

_LENGTH = struct.Struct("<Q")
# A walk over strings looks at this many bytes at once, and after a surprise at this many strings one by one.
_WINDOW = 1 << 16
_ONE_BY_ONE = 128


class Source:
    """A file's bytes and its name, for messages; ``stamp`` identifies the file itself."""

    def __init__(self, path: Path, data: Bytes, stamp: tuple[int, ...] = (), mapped: mmap.mmap | None = None) -> None:
        self.path = path
        self.stamp = stamp
        self.map = mapped
        self.data = data
        self.view = memoryview(data)  # type: ignore[arg-type]  # an ndarray is a buffer; NumPy's stubs hide it
        self.size = len(data)

    def fail(self, what: str) -> ModelFileError:
        """The error to raise; ``what`` says what is wrong, where, and what to do. A file's names may hold anything."""
        return ModelFileError(f"{self.path}: {one_line(what)}")

    def release(self, offset: int, nbytes: int) -> None:
        """Let go of the map's whole pages in [offset, offset + nbytes), which come back when they are touched."""
        page = mmap.PAGESIZE
        start, end = offset // page * page, (offset + nbytes) // page * page
        if end > start and self.map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED, start, end - start)


def one_line(text: str) -> str:
    """A text out of a file that can be shown: what does not print is escaped.

    >>> one_line("a\\nb")
    'a\\\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Cursor:
    """Reads one value after the other; whatever reaches beyond the file raises ``ModelFileError``."""

    def __init__(self, source: Source, position: int = 0) -> None:
        self.source = source
        self.position = position

    @property
    def left(self) -> int:
        """Bytes from here to the file's end."""
        return self.source.size - self.position

    def skip(self, count: int, what: str) -> int:
        """Move over ``count`` bytes; returns where they start."""
        if count > self.left:
            raise self.source.fail(
                f"{what} takes {count} bytes at offset {self.position}, but the file ends at {self.source.size}; "
                "it is truncated or damaged: fetch it again"
            )
        start = self.position
        self.position += count
        return start

    def number(self, type_id: int, what: str) -> Any:
        """A scalar as a NumPy scalar; a bool as a bool."""
        dtype = cast("np.dtype[Any]", VALUE_TYPES[type_id].dtype)  # only strings and arrays have none
        start = self.skip(dtype.itemsize, what)
        value = np.frombuffer(self.source.view, dtype, 1, start)[0]
        if type_id != BOOL:
            return value
        if value > 1:
            raise self.source.fail(f"{what} is a bool of value {value}, wanted 0 or 1; the file is damaged")
        return bool(value)

    def count(self, what: str, each: int) -> int:
        """A 64-bit count of things of at least ``each`` bytes, which must fit into the rest of the file."""
        value = int(self.number(10, what))
        if value * each > self.left:
            raise self.source.fail(
                f"{what} says {value}, more than fits into the {self.left} bytes left; the file is damaged"
            )
        return value

    def string(self, what: str) -> str:
        """A length and as many bytes of UTF-8."""
        length = self.count(f"the length of {what}", 1)
        start = self.skip(length, what)
        return decode(self.source, start, length, what)

    def array(self, what: str) -> MetaArray:
        """An array of scalars or strings, left where it lies."""
        type_id = int(self.number(4, f"the element type of {what}"))
        kind = VALUE_TYPES.get(type_id)
        if kind is None:
            raise self.source.fail(f"{what} is an array of unknown type {type_id}; the file is damaged or too new")
        if type_id == ARRAY:
            raise self.source.fail(f"{what} is an array of arrays, which no model needs; remove it from the file")
        if kind.dtype is not None:
            count = self.count(f"the length of {what}", kind.dtype.itemsize)
            start = self.skip(count * kind.dtype.itemsize, what)
        else:
            count = self.count(f"the length of {what}", _LENGTH.size)
            start = self.position
            self.position = walk_strings(self.source, start, count, what)
        return MetaArray(self.source, what, type_id, count, start, self.position)


class MetaArray:
    """An array in a file's metadata that stays in the file: parts are read when they are asked for.

    ``len(a)``, ``a[i]`` and iteration give Python numbers or strings.
    """

    def __init__(self, source: Source, what: str, type_id: int, count: int, start: int, end: int) -> None:
        self._source, self._what, self._count, self._start, self._end = source, what, count, start, end
        self._starts: NDArray[np.int64] | None = None
        self.type_id = type_id

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        if self.type_id == STRING:
            start, length = self._bounds(index)
            return decode(self._source, start, length, f"string {index} of {self._what}")
        return self.numpy()[index].item()

    def __iter__(self) -> Iterator[Any]:
        if self.type_id != STRING:
            yield from self.numpy().tolist()
            return
        position, view = self._start, self._source.view
        for index in range(self._count):
            length = _LENGTH.unpack_from(view, position)[0]
            position += _LENGTH.size
            yield decode(self._source, position, length, f"string {index} of {self._what}")
            position += length

    def __repr__(self) -> str:
        return f"MetaArray({self._count} x {self.element_type})"

    @property
    def element_type(self) -> str:
        """``"string"``, ``"float32"``, ``"int32"``, ..."""
        return VALUE_TYPES[self.type_id].name

    def numpy(self) -> NDArray[Any]:
        """Numbers as a read-only view of the file (count,); bools as a copy. ``ModelFileError`` for strings."""
        dtype = VALUE_TYPES[self.type_id].dtype
        if dtype is None:
            raise self._source.fail(f"{self._what} holds strings, wanted numbers; the file is damaged")
        numbers = np.frombuffer(self._source.view, dtype, self._count, self._start)
        return numbers.astype(np.bool_) if self.type_id == BOOL else numbers

    def strings(self) -> list[str]:
        """All strings; ``ModelFileError`` for an array of numbers or bytes that are not UTF-8."""
        self._must_be_strings()
        return list(self)

    def raw_span(self) -> tuple[int, int]:
        """Offset in the file and length in bytes of the elements; a string is a 64-bit length and its bytes."""
        return self._start, self._end - self._start

    def raw(self) -> Bytes:
        """The bytes of :meth:`raw_span`, a read-only view of the file."""
        return self._source.data[self._start : self._end]

    def starts(self) -> NDArray[np.int64]:
        """Offset in the file of each string's length field (count,). Computed once, 8 bytes a string."""
        self._must_be_strings()
        if self._starts is None:
            self._starts = np.empty(self._count, np.int64)
            walk_strings(self._source, self._start, self._count, self._what, self._starts)
        return self._starts

    def _bounds(self, index: int) -> tuple[int, int]:
        position = int(self.starts()[index])
        return position + _LENGTH.size, _LENGTH.unpack_from(self._source.view, position)[0]

    def _must_be_strings(self) -> None:
        if self.type_id != STRING:
            raise self._source.fail(f"{self._what} holds {self.element_type}, wanted strings; the file is damaged")


def decode(source: Source, start: int, length: int, what: str) -> str:
    """Bytes as text; ``ModelFileError`` when they are not UTF-8."""
    try:
        return str(source.view[start : start + length], "utf-8")
    except UnicodeDecodeError as error:
        raise source.fail(
            f"{what} at offset {start} is not UTF-8 text (byte {error.start}); the file is damaged"
        ) from None


def walk_strings(source: Source, start: int, count: int, what: str, starts: NDArray[np.int64] | None = None) -> int:
    """Where ``count`` strings that begin at ``start`` end; with ``starts`` (count,), also where each begins.

    Each string's place depends on all lengths before it, yet one by one a vocabulary of 262144 takes a while. So
    guess and prove: in text without NUL, seven zero bytes in a row are the upper bytes of a length below 256. The
    places guessed so are right as far as each one begins where the one before ends; from there on a few are walked
    one by one.
    """
    data, view, size = source.data, source.view, source.size
    position, done = start, 0
    while done < count:
        window = data[position : position + _WINDOW]
        used = np.flatnonzero(window)
        guess = used[:-1][np.diff(used) > 7]
        lengths = window[guess].astype(np.int64)
        follows = guess[1:] == guess[:-1] + lengths[:-1] + _LENGTH.size
        right = len(guess) if follows.all() else int(follows.argmin()) + 1
        right = min(right, count - done) if len(guess) and guess[0] == 0 else 0
        if right:
            if starts is not None:
                starts[done : done + right] = position + guess[:right]
            done += right
            position += int(guess[right - 1] + lengths[right - 1]) + _LENGTH.size
            if position > size:
                raise _beyond(source, what, done - 1)
        if right < _ONE_BY_ONE:
            stop = min(count, done + _ONE_BY_ONE)
            while done < stop:
                if size - position < _LENGTH.size:
                    raise _beyond(source, what, done)
                if starts is not None:
                    starts[done] = position
                position += _LENGTH.unpack_from(view, position)[0] + _LENGTH.size
                if position > size:
                    raise _beyond(source, what, done)
                done += 1
    return position


def _beyond(source: Source, what: str, index: int) -> ModelFileError:
    return source.fail(
        f"string {index} of {what} reaches beyond the file's end at {source.size}; "
        "it is truncated or damaged: fetch it again"
    )
