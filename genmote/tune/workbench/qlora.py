"""LoRA on a base that stays in the file's own types (QLoRA: Dettmers et al. 2023, arXiv 2305.14314): a matrix is made
floats a block at a time where it is multiplied, on the way there and back, and the floats are let go of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genmote.tune.workbench._adapters import Adapters


@dataclass(frozen=True)
class Qlora(Adapters):
    strength: ClassVar[int] = 10
    learnt: ClassVar[str] = "adapters on a base in its own types"
    packed: ClassVar[bool] = True
