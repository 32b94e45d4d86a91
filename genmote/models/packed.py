"""The cache of re-laid weights: made once, streamed to a file, memory-mapped ever after.

The native kernels read weights in their own layout (docs/formats.md, "packed weights"). The first load of a model
writes that form to the cache folder, a slice at a time; every later load maps the file, so that it starts at once and
memory never holds the weights twice. Where the folder cannot be written, each load re-lays in memory. A packed file
made on another machine is taken from the cache folder or from beside the model: one layout serves all instruction sets.

The file: 16 bytes of magic, 8 bytes of header length, a JSON header padded to 64 bytes, then each matrix at its offset,
a multiple of 64. The header holds `key` (the model file's size, metadata and a sample of its tensors), `sha256` of
the whole model file, `source` and `mtime_ns` (where and of what time the file was), `size` of the data, and
`matrices`: name → [tensor, index, offset]. What does not agree with the model is made again.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote import home
from genmote.digest import sha256
from genmote.errors import SpecError
from genmote.models import digests

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile, TensorInfo

MAGIC = b"genmote packed 2"
ALIGN = 64
SLICE_BYTES = 1 << 20  # of the model file, re-laid at a time
PANEL = 16  # rows that are re-laid together
SPARE_BYTES = 64 << 20  # free disk space that is left alone
SAMPLES = 8  # places of a tensor that its sample is taken from

Bytes = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


@dataclass(frozen=True)
class Place:
    """One matrix of a packed file: the tensor it comes from, which of a 3-D tensor's, where it lies in the data."""

    info: TensorInfo
    index: int
    offset: int
    nbytes: int


class InMemory:
    """A matrix loader (`models.weights.MatrixLoader`) that re-lays at every load."""

    path: Path | None = None

    def __init__(self, ops: Any, model: ModelFile) -> None:
        self.ops, self.model = ops, model

    def __call__(self, name: str, info: TensorInfo) -> Any:
        packed = np.concatenate(list(_relaid(self.ops, self.model, info, _index(name, info))))
        return self.ops.packed_matrix(info.type, info.shape[-2:], packed)


class Packed(InMemory):
    """A matrix loader over a packed file."""

    def __init__(
        self,
        ops: Any,
        model: ModelFile,
        path: Path,
        data: Bytes,
        places: dict[str, Place],
        start: int,
        stamp: tuple[int, int, int, int],
    ) -> None:
        """`data` begins at byte `start` of the file, which is the one that `stamp` tells: device, inode, size, time."""
        super().__init__(ops, model)
        self.file: Path = path
        self.path, self.data, self.places, self.start, self.stamp = path, data, places, start, stamp

    def __call__(self, name: str, info: TensorInfo) -> Any:
        place = self.places.get(name)
        if place is None or place.info != info:  # packed by a version that asked for other matrices
            return super().__call__(name, info)
        return self.ops.packed_matrix(info.type, info.shape[-2:], self.data[place.offset : place.offset + place.nbytes])


def loader(model: ModelFile, ops: Any, *, progress: Progress | None = None) -> InMemory | None:
    """How `GgufWeights` should load this model's matrices: from the packed file (made now if it is absent), or re-laid
    in memory; None for an op set that takes GGUF bytes as they are.

    A model that cannot be run is refused here, before anything is written: ModelFileError, OpsError.
    """
    if not hasattr(ops, "packed_matrix"):
        return None
    with contextlib.suppress(SpecError, OSError):  # no home, no room, a read-only disk: do without the file
        for path in (model.path.with_suffix(".packed"), path_of(model)):
            found = _open(path, model, ops)
            if found is not None:
                return found
        if home.usable(path.parent):
            return pack(model, ops, path, progress=progress)
    return InMemory(ops, model)


def pack(model: ModelFile, ops: Any, path: Path | None = None, *, progress: Progress | None = None) -> Packed:
    """Write the packed file of a model (default: its place in the cache) and open it.

    Raises what a load would for a model that cannot be run, SpecError where the disk has no room, OSError where it
    cannot be written.
    """
    path = path or path_of(model)
    places, size = _plan(model, ops)
    stamp = model.path.stat().st_mtime_ns
    matrices = {name: [place.info.name, place.index, place.offset] for name, place in places.items()}
    header = json.dumps(
        {
            "key": _key(model),
            "sha256": model.sha256(),
            "source": os.fspath(model.path.absolute()),
            "mtime_ns": stamp,
            "size": size,
            "matrices": matrices,
        }
    ).encode("utf-8", "surrogateescape")
    start = _data_start(len(header))
    import shutil

    free = shutil.disk_usage(path.parent).free
    if free < start + size + SPARE_BYTES:
        raise SpecError(
            f"{path.parent}: {free >> 20} MB free, the packed weights take {size >> 20}; free some or set GENMOTE_HOME"
        )
    _sweep(path.parent, model)
    with home.atomic_write(path) as out:
        out.write(MAGIC + len(header).to_bytes(8, "little") + header)
        done = 0
        for place in places.values():
            out.write(bytes(start + place.offset - out.tell()))
            for piece in _relaid(ops, model, place.info, place.index):
                out.write(piece.data)
                done += piece.nbytes
                if progress is not None:
                    progress("re-lay weights", done, size)
        out.write(bytes(start + size - out.tell()))
        if progress is not None:
            progress("re-lay weights", size, size)  # with what lies between the parts
    found = _open(path, model, ops)
    if found is None:
        raise OSError(f"{path}: cannot be read back")
    return found


