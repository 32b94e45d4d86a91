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
        mass = seen.mass(1)  # (Hkv, T)
        return np.broadcast_to(mass.mean(axis=0), mass.shape)
