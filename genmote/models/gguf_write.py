"""Write GGUF version 3 files: streamed, aligned, and there only when whole.

Tensors are given as bytes or as functions that make them when their turn comes, so that a model larger than memory can
be written piece by piece.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from genmote import home
from genmote.errors import ModelFileError, SpecError, UserError
from genmote.home import atomic_write
from genmote.models.gguf_values import ARRAY, BOOL, STRING, VALUE_TYPES, MetaArray
from genmote.ops import quant

# Bytes of a tensor: a buffer, pieces of it in order, or a function that makes either.
Data = Any
Tensor = tuple[str, str, tuple[int, ...], Data]
# Called with what is done, bytes done and bytes in all.
Progress = Callable[[str, int, int], None]

_IDS = {kind.dtype: type_id for type_id, kind in VALUE_TYPES.items() if kind.dtype is not None and type_id != BOOL}


def check_target(target: str | os.PathLike[str], source: Path) -> None:
    """Raise UserError where a model made of `source` would take its place, or that of something that is no file, or
    would have no folder to be in."""
    if Path(target).exists() and Path(target).samefile(source):
        raise UserError(f"{target} is the model itself; name another file")
    try:
        folder = home.target(target).parent
    except IsADirectoryError:
        raise UserError(f"{target} is a folder; name the file to write in it") from None
    except OSError as fault:
        raise UserError(f"{target} cannot be written ({fault.strerror}); name another file") from None
    if not folder.is_dir():
        raise UserError(f"{target}: {folder} is no folder; make it first")


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[Tensor],
    *,
    progress: Progress | None = None,
) -> None:
    """Write a model file; nothing appears at ``path`` unless all of it could be written.

    ``metadata`` values: str, bool, int (stored in 32 bits where it fits), float (float32), NumPy scalars and arrays
    (their own type), lists of one of these, and a ``MetaArray`` of another file (copied as it is).
    ``tensors``: (name, type, shape in NumPy order, data), data being a buffer (an array of any dtype counts as its
    bytes), an iterable of buffers, or a function without arguments that returns one of these.
    ``SpecError`` for a value without a GGUF type, a repeated name and data of the wrong length; ``ModelFileError``
    when the disk does not take the file.
    """
    plan = list(tensors)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int | np.integer) or alignment < 1 or int(alignment) & (int(alignment) - 1):
        raise SpecError(f"general.alignment={alignment!r}: wanted a power of two, such as 32")
    alignment = int(alignment)
    infos, sizes = _tensor_infos(plan, alignment)
    try:
        with atomic_write(path) as out:
            out.write(b"GGUF" + struct.pack("<IQQ", 3, len(plan), len(metadata)))
            for key, value in metadata.items():
                out.write(_string(key))
                _write_value(out, key, value)
            out.write(infos)
            # Each tensor begins and, as other writers do it, also ends on a whole multiple.
            out.write(bytes(-out.tell() % alignment))
            done = 0
            for (name, _, _, data), size in zip(plan, sizes, strict=True):
                for count in _write_data(out, name, data, size):
                    done += count
                    if progress is not None:
                        progress(f"writing {os.path.basename(path)}", done, sum(sizes))
                out.write(bytes(-size % alignment))
    except OSError as error:
        if not (folder := os.path.dirname(os.path.abspath(path))) or not os.path.isdir(folder):
            raise ModelFileError(f"{path}: cannot be written, {folder} is no folder; make it first") from None
        if os.path.isdir(path):
            raise ModelFileError(f"{path} is a folder; name the file to write in it") from None
        raise ModelFileError(
            f"{path}: cannot be written ({error.strerror}); free space or give another place"
        ) from None


def _tensor_infos(plan: list[Tensor], alignment: int) -> tuple[bytes, list[int]]:
    """The header's tensor section, and each tensor's size in bytes."""
    section, sizes, offset = bytearray(), [], 0
    for name, type_name, shape, _ in plan:
        if not name or not 1 <= len(shape) <= 4 or min(shape) < 1:
            raise SpecError(f"tensor {name!r} has shape {tuple(shape)}; wanted a name and 1 to 4 dimensions above 0")
        kind = quant.by_name(type_name)
        size = quant.nbytes(kind.name, shape)
        dims = tuple(reversed(shape))
        section += _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind.ggml_id, offset)
        sizes.append(size)
        offset += -(-size // alignment) * alignment
    names = [name for name, *_ in plan]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError(f"tensor {twice} is given twice; give each name once")
    return bytes(section), sizes


def _write_data(out: IO[bytes], name: str, data: Data, size: int) -> Iterator[int]:
    """Write a tensor piece by piece; yields the bytes of each."""
    if isinstance(data, Callable):  # type: ignore[arg-type]  # mypy: Callable is no plain class
        data = data()
    pieces = [data] if _is_buffer(data) else data
    written = 0
    for piece in pieces:
        # An array may be of any dtype and order; its bytes are meant.
        flat = np.ascontiguousarray(piece).reshape(-1).view(np.uint8) if isinstance(piece, np.ndarray) else piece
        view = memoryview(cast(Any, flat)).cast("B")
        written += len(view)
        if written > size:
            break
        out.write(view)
        yield len(view)
    if written != size:
        got = f"at least {written}" if written > size else written
        raise SpecError(f"tensor {name} takes {size} bytes; got {got}")


def _is_buffer(data: Data) -> bool:
    try:
        memoryview(data)
    except TypeError:
        return False
    return True


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _write_value(out: IO[bytes], key: str, value: Any) -> None:
    """A value's type and the value."""
    if isinstance(value, MetaArray):
        out.write(struct.pack("<IIQ", ARRAY, value.type_id, len(value)))
        out.write(value.raw().data)
    elif isinstance(value, str):
        out.write(struct.pack("<I", STRING) + _string(value))
    elif isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        out.write(struct.pack("<IIQ", ARRAY, STRING, len(value)))
        for item in value:
            out.write(_string(item))
    elif isinstance(value, list | tuple | np.ndarray):
        type_id, numbers = _numbers(key, value)
        if numbers.ndim != 1:
            raise SpecError(f"{key}: an array of shape {numbers.shape} has no place in a GGUF file; give one dimension")
        out.write(struct.pack("<IIQ", ARRAY, type_id, len(numbers)) + numbers.tobytes())
    else:
        type_id, number = _numbers(key, value)
        out.write(struct.pack("<I", type_id) + number.tobytes())


def _numbers(key: str, value: Any) -> tuple[int, np.ndarray[Any, Any]]:
    """GGUF type and little-endian array (or 0-d array) of a number, a bool, or several."""
    if isinstance(value, list | tuple) and not value:
        raise SpecError(f"{key}: an empty list has no type; give an empty NumPy array of the type you mean")
    array = np.asarray(value)
    if array.dtype == np.bool_:
        return BOOL, array
    if not isinstance(value, np.ndarray | np.generic):
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        elif array.dtype.kind == "i":
            # Lists of ints are int32, as token types are everywhere; single ints are uint32, as counts are.
            wanted = np.int32 if array.ndim or array < 0 else np.uint32
            limits = np.iinfo(wanted)
            if not array.size or (limits.min <= array.min() and array.max() <= limits.max):
                array = array.astype(wanted)
            elif not array.ndim and array >= 0:
                array = array.astype(np.uint64)
    array = array.astype(array.dtype.newbyteorder("<"))
    type_id = _IDS.get(array.dtype)
    if type_id is None:
        raise SpecError(f"{key}: {value!r} has no GGUF type; give a str, bool, int, float, or a list of one of these")
    return type_id, array