def intact(found: Packed) -> bool:
    """Whether a packed file's matrices are what the model's are when they are re-laid now; reads both files whole."""
    with open(found.file, "rb", buffering=0) as file:  # read, not mapped, which would count as this process's memory
        for place in found.places.values():
            file.seek(found.start + place.offset)
            for piece in _relaid(found.ops, found.model, place.info, place.index):
                if file.read(piece.nbytes) != piece.tobytes():
                    return False
    return True


def path_of(model: ModelFile) -> Path:
    """Where a model's packed file lies in the cache: named by the model's name and content."""
    return home.cache_dir() / "packed" / f"{model.path.stem}-{_key(model)[:16]}.packed"


def _key(model: ModelFile) -> str:
    """What tells a model from another without reading it all."""
    digest = sha256(MAGIC)
    first = min((info.offset for info in model.tensors.values()), default=0)
    digest.update(f"{model.nbytes} {first}".encode())
    # Read, not mapped: pages of the map would count as this process's memory.
    with open(model.path, "rb", buffering=0) as file:
        digest.update(file.read(first))
        places = [
            (info.offset + at, min(64, info.nbytes - at))
            for info in model.tensors.values()
            for at in range(0, info.nbytes, max(64, info.nbytes // SAMPLES))
        ]
        if hasattr(
            os, "posix_fadvise"
        ):  # these pages all at once, and no reading ahead, which is nearly the whole file
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for at, count in places:
                os.posix_fadvise(file.fileno(), at, count, os.POSIX_FADV_WILLNEED)
        for at, count in places:
            file.seek(at)
            digest.update(file.read(count))
    return digest.hexdigest()


def _plan(model: ModelFile, ops: Any) -> tuple[dict[str, Place], int]:
    """The matrices that a load of this model asks for, one after the other, and the bytes they take: a load is tried
    with nothing behind the matrices, so that a model that cannot be run is refused."""
    from genmote.models.weights import GgufWeights

    places: dict[str, Place] = {}
    end = 0

    def wanted(name: str, info: TensorInfo) -> None:
        nonlocal end
        nbytes = ops.packed_bytes(info.type, info.shape[-2:])
        if name not in places:
            places[name] = Place(info, _index(name, info), end, nbytes)
            end += -(-nbytes // ALIGN) * ALIGN

    GgufWeights(model, ops, wanted)
    return places, end


def _index(name: str, info: TensorInfo) -> int:
    """Which matrix of its tensor a loader is asked for: `NAME[3]` is the fourth of the 3-D tensor NAME."""
    return 0 if name == info.name else int(name[len(info.name) + 1 : -1])


def _relaid(ops: Any, model: ModelFile, info: TensorInfo, index: int) -> Iterator[Bytes]:
    """One matrix in the kernels' layout, piece by piece."""
    rows, cols = info.shape[-2:]
    line = info.nbytes // math.prod(info.shape[:-1])  # bytes of a row
    step = max(PANEL, SLICE_BYTES // line // PANEL * PANEL)
    for row in range(0, rows, step):
        part = np.empty((min(step, rows - row), line), np.uint8)
        model.read_into(info.offset + (index * rows + row) * line, part.reshape(-1))
        yield ops.pack(info.type, (len(part), cols), part)


def _data_start(header_bytes: int) -> int:
    return -(-(len(MAGIC) + 8 + header_bytes) // ALIGN) * ALIGN


def _header(path: Path) -> tuple[dict[str, Any], int] | None:
    """A packed file's header and where its data begins, or None if it is none, or damaged."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            lead = file.read(len(MAGIC) + 8)
            length = int.from_bytes(lead[len(MAGIC) :], "little")
            if lead[: len(MAGIC)] != MAGIC or not 0 < length < size:
                return None
            header = json.loads(file.read(length).decode("utf-8", "surrogateescape"))
            start = _data_start(length)
            return (header, start) if size == start + header["size"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open(path: Path, model: ModelFile, ops: Any) -> Packed | None:
    """The packed file if it is whole and this model's, else None."""
    found = _header(path)
    if found is None:
        return None
    header, start = found
    try:
        if header["key"] != _key(model):
            return None
        same = (
            header["source"] == os.fspath(model.path.absolute()) and header["mtime_ns"] == model.path.stat().st_mtime_ns
        )
        digest = str(header["sha256"])
        if not same and digest != digests.sha256(model):  # a copy, or changed where no sample was taken
            return None
        places = {}
        for name, (tensor, index, offset) in header["matrices"].items():
            info = model.tensors[tensor]
            nbytes = ops.packed_bytes(info.type, info.shape[-2:])
            if offset % ALIGN or not 0 <= offset <= header["size"] - nbytes:
                return None
            places[name] = Place(info, index, offset, nbytes)
        with open(path, "rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)[start:]
            status = os.fstat(file.fileno())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if len(data) != header["size"]:
        return None
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    model.sha256(known=digest)  # as its weights, taken from here
    return Packed(ops, model, path, data, places, start, stamp)


def _sweep(folder: Path, model: ModelFile) -> None:
    """Remove the packed files of what the model file was before."""
    source = os.fspath(model.path.absolute())
    for path in folder.iterdir():
        if path.suffix == ".packed" and path.name.startswith(model.path.stem):
            found = _header(path)
            if found is not None and found[0].get("source") == source:
                path.unlink(missing_ok=True)
