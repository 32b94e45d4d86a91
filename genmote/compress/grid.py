"""A matrix on the grid of a tensor type, in PyTorch: scales that suit it, and codes to be chosen.

The grid itself is defined once, by `ops.quant.Layout`; here are only the operations that a search does many times.
Everything is transposed, (cols, rows): what happens to a column happens to all rows at once, side by side in memory.
The number in column c of row r is ``scale[g, r] * code + offset[g, r]``, g the column's group and the code one of the
levels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.ops import quant

Tensor = torch.Tensor


class Grid:
    """A matrix's scales, as they will be stored exactly: `scale` and `offset` (groups, rows) float32, offset None where
    the type has none."""

    def __init__(self, type_name: str, weight: Tensor, importance: Tensor) -> None:
        """Scales that suit `weight` (rows, cols); `importance` (cols,): how much a squared error in each counts."""
        self.layout = quant.layout(type_name)
        self.rows, self.cols = weight.shape
        self.block = quant.by_name(type_name).block_size
        self.group = self.layout.group
        # A column that nothing comes to still needs a weight to be divided by.
        counts = importance.clamp(min=max(1e-6 * float(importance.mean()), 1e-30)).numpy()
        x = np.ascontiguousarray(weight.numpy()).reshape(-1, self.block)
        scales = self.layout.fit_scales(x, np.broadcast_to(counts, weight.shape).reshape(-1, self.block))
        self.unit: Tensor = self._transposed(scales.unit)  # type: ignore[assignment]  # None only for None
        self.base, self.factor, self.base_factor = map(self._transposed, scales[1:])
        self.levels = torch.from_numpy(self.layout.levels.astype(np.float32))
        self._middles = (self.levels[1:] + self.levels[:-1]) / 2
        self._even = bool((self.levels.diff() == 1).all())
        self._low, self._high = float(self.levels[0]), float(self.levels[-1])
        self._expand()

    def nearest(self, x: Tensor, group: int) -> Tensor:
        """The levels nearest to numbers (..., rows) of a group's columns, float32; where the scale is 0, level 0."""
        if self.offset is not None:
            x = x - self.offset[group]
        return self.level(x * self.inverse[group])

    def level(self, ratio: Tensor) -> Tensor:
        """The levels nearest to numbers that count in levels; `ratio` may be changed."""
        if self._even:
            return ratio.round_().clamp_(self._low, self._high)
        return self.levels[torch.bucketize(ratio, self._middles)]

    def value(self, codes: Tensor, group: int) -> Tensor:
        """The numbers that levels (..., rows) of a group's columns stand for."""
        found = codes * self.scale[group]
        return found if self.offset is None else found + self.offset[group]

    def move(self, group: int, scale: Tensor | None = None, offset: Tensor | None = None) -> None:
        """Give a group the nearest scale or offset (rows,) to the wanted that can be stored beside the others."""
        block = group * self.group // self.block
        if scale is not None:
            if self.factor is None:
                self.unit[group] = storable(self.layout, scale)
            else:
                self.factor[group] = self._whole(scale, self.unit[block])
        if offset is not None and self.base is not None:
            if self.base_factor is None:
                self.base[group] = half(offset)
            else:
                self.base_factor[group] = self._whole(-offset, self.base[block])
        self._expand(group)

    def move_block(self, block: int, unit: Tensor | None = None, base: Tensor | None = None) -> None:
        """Give a block, whose groups have factors of it, another unit (rows,) of their scales or of their offsets."""
        if unit is not None:
            self.unit[block] = storable(self.layout, unit)
        if base is not None and self.base is not None:
            self.base[block] = half(base)
        first = block * self.block // self.group
        for group in range(first, first + self.block // self.group):
            self._expand(group)

    def bytes(self, codes: Tensor) -> NDArray[np.uint8]:
        """The matrix with these levels (cols, rows), as it is stored."""
        parts = (None if part is None else self._blocks(part) for part in (self.unit, self.base))
        factors = (None if part is None else self._blocks(part) for part in (self.factor, self.base_factor))
        kind = np.int8 if self.layout.reach is not None and self.layout.reach[0] < 0 else np.uint8
        whole = (None if part is None else part.astype(kind) for part in factors)
        scales = quant.Scales(*parts, *whole)  # type: ignore[arg-type]  # mypy counts no unpacked generator
        chosen = np.ascontiguousarray(codes.T.to(torch.int8).numpy()).reshape(-1, self.block)
        return self.layout.pack(scales, chosen).view(np.uint8).reshape(-1)

    def _whole(self, wanted: Tensor, unit: Tensor) -> Tensor:
        assert self.layout.reach is not None
        return torch.nan_to_num(wanted / unit, 0.0, 0.0, 0.0).round_().clamp_(*self.layout.reach)

    def _transposed(self, part: NDArray[np.generic] | None) -> Tensor | None:
        """(blocks, n) of all rows → (blocks of a row * n, rows) float32."""
        if part is None:
            return None
        return torch.from_numpy(part.reshape(self.rows, -1).T.astype(np.float32, order="C"))

    def _blocks(self, part: Tensor) -> NDArray[np.float32]:
        """The inverse of `_transposed`."""
        per_block = part.shape[0] * self.block // self.cols
        found: NDArray[np.float32] = np.ascontiguousarray(part.T.numpy()).reshape(-1, per_block)
        return found

    def _expand(self, group: int | None = None) -> None:
        """Scales and offsets from what is stored, of one group or all."""
        if group is None:
            blank = torch.empty(self.cols // self.group, self.rows)
            self.scale, self.inverse = blank, blank.clone()
            self.offset = None if self.base is None else blank.clone()
            for number in range(len(blank)):
                self._expand(number)
            return
        block = group * self.group // self.block
        self.scale[group] = self.unit[block] if self.factor is None else self.unit[block] * self.factor[group]
        self.inverse[group] = torch.where(self.scale[group] == 0, 0.0, 1 / self.scale[group])
        if self.offset is not None and self.base is not None:
            base = self.base[block]
            self.offset[group] = base if self.base_factor is None else -(base * self.base_factor[group])


def has_zero(type_name: str) -> bool:
    """Whether zero is a level of a tensor type, whatever the scale: not where levels are counted from an offset."""
    if (block := quant.by_name(type_name).block_size) == 1:
        return True
    layout = quant.layout(type_name)
    return layout.fit_scales(np.zeros((1, block), np.float32)).base is None and 0 in layout.levels


def storable(layout: quant.Layout, unit: Tensor) -> Tensor:
    """The nearest scales of blocks that a layout can store."""
    if layout.units is None:
        return half(unit)
    units = torch.from_numpy(layout.units)
    return units[torch.bucketize(unit.abs(), (units[1:] + units[:-1]) / 2)].copysign(unit)


def half(x: Tensor) -> Tensor:
    """The nearest numbers that a float16 holds; infinite beyond, which packing refuses."""
    return x.half().float()
