"""Examples whose gradients stand for those of all others: facility location (CRAIG: Mirzasoleiman, Bilmes & Leskovec
2020, arXiv 1906.01827).

The sum over all examples of how like its gradient is to the nearest chosen one's is made large, greedily: each time by
the best of some candidates drawn at random (Mirzasoleiman et al. 2015, arXiv 1409.7938), so that no table of all pairs
is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genmote.spec import setting
from genmote.tune.select._base import Floats, Indices, Seen, Select
from genmote.tune.select.gradients import directions


@dataclass(frozen=True)
class Cover(Select):
    """Takes a pilot, and a pass forth and, through the last layers, back over the examples."""

    short: float = setting("share of the best that drawing candidates may cost; smaller is slower", default=0.01)

    def faults(self) -> Iterator[str]:
        if not 0 < self.short < 1:
            yield f"short={self.short}, wanted a share between 0 and 1"

    def pick(self, seen: Seen, count: int) -> Indices:
        candidates = math.ceil(len(seen) / count * math.log(1 / self.short))
        return facilities(directions(seen.gradients()[0]), count, candidates, seen.random)


def facilities(points: Floats, count: int, candidates: int, random: np.random.Generator) -> Indices:
    """`count` rows of unit vectors, each the one of so many candidates that brings all rows nearest to those chosen."""
    nearest = np.full(len(points), -1.0)  # the largest cosine to a chosen row
    left = np.arange(len(points))
    chosen = np.empty(count, np.int64)
    for n in range(count):
        some = random.permutation(left)[:candidates]
        like = points @ points[some].T  # (N, candidates)
        best = int(np.argmax(np.maximum(like, nearest[:, None]).sum(axis=0)))
        chosen[n] = some[best]
        nearest = np.maximum(nearest, like[:, best])
        left = left[left != chosen[n]]
    return chosen
