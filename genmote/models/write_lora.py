"""Write an adapter file, and a model with an adapter worked into its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError, UserError
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.gguf_write import Progress, Tensor, check_target, write_gguf
from genmote.models.lora import TYPE, TYPE_WITH_VECTORS, check_lora, check_scale
from genmote.models.requantise import FILE_TYPES, MatrixTypes
from genmote.ops import quant
from genmote.ops.exact import Float32

_PIECE = 1 << 20  # numbers of a matrix that are worked on at a time


def write_lora(
    path: str | os.PathLike[str],
    architecture: str,
    numbers: Mapping[str, Float32],
    alpha: float,
    *,
    type: str = "F32",
    **about: Any,
) -> None:
    """Write an adapter, whole or not at all: `numbers` by the names of the file's tensors (`models/lora.py`); `type`:
    what matrices are stored as; `about`: more metadata. ModelFileError where the disk does not take it."""
    vectors = any(numbers[name].ndim == 1 for name in numbers)
    metadata = {
        "general.type": "adapter",
        "general.architecture": architecture,
        "adapter.type": TYPE_WITH_VECTORS if vectors else TYPE,
        "adapter.lora.alpha": np.float32(alpha),
    }
    tensors: list[Tensor] = []
    for name, x in numbers.items():
        kind = type if x.ndim == 2 else "F32"
        tensors.append((name, kind, x.shape, quant.quantize(kind, np.ascontiguousarray(x))))
    write_gguf(path, metadata | about, tensors)


def merge(
    base: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    type: str | None = None,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Write the base with an adapter worked into its weights, which then costs nothing; whole or not at all.

    The matrices that change are stored in their own types again, or as `type`: what is small beside a step of a
    type of few bits is rounded away. Returns the type of each that changed. Needs memory for some rows of a matrix.
    ModelFileError for what is no adapter of this model's, SpecError for an unknown type and a scale beyond all use.
    """
    model, update = ModelFile.open(base), ModelFile.open(adapter)
    check_target(target, model.path)
    if os.path.exists(target) and os.path.samefile(target, update.path):
        raise UserError(f"{target} is the adapter itself; name another file")
    check_scale(scale, update.path.name)
    config = read_config(model)
    alpha, pairs = check_lora(update, config)
    vectors = {name for name, info in update.tensors.items() if len(info.shape) == 1}
    missing = sorted(name for name in {*pairs, *vectors} if name not in model.tensors)
    if missing:
        raise ModelFileError(
            f"{update.path.name} updates {missing[0]}, which is no tensor of {model.path.name}: it cannot be merged; "
            "give it with --adapter"
        )
    types = None if type is None else MatrixTypes(type, False, type)
    changed, tensors = {}, list[Tensor]()
    for info in model.tensors.values():
        if info.name in vectors:
            own, learnt = model.tensor(info.name), update.tensor(info.name)
            if own.shape != learnt.shape:
                raise ModelFileError(f"{update.path.name}: {info.name} has another shape; use the adapter's own base")
            tensors.append((info.name, "F32", own.shape, own + np.float32(scale) * (learnt - own)))
        elif info.name in pairs:
            down, up = (update.tensor(part.name) for part in pairs[info.name])
            factor = scale * (alpha / down.shape[0] if alpha else 1.0)
            kind = info.type if types is None else types.of(info.name, info.shape, info.type)
            changed[info.name] = kind
            tensors.append((info.name, kind, info.shape, _Merged(model, info, down, np.float32(factor) * up, kind)))
        else:
            tensors.append((info.name, info.type, info.shape, model.raw(info.name)))
    metadata = model.typed_metadata()
    if types is not None:
        metadata["general.file_type"] = np.uint32(FILE_TYPES[types.matrices])
    write_gguf(target, metadata, tensors, progress=progress)
    return changed


class _Merged:
    """A tensor's bytes with up @ down added to it, some rows at a time."""

    def __init__(self, model: ModelFile, info: TensorInfo, down: Float32, up: Float32, kind: str) -> None:
        self.model, self.info, self.down, self.up, self.kind = model, info, down, up, kind

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        rows, cols = self.info.shape
        raw = self.model.raw(self.info.name).reshape(rows, -1)
        step = max(1, _PIECE // cols)
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            numbers = quant.dequantize(self.info.type, raw[part].reshape(-1), (part.stop - start, cols))
            yield quant.quantize(self.kind, numbers + self.up[part] @ self.down)
