"""LOMO with a rate for each weight: the mean square of gradients is kept as one number a row and one a column (AdaLomo:
Lv et al. 2023, arXiv 2310.10195; the factors: Shazeer & Stern 2018, arXiv 1804.04235), and a step moves a matrix by a
part of its own size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from genmote.tune.workbench._base import State, Tensor, Whole

MEMORY = 0.99  # of the mean square in each next step, once there were many
TINY = 1e-30  # is added to squares
LEAST = 1e-3  # size that a tensor's numbers are taken to have, at least


@dataclass(frozen=True)
class Adalomo(Whole):
    rate: ClassVar[float] = 1e-3
    strength: ClassVar[int] = 50
    learnt: ClassVar[str] = "all weights, by gradients in proportion,"
    applies_at_once: ClassVar[bool] = True

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        return 4 * (sum(shape) if len(shape) < 3 else shape[0] * sum(shape[1:]))

    def working_bytes(self, shape: tuple[int, ...]) -> int:
        return 4 * math.prod(shape)

    def update(self, numbers: Tensor, gradient: Tensor, state: State, rate: float, decay: float) -> None:
        if not state:
            sides = zip(("rows", "columns"), gradient.shape, strict=False)
            state |= {side: np.zeros(count, np.float32) for side, count in sides}
            state["count"] = np.zeros((), np.int64)
        state["count"] += 1
        memory = min(MEMORY, 1 - float(state["count"]) ** -0.8)  # of the first step nothing is forgotten
        squares = gradient.square().add_(TINY)
        rows = torch.from_numpy(state["rows"])
        if gradient.ndim == 1:
            rows.lerp_(squares, 1 - memory)
            torch.rsqrt(rows, out=squares)
        else:
            columns = torch.from_numpy(state["columns"])
            rows.lerp_(squares.mean(1), 1 - memory)
            columns.lerp_(squares.mean(0), 1 - memory)
            torch.mul((rows / rows.mean()).rsqrt_()[:, None], columns.rsqrt()[None], out=squares)
        direction = squares.mul_(gradient)
        size, own = (float(x.norm()) / math.sqrt(x.numel()) for x in (direction, numbers))
        if decay:
            numbers.mul_(1 - rate * decay)
        numbers.add_(direction, alpha=-rate * max(LEAST, own) / max(1.0, size))
