"""Rounding that makes its errors good: GPTQ on each type's own grid, then coordinate descent over codes and scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from genmote.compress import solve
from genmote.compress.block import Inputs, Site
from genmote.compress.grid import Grid, has_zero
from genmote.compress.steps._quantise import Quantiser, zeros
from genmote.compress.surgeon import factored
from genmote.spec import setting

NUMBERS = 1 << 23  # of a matrix that are solved for at once, whole rows: it takes six times their bytes


@dataclass(frozen=True)
class Gptq(Quantiser):
    """See `solve.py`."""

    damp: float = setting("share of the mean second moment that is added to each", default=0.01)
    ridge: float = setting("share of each second moment that is added to it: more believes the text less", default=0.1)
    hold: float = setting("the same where a matrix aims at the original model's outputs", default=0.5)
    sweeps: int = setting("times that every code and scale is chosen again", default=3)

    follow: bool = setting("aim at the original model's outputs, not only at the weights", default=True)
    mend: bool = setting("make good what the blocks before have spoilt", default=True)

    @property
    def compares(self) -> bool:
        return self.follow

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if not 0 < self.damp < math.inf:
            yield f"damp={self.damp:g}: use more than 0, such as 0.01"
        for name in ("ridge", "hold"):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"{name}={getattr(self, name):g}: use 0 or more, such as 0.1"
        if self.sweeps < 0:
            yield f"sweeps={self.sweeps}: use 0 or more"

    def quantise(self, site: Site, type_name: str, inputs: Inputs | None) -> None:
        assert inputs is not None
        hessian = solve.damped(inputs.hessian, self.damp, self.ridge)
        held = solve.damped(inputs.hessian, self.damp, self.hold)
        gone = zeros(site) if has_zero(type_name) else None
        parts, lost, whole = [], 0.0, 0.0
        rows, cols = site.weight.shape
        step = max(NUMBERS // cols, 4 * cols)  # else factoring the hessian each time would take long
        for start in range(0, rows, step):
            own = slice(start, start + step)
            wanted = site.weight[own]
            with factored(site.name, self.damp):
                if inputs.original is not None:
                    owed = inputs.owed[own] if self.mend and inputs.owed is not None else None
                    wanted = solve.target(wanted, inputs.hessian, inputs.cross, held, owed)
                stays = wanted if gone is None else wanted.masked_fill(gone[own], 0.0)
                grid = Grid(type_name, stays, hessian.diagonal())
                goal = wanted.T.contiguous()
                still = None if gone is None else gone[own].T.contiguous()
                codes = solve.gptq(goal, hessian, grid, still)
            solve.descend(goal, hessian, grid, codes, self.sweeps, still)
            parts.append(grid.bytes(codes))
            size = solve.mean_square(goal, hessian)
            lost, whole = lost + solve.error(goal, hessian, codes, grid) * size, whole + size
        site.store(type_name, np.concatenate(parts))
        site.figures["error"] = lost / max(whole, 1e-30)
