"""The latest rows, and the first few, on which attention leans (StreamingLLM, Xiao et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genmote.runtime.evict._base import Evict, Float32, Seen


@dataclass(frozen=True)
class Window(Evict):
    """Needs neither rows nor queries, and no arithmetic: the cheapest."""

    reads = ()

    def score(self, seen: Seen) -> Float32:
        heads, rows = seen.carried.shape
        return np.broadcast_to(np.arange(rows, dtype=np.float32), (heads, rows))
