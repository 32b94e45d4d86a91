"""All weights by plain gradient descent, each gradient applied as it comes on the way back and let go of (LOMO: Lv et
al. 2023, arXiv 2306.09782): nothing is kept but the weights.

Where a step's examples go through the model in several passes, each pass is applied by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genmote.tune.workbench._base import State, Tensor, Whole


@dataclass(frozen=True)
class Lomo(Whole):
    rate: ClassVar[float] = 1e-2
    strength: ClassVar[int] = 40
    learnt: ClassVar[str] = "all weights, by plain gradients,"
    applies_at_once: ClassVar[bool] = True

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        return 0

    def update(self, numbers: Tensor, gradient: Tensor, state: State, rate: float, decay: float) -> None:
        if decay:
            numbers.mul_(1 - rate * decay)
        numbers.add_(gradient, alpha=-rate)
