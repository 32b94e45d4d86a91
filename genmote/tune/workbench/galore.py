"""All weights, by AdamW in a small part of each gradient's space (GaLore: Zhao et al. 2024, arXiv 2403.03507).

A matrix's gradient is projected on the `rank` leading singular vectors of its shorter side, which are found anew every
so many steps. The averages are of the projected gradient alone; the step goes back through the same vectors. What is no
longer than `rank` on its shorter side, and vectors, learn by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from genmote.spec import setting
from genmote.tune.workbench._base import State, Tensor, Whole, adam, adamw


@dataclass(frozen=True)
class Galore(Whole):
    rate: ClassVar[float] = 2e-4
    strength: ClassVar[int] = 90
    learnt: ClassVar[str] = "all weights, in gradients' leading directions,"

    rank: int = setting("directions of a matrix's shorter side that a step moves in", default=128)
    every: int = setting("steps after which the directions are found anew", default=200)
    scale: float = setting("what the step counts", default=0.25)

    def faults(self) -> Iterable[str]:
        if self.rank < 1 or self.every < 1 or not self.scale > 0:
            yield f"rank={self.rank}, every={self.every}, scale={self.scale}: use such as 128, 200 and 0.25"

    def projects(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and min(shape[-2:]) > self.rank

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        if not self.projects(shape):
            return super().state_bytes(shape)
        short, long = min(shape[-2:]), max(shape[-2:])
        return math.prod(shape[:-2]) * 4 * self.rank * (2 * long + short)

    def working_bytes(self, shape: tuple[int, ...]) -> int:
        if not self.projects(shape):
            return 0
        short, long = min(shape[-2:]), max(shape[-2:])
        return 4 * (4 * short * short + 2 * self.rank * long)

    def update(self, numbers: Tensor, gradient: Tensor, state: State, rate: float, decay: float) -> None:
        if not self.projects(tuple(gradient.shape)):
            adamw(numbers, gradient, state, rate, decay)
            return
        wide = gradient.shape[0] <= gradient.shape[1]  # the shorter side is that of the rows
        averages = {part: array for part, array in state.items() if part != "basis"}
        if not state or int(state["count"]) % self.every == 0:
            gram = gradient @ gradient.T if wide else gradient.T @ gradient
            state["basis"] = torch.linalg.eigh(gram)[1][:, -self.rank :].contiguous().numpy()
        basis = torch.from_numpy(state["basis"])  # (shorter side, rank)
        low = basis.T @ gradient if wide else gradient @ basis
        direction = adam(low, averages)
        state |= averages
        if decay:
            numbers.mul_(1 - rate * decay)
        factors = (basis, direction) if wide else (direction, basis.T)
        numbers.addmm_(*factors, alpha=-rate * self.scale)
