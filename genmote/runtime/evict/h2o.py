"""Heavy hitters: rows that got the most attention so far (H2O, Zhang et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from genmote.runtime.evict._base import Evict, Float32, Seen


@dataclass(frozen=True)
class H2o(Evict):
    """A row's score is the sum of the attention that every query since has given it; no query is left out."""

    accumulates = True

    def queries(self, block: int) -> int:
        return block

    def score(self, seen: Seen) -> Float32:
        return seen.carried + seen.mass(len(seen.queries))
