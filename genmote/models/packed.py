"""The cache of re-laid weights: made once, streamed to a file, memory-mapped ever after.

The native kernels read weights in their own layout (docs/formats.md, "packed weights"). The first load of a model
writes that form to the cache folder, a slice at a time; every later load maps the file, so that it starts at once and
memory never holds the weights twice. Where the folder cannot be written, each load re-lays in memory.

The file: 16 bytes of magic, 8 bytes of header length, a JSON header {key, size, tensors: {name: [type, rows, cols,
offset, nbytes]}} padded to 64 bytes, then each matrix at its offset, a multiple of 64. `key` names the model file's
identity; a file whose key, size or layout version differs is made again. One layout serves all instruction sets.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote import home
from genmote.errors import OpsError, SpecError

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile, TensorInfo

MAGIC = b"genmote packed 1"
ALIGN = 64
SLICE_BYTES = 4 << 20  # of the model file, re-laid at a time
PANEL = 16  # rows that are re-laid together
SPARE_BYTES = 64 << 20  # free disk space that is left alone

Bytes = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all


@dataclass(frozen=True)
class Plan:
    """What a packed file holds: for each 2-D slice its type, rows, columns, offset from the data's start and size."""

    tensors: dict[str, tuple[str, int, int, int, int]]
    nbytes: int


class Packed:
    """A matrix loader (`models.weights.MatrixLoader`) over a packed file; `path` tells which."""

    def __init__(self, ops: Any, path: Path, data: Bytes, plan: Plan) -> None:
        self.ops, self.path, self.data, self.plan = ops, path, data, plan

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def __call__(self, name: str, info: TensorInfo) -> Any:
        type_name, rows, cols, offset, nbytes = self.plan.tensors[name]
        return self.ops.packed_matrix(type_name, (rows, cols), self.data[offset : offset + nbytes])


class InMemory:
    """A matrix loader that re-lays at every load, letting go of the model file's pages as it does."""

    path = None

    def __init__(self, ops: Any, model: ModelFile) -> None:
        self.ops, self.model = ops, model

    def __call__(self, name: str, info: TensorInfo) -> Any:
        rows, cols = info.shape[-2:]
        packed = np.concatenate(list(_relaid(self.ops, self.model, name, info)))
        return self.ops.packed_matrix(info.type, (rows, cols), packed)


def loader(model: ModelFile, ops: Any, *, progress: Progress | None = None) -> Packed | InMemory | None:
    """How `GgufWeights` should load this model's matrices: from the packed file (made now if it is absent), or re-laid
    in memory; None for an op set that takes GGUF bytes as they are."""
    if not hasattr(ops, "packed_matrix"):
        return None
    with contextlib.suppress(SpecError, OSError):  # no home, no room, a read-only disk: do without the file
        path = path_of(model)
        found = _open(path, model, ops)
        if found is not None:
            return found
        if home.usable(path.parent):
            return pack(model, ops, path, progress=progress)
    return InMemory(ops, model)


def pack(model: ModelFile, ops: Any, path: Path | None = None, *, progress: Progress | None = None) -> Packed:
    """Write the packed file of a model (default: its place in the cache) and open it.

    Raises SpecError where the disk has no room, OSError where it cannot be written, OpsError for tensors that the
    kernels have no layout for.
    """
    path = path or path_of(model)
    plan = _plan(model, ops)
    header = json.dumps({"key": _key(model), "size": plan.nbytes, "tensors": plan.tensors}).encode()
    start = _data_start(len(header))
    free = shutil.disk_usage(path.parent).free
    if free < start + plan.nbytes + SPARE_BYTES:
        raise SpecError(
            f"{path.parent}: {free >> 20} MB free, the packed weights take {plan.nbytes >> 20}; "
            "free some or set GENMOTE_HOME"
        )
    for left in path.parent.glob(
        f"{path.name[: path.name.rindex('-')]}-*.packed"
    ):  # of an older model at the same path
        left.unlink(missing_ok=True)
    with home.atomic_write(path) as out:
        out.write(MAGIC + len(header).to_bytes(8, "little") + header)
        out.write(bytes(start - out.tell()))
        done = 0
        for name, (*_, offset, _nbytes) in plan.tensors.items():
            out.write(bytes(start + offset - out.tell()))
            for piece in _relaid(ops, model, name, model.tensors[name.partition("[")[0]]):
                out.write(piece.data)
                done += piece.nbytes
                if progress is not None:
                    progress("re-lay weights", done, plan.nbytes)
        out.write(bytes(start + plan.nbytes - out.tell()))
    found = _open(path, model, ops)
    if found is None:
        raise OSError(f"{path}: cannot be read back")
    return found


