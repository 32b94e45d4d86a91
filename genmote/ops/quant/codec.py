"""Numbers to stored bytes and back, for every tensor type.

Work goes through a tensor in pieces of ``PIECE`` numbers: temporary memory stays at a few megabytes however large
the tensor is, and a piece stays in the processor's cache while it is searched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genmote.errors import SpecError
from genmote.ops.quant import blocks32, blocks256
from genmote.ops.quant.layout import Floats, Layout, Parts
from genmote.ops.quant.types import TensorType, by_name, codec_names, nbytes

PIECE = 1 << 16

_LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        blocks32.Q8_0(),
        blocks32.Q4_0(),
        blocks32.Q4_1(),
        blocks32.Q5_0(),
        blocks32.Q5_1(),
        blocks32.IQ4_NL(),
        blocks256.Q2_K(),
        blocks256.Q3_K(),
        blocks256.Q4_K(),
        blocks256.Q5_K(),
        blocks256.Q6_K(),
    )
}


def dequantize(type_name: str, raw: NDArray[np.uint8], shape: Sequence[int]) -> Floats:
    """The numbers that ``raw`` stores. (bytes,) -> ``shape``, float32

    ``raw`` is one run of bytes, as ``quantize`` makes it or as it lies in a file; ``SpecError`` when it is not as long
    as ``shape`` asks.

    >>> dequantize("Q4_0", quantize("Q4_0", np.zeros((2, 32), np.float32)), (2, 32)).any()
    np.False_
    """
    kind = _weights(type_name)
    want = nbytes(kind.name, shape)
    data = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    if data.size != want:
        raise SpecError(f"{kind.name} of shape {tuple(shape)} takes {want} bytes; got {data.size}")
    out = np.empty(math.prod(shape), np.float32)
    blocks = PIECE // kind.block_size
    for start in range(0, data.size // kind.block_bytes, blocks):
        piece = data[start * kind.block_bytes : (start + blocks) * kind.block_bytes]
        first = start * kind.block_size
        _decode(kind, piece, out[first : first + len(piece) // kind.block_bytes * kind.block_size])
    return out.reshape(tuple(shape))


def dequantize_rows(type_name: str, raw: NDArray[np.uint8], shape: Sequence[int], rows: ArrayLike) -> Floats:
    """Some rows of a matrix, without touching the others: an embedding look-up. (bytes,) -> (len(rows), cols)

    ``shape`` is the whole matrix's (rows, cols); ``IndexError`` for a row outside it.
    """
    kind = _weights(type_name)
    index = np.asarray(rows, np.int64).reshape(-1)
    row_bytes = nbytes(kind.name, shape[-1:])
    table = np.ascontiguousarray(raw).reshape(-1, row_bytes)
    return dequantize(kind.name, table[index], (len(index), shape[-1]))


def quantize(type_name: str, x: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes that store ``x`` (..., cols) with little error. -> (bytes,)

    Rows must be whole blocks. ``SpecError`` for NaN, infinity and numbers beyond the type's range.

    >>> quantize("Q8_0", np.ones((1, 32))).size
    34
    """
    kind = _weights(type_name)
    values = np.asarray(x)
    out = np.empty(nbytes(kind.name, values.shape), np.uint8)
    flat = values.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = np.ascontiguousarray(flat[start : start + PIECE], np.float32)
        if not np.isfinite(piece).all():
            bad = piece[~np.isfinite(piece)][0]
            raise SpecError(f"cannot store {bad} as {kind.name}: weights must be finite; look for what made it")
        first = start // kind.block_size * kind.block_bytes
        encoded = _encode(kind, piece)
        out[first : first + encoded.size] = encoded
    return out


def unpack(type_name: str, raw: NDArray[np.uint8]) -> Parts:
    """Integer codes, scales and offsets of quantised blocks, exactly as stored. (bytes,) -> :class:`Parts`

    ``SpecError`` for a type without codes (F32, F16, BF16).
    """
    kind = layout(type_name)
    return kind.unpack(np.ascontiguousarray(raw).reshape(-1).view(kind.record))


def layout(type_name: str) -> Layout:
    """How the type's blocks are laid out; ``SpecError`` for a type without codes (F32, F16, BF16)."""
    found = _LAYOUTS.get(by_name(type_name).name)
    if found is None:
        raise SpecError(f"{type_name} stores plain numbers; only {', '.join(_LAYOUTS)} have codes to unpack")
    return found


def _weights(type_name: str) -> TensorType:
    kind = by_name(type_name)
    if not kind.codec:
        raise SpecError(f"{kind.name} tensors are carried along, not computed with; use {', '.join(codec_names())}")
    return kind


def _decode(kind: TensorType, raw: NDArray[np.uint8], out: Floats) -> None:
    """Blocks ``raw`` (bytes,) into ``out`` (numbers,)."""
    own = _LAYOUTS.get(kind.name)
    if own is not None:
        with np.errstate(all="ignore"):  # a damaged file's scales may be anything; its numbers are then, too
            parts = own.unpack(raw.view(own.record))
            result = out.reshape(*parts.scale.shape, -1)
            np.multiply(parts.codes.reshape(result.shape), parts.scale[:, :, None], out=result)
            if parts.offset is not None:
                result += parts.offset[:, :, None]
    elif kind.name == "BF16":
        np.left_shift(raw.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[:] = raw.view("<f2" if kind.name == "F16" else "<f4")


def _encode(kind: TensorType, x: Floats) -> NDArray[np.uint8]:
    """Finite ``x`` (numbers,) as bytes (bytes,)."""
    own = _LAYOUTS.get(kind.name)
    if own is not None:
        return own.fit(x.reshape(-1, kind.block_size)).view(np.uint8)
    if kind.name == "F32":
        return x.astype("<f4").view(np.uint8)
    if kind.name == "BF16":
        bits = x.view(np.uint32).astype(np.uint64)
        # Round half to even: add just under half a unit, plus the last kept bit.
        stored = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        beyond = (stored & 0x7FFF) == 0x7F80
    else:
        with np.errstate(over="ignore"):
            half = x.astype("<f2")
        stored = half.view("<u2")
        beyond = np.isinf(half)
    if beyond.any():
        raise SpecError(
            f"{x[beyond][0]:.6g} is beyond the range of {kind.name}; use F32{' or BF16' * (kind.name == 'F16')}"
        )
    return stored.view(np.uint8)
