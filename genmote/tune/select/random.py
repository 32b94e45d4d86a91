"""Any of the examples: what every other way is held against."""

from __future__ import annotations

from dataclasses import dataclass

from genmote.tune.select._base import Indices, Seen, Select


@dataclass(frozen=True)
class Random(Select):
    """Costs nothing, and is hard to beat."""

    def pick(self, seen: Seen, count: int) -> Indices:
        return seen.random.permutation(len(seen))[:count]
