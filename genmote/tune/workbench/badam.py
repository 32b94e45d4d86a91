"""One block after another with AdamW, each layer a block and what is no layer's one more (BAdam: Luo et al. 2024, arXiv
2404.02827). From the last layer to the first; averages are let go of with their block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from genmote.spec import setting
from genmote.tune.settings import Tuning
from genmote.tune.workbench._base import Shapes, Whole, block_of, largest_blocks


@dataclass(frozen=True)
class Badam(Whole):
    rate: ClassVar[float] = 1e-4
    strength: ClassVar[int] = 70
    learnt: ClassVar[str] = "one block after another"

    every: int = setting("steps of a block (0: as many as have all blocks learn once)", default=0)

    def faults(self) -> Iterable[str]:
        if self.every < 0:
            yield f"every={self.every}: use 0 or more, such as 50"

    def active(self, names: Sequence[str], tuning: Tuning, step: int) -> Iterable[str]:
        blocks = sorted({block_of(name) for name in names}, reverse=True)
        every = self.every or max(1, math.ceil(tuning.steps / len(blocks)))
        now = blocks[(step - 1) // every % len(blocks)]
        return [name for name in names if block_of(name) == now]

    def most_active(self, shapes: Shapes) -> Shapes:
        return largest_blocks(shapes, 1)
