"""LoRA whose update counts alpha / sqrt(rank), so that a high rank learns as fast as a low one (rsLoRA: Kalajdzievski
2023, arXiv 2312.03732). The file says so by its alpha, which every reader divides by the rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from genmote.tune.settings import Tuning
from genmote.tune.workbench._adapters import Adapters

ALPHA = 8.0  # where none is asked for


@dataclass(frozen=True)
class Rslora(Adapters):
    strength: ClassVar[int] = 0  # takes what lora takes
    learnt: ClassVar[str] = "adapters"

    def factor(self, tuning: Tuning) -> float:
        return (ALPHA if tuning.alpha is None else tuning.alpha) / math.sqrt(tuning.rank)
