"""What a learner finds hard: the length of its error early on (EL2N: Paul, Ganguli & Dziugaite 2021, arXiv 2107.07075)
and how often it loses again what it had right (Toneva et al. 2019, arXiv 1812.05159), over the stages of a pilot.

The hardest are often damaged, and of a few examples the easy teach more than the hard (Sorscher et al. 2022, arXiv
2206.14486): hence `from_hardest`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genmote.spec import setting
from genmote.tune.select._base import Indices, Seen, Select


@dataclass(frozen=True)
class Forgetting(Select):
    """Takes a pilot, and a pass over the examples at each of its stages."""

    from_hardest: float = setting("share of the examples, the hardest, that is passed over", default=0.2)

    def faults(self) -> Iterator[str]:
        if not 0 <= self.from_hardest <= 1:
            yield f"from_hardest={self.from_hardest}, wanted a share from 0 to 1"

    def pick(self, seen: Seen, count: int) -> Indices:
        readings = seen.readings()
        right = np.array([reading.right for reading in readings])  # (stages, N)
        forgotten = (right[:-1] & ~right[1:]).sum(axis=0)
        errors = np.mean([reading.errors for reading in readings[1:] or readings], axis=0)
        hardest = np.lexsort((-errors, -forgotten))  # the most often forgotten first, then by their error
        start = min(round(self.from_hardest * len(hardest)), len(hardest) - count)
        return np.asarray(hardest[start : start + count])
