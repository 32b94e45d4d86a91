"""A window that is cut where its older and its newer part have different means (ADWIN, Bifet & Gavaldà 2007, doi
10.1137/1.9781611972771.42).

The window is an exponential histogram: buckets of 1, 2, 4, … values, at most `buckets` of each size, so that n values
take about `buckets` * log2(n / buckets) of them. The test is the paper's for a window's own variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from genmote.spec import setting
from genmote.tune.drift._base import Detector, State

Bucket = list[float]  # of some values: how many, their mean, the sum of squares about it


@dataclass
class Adwin(Detector):
    """Sees a change of the mean, however slow; is quiet about one of the spread alone."""

    delta: float = setting("how probable a false alarm may be at one test", default=0.002)
    range: float = setting("how far values may lie from each other; 0: as far as those seen do", default=0.0)
    every: int = setting("a test is made at each so-many-th value", default=32)
    least: int = setting("values that each part has at least", default=5)
    buckets: int = setting("buckets of one size at most: more see smaller changes", default=5)

    def faults(self) -> Iterator[str]:
        if not 0 < self.delta < 1:
            yield f"delta={self.delta}, wanted a probability between 0 and 1"
        if not 0 <= self.range < math.inf:
            yield f"range={self.range}, wanted the largest distance between two values, or 0"
        for name in ("every", "least", "buckets"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}, wanted at least 1"

    def fresh(self) -> State:
        return {"buckets": [], "ticks": 0, "ends": []}  # buckets: oldest first; ends: lowest and highest value

    def look(self, held: State, value: float) -> tuple[int, float] | None:
        held["ticks"] += 1
        held["ends"] = [min([*held["ends"], value]), max([*held["ends"], value])]
        held["buckets"].append([1, value, 0.0])
        self._compress(held["buckets"])
        if held["ticks"] % self.every:
            return None
        found = self._cut(held["buckets"], self.range or held["ends"][1] - held["ends"][0])
        if found is None:
            return None
        at, chance = found
        del held["buckets"][:at]
        return sum(int(bucket[0]) for bucket in held["buckets"]), chance

    def _compress(self, buckets: list[Bucket]) -> None:
        """Where there is one of a size too many, the two oldest of it become one of the next size."""
        size, stop = 1, len(buckets)
        while True:
            start = stop
            while start and buckets[start - 1][0] == size:
                start -= 1
            if stop - start <= self.buckets:
                return
            buckets[start : start + 2] = [_joined(buckets[start], buckets[start + 1])]
            size, stop = 2 * size, start + 1

    def _cut(self, buckets: list[Bucket], spread: float) -> tuple[int, float] | None:
        """The bucket before which a cut is most certain, and its chance, if any is less probable than `delta`."""
        newer = [buckets[-1]]
        for bucket in reversed(buckets[:-1]):
            newer.append(_joined(bucket, newer[-1]))
        newer.reverse()  # newer[i]: all from bucket i on
        count, _, squares = newer[0]
        best, at, older = self.delta, 0, buckets[0]
        for i in range(1, len(buckets)):
            if min(older[0], newer[i][0]) >= self.least:
                inverse = 1 / older[0] + 1 / newer[i][0]
                chance = _chance(abs(older[1] - newer[i][1]), 2 * inverse * squares / count, spread * inverse, count)
                if chance < best:
                    best, at = chance, i
            older = _joined(older, buckets[i])
        return (at, best) if at else None


def _chance(apart: float, variance: float, spread: float, count: float) -> float:
    """The delta at which the paper's bound for two means is just `apart`: sqrt(variance * x) + 2/3 * spread * x, with
    x = ln(2 ln(count) / delta). It is solved for sqrt(x)."""
    square = 2 / 3 * spread
    below = math.sqrt(variance) + math.sqrt(variance + 4 * square * apart)
    if apart == 0 or below == 0:  # values that do not differ, but for their rounding
        return 1.0
    root = 2 * apart / below
    return min(1.0, 2 * math.log(count) * math.exp(-min(root * root, 700.0)))


def _joined(one: Bucket, other: Bucket) -> Bucket:
    """Two buckets as one (Chan, Golub & LeVeque 1983)."""
    count, apart = one[0] + other[0], other[1] - one[1]
    return [
        count,
        one[1] + apart * other[0] / count,
        one[2] + other[2] + apart * apart * one[0] * other[0] / count,
    ]
