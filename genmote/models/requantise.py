"""Store a model's matrices as another tensor type: numbers out of one file, rounded into the next."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.models.config import is_tied
from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.gguf_write import Progress, Tensor, write_gguf
from genmote.ops import quant

# `general.file_type`: what a reader shows as the file's type (llama.h); it decides nothing.
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "BF16": 32,
}
# Matrices that stay as they are: they are tiny, and an error in them costs a whole token or expert.
KEPT = ("ffn_gate_inp.weight", "position_embd.weight", "rope_freqs.weight")
# Numbers taken through float32 at once.
_PIECE = 1 << 22


def convert_type(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str,
    *,
    embedding_type: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write ``source`` to ``target`` with its matrices stored as ``type``; metadata and vectors stay as they are.

    ``embedding_type`` is the type of the token embedding and of the output matrix; without it the one that makes the
    logits is stored as Q6_K where ``type`` has fewer bits, as llama.cpp does, for it is the most sensitive.
    A matrix whose rows do not fit a type's blocks gets the nearest type that they fit (:func:`quant.fallback`).
    Needs memory for a piece of one tensor only. ``ModelFileError`` for a damaged source, ``SpecError`` for an unknown
    type or one that the numbers do not fit.
    """
    model = ModelFile.open(source)
    types = MatrixTypes(type, is_tied(model.tensors), embedding_type)
    tensors: list[Tensor] = []
    for info in model.tensors.values():
        wanted = types.of(info.name, info.shape, info.type)
        data = model.raw(info.name) if wanted == info.type else Pieces(model, info, wanted)
        tensors.append((info.name, wanted, info.shape, data))
    metadata = model.typed_metadata()
    metadata["general.file_type"] = np.uint32(FILE_TYPES[types.matrices])
    write_gguf(target, metadata, tensors, progress=progress)


class MatrixTypes:
    """Which type each tensor of a model gets when its matrices are to be stored as ``type``; see ``convert_type``."""

    def __init__(self, type: str, tied: bool, embedding_type: str | None = None) -> None:
        kind = _weights(type)
        sensitive = "Q6_K" if kind.bits_per_weight < quant.TYPES["Q6_K"].bits_per_weight else kind.name
        self.matrices = kind.name
        self.special = {"token_embd.weight": sensitive if tied else kind.name, "output.weight": sensitive}
        if embedding_type is not None:
            self.special = dict.fromkeys(self.special, _weights(embedding_type).name)

    def of(self, name: str, shape: tuple[int, ...], now: str) -> str:
        """The type for a tensor that is stored as ``now``: vectors, tables and whatever holds no weights stay so."""
        is_matrix = len(shape) > 1 and name.endswith(".weight") and quant.by_name(now).codec
        if not is_matrix or name.endswith(KEPT):
            return now
        return quant.fallback(self.special.get(name, self.matrices), shape[-1])


class Pieces:
    """A tensor's bytes in another type, some rows at a time."""

    def __init__(self, model: ModelFile, info: TensorInfo, wanted: str) -> None:
        self.model, self.info, self.wanted = model, info, wanted

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        cols = self.info.shape[-1]
        raw = self.model.raw(self.info.name).reshape(-1, quant.nbytes(self.info.type, (cols,)))  # (rows, bytes)
        step = max(1, _PIECE // cols)
        for start in range(0, len(raw), step):
            rows = raw[start : start + step]
            numbers = quant.dequantize(self.info.type, rows.reshape(-1), (len(rows), cols))
            try:
                yield quant.quantize(self.wanted, numbers)
            except SpecError as error:
                raise SpecError(f"tensor {self.info.name}: {error}") from None


def _weights(name: str) -> quant.TensorType:
    kind = quant.by_name(name)
    if not kind.codec:
        raise SpecError(f"type={kind.name}: weights cannot be stored so; use one of {', '.join(quant.codec_names())}")
    return kind
