"""One of each group of like texts: equal token rows, and near ones by MinHash (Broder 1997, doi
10.1109/SEQUEN.1997.666900).

A text is the set of its runs of `run` tokens. Of its hash values under several hash functions the lowest are kept; two
texts share such a value as often as their sets overlap (Jaccard). Texts that share all values of one band are compared
in full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.spec import setting
from genmote.tune.select._base import Indices, Seen, Select

BANDS, ROWS = 32, 3  # two texts that overlap by 0.6 share a band in 99.96 of 100 cases, by 0.2 in 23
PRIME = np.uint64((1 << 31) - 1)


@dataclass(frozen=True)
class Dedup(Select):
    """Takes neither a model nor time; the rest is chance."""

    like: float = setting("overlap of two texts from which they are the same", default=0.7)
    run: int = setting("tokens that are compared in one piece", default=3)

    def faults(self) -> Iterator[str]:
        if not 0.3 <= self.like <= 1:
            yield f"like={self.like}, wanted an overlap from 0.3 to 1"
        if not 1 <= self.run <= 16:
            yield f"run={self.run}, wanted 1 to 16"

    def pick(self, seen: Seen, count: int) -> Indices:
        groups = self.groups([seen.tokens(n) for n in range(len(seen))])
        order = seen.random.permutation(len(seen))
        first = order[np.sort(np.unique(groups[order], return_index=True)[1])]  # one of each group, by chance
        if len(first) < count:
            seen.notes.append(
                f"only {len(first)} examples are unlike each other: the other {count - len(first)} repeat"
            )
            rest = order[~np.isin(order, first)]
            first = np.concatenate([first, rest])
        elif len(first) < len(seen):
            seen.notes.append(f"{len(seen) - len(first)} of {len(seen)} examples repeat others")
        return np.asarray(first[:count])

    def groups(self, rows: list[NDArray[Any]]) -> NDArray[np.int64]:
        """The group of each text, by the number of its first."""
        random = np.random.default_rng(0)
        factors, offsets = random.integers(1, int(PRIME), (2, BANDS * ROWS)).astype(np.uint64)
        sets = [pieces(row, self.run) for row in rows]
        bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        for n, piece in enumerate(sets):
            lowest = ((piece[:, None] * factors + offsets) % PRIME).min(axis=0).reshape(BANDS, ROWS)
            for band, values in enumerate(lowest):
                bands[band, values.tobytes()].append(n)
        group = np.arange(len(rows))
        for members in (np.array(each) for each in bands.values() if len(each) > 1):
            for k, n in enumerate(members):
                before = members[:k]
                for other in before[group[before] != group[n]]:  # of a log most are of one group
                    if group[other] != group[n] and _overlap(sets[other], sets[n]) >= self.like:
                        group[group == max(group[other], group[n])] = min(group[other], group[n])
        return group


def pieces(row: NDArray[Any], run: int) -> NDArray[np.uint64]:
    """The set of a text's runs of so many tokens, each hashed to below PRIME."""
    values = np.asarray(row, np.uint64) + np.uint64(1)
    run = min(run, len(values))
    hashed = np.zeros(len(values) - run + 1, np.uint64)
    for at in range(run):
        hashed = (hashed * np.uint64(1_000_003) + values[at : at + len(hashed)]) % PRIME
    return np.unique(hashed)


def _overlap(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