def path_of(model: ModelFile) -> Path:
    """Where a model's packed file lies: in the cache, named by the model's file, folder and content."""
    folder = hashlib.sha256(os.fsencode(model.path.absolute().parent)).hexdigest()[:8]
    return home.cache_dir() / "packed" / f"{model.path.stem}-{folder}-{_key(model)[:16]}.packed"


def _key(model: ModelFile) -> str:
    """The identity of a model file's content without reading it all: size, time of change, everything before the
    tensors, and a sample of each tensor."""
    digest = hashlib.sha256(MAGIC)
    first = min((info.offset for info in model.tensors.values()), default=0)
    digest.update(f"{model.nbytes} {model.path.stat().st_mtime_ns} {first}".encode())
    with open(model.path, "rb") as file:  # read, not mapped: pages of the map would count as this process's memory
        digest.update(file.read(first))
        for info in model.tensors.values():
            file.seek(info.offset + info.nbytes // 2)
            digest.update(file.read(min(64, info.nbytes - info.nbytes // 2)))
    return digest.hexdigest()


def _plan(model: ModelFile, ops: Any) -> Plan:
    tensors, at = {}, 0
    for name, info in model.tensors.items():
        if len(info.shape) < 2:
            continue
        rows, cols = info.shape[-2:]
        count = math.prod(info.shape[:-2])
        try:
            nbytes = ops.packed_bytes(info.type, (rows, cols))
        except OpsError as error:
            raise OpsError(f"{name}: {error}") from None
        for index in range(count):
            tensors[name if len(info.shape) == 2 else f"{name}[{index}]"] = (info.type, rows, cols, at, nbytes)
            at += -(-nbytes // ALIGN) * ALIGN
    return Plan(tensors, at)


def _relaid(ops: Any, model: ModelFile, name: str, info: TensorInfo) -> Iterator[Bytes]:
    """One 2-D slice of a tensor (`NAME`, or `NAME[index]`) in the kernels' layout, piece by piece."""
    rows, cols = info.shape[-2:]
    count = math.prod(info.shape[:-2])
    index = int(name.rpartition("[")[2].rstrip("]")) if name.endswith("]") else 0
    lines = model.raw(info.name).reshape(count, rows, -1)[index]
    step = max(PANEL, SLICE_BYTES // lines.shape[1] // PANEL * PANEL)
    for row in range(0, rows, step):
        part = lines[row : row + step]
        yield ops.pack(info.type, (part.shape[0], cols), part)
        offset = info.offset + (index * rows + row) * lines.shape[1]
        model.release(offset, part.nbytes)


def _data_start(header_bytes: int) -> int:
    return -(-(len(MAGIC) + 8 + header_bytes) // ALIGN) * ALIGN


def _open(path: Path, model: ModelFile, ops: Any) -> Packed | None:
    """The packed file if it is whole and this model's, else None."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            lead = file.read(len(MAGIC) + 8)
            length = int.from_bytes(lead[len(MAGIC) :], "little")
            if lead[: len(MAGIC)] != MAGIC or not 0 < length < size:
                return None
            header = json.loads(file.read(length))
            start = _data_start(length)
            if header["key"] != _key(model) or size != start + header["size"]:
                return None
            data = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)[start:]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    plan = _plan(model, ops)
    return Packed(ops, path, data, plan) if plan.nbytes == header["size"] else None
