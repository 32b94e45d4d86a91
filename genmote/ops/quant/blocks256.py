"""Layouts with blocks of 256 numbers, whose groups' scales are themselves quantised: Q2_K to Q6_K.

A block has one float16 scale (and one for the offsets); its groups of 16 or 32 numbers have
small integer factors of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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


class _Affine(Layout):
    """Codes in [0, top]; groups of ``group`` numbers with a factor in [0, steps] for scale and for (minus) offset."""

    group: int
    top: int
    steps: int

    def factors(self, blocks: Blocks) -> tuple[Bytes, Bytes]:
        """Factors of the scale and of the offset, each (blocks, groups)."""
        raise NotImplementedError

    def codes(self, blocks: Blocks) -> Bytes:
        """(blocks, 256)"""
        raise NotImplementedError

    def store(self, blocks: Blocks, scale: Bytes, offset: Bytes, codes: Bytes) -> None:
        """The inverse of ``factors`` and ``codes``."""
        raise NotImplementedError

    def unpack(self, blocks: Blocks) -> Parts:
        scale, offset = self._scales(blocks, *self.factors(blocks))
        return Parts(self.codes(blocks).view(np.int8), scale, offset)

    def fit(self, x: Floats) -> Blocks:
        blocks = np.empty(len(x), self.record)
        groups = x.reshape(-1, self.group)
        y, size = normalise(groups)
        scale, offset = fit.affine(y, self.top, negative_offset=True)
        scale = (scale * size).reshape(len(x), -1)
        offset = (-offset * size).reshape(len(x), -1)
        blocks["d"] = self.half(scale.max(axis=1) / np.float32(self.steps))
        blocks["dmin"] = self.half(offset.max(axis=1) / np.float32(self.steps))
        factor = self._factor(scale, blocks["d"])
        factor_min = self._factor(offset, blocks["dmin"])
        # The codes are rounded with the scales as stored, so that rounding the scales costs as little as it can.
        scale, offset = self._scales(blocks, factor, factor_min)
        codes = np.rint(divide(groups - offset.reshape(-1, 1), scale.reshape(-1, 1)))
        self.store(blocks, factor, factor_min, np.clip(codes, 0, self.top).astype(np.uint8).reshape(len(x), 256))
        return blocks

    def _factor(self, values: Floats, unit: NDArray[np.float16]) -> Bytes:
        return np.clip(np.rint(divide(values, unit.astype(np.float32)[:, None])), 0, self.steps).astype(np.uint8)

    @staticmethod
    def _scales(blocks: Blocks, scale: Bytes, offset: Bytes) -> tuple[Floats, Floats]:
        d = blocks["d"].astype(np.float32)[:, None]
        dmin = blocks["dmin"].astype(np.float32)[:, None]
        return d * scale.astype(np.float32), -(dmin * offset.astype(np.float32))


class Q2_K(_Affine):
    """Two-bit codes in groups of 16; a byte holds a group's two four-bit factors."""

    name = "Q2_K"
    record = record(("factors", "u1", 16), ("low", "u1", 64), ("d", "<f2"), ("dmin", "<f2"))
    group, top, steps = 16, 3, 15

    def factors(self, blocks: Blocks) -> tuple[Bytes, Bytes]:
        return blocks["factors"] & 15, blocks["factors"] >> 4

    def codes(self, blocks: Blocks) -> Bytes:
        return planes(blocks["low"], 2, 32)

    def store(self, blocks: Blocks, scale: Bytes, offset: Bytes, codes: Bytes) -> None:
        blocks["factors"] = scale | (offset << 4)
        blocks["low"] = to_planes(codes, 2, 32)


class Q4_K(_Affine):
    """Four-bit codes in groups of 32; the groups' six-bit factors share twelve bytes."""

    name = "Q4_K"
    record = record(("d", "<f2"), ("dmin", "<f2"), ("factors", "u1", 12), ("low", "u1", 128))
    group, top, steps = 32, 15, 63

    def factors(self, blocks: Blocks) -> tuple[Bytes, Bytes]:
        # Bytes 0-3 and 4-7 hold the factors of groups 0-3 in their low six bits; their two high bits are the high
        # bits of groups 4-7, whose low four bits lie in the halves of bytes 8-11.
        scale, offset, rest = (blocks["factors"][:, i : i + 4] for i in (0, 4, 8))
        return (
            np.concatenate([scale & 63, (rest & 15) | ((scale >> 2) & 48)], axis=1),
            np.concatenate([offset & 63, (rest >> 4) | ((offset >> 2) & 48)], axis=1),
        )

    def codes(self, blocks: Blocks) -> Bytes:
        return nibbles(blocks["low"], 32)

    def store(self, blocks: Blocks, scale: Bytes, offset: Bytes, codes: Bytes) -> None:
        packed = blocks["factors"]
        packed[:, :4] = scale[:, :4] | ((scale[:, 4:] & 48) << 2)
        packed[:, 4:8] = offset[:, :4] | ((offset[:, 4:] & 48) << 2)
        packed[:, 8:] = (scale[:, 4:] & 15) | ((offset[:, 4:] & 15) << 4)
        blocks["low"] = to_nibbles(codes & 15, 32)


