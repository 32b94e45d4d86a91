"""All weights, with AdamW and both of its averages in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genmote.tune.workbench._base import Whole


@dataclass(frozen=True)
class Full(Whole):
    rate: ClassVar[float] = 5e-5
    strength: ClassVar[int] = 100
    learnt: ClassVar[str] = "all weights"
