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
    Scales,
    Searched,
    divide,
    nibbles,
    planes,
    record,
    to_nibbles,
    to_planes,
)


class _Affine(Searched):
    """Codes from 0; groups with a factor from 0 for the scale and one for (minus) the offset."""

    reach: tuple[int, int]

    def factors(self, blocks: Blocks) -> tuple[Bytes, Bytes]:
        """Factors of the scale and of the offset, each (blocks, groups)."""
        raise NotImplementedError

    def codes(self, blocks: Blocks) -> Bytes:
        """(blocks, 256)"""
        raise NotImplementedError

    def store(self, blocks: Blocks, scale: Bytes, offset: Bytes, codes: Bytes) -> None:
        """The inverse of ``factors`` and ``codes``."""
        raise NotImplementedError

    def codes_of(self, blocks: Blocks) -> NDArray[np.int8]:
        return self.codes(blocks).view(np.int8)

    def scales_of(self, blocks: Blocks) -> Scales:
        scale, offset = self.factors(blocks)
        return Scales(_unit(blocks, "d"), _unit(blocks, "dmin"), scale, offset)

    def pack(self, scales: Scales, codes: NDArray[np.int8]) -> Blocks:
        assert scales.base is not None and scales.factor is not None and scales.base_factor is not None
        blocks = np.empty(len(codes), self.record)
        blocks["d"], blocks["dmin"] = scales.unit[:, 0], scales.base[:, 0]
        self.store(blocks, scales.factor, scales.base_factor, codes.view(np.uint8))
        return blocks

    def search(self, x: Floats, weight: Floats | None) -> tuple[Floats, Floats]:
        return fit.affine(x, int(self.levels[-1]), weight, negative_offset=True)

    def hold(self, scale: Floats, offset: Floats | None) -> Scales:
        assert offset is not None
        unit = self.half(scale.max(axis=1) / np.float32(self.reach[1])).astype(np.float32)[:, None]
        base = self.half((-offset).max(axis=1) / np.float32(self.reach[1])).astype(np.float32)[:, None]
        return Scales(unit, base, self._factor(scale, unit), self._factor(-offset, base))

    def _factor(self, values: Floats, unit: Floats) -> Bytes:
        return np.clip(np.rint(divide(values, unit)), *self.reach).astype(np.uint8)


class Q2_K(_Affine):
    """Two-bit codes in groups of 16; a byte holds a group's two four-bit factors."""

    name = "Q2_K"
    record = record(("factors", "u1", 16), ("low", "u1", 64), ("d", "<f2"), ("dmin", "<f2"))
    group, reach = 16, (0, 15)
    levels = np.arange(4, dtype=np.int8)

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
    group, reach = 32, (0, 63)
    levels = np.arange(16, dtype=np.int8)

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
    levels = np.arange(32, dtype=np.int8)

    def codes(self, blocks: Blocks) -> Bytes:
        codes = super().codes(blocks)
        codes |= planes(blocks["high"], 1, 32) << 4
        return codes

    def store(self, blocks: Blocks, scale: Bytes, offset: Bytes, codes: Bytes) -> None:
        super().store(blocks, scale, offset, codes)
        blocks["high"] = to_planes(codes >> 4, 1, 32)


class _Symmetric(Searched):
    """Codes and factors with a sign; groups of 16 numbers."""

    group = 16
    reach: tuple[int, int]

    def factors(self, blocks: Blocks) -> NDArray[np.int8]:
        """(blocks, 16)"""
        raise NotImplementedError

    def codes(self, blocks: Blocks) -> NDArray[np.int8]:
        """(blocks, 256)"""
        raise NotImplementedError

    def store(self, blocks: Blocks, factors: NDArray[np.int8], codes: NDArray[np.int8]) -> None:
        """The inverse of ``factors`` and ``codes``."""
        raise NotImplementedError

    def codes_of(self, blocks: Blocks) -> NDArray[np.int8]:
        return self.codes(blocks)

    def scales_of(self, blocks: Blocks) -> Scales:
        return Scales(_unit(blocks, "d"), None, self.factors(blocks))

    def pack(self, scales: Scales, codes: NDArray[np.int8]) -> Blocks:
        assert scales.factor is not None
        blocks = np.empty(len(codes), self.record)
        blocks["d"] = scales.unit[:, 0]
        self.store(blocks, scales.factor, codes)
        return blocks

    def search(self, x: Floats, weight: Floats | None) -> tuple[Floats, None]:
        return fit.symmetric(x, -int(self.levels[0]), weight), None

    def hold(self, scale: Floats, offset: Floats | None) -> Scales:
        peak = np.take_along_axis(scale, np.abs(scale).argmax(axis=1)[:, None], axis=1)
        unit = self.half(peak / np.float32(self.reach[0])).astype(np.float32)
        return Scales(unit, None, np.clip(np.rint(divide(scale, unit)), *self.reach).astype(np.int8))


class Q3_K(_Symmetric):
    """Three-bit codes: two bits in 64 bytes, the third in 32 (set: not negative); six-bit factors in twelve bytes."""

    name = "Q3_K"
    record = record(("high", "u1", 32), ("low", "u1", 64), ("factors", "u1", 12), ("d", "<f2"))
    levels, reach = np.arange(-4, 4, dtype=np.int8), (-32, 31)

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
    levels, reach = np.arange(-32, 32, dtype=np.int8), (-128, 127)

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


def _unit(blocks: Blocks, field: str) -> Floats:
    return blocks[field].astype(np.float32)[:, None]
