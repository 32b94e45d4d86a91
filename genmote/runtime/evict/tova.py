"""Rows that the last query attends to, the same for all heads (TOVA, Oren et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genmote.runtime.evict._base import Evict, Float32, Seen


@dataclass(frozen=True)
class Tova(Evict):
    """The paper drops a row at every token; here the last query of each block decides."""

    def queries(self, block: int) -> int:
        return 1

    def score(self, seen: Seen) -> Float32:
        return seen.mass(1)

    def together(self, scores: Float32) -> Float32:
        return np.broadcast_to(scores.mean(axis=0), scores.shape)
