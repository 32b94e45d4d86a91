"""A few layers at a time, drawn by chance, with AdamW, and what is no layer's always (LISA: Pan et al. 2024, arXiv
2403.17919). Averages of a layer are let go of with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from genmote.spec import setting
from genmote.tune.settings import Tuning
from genmote.tune.workbench._base import ENDS, Shapes, Whole, block_of, largest_blocks


@dataclass(frozen=True)
class Lisa(Whole):
    rate: ClassVar[float] = 1e-4
    strength: ClassVar[int] = 80
    learnt: ClassVar[str] = "a few layers at a time, drawn by chance,"

    layers: int = setting("layers that learn at a time", default=2)
    every: int = setting("steps after which they are drawn anew", default=10)

    def faults(self) -> Iterable[str]:
        if self.layers < 1 or self.every < 1:
            yield f"layers={self.layers}, every={self.every}: use 1 or more, such as 2 and 10"

    def active(self, names: Sequence[str], tuning: Tuning, step: int) -> Iterable[str]:
        there = sorted({block_of(name) for name in names} - {ENDS})
        draw = np.random.default_rng([tuning.seed, 3, (step - 1) // self.every])
        chosen = {ENDS, *draw.permutation(there)[: self.layers].tolist()}
        return [name for name in names if block_of(name) in chosen]

    def most_active(self, shapes: Shapes, tuning: Tuning) -> Shapes:
        ends = {name: shape for name, shape in shapes.items() if block_of(name) == ENDS}
        layers = {name: shape for name, shape in shapes.items() if block_of(name) != ENDS}
        return ends | largest_blocks(layers, self.layers)
