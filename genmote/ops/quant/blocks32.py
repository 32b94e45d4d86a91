"""Layouts with blocks of 32 numbers and one scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL."""

from __future__ import annotations

import numpy as np

from genmote.ops.quant import fit
from genmote.ops.quant.layout import (
    Blocks,
    Bytes,
    Floats,
    Layout,
    Parts,
    divide,
    nibbles,
    normalise,
    planes,
    record,
    to_nibbles,
    to_planes,
)

# The levels of IQ4_NL (GGML): denser near zero, as weights are.
IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _column(blocks: Blocks, field: str) -> Floats:
    return blocks[field].astype(np.float32)[:, None]


class Q8_0(Layout):
    """A float16 scale and 32 signed bytes."""

    name = "Q8_0"
    record = record(("d", "<f2"), ("codes", "i1", 32))

    def unpack(self, blocks: Blocks) -> Parts:
        return Parts(blocks["codes"], _column(blocks, "d"), None)

    def fit(self, x: Floats) -> Blocks:
        blocks = np.empty(len(x), self.record)
        scale = np.abs(x).max(axis=1) / np.float32(127)
        blocks["d"] = self.half(scale)
        # The codes are rounded with the exact scale, as GGML does: the two engines then write the same bytes.
        scaled = divide(x, scale[:, None])
        blocks["codes"] = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
        return blocks


class _Symmetric(Layout):
    """A float16 scale and codes in [-levels, levels - 1], stored with ``levels`` added."""

    levels: int

    def unpack(self, blocks: Blocks) -> Parts:
        codes = _codes(blocks, self.levels > 8).view(np.int8)
        codes -= self.levels
        return Parts(codes, _column(blocks, "d"), None)

    def fit(self, x: Floats) -> Blocks:
        blocks = np.empty(len(x), self.record)
        y, size = normalise(x)
        blocks["d"] = self.half(fit.symmetric(y, self.levels) * size)
        codes = np.rint(divide(x, _column(blocks, "d")))
        _store_codes(blocks, (np.clip(codes, -self.levels, self.levels - 1) + self.levels).astype(np.uint8))
        return blocks


class _Affine(Layout):
    """A float16 scale, a float16 offset and codes in [0, top]."""

    top: int

    def unpack(self, blocks: Blocks) -> Parts:
        codes = _codes(blocks, self.top > 15).view(np.int8)
        return Parts(codes, _column(blocks, "d"), _column(blocks, "m"))

    def fit(self, x: Floats) -> Blocks:
        blocks = np.empty(len(x), self.record)
        y, size = normalise(x)
        scale, offset = fit.affine(y, self.top, negative_offset=False)
        blocks["d"], blocks["m"] = self.half(scale * size), self.half(offset * size)
        codes = np.rint(divide(x - _column(blocks, "m"), _column(blocks, "d")))
        _store_codes(blocks, np.clip(codes, 0, self.top).astype(np.uint8))
        return blocks


class Q4_0(_Symmetric):
    """A scale and 32 four-bit codes: the first 16 in the low halves of the bytes, the rest in the high."""

    name = "Q4_0"
    record = record(("d", "<f2"), ("low", "u1", 16))
    levels = 8


class Q5_0(_Symmetric):
    """Q4_0 with a fifth bit of each code in a 32-bit mask."""

    name = "Q5_0"
    record = record(("d", "<f2"), ("high", "u1", 4), ("low", "u1", 16))
    levels = 16


class Q4_1(_Affine):
    """A scale, an offset and 32 four-bit codes."""

    name = "Q4_1"
    record = record(("d", "<f2"), ("m", "<f2"), ("low", "u1", 16))
    top = 15


class Q5_1(_Affine):
    """Q4_1 with a fifth bit of each code in a 32-bit mask."""

    name = "Q5_1"
    record = record(("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("low", "u1", 16))
    top = 31


class IQ4_NL(Layout):
    """A scale and 32 four-bit indices into a fixed table of levels."""

    name = "IQ4_NL"
    record = record(("d", "<f2"), ("low", "u1", 16))

    def unpack(self, blocks: Blocks) -> Parts:
        return Parts(IQ4_LEVELS[nibbles(blocks["low"], 16)], _column(blocks, "d"), None)

    def fit(self, x: Floats) -> Blocks:
        blocks = np.empty(len(x), self.record)
        table = IQ4_LEVELS.astype(np.float32)
        y, size = normalise(x)
        blocks["d"] = self.half(fit.codebook(y, table) * size)
        blocks["low"] = to_nibbles(fit.nearest(divide(x, _column(blocks, "d")), table), 16)
        return blocks


def _codes(blocks: Blocks, five_bits: bool) -> Bytes:
    codes = nibbles(blocks["low"], 16)
    if five_bits:
        codes |= planes(blocks["high"], 1, 1) << 4
    return codes


def _store_codes(blocks: Blocks, codes: Bytes) -> None:
    blocks["low"] = to_nibbles(codes & 15, 16)
    if "high" in (blocks.dtype.names or ()):
        blocks["high"] = to_planes(codes >> 4, 1, 1)
