"""Layouts with blocks of 32 numbers and one scale: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmote.ops.quant import fit
from genmote.ops.quant.layout import (
    Blocks,
    Bytes,
    Floats,
    Scales,
    Searched,
    divide,
    nibbles,
    planes,
    record,
    to_nibbles,
    to_planes,
)

Codes = NDArray[np.int8]

# The levels of IQ4_NL (GGML): denser near zero, as weights are.
IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


class _Block(Searched):
    """A block is one group: a float16 scale ``d``, and where the record has ``m``, a float16 offset."""

    group = 32

    def scales_of(self, blocks: Blocks) -> Scales:
        offset = "m" in (self.record.names or ())
        return Scales(_column(blocks, "d"), _column(blocks, "m") if offset else None)

    def hold(self, scale: Floats, offset: Floats | None) -> Scales:
        unit = self.half(scale).astype(np.float32)
        return Scales(unit, None if offset is None else self.half(offset).astype(np.float32))

    def pack(self, scales: Scales, codes: Codes) -> Blocks:
        blocks = np.empty(len(codes), self.record)
        blocks["d"] = scales.unit[:, 0]
        if scales.base is not None:
            blocks["m"] = scales.base[:, 0]
        self.store_codes(blocks, codes)
        return blocks

    def store_codes(self, blocks: Blocks, codes: Codes) -> None:
        """The inverse of ``codes_of``."""
        raise NotImplementedError


def _column(blocks: Blocks, field: str) -> Floats:
    return blocks[field].astype(np.float32)[:, None]


class Q8_0(_Block):
    """A float16 scale and 32 signed bytes."""

    name = "Q8_0"
    record = record(("d", "<f2"), ("codes", "i1", 32))
    levels = np.arange(-127, 128, dtype=np.int8)

    def codes_of(self, blocks: Blocks) -> Codes:
        codes: Codes = blocks["codes"]
        return codes

    def store_codes(self, blocks: Blocks, codes: Codes) -> None:
        blocks["codes"] = codes

    def search(self, x: Floats, weight: Floats | None) -> tuple[Floats, None]:
        return np.full(len(x), 1 / 127, np.float32), None

    def fit(self, x: Floats) -> Blocks:
        scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
        # The codes are rounded with the exact scale, as GGML does: the two engines then write the same bytes.
        scaled = divide(x, scale)
        codes = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
        return self.pack(self.hold(scale, None), codes)


class _Symmetric(_Block):
    """Codes in [-top - 1, top], stored with ``top + 1`` added."""

    def codes_of(self, blocks: Blocks) -> Codes:
        codes = _codes(blocks).view(np.int8)
        codes += self.levels[0]
        return codes

    def store_codes(self, blocks: Blocks, codes: Codes) -> None:
        _store_codes(blocks, (codes - self.levels[0]).view(np.uint8))

    def search(self, x: Floats, weight: Floats | None) -> tuple[Floats, None]:
        return fit.symmetric(x, -int(self.levels[0]), weight), None


class _Affine(_Block):
    """A float16 offset too, and codes in [0, top]."""

    def codes_of(self, blocks: Blocks) -> Codes:
        return _codes(blocks).view(np.int8)

    def store_codes(self, blocks: Blocks, codes: Codes) -> None:
        _store_codes(blocks, codes.view(np.uint8))

    def search(self, x: Floats, weight: Floats | None) -> tuple[Floats, Floats]:
        return fit.affine(x, int(self.levels[-1]), weight, negative_offset=False)


class Q4_0(_Symmetric):
    """A scale and 32 four-bit codes: the first 16 in the low halves of the bytes, the rest in the high."""

    name = "Q4_0"
    record = record(("d", "<f2"), ("low", "u1", 16))
    levels = np.arange(-8, 8, dtype=np.int8)


class Q5_0(_Symmetric):
    """Q4_0 with a fifth bit of each code in a 32-bit mask."""

    name = "Q5_0"
    record = record(("d", "<f2"), ("high", "u1", 4), ("low", "u1", 16))
    levels = np.arange(-16, 16, dtype=np.int8)


class Q4_1(_Affine):
    """A scale, an offset and 32 four-bit codes."""

    name = "Q4_1"
    record = record(("d", "<f2"), ("m", "<f2"), ("low", "u1", 16))
    levels = np.arange(16, dtype=np.int8)


class Q5_1(_Affine):
    """Q4_1 with a fifth bit of each code in a 32-bit mask."""

    name = "Q5_1"
    record = record(("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("low", "u1", 16))
    levels = np.arange(32, dtype=np.int8)


class IQ4_NL(_Block):
    """A scale and 32 four-bit indices into a fixed table of levels."""

    name = "IQ4_NL"
    record = record(("d", "<f2"), ("low", "u1", 16))
    levels = IQ4_LEVELS

    def codes_of(self, blocks: Blocks) -> Codes:
        return IQ4_LEVELS[nibbles(blocks["low"], 16)]

    def store_codes(self, blocks: Blocks, codes: Codes) -> None:
        blocks["low"] = to_nibbles(np.searchsorted(IQ4_LEVELS, codes).astype(np.uint8), 16)

    def search(self, x: Floats, weight: Floats | None) -> tuple[Floats, None]:
        return fit.codebook(x, IQ4_LEVELS.astype(np.float32), weight), None

    def round(self, x: Floats, scales: Scales) -> Codes:
        return IQ4_LEVELS[fit.nearest(divide(x, scales.unit), IQ4_LEVELS.astype(np.float32))]


def _codes(blocks: Blocks) -> Bytes:
    codes = nibbles(blocks["low"], 16)
    if "high" in (blocks.dtype.names or ()):
        codes |= planes(blocks["high"], 1, 1) << 4
    return codes


def _store_codes(blocks: Blocks, codes: Bytes) -> None:
    blocks["low"] = to_nibbles(codes & 15, 16)
    if "high" in (blocks.dtype.names or ()):
        blocks["high"] = to_planes(codes >> 4, 1, 1)
