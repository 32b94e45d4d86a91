"""What every block layout shares: blocks as NumPy records, numbers as codes, scales and offsets.

A quantised number is ``scale * code + offset``: an integer code of its own, a scale and an offset that a group of
neighbours shares. ``Layout.unpack`` turns stored blocks into these three, without loss; ``Layout.fit`` finds good
ones for given numbers and stores them. Dequantising is the same for all layouts (``codec.py``). Whoever chooses codes
by other means takes ``fit_scales``, ``levels`` and ``pack`` instead of ``fit``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError

Floats = NDArray[np.float32]
Blocks = NDArray[np.void]
# uint8 in truth: to NumPy's type stubs, arithmetic with an int literal would widen it.
Bytes = NDArray[Any]


class Parts(NamedTuple):
    """Blocks taken apart: number ``i`` of a block is ``scale[i // group] * codes[i] + offset[i // group]``."""

    codes: NDArray[np.int8]  # (blocks, block_size)
    scale: Floats  # (blocks, groups)
    offset: Floats | None  # (blocks, groups); None: no offsets


class Scales(NamedTuple):
    """The scales and offsets of blocks, exactly as they are stored, float32 with float16's values.

    Without factors a block is one group: its scale is ``unit``, its offset ``base``. With them, a group's scale is
    ``unit * factor`` and its offset ``-(base * base_factor)``.
    """

    unit: Floats  # (blocks, 1)
    base: Floats | None = None  # (blocks, 1); None: no offsets
    factor: Bytes | None = None  # (blocks, groups), whole numbers
    base_factor: Bytes | None = None

    def values(self) -> tuple[Floats, Floats | None]:
        """Scale and offset of each group, (blocks, groups)."""
        if self.factor is None:
            return self.unit, self.base
        scale = self.unit * self.factor.astype(np.float32)
        if self.base is None or self.base_factor is None:
            return scale, None
        return scale, -(self.base * self.base_factor.astype(np.float32))


class Layout(ABC):
    """How one tensor type lays its blocks out, and the grid that its numbers lie on.

    A member names its record, the ``levels`` that a code may have (sorted), the numbers in a ``group`` and, where
    groups have factors of a block's scale, these factors' least and greatest; it takes blocks apart and puts them
    together.
    """

    name: str
    record: np.dtype[np.void]
    levels: NDArray[np.int8]
    group: int
    units: Floats | None = None  # sorted: a block's scale is one of these, with either sign; None: any float16
    reach: tuple[int, int] | None = None

    @abstractmethod
    def codes_of(self, blocks: Blocks) -> NDArray[np.int8]:
        """(blocks, block_size), each one of ``levels``."""

    @abstractmethod
    def scales_of(self, blocks: Blocks) -> Scales: ...

    @abstractmethod
    def pack(self, scales: Scales, codes: NDArray[np.int8]) -> Blocks:
        """The inverse of ``scales_of`` and ``codes_of``."""

    @abstractmethod
    def fit_scales(self, x: Floats, weight: Floats | None = None) -> Scales:
        """Good scales for ``x`` (blocks, block_size); ``weight``, of its shape: how much each squared error counts."""

    def unpack(self, blocks: Blocks) -> Parts:
        """Codes, scales and offsets of ``blocks`` (blocks,) of ``record``."""
        return Parts(self.codes_of(blocks), *self.scales_of(blocks).values())

    def fit(self, x: Floats) -> Blocks:
        """The blocks (blocks,) of ``record`` that store finite ``x`` (blocks, block_size) with little error."""
        scales = self.fit_scales(x)
        # The codes are rounded with the scales as stored, so that rounding the scales costs as little as it can.
        return self.pack(scales, self.round(x, scales))

    def round(self, x: Floats, scales: Scales) -> NDArray[np.int8]:
        """The codes (blocks, block_size) nearest to ``x``."""
        scale, offset = (None if part is None else part.reshape(-1, 1) for part in scales.values())
        assert scale is not None
        groups = x.reshape(-1, self.group)
        codes = np.rint(divide(groups if offset is None else groups - offset, scale))
        return np.clip(codes, self.levels[0], self.levels[-1]).astype(np.int8).reshape(x.shape)

    def half(self, values: Floats) -> NDArray[np.float16]:
        """``values`` as float16, which all layouts store their scales in; ``SpecError`` where they are too large."""
        with np.errstate(over="ignore"):
            result = values.astype("<f2")
        if np.isinf(result).any():
            raise SpecError(
                f"{self.name} cannot hold numbers as large as these: a scale of {np.abs(values).max():.3g} is beyond "
                "float16; use F32 or BF16"
            )
        return result


class Searched(Layout):
    """A layout whose scales are searched as real numbers, then rounded to what can be stored."""

    @abstractmethod
    def search(self, x: Floats, weight: Floats | None) -> tuple[Floats, Floats | None]:
        """Real-valued scale and offset (groups,) for groups (groups, size) whose largest magnitude is 1; see ``fit.py``
        for ``weight``."""

    @abstractmethod
    def hold(self, scale: Floats, offset: Floats | None) -> Scales:
        """The nearest that can be stored to real-valued scales and offsets (blocks, groups)."""

    def fit_scales(self, x: Floats, weight: Floats | None = None) -> Scales:
        """Good scales for ``x`` (blocks, block_size); ``weight``, of its shape: how much each squared error counts."""
        y, size = normalise(x.reshape(-1, self.group))
        scale, offset = self.search(y, None if weight is None else weight.reshape(-1, self.group))
        groups = (len(x), -1)
        return self.hold((scale * size).reshape(groups), None if offset is None else (offset * size).reshape(groups))


def record(*fields: Any) -> np.dtype[np.void]:
    """A packed little-endian record, field after field as it lies in the file."""
    return np.dtype(list(fields))


def normalise(x: Floats) -> tuple[Floats, Floats]:
    """Rows divided by their largest magnitude, and that magnitude (rows,).

    Rows too small for a float16 scale to hold become zeros, with magnitude 1: dividing by theirs would overflow.
    """
    size = np.abs(x).max(axis=1)
    lost = size < 1e-30
    size = np.where(lost, np.float32(1), size)
    return np.where(lost[:, None], np.float32(0), x / size[:, None]), size


def divide(x: Floats, scale: Floats) -> Floats:
    """``x / scale``, and 0 where the scale is 0 (all its codes mean the same number then)."""
    zero = scale == 0
    result: Floats = np.where(zero, np.float32(0), x / np.where(zero, np.float32(1), scale))
    return result


def nibbles(packed: Bytes, run: int) -> Bytes:
    """Four-bit codes: each run of ``run`` bytes holds ``run`` codes in its low halves, then ``run`` in its high.

    >>> nibbles(np.uint8([[0x21, 0x43]]), 2).tolist()
    [[1, 3, 2, 4]]
    """
    runs = packed.reshape(len(packed), -1, run)
    out = np.empty((len(packed), runs.shape[1], 2, run), np.uint8)
    np.bitwise_and(runs, 15, out=out[:, :, 0])
    np.right_shift(runs, 4, out=out[:, :, 1])
    return out.reshape(len(packed), -1)


def to_nibbles(codes: Bytes, run: int) -> Bytes:
    """The inverse of :func:`nibbles`; codes below 16."""
    runs = codes.reshape(len(codes), -1, 2, run)
    packed: Bytes = runs[:, :, 0] | (runs[:, :, 1] << 4)
    return packed.reshape(len(codes), -1)


def planes(packed: Bytes, bits: int, run: int) -> Bytes:
    """Codes of ``bits`` bits: each run of ``run`` bytes holds 8 / bits planes of ``run`` codes, lowest bits first.

    >>> planes(np.uint8([[0b11100100]]), 2, 1).tolist()
    [[0, 1, 2, 3]]
    """
    runs = packed.reshape(len(packed), -1, 1, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    codes: Bytes = (runs >> shifts) & ((1 << bits) - 1)
    return codes.reshape(len(packed), -1)


def to_planes(codes: Bytes, bits: int, run: int) -> Bytes:
    """The inverse of :func:`planes`."""
    runs = codes.reshape(len(codes), -1, 8 // bits, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed: Bytes = np.bitwise_or.reduce(runs << shifts, axis=2).reshape(len(codes), -1)
    return packed
