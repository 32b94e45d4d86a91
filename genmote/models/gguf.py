"""A model file: GGUF versions 2 and 3, read through a memory map.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, counts; metadata as key, type,
value; tensor infos as name, dims, type, offset; padding; tensor data. Whatever a file claims is checked against its
size before anything is allocated or believed, and ends in ``ModelFileError`` if it cannot be true.

>>> import tempfile
>>> from genmote.models.gguf_write import write_gguf
>>> weight = np.ones((2, 4), np.float32)
>>> with tempfile.TemporaryDirectory() as folder:
...     write_gguf(folder + "/a.gguf", {"general.architecture": "llama"}, [("w", "F32", (2, 4), weight)])
...     model = ModelFile.open(folder + "/a.gguf")
>>> model.architecture, model.tensors["w"].shape, float(model.tensor("w").sum())
('llama', (2, 4), 8.0)
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote import digest
from genmote.errors import ModelFileError, ModelNameError, SpecError
from genmote.models.gguf_values import ARRAY, STRING, VALUE_TYPES, Cursor, MetaArray, Source
from genmote.ops import quant

__all__ = ["MetaArray", "ModelFile", "TensorInfo"]

DEFAULT_ALIGNMENT = 32
# Beyond any model ever made; a file that claims more would only cost time.
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 17
_LONGEST_NAME = 1024
# The least that a key with its value, and that a tensor info, take in the file.
_KEY_BYTES = 13
_TENSOR_BYTES = 33


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's place: ``shape`` in NumPy order (out, in), ``offset`` and ``nbytes`` in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class ModelFile:
    """An open model file. Tensors are views of the file's memory map and stay valid as long as they are referred to."""

    def __init__(
        self, source: Source, version: int, typed: dict[str, Any], tensors: dict[str, TensorInfo], alignment: int
    ) -> None:
        self._source = source
        self._typed = typed
        self._sha256: str | None = None
        self.path = source.path
        self.version = version
        self.alignment = alignment
        self.tensors = tensors
        plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in typed.items()}
        self.metadata: Mapping[str, Any] = MappingProxyType(plain)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ModelFile:
        """Open and check a file; ``ModelNameError`` when there is none, ``ModelFileError`` when it is not sound."""
        source = map_file(Path(path))
        cursor = Cursor(source)
        version = _version(cursor)
        tensor_count = _limited(cursor, "the number of tensors", _TENSOR_BYTES, _MOST_TENSORS)
        key_count = _limited(cursor, "the number of metadata keys", _KEY_BYTES, _MOST_KEYS)
        typed: dict[str, Any] = {}
        for _ in range(key_count):
            _read_key(cursor, typed)
        _refuse_parts(source, typed)
        alignment = _alignment(source, typed)
        tensors = _read_tensors(cursor, tensor_count, alignment)
        return cls(source, version, typed, tensors, alignment)

    @property
    def nbytes(self) -> int:
        """The file's size in bytes."""
        return self._source.size

    @property
    def architecture(self) -> str:
        """``general.architecture``; ``ModelFileError`` when it is absent."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise self._source.fail("has no general.architecture; it is not a model that can be run")
        return name

    def typed_metadata(self) -> dict[str, Any]:
        """The metadata with numbers as NumPy scalars of their stored type: what ``write_gguf`` writes unchanged."""
        return dict(self._typed)

    def as_if(self, metadata: dict[str, Any], tensors: dict[str, TensorInfo]) -> ModelFile:
        """The same file with another header, to plan with; its tensors cannot be read where they differ."""
        plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metadata.items()}
        return ModelFile(self._source, self.version, plain, tensors, self.alignment)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """A tensor's bytes as they lie in the file, a read-only view. (nbytes,)"""
        info = self._info(name)
        return self._source.data[info.offset : info.offset + info.nbytes]

    def read(self, name: str) -> NDArray[np.uint8]:
        """A copy of a tensor's bytes, by `read_into`. (nbytes,)"""
        info = self._info(name)
        found = np.empty(info.nbytes, np.uint8)
        self.read_into(info.offset, found)
        return found

    def tensor(self, name: str) -> NDArray[np.float32]:
        """A tensor's numbers, read by `read`. -> its shape, float32"""
        info = self._info(name)
        return quant.dequantize(info.type, self.read(name), info.shape)

    def read_into(self, offset: int, into: NDArray[np.uint8]) -> None:
        """Fill `into` (bytes,) from the file at `offset` by plain reads: no page of the map becomes this process's
        memory, and a file that was cut or replaced under us is a ``ModelFileError`` and no crash.

        To touch one byte of the map may take 2 MB and more: Linux maps all of the page cache's folio that the byte lies
        in, and a file that was just written, or read from its beginning, lies there in large ones."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                if not self.is_at(os.fstat(file.fileno())):
                    raise self._source.fail("has changed since it was opened; open it again")
                file.seek(offset)
                view = into.data
                while len(view):
                    count = file.readinto(view)
                    if not count:
                        raise self._source.fail(
                            f"ends before byte {offset + into.size}; it was truncated: fetch it again"
                        )
                    view = view[count:]
        except OSError as error:
            raise self._source.fail(f"cannot be read any more ({error.strerror})") from None

    def release(self, offset: int, nbytes: int) -> None:
        """Let go of the map's whole pages in [offset, offset + nbytes): they leave this process's resident memory and
        come back from the file when they are touched again."""
        self._source.release(offset, nbytes)

    def is_at(self, status: os.stat_result) -> bool:
        """Whether this is the file that was opened, by what the system tells of it, and not one in its place."""
        return _stamp(status) == self._source.stamp

    def sha256(self, known: str | None = None) -> str:
        """SHA-256 of the whole file, in hexadecimal; computed once. ``ModelFileError`` if the file was replaced.
        `known`: what somebody has computed of this very file."""
        self._sha256 = self._sha256 or known
        if self._sha256 is None:
            try:
                with open(self.path, "rb", buffering=0) as file:
                    if self.is_at(os.fstat(file.fileno())):
                        self._sha256 = digest.of_file(file)
            except OSError as error:
                raise self._source.fail(f"cannot be read any more ({error.strerror})") from None
        if self._sha256 is None:
            raise self._source.fail("has changed since it was opened; open it again")
        return self._sha256

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise self._source.fail(f"has no tensor {name!r}; it is not a whole model of its architecture")
        return info


def map_file(path: Path, kind: str = "GGUF") -> Source:
    """The file as bytes, mapped read-only; `kind` says in messages what was wanted."""
    try:
        # Not to wait for a writer, should the path be a pipe.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ModelNameError(f"{path}: no such file; give the path of a {kind} file") from None
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be opened ({error.strerror}); give a {kind} file that can be read"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path}: is not a file; give the path of a {kind} file")
        if status.st_size == 0:
            raise ModelFileError(f"{path}: is empty; fetch it again")
        mapped = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path}: cannot be mapped into memory ({error})") from None
    finally:
        os.close(descriptor)
    return Source(path, np.frombuffer(mapped, np.uint8), _stamp(status), mapped)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file from another that took its place."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _version(cursor: Cursor) -> int:
    source = cursor.source
    if bytes(source.view[:4]) != b"GGUF":
        raise source.fail(
            f"starts with the bytes {bytes(source.view[:4]).hex(' ')}, wanted 47 47 55 46 (GGUF); it is not a GGUF file"
        )
    cursor.skip(4, "the magic")
    version = int(cursor.number(4, "the version"))
    if version and version & 0xFFFF == 0:
        raise source.fail("is a big-endian GGUF file, which is not supported; convert it to little-endian")
    if version not in (2, 3):
        age = "too old: convert the model again" if version < 2 else "too new or damaged: versions 2 and 3 are read"
        raise source.fail(f"is GGUF version {version}, {age}")
    return version


def _limited(cursor: Cursor, what: str, each: int, most: int) -> int:
    count = cursor.count(what, each)
    if count > most:
        raise cursor.source.fail(f"{what} says {count}, wanted at most {most}; the file is damaged")
    return count


def _read_key(cursor: Cursor, typed: dict[str, Any]) -> None:
    """One key and its value into ``typed``."""
    source = cursor.source
    key = cursor.string(f"metadata key {len(typed)}")
    if not key or key in typed:
        raise source.fail(
            f"metadata key {len(typed)} is {'repeated' if key else 'empty'} ({key!r}); the file is damaged"
        )
    type_id = int(cursor.number(4, f"the type of {key}"))
    if type_id not in VALUE_TYPES:
        raise source.fail(f"{key} has unknown type {type_id}; the file is damaged or too new")
    if type_id == STRING:
        typed[key] = cursor.string(key)
    elif type_id == ARRAY:
        typed[key] = cursor.array(key)
    else:
        typed[key] = cursor.number(type_id, key)


def _refuse_parts(source: Source, typed: dict[str, Any]) -> None:
    parts = typed.get("split.count", 0)
    if isinstance(parts, np.integer) and parts > 1:
        number = typed.get("split.no", 0)
        part = f"part {number + 1}" if isinstance(number, np.integer) else "a part"
        raise source.fail(f"is {part} of a model split into {parts} files; join them with `llama-gguf-split --merge`")


def _alignment(source: Source, typed: dict[str, Any]) -> int:
    value = typed.get("general.alignment", np.uint32(DEFAULT_ALIGNMENT))
    if not isinstance(value, np.integer) or value < 1 or int(value) & (int(value) - 1):
        raise source.fail(f"general.alignment is {value}, wanted a power of two; the file is damaged")
    return int(value)


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    """All tensor infos, their places checked: inside the file, aligned, apart from one another."""
    source = cursor.source
    found = []
    for index in range(count):
        name = cursor.string(f"the name of tensor {index}")
        if not 0 < len(name) <= _LONGEST_NAME:
            raise source.fail(f"tensor {index} has a name of {len(name)} characters; the file is damaged")
        dim_count = int(cursor.number(4, f"the number of dimensions of {name}"))
        if not 1 <= dim_count <= 4:
            raise source.fail(f"tensor {name} has {dim_count} dimensions, wanted 1 to 4; the file is damaged")
        dims = [int(cursor.number(10, f"a dimension of {name}")) for _ in range(dim_count)]
        type_id = int(cursor.number(4, f"the type of {name}"))
        offset = int(cursor.number(10, f"the offset of {name}"))
        found.append((name, dims, type_id, offset))
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, dims, type_id, offset in found:
        info = _place(source, name, dims, type_id, offset, start, alignment)
        if name in tensors:
            raise source.fail(f"tensor {name} is there twice; the file is damaged")
        tensors[name] = info
    ordered = sorted(tensors.values(), key=lambda info: info.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise source.fail(f"tensors {before.name} and {after.name} overlap; the file is damaged")
    return tensors


def _place(
    source: Source, name: str, dims: list[int], type_id: int, offset: int, start: int, alignment: int
) -> TensorInfo:
    """One tensor's info; ``start`` is where the tensor data begins."""
    if not all(dims):
        raise source.fail(f"tensor {name} has dimensions {dims}, wanted none of them 0; the file is damaged")
    # Every type takes at least a bit per number: what has more numbers than the file has bits is a lie.
    if math.prod(dims) > 8 * source.size:
        raise source.fail(f"tensor {name} has dimensions {dims}, more than the file can hold; the file is damaged")
    shape = tuple(reversed(dims))
    try:
        kind = quant.by_id(type_id)
        nbytes = quant.nbytes(kind.name, shape)
    except SpecError as error:
        raise source.fail(f"tensor {name}: {error}") from None
    if offset % alignment:
        raise source.fail(f"tensor {name} lies at offset {offset}, no multiple of {alignment}; the file is damaged")
    if start + offset + nbytes > source.size:
        raise source.fail(
            f"tensor {name} takes {nbytes} bytes at offset {start + offset}, but the file ends at {source.size}; "
            "it is truncated or damaged: fetch it again"
        )
    return TensorInfo(name, kind.name, shape, start + offset, nbytes)