class Q5_K(Q4_K):
    """Q4_K with a fifth bit of each code in 32 bytes: bit ``g`` of byte ``i`` is number ``i``'s in group ``g``."""

    name = "Q5_K"
    record = record(("d", "<f2"), ("dmin", "<f2"), ("factors", "u1", 12), ("high", "u1", 32), ("low", "u1", 128))
    top = 31

    def codes(self, blocks: Blocks) -> Bytes:
        codes = super().codes(blocks)
        codes |= planes(blocks["high"], 1, 32) << 4
        return codes

    def store(self, blocks: Blocks, scale: Bytes, offset: Bytes, codes: Bytes) -> None:
        super().store(blocks, scale, offset, codes)
        blocks["high"] = to_planes(codes >> 4, 1, 32)


class _Symmetric(Layout):
    """Codes in [-levels, levels - 1]; groups of 16 numbers with a signed factor in [-steps, steps - 1]."""

    levels: int
    steps: int

    def factors(self, blocks: Blocks) -> NDArray[np.int8]:
        """(blocks, 16)"""
        raise NotImplementedError

    def codes(self, blocks: Blocks) -> NDArray[np.int8]:
        """(blocks, 256)"""
        raise NotImplementedError

    def store(self, blocks: Blocks, factors: NDArray[np.int8], codes: NDArray[np.int8]) -> None:
        """The inverse of ``factors`` and ``codes``."""
        raise NotImplementedError

    def unpack(self, blocks: Blocks) -> Parts:
        return Parts(self.codes(blocks), self._scales(blocks, self.factors(blocks)), None)

    def fit(self, x: Floats) -> Blocks:
        blocks = np.empty(len(x), self.record)
        groups = x.reshape(-1, 16)
        y, size = normalise(groups)
        scale = (fit.symmetric(y, self.levels) * size).reshape(len(x), 16)
        peak = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
        blocks["d"] = self.half(peak[:, 0] / np.float32(-self.steps))
        factors = np.rint(divide(scale, blocks["d"].astype(np.float32)[:, None]))
        factors = np.clip(factors, -self.steps, self.steps - 1).astype(np.int8)
        codes = np.rint(divide(groups, self._scales(blocks, factors).reshape(-1, 1)))
        codes = np.clip(codes, -self.levels, self.levels - 1).astype(np.int8)
        self.store(blocks, factors, codes.reshape(len(x), 256))
        return blocks

    @staticmethod
    def _scales(blocks: Blocks, factors: NDArray[np.int8]) -> Floats:
        return blocks["d"].astype(np.float32)[:, None] * factors.astype(np.float32)


class Q3_K(_Symmetric):
    """Three-bit codes: two bits in 64 bytes, the third in 32 (set: not negative); six-bit factors in twelve bytes."""

    name = "Q3_K"
    record = record(("high", "u1", 32), ("low", "u1", 64), ("factors", "u1", 12), ("d", "<f2"))
    levels, steps = 4, 32

    def factors(self, blocks: Blocks) -> NDArray[np.int8]:
        # Bytes 0-7 hold the low four bits of factors 0-7 and 8-15; bytes 8-11 the high two bits of all, in planes.
        packed = blocks["factors"]
        codes = nibbles(packed[:, :8], 8) | (planes(packed[:, 8:], 2, 4) << 4)
        return _signed(codes, 32)

    def codes(self, blocks: Blocks) -> NDArray[np.int8]:
        codes = planes(blocks["low"], 2, 32) | (planes(blocks["high"], 1, 32) << 2)
        return _signed(codes, 4)

    def store(self, blocks: Blocks, factors: NDArray[np.int8], codes: NDArray[np.int8]) -> None:
        stored = (factors + np.int8(32)).view(np.uint8)
        blocks["factors"][:, :8] = to_nibbles(stored & 15, 8)
        blocks["factors"][:, 8:] = to_planes(stored >> 4, 2, 4)
        stored = (codes + np.int8(4)).view(np.uint8)
        blocks["low"] = to_planes(stored & 3, 2, 32)
        blocks["high"] = to_planes(stored >> 2, 1, 32)


class Q6_K(_Symmetric):
    """Six-bit codes: four bits in 128 bytes, two in 64; factors are signed bytes."""

    name = "Q6_K"
    record = record(("low", "u1", 128), ("high", "u1", 64), ("factors", "i1", 16), ("d", "<f2"))
    levels, steps = 32, 128

    def factors(self, blocks: Blocks) -> NDArray[np.int8]:
        factors: NDArray[np.int8] = blocks["factors"]
        return factors

    def codes(self, blocks: Blocks) -> NDArray[np.int8]:
        codes = nibbles(blocks["low"], 64) | (planes(blocks["high"], 2, 32) << 4)
        return _signed(codes, 32)

    def store(self, blocks: Blocks, factors: NDArray[np.int8], codes: NDArray[np.int8]) -> None:
        stored = (codes + np.int8(32)).view(np.uint8)
        blocks["factors"] = factors
        blocks["low"] = to_nibbles(stored & 15, 64)
        blocks["high"] = to_planes(stored >> 4, 2, 32)


def _signed(stored: Bytes, zero: int) -> NDArray[np.int8]:
    signed: NDArray[np.int8] = stored.view(np.int8)
    signed -= np.int8(zero)
    return signed
