"""Each answer its share, and of each answer the texts that are least like one another.

What is made by rules, or comes off a machine, says few things often and many seldom, so that a tenth of it by chance
lacks some. An answer, the tokens that are to be learnt, gets a share of the examples as the root of its number: between
what comes by chance and as many of each (a root in place of the number as in Mikolov et al. 2013, arXiv 1310.4546, and
many since). Answers that are there once are one group: of free texts, all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.spec import setting
from genmote.tune.select._base import Indices, Seen, Select, answer
from genmote.tune.select.coreset import centres
from genmote.tune.select.dedup import pieces
from genmote.tune.select.gradients import directions

NUMBERS = 256  # that a text's runs of tokens are hashed to


@dataclass(frozen=True)
class Balance(Select):
    """Takes neither a model nor much time: a distance of each text to the chosen ones of its answer."""

    power: float = setting("of an answer's number, its share: 0 as many of each, 1 as they are there", default=0.5)

    def faults(self) -> Iterator[str]:
        if not 0 <= self.power <= 1:
            yield f"power={self.power}, wanted 0 to 1"

    def pick(self, seen: Seen, count: int) -> Indices:
        answers = [answer(*seen.examples[int(n)]) for n in seen.of]
        _, group, times = np.unique(np.array(answers, object), return_inverse=True, return_counts=True)
        group[times[group] == 1] = -1
        members = [seen.random.permutation(np.flatnonzero(group == g)) for g in np.unique(group)]
        points = hashed([seen.tokens(n) for n in range(len(seen))])
        chosen = []
        for some, share in zip(members, shares([len(each) for each in members], count, self.power), strict=True):
            if share:
                chosen.append(some[centres(points[some] - points[some].mean(axis=0), share)])
        return np.concatenate(chosen)


def hashed(rows: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Texts as the sets of their tokens and pairs of tokens: each counts in one of few numbers, with a sign, and a row
    has length 1 (count sketch: Charikar, Chen & Farach-Colton 2002)."""
    points = np.zeros((len(rows), NUMBERS))
    for point, row in zip(points, rows, strict=True):
        for run in (1, 2):
            mixed = pieces(row, run) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: Knuth, vol. 3, 6.4
            at = (mixed >> np.uint64(40)) % np.uint64(NUMBERS)
            np.add.at(point, at.astype(int), 1 - 2 * (mixed >> np.uint64(63)).astype(int))
    return directions(points)


def shares(sizes: Sequence[int], count: int, power: float) -> list[int]:
    """`count` in all, to groups of so many as their sizes to a power, none more than it has; one after another to the
    group that lacks most of its due (Sainte-Laguë's divisors).

    >>> shares([100, 9, 1], 6, 0.5), shares([100, 9, 1], 6, 1)
    ([4, 1, 1], [6, 0, 0])
    """
    weights, most, given = np.asarray(sizes) ** float(power), np.asarray(sizes), np.zeros(len(sizes), int)
    for _ in range(count):
        given[np.argmax(np.where(given < most, weights / (given + 0.5), -1))] += 1
    return [int(each) for each in given]
