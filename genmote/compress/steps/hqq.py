"""Half-quadratic quantisation: scales and offsets that suit most numbers, at the cost of the few that stick out.

The error is measured by a norm with p below 1, which a few large errors hardly raise. It is split in two: what sticks
out is taken away from the numbers (a shrinkage), and the scales are least squares to what is left, in turns (HQQ, Badri
& Shaji 2023, https://mobiusml.github.io/hqq_blog/). No text is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from genmote.compress.block import Inputs, Site
from genmote.compress.grid import Grid
from genmote.compress.steps._quantise import Quantiser
from genmote.spec import setting

Tensor = torch.Tensor
BETA, KAPPA = 10.0, 1.01  # how strongly both halves are held together, and how that grows from turn to turn


@dataclass(frozen=True)
class Hqq(Quantiser):
    """Calibration-free, as `rtn`."""

    calibrates: ClassVar[bool] = False
    norm: float = setting("p of the norm that the errors are measured by, above 0 and below 1", default=0.7)
    turns: int = setting("times that scales and codes are chosen again", default=20)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if not 0 < self.norm < 1:
            yield f"norm={self.norm:g}: use more than 0 and less than 1"
        if self.turns < 1:
            yield f"turns={self.turns}: use 1 or more"

    def quantise(self, site: Site, type_name: str, inputs: Inputs | None) -> None:
        grid = Grid(type_name, site.weight, torch.ones(site.weight.shape[1]))
        codes, before, after = half_quadratic(site.weight.T.contiguous(), grid, self.norm, self.turns)
        site.store(type_name, grid.bytes(codes))
        site.figures.update(norm_before=before, norm_after=after)


def half_quadratic(goal: Tensor, grid: Grid, p: float, turns: int) -> tuple[Tensor, float, float]:
    """Codes (cols, rows) for a matrix (cols, rows); the scales of `grid` move. Also the mean p-norm of the errors, in
    steps of the grid as it came, before and after."""
    size = grid.group
    codes = torch.empty_like(goal)
    before = after = 0.0
    for group in range(len(grid.scale)):
        own = slice(group * size, (group + 1) * size)
        codes[own], start, end = _solve(goal[own], grid, group, p, turns)
        before, after = before + start, after + end
    return codes, before / goal.numel(), after / goal.numel()


def _solve(x: Tensor, grid: Grid, group: int, p: float, turns: int) -> tuple[Tensor, float, float]:
    """One group of columns, (size, rows); each row keeps the best that it had."""
    scale, offset = grid.scale[group].clone(), None if grid.offset is None else grid.offset[group].clone()
    unit = torch.where(scale == 0, 1.0, scale.abs())
    codes = grid.nearest(x, group)
    error = (x - grid.value(codes, group)) / unit
    norm = error.abs().pow(p).sum(0)  # (rows,)
    start, now = float(norm.sum()), codes
    for turn in range(turns):
        size = error.abs()
        # The nearest point to the error of the norm's own, generalised soft thresholding; 0 ** (p - 1) is infinite.
        outlying = error.sign() * (size - size.pow(p - 1) / (BETA * KAPPA**turn)).clamp(min=0)
        _fit(grid, group, now, x - outlying * unit)
        now = grid.nearest(x, group)
        error = (x - grid.value(now, group)) / unit
        after = error.abs().pow(p).sum(0)
        better = after < norm
        norm, codes = torch.where(better, after, norm), torch.where(better, now, codes)
        scale = torch.where(better, grid.scale[group], scale)
        if offset is not None and grid.offset is not None:
            offset = torch.where(better, grid.offset[group], offset)
    grid.move(group, scale=scale, offset=offset)
    return codes, start, float(norm.sum())


def _fit(grid: Grid, group: int, codes: Tensor, x: Tensor) -> None:
    """Least squares: the scale (and offset) that make of the codes (size, rows) the numbers x."""
    qq, qx = codes.square().mean(0), (codes * x).mean(0)
    if grid.offset is None:
        grid.move(group, scale=torch.where(qq > 0, qx / qq.clamp(min=1e-30), 0.0))
        return
    q, mean = codes.mean(0), x.mean(0)
    spread = qq - q.square()
    scale = torch.where(spread > 1e-6, (qx - q * mean) / spread.clamp(min=1e-6), grid.scale[group])
    grid.move(group, scale=scale, offset=mean - scale * q)
