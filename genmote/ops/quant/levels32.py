"""Our own layouts, with blocks of 32 numbers in few bits: GM2_32, GM3_32, GM4_32.

They serve rows that K types cannot take (of 576 or 640 numbers), and spend few bits on what is not a code: a block has
one byte of scale. The codes are indices into a table of levels, whole numbers that lie denser near zero, as weights do.
Tables are lopsided, and the scale's sign turns them round to where the block's largest numbers are. They are those of
least squared error over the matrices of SmolLM2-135M and Gemma-3-270M, with the best scale for each block (S. Lloyd,
"Least squares quantization in PCM", 1982), rounded to whole numbers of five and six bits, whose products kernels add up
fast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.ops.quant import fit
from genmote.ops.quant.layout import (
    Blocks,
    Bytes,
    Floats,
    Layout,
    Scales,
    divide,
    nibbles,
    normalise,
    planes,
    record,
    to_nibbles,
    to_planes,
)


def scales(stored: Bytes) -> Floats:
    """Scales of their bytes: the sign, and seven bits that are a float16's bits 7 to 13. So always finite numbers.

    >>> scales(np.uint8([0, 1, 0x38, 0x7F, 0xB8])).tolist()
    [0.0, 7.62939453125e-06, 0.0078125, 1.875, -0.0078125]
    """
    wide = stored.astype(np.uint16)
    return ((wide & 0x80) << 8 | (wide & 0x7F) << 7).view(np.float16).astype(np.float32)


SCALES = scales(np.arange(128, dtype=np.uint8))  # those that are not negative, from the least to the greatest


class Levels(Layout):
    """One byte of scale, and 32 codes that are indices into ``levels``."""

    group = 32
    units = SCALES
    least: float  # the smallest scale that is tried for a block, in what puts its largest number on the first level

    def codes(self, blocks: Blocks) -> Bytes:
        """(blocks, 32)"""
        raise NotImplementedError

    def store(self, blocks: Blocks, codes: Bytes) -> None:
        """The inverse of ``codes``."""
        raise NotImplementedError

    def codes_of(self, blocks: Blocks) -> NDArray[np.int8]:
        return self.levels[self.codes(blocks)]

    def scales_of(self, blocks: Blocks) -> Scales:
        return Scales(scales(blocks["scale"])[:, None])

    def pack(self, scales: Scales, codes: NDArray[np.int8]) -> Blocks:
        blocks = np.empty(len(codes), self.record)
        unit = scales.unit[:, 0]
        blocks["scale"] = np.searchsorted(SCALES, np.abs(unit)) | np.where(np.signbit(unit), 128, 0)
        self.store(blocks, np.searchsorted(self.levels, codes).astype(np.uint8))
        return blocks

    def fit_scales(self, x: Floats, weight: Floats | None = None) -> Scales:
        peak = np.abs(x).max(initial=0)
        reach = SCALES[-1] * np.abs(self.levels).max()
        if peak > reach:
            raise SpecError(f"{self.name} cannot hold numbers as large as these: {peak:.3g} is beyond {reach:g}")
        y, size = normalise(x)
        return Scales(scales(fit.listed(y, self.levels.astype(np.float32), SCALES, size, self.least, weight))[:, None])

    def round(self, x: Floats, scales: Scales) -> NDArray[np.int8]:
        return self.levels[fit.nearest(divide(x, scales.unit), self.levels.astype(np.float32))]


class GM2_32(Levels):
    """Two-bit codes: eight bytes hold four runs of eight."""

    name = "GM2_32"
    record = record(("scale", "u1"), ("low", "u1", 8))
    levels = np.array([-15, -5, 2, 10], np.int8)
    least = 0.45

    def codes(self, blocks: Blocks) -> Bytes:
        return planes(blocks["low"], 2, 8)

    def store(self, blocks: Blocks, codes: Bytes) -> None:
        blocks["low"] = to_planes(codes, 2, 8)


class GM3_32(Levels):
    """Three-bit codes: the low two bits as in GM2_32, the third in a mask of 32 bits."""

    name = "GM3_32"
    record = record(("scale", "u1"), ("low", "u1", 8), ("high", "u1", 4))
    levels = np.array([-16, -10, -6, -3, 0, 3, 7, 12], np.int8)
    least = 0.7

    def codes(self, blocks: Blocks) -> Bytes:
        codes = planes(blocks["low"], 2, 8)
        codes |= planes(blocks["high"], 1, 1) << 2
        return codes

    def store(self, blocks: Blocks, codes: Bytes) -> None:
        blocks["low"] = to_planes(codes & 3, 2, 8)
        blocks["high"] = to_planes(codes >> 2, 1, 1)


class GM4_32(Levels):
    """Four-bit codes: the first 16 in the low halves of the bytes, the rest in the high."""

    name = "GM4_32"
    record = record(("scale", "u1"), ("low", "u1", 16))
    levels = np.array([-32, -25, -20, -16, -12, -9, -5, -2, 0, 3, 6, 9, 13, 17, 21, 26], np.int8)
    least = 0.82

    def codes(self, blocks: Blocks) -> Bytes:
        return nibbles(blocks["low"], 16)

    def store(self, blocks: Blocks, codes: Bytes) -> None:
        blocks["low"] = to_nibbles(codes, 16)
