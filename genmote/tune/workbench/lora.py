"""Adapters of low rank on plain weights (LoRA: Hu et al. 2021, arXiv 2106.09685), with AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genmote.tune.workbench._adapters import Adapters


@dataclass(frozen=True)
class Lora(Adapters):
    strength: ClassVar[int] = 20
    learnt: ClassVar[str] = "adapters"
