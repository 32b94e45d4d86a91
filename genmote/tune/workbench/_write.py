"""A whole model file of what was learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.gguf_write import Tensor, write_gguf
from genmote.models.requantise import FILE_TYPES, MatrixTypes
from genmote.ops import quant
from genmote.ops.exact import Float32

PIECE = 1 << 20  # numbers that are rounded at a time
Numbers = Callable[[str], Float32 | None]  # what a tensor, or one expert of it, is to be; None: as it is


def write_model(path: Path, file: ModelFile, numbers: Numbers, type: str | None, about: dict[str, Any]) -> None:
    """The file again, whole or not at all, with other numbers, which are rounded to what each tensor is stored as, or
    to `type` where they are matrices. `about`: more metadata. ModelFileError where the disk does not take it, SpecError
    for an unknown type."""
    types = None if type is None else MatrixTypes(type, False, type)
    tensors = list[Tensor]()
    for info in file.tensors.values():
        parts = _parts(info)
        if all(numbers(part) is None for part in parts):
            tensors.append((info.name, info.type, info.shape, lambda info=info: file.read(info.name)))
            continue
        kind = info.type if types is None else types.of(info.name, info.shape, info.type)
        tensors.append((info.name, kind, info.shape, _Rounded(file, info, parts, numbers, kind)))
    metadata = file.typed_metadata() | about
    if types is not None:
        metadata["general.file_type"] = np.uint32(FILE_TYPES[types.matrices])
    write_gguf(path, metadata, tensors)


def _parts(info: TensorInfo) -> list[str]:
    """A tensor's matrices by their names: one, or a mixture's experts."""
    return [info.name] if len(info.shape) < 3 else [f"{info.name}[{expert}]" for expert in range(info.shape[0])]


class _Rounded:
    """A tensor's bytes, some rows at a time."""

    def __init__(self, file: ModelFile, info: TensorInfo, parts: list[str], numbers: Numbers, kind: str) -> None:
        self.file, self.info, self.parts, self.numbers, self.kind = file, info, parts, numbers, kind

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        cols = self.info.shape[-1]
        for index, part in enumerate(self.parts):
            found = self.numbers(part)
            if found is None:  # an expert that did not learn
                raw = self.file.read(self.info.name).reshape(len(self.parts), -1)[index]
                found = quant.dequantize(self.info.type, raw, self.info.shape[-2:])
            rows = found.reshape(-1, cols)
            step = max(1, PIECE // cols)
            for start in range(0, len(rows), step):
                yield quant.quantize(self.kind, np.ascontiguousarray(rows[start : start + step]))
