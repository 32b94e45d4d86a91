"""One block after another with AdamW, each layer a block and what is no layer's one more (BAdam: Luo et al. 2024, arXiv
2404.02827). From the last layer to the first; averages are let go of with their block."""

from __future__ import annotations

from collections.abc import Iterable
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

    every: int = setting("steps of a block (0: so many that all blocks learn once)", default=0)

    def faults(self) -> Iterable[str]:
        if self.every < 0:
            yield f"every={self.every}: use 0 or more, such as 50"

    def active(self, names: Iterable[str], tuning: Tuning, step: int) -> list[str]:
        blocks = sorted({block_of(name) for name in names}, reverse=True)
        now = blocks[self._turn(len(blocks), tuning.steps, step)]
        return [name for name in names if block_of(name) == now]

    def most_active(self, shapes: Shapes, tuning: Tuning) -> Shapes:
        blocks = sorted({block_of(name) for name in shapes}, reverse=True)
        turns = {self._turn(len(blocks), tuning.steps, step) for step in range(1, tuning.steps + 1)}
        lowest_first = sorted(blocks[turn] for turn in turns)
        reached = {name: shapes[name] for block in lowest_first for name in shapes if block_of(name) == block}
        return largest_blocks(reached, 1)

    def _turn(self, blocks: int, steps: int, step: int) -> int:
        """Which of the blocks it is, counted from the last layer down."""
        return (step - 1) * blocks // steps if self.every == 0 else (step - 1) // self.every % blocks
