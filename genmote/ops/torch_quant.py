"""GGUF tensor types taken apart by PyTorch, on whatever device the bytes lie: the same float32 numbers, bit for bit, as
`ops.quant.dequantize` gives (layouts: `ops/quant/blocks32.py`, `blocks256.py`, `levels32.py`).

Weights that travel to an accelerator travel as the file stores them, some four to eight bits each, and become floats
there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.ops import quant
from genmote.ops.quant import levels32
from genmote.ops.quant.blocks32 import IQ4_LEVELS

Tensor = torch.Tensor
Parts = tuple[Tensor, Tensor, Tensor | None]  # codes (blocks, size), scales and offsets (blocks, groups)
PIECE = 1 << 22  # numbers taken apart at once: what lies beside the result stays small


def dequantize_into(type_name: str, raw: Tensor, out: Tensor) -> None:
    """The numbers that `raw` (bytes,) uint8 stores, written into `out` (numbers,), rounded to its dtype."""
    kind = quant.by_name(type_name)
    blocks = PIECE // kind.block_size
    for start in range(0, raw.numel() // kind.block_bytes, blocks):
        piece = raw[start * kind.block_bytes : (start + blocks) * kind.block_bytes]
        first = start * kind.block_size
        out[first : first + piece.numel() // kind.block_bytes * kind.block_size] = _decode(kind.name, piece)


def _decode(name: str, raw: Tensor) -> Tensor:
    """(bytes,) → (numbers,) float32."""
    if name in _PLAIN:
        return raw.view(_PLAIN[name]).float()
    codes, scale, offset = _UNPACK[name](raw.reshape(-1, quant.by_name(name).block_bytes))
    numbers = codes.reshape(*scale.shape, -1).float() * scale[:, :, None]
    return (numbers if offset is None else numbers + offset[:, :, None]).reshape(-1)


def _half(field: Tensor) -> Tensor:
    """(blocks, 2) bytes → (blocks, 1) float32."""
    return field.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor, run: int) -> Tensor:
    """Runs of `run` bytes: as many codes in their low halves, then as many in their high."""
    runs = packed.reshape(len(packed), -1, run)
    return torch.stack((runs & 15, runs >> 4), dim=2).reshape(len(packed), -1)


def _planes(packed: Tensor, bits: int, run: int) -> Tensor:
    """Runs of `run` bytes: 8 / bits planes of `run` codes, lowest bits first."""
    runs = packed.reshape(len(packed), -1, 1, run)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    return ((runs >> shifts) & ((1 << bits) - 1)).reshape(len(packed), -1)


def _signed(stored: Tensor, zero: int) -> Tensor:
    return stored.view(torch.int8) - zero


def _q8_0(b: Tensor) -> Parts:
    return b[:, 2:].contiguous().view(torch.int8), _half(b[:, :2]), None


def _q4_0(b: Tensor) -> Parts:
    return _signed(_nibbles(b[:, 2:], 16), 8), _half(b[:, :2]), None


def _q5_0(b: Tensor) -> Parts:
    codes = _nibbles(b[:, 6:], 16) | (_planes(b[:, 2:6], 1, 1) << 4)
    return _signed(codes, 16), _half(b[:, :2]), None


def _q4_1(b: Tensor) -> Parts:
    return _nibbles(b[:, 4:], 16), _half(b[:, :2]), _half(b[:, 2:4])


def _q5_1(b: Tensor) -> Parts:
    codes = _nibbles(b[:, 8:], 16) | (_planes(b[:, 4:8], 1, 1) << 4)
    return codes, _half(b[:, :2]), _half(b[:, 2:4])


def _levels(table: NDArray[np.int8], codes: Tensor) -> Tensor:
    return torch.from_numpy(table).to(codes.device)[codes.long()]


def _iq4_nl(b: Tensor) -> Parts:
    return _levels(IQ4_LEVELS, _nibbles(b[:, 2:], 16)), _half(b[:, :2]), None


def _scale(stored: Tensor) -> Tensor:
    """Bytes of scale (blocks, 1) → float32: the sign, and a float16's bits 7 to 13."""
    wide = stored.short()
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).view(torch.float16).float()


def _gm2_32(b: Tensor) -> Parts:
    return _levels(levels32.GM2_32.levels, _planes(b[:, 1:], 2, 8)), _scale(b[:, :1]), None


def _gm3_32(b: Tensor) -> Parts:
    codes = _planes(b[:, 1:9], 2, 8) | (_planes(b[:, 9:], 1, 1) << 2)
    return _levels(levels32.GM3_32.levels, codes), _scale(b[:, :1]), None


def _gm4_32(b: Tensor) -> Parts:
    return _levels(levels32.GM4_32.levels, _nibbles(b[:, 1:], 16)), _scale(b[:, :1]), None


def _affine(scale: Tensor, offset: Tensor, d: Tensor, dmin: Tensor) -> tuple[Tensor, Tensor]:
    return _half(d) * scale.float(), -(_half(dmin) * offset.float())


def _q2_k(b: Tensor) -> Parts:
    factors = b[:, :16]
    return _planes(b[:, 16:80], 2, 32), *_affine(factors & 15, factors >> 4, b[:, 80:82], b[:, 82:84])


def _factors_k(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and offsets of Q4_K and Q5_K: six-bit factors that share bytes 4 to 15."""
    scale, offset, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat([scale & 63, (rest & 15) | ((scale >> 2) & 48)], dim=1)
    offsets = torch.cat([offset & 63, (rest >> 4) | ((offset >> 2) & 48)], dim=1)
    return _affine(scales, offsets, b[:, :2], b[:, 2:4])


def _q4_k(b: Tensor) -> Parts:
    return _nibbles(b[:, 16:], 32), *_factors_k(b)


def _q5_k(b: Tensor) -> Parts:
    return _nibbles(b[:, 48:], 32) | (_planes(b[:, 16:48], 1, 32) << 4), *_factors_k(b)


def _q3_k(b: Tensor) -> Parts:
    packed = b[:, 96:108]
    factors = _signed(_nibbles(packed[:, :8], 8) | (_planes(packed[:, 8:], 2, 4) << 4), 32)
    codes = _signed(_planes(b[:, 32:96], 2, 32) | (_planes(b[:, :32], 1, 32) << 2), 4)
    return codes, _half(b[:, 108:110]) * factors.float(), None


def _q6_k(b: Tensor) -> Parts:
    codes = _signed(_nibbles(b[:, :128], 64) | (_planes(b[:, 128:192], 2, 32) << 4), 32)
    factors = b[:, 192:208].contiguous().view(torch.int8)
    return codes, _half(b[:, 208:210]) * factors.float(), None


_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_UNPACK: dict[str, Callable[[Tensor], Parts]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "IQ4_NL": _iq4_nl,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "GM2_32": _gm2_32,
    "GM3_32": _gm3_32,
    "GM4_32": _gm4_32,
}
