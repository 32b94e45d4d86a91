"""A stored matrix taken apart, so that what it is made of can be tuned and put together again, to the byte.

The number in column c of row r is ``unit[r, b] * factor[r, g] * code[r, c]``, minus or plus an offset in the types that
have one: b the block, g the group of column c. Codes and factors are whole numbers; units (and offsets' units) are what
the file stores as float16.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.compress.block import Site
from genmote.ops import quant

Tensor = torch.Tensor


class Stored:
    """The parts of a site's matrix (rows, cols). `codes` int8 and `unit`, `base` float32 (rows, blocks of a row) may be
    replaced; `base` is None for types without offsets."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.layout = quant.layout(site.type)
        self.rows, self.cols = site.weight.shape
        blocks = np.ascontiguousarray(site.raw).reshape(-1).view(self.layout.record)
        scales = self.layout.scales_of(blocks)
        self._scales = scales
        self.codes = torch.from_numpy(self.layout.codes_of(blocks).copy()).reshape(self.rows, self.cols)
        self.unit = self._per_row(scales.unit)
        self.base = None if scales.base is None else self._per_row(scales.base)
        self.factor = None if scales.factor is None else self._per_row(scales.factor)  # (rows, groups)
        self.base_factor = None if scales.base_factor is None else -self._per_row(scales.base_factor)

    def scale(self) -> Tensor:
        """Of each group, (rows, groups)."""
        return self._spread(self.unit, self.factor)

    def offset(self) -> Tensor | None:
        """Of each group, (rows, groups); None for types without."""
        return None if self.base is None else self._spread(self.base, self.base_factor)

    def values(self) -> Tensor:
        """The matrix (rows, cols) float32 that the parts mean."""
        groups = self.codes.reshape(self.rows, -1, self.layout.group) * self.scale()[:, :, None]
        if (offset := self.offset()) is not None:
            groups = groups + offset[:, :, None]
        return groups.reshape(self.rows, self.cols)

    def slopes(self, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a gradient with respect to the matrix means for `unit` and `base`."""
        groups = gradient.reshape(self.rows, -1, self.layout.group)
        unit = self._gathered((groups * self.codes.reshape(groups.shape)).sum(-1), self.factor)
        return unit, None if self.base is None else self._gathered(groups.sum(-1), self.base_factor)

    def store(self) -> None:
        """Into the site, in its type. The units must be `grid.storable`, the offsets' float16's."""
        unit, base = (None if part is None else part.reshape(-1, 1).numpy() for part in (self.unit, self.base))
        assert unit is not None
        scales = self._scales._replace(unit=unit, base=base)
        codes = self.codes.numpy().reshape(len(unit), -1)
        self.site.matrix.weight = torch.empty(self.rows, self.cols)  # it may have been let go
        self.site.store(self.site.type, self.layout.pack(scales, codes).view(np.uint8).reshape(-1))

    def _per_row(self, part: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(part.reshape(self.rows, -1).astype(np.float32))

    def _spread(self, unit: Tensor, factor: Tensor | None) -> Tensor:
        """(rows, blocks) → (rows, groups)"""
        return unit if factor is None else unit.repeat_interleave(factor.shape[1] // unit.shape[1], 1) * factor

    def _gathered(self, groups: Tensor, factor: Tensor | None) -> Tensor:
        """The transpose of `_spread`."""
        return groups if factor is None else (groups * factor).reshape(self.rows, self.unit.shape[1], -1).sum(-1)
