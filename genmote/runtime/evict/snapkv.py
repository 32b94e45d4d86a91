"""Rows that the last queries attend to, with their neighbours (SnapKV, Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from genmote.runtime.evict._base import Evict, Float32, Seen
from genmote.spec import setting


@dataclass(frozen=True)
class Snapkv(Evict):
    """The paper looks once, at a prompt's end; here the last queries of each block look."""

    observe: int = setting("queries that are asked", default=32)
    pool: int = setting("width of the window over which the attention is averaged, odd", default=7)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.observe < 1:
            yield f"observe={self.observe}: use 1 or more"
        if self.pool < 1 or self.pool % 2 == 0:
            yield f"pool={self.pool}: use an odd number"

    def queries(self, block: int) -> int:
        return min(self.observe, block)

    def score(self, seen: Seen) -> Float32:
        return pooled(seen.mass(self.observe), self.pool)


def pooled(x: Float32, width: int) -> Float32:
    """Mean over a window of `width` (odd) around each place of the last axis; what is beyond the ends counts as 0."""
    side = width // 2
    padded = np.pad(x, ((0, 0), (side, side)))
    total = np.zeros_like(x)
    for shift in range(width):
        total += padded[:, shift : shift + x.shape[1]]
    return total / np.float32(width)
