"""A window whose newest values are distributed unlike its others (KSWIN: Raab, Heusinger & Schleif 2020, doi
10.1016/j.neucom.2019.11.111), by the two-sample Kolmogorov-Smirnov test.

The paper draws as many of the older values as there are newest ones; here all of them are taken, which needs no chance
and sees more. The test's p-value is exact for values without ties, and an upper bound with them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from genmote.spec import setting
from genmote.tune.drift._base import Detector, State


@dataclass
class Kswin(Detector):
    """Sees any change of the distribution, also of the spread alone, within its window; none slower than that."""

    level: float = setting("p-value below which the newest values are unlike the others", default=1e-5)
    window: int = setting("values that are looked at", default=200)
    newest: int = setting("how many of them are compared with the others", default=50)

    def faults(self) -> Iterator[str]:
        if not 0 < self.level < 1:
            yield f"level={self.level}, wanted a probability between 0 and 1"
        if self.newest < 2:
            yield f"newest={self.newest}, wanted at least 2"
        if self.window < 2 * self.newest:
            yield f"window={self.window}, wanted at least twice newest={self.newest}"
        elif self.window > 5000:
            yield f"window={self.window}, wanted at most 5000"
        elif 0 < self.level < 1 and p_value(self.newest * (self.window - self.newest), *self._sizes()) >= self.level:
            yield f"level={self.level}: no sample of {self.newest} is that unlikely; raise newest"

    def fresh(self) -> State:
        return {"values": []}

    def look(self, held: State, value: float) -> tuple[int, float] | None:
        values = held["values"]
        values.append(value)
        if len(values) < self.window:
            return None
        del values[: -self.window]
        older, newer = values[: -self.newest], values[-self.newest :]
        steps = distance(older, newer)
        if steps < _least(self.level, *self._sizes()):
            return None
        held["values"] = newer
        return self.newest, p_value(steps, *self._sizes())

    def _sizes(self) -> tuple[int, int]:
        return self.window - self.newest, self.newest


def distance(one: list[float], other: list[float]) -> int:
    """The largest difference of two samples' distribution functions, times both their sizes: a whole number.

    >>> distance([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    3
    """
    first, second = np.sort(one), np.sort(other)
    both = np.concatenate([first, second])
    below, above = np.searchsorted(first, both, "right"), np.searchsorted(second, both, "right")
    return int(np.abs(below * len(second) - above * len(first)).max())


@lru_cache(maxsize=64)
def p_value(steps: int, n: int, m: int) -> float:
    """How probable it is that two samples of one distribution are at least so far apart (see `distance`).

    Every order of the n + m values is as probable as any other; those are counted, as paths from (0, 0) to (n, m),
    that stay nearer than that (Hodges 1958).

    >>> p_value(9, 3, 3)  # all three below all three: 2 of the 20 orders
    0.1
    """
    row = [1] + [0] * m
    for j in range(1, m + 1):
        row[j] = row[j - 1] if j * n < steps else 0
    for i in range(1, n + 1):
        row[0] = row[0] if i * m < steps else 0
        for j in range(1, m + 1):
            row[j] = row[j] + row[j - 1] if abs(i * m - j * n) < steps else 0
    orders = math.comb(n + m, n)
    return (orders - row[m]) / orders


@lru_cache(maxsize=64)
def _least(level: float, n: int, m: int) -> int:
    """The least distance of which the p-value is below `level`."""
    return bisect_left(range(n * m + 1), True, key=lambda steps: p_value(steps, n, m) < level)
