"""Some of each group whose losses fall alike while a pilot learns (S2L: Yang et al. 2024, arXiv 2403.07384)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genmote.spec import setting
from genmote.tune.select._base import Floats, Indices, Seen, Select


@dataclass(frozen=True)
class Curves(Select):
    """Takes a pilot, and a pass over the examples at each of its stages."""

    groups: int = setting("groups of like curves; fewer where few are kept", default=50)

    def faults(self) -> Iterator[str]:
        if self.groups < 1:
            yield f"groups={self.groups}, wanted at least 1"

    def pick(self, seen: Seen, count: int) -> Indices:
        curves = np.stack([reading.losses for reading in seen.readings()], axis=1)  # (N, stages)
        group = k_means(curves, min(self.groups, count), seen.random)
        members = [seen.random.permutation(np.flatnonzero(group == g)) for g in np.unique(group)]
        members.sort(key=len)
        chosen: list[Indices] = []
        left = count
        for n, some in enumerate(members):  # the smallest first, so that what it lacks is shared by the others
            share = min(len(some), left // (len(members) - n))
            chosen.append(some[:share])
            left -= share
        return np.concatenate(chosen)


def k_means(points: Floats, count: int, random: np.random.Generator, rounds: int = 50) -> Indices:
    """The group of each row (Lloyd 1982), begun with far rows (Arthur & Vassilvitskii 2007); fewer groups than `count`
    where rows are equal."""
    starts = [points[random.integers(len(points))]]
    nearest = ((points - starts[0]) ** 2).sum(axis=1)
    while len(starts) < count and nearest.sum() > 0:
        starts.append(points[random.choice(len(points), p=nearest / nearest.sum())])
        nearest = np.minimum(nearest, ((points - starts[-1]) ** 2).sum(axis=1))
    means = np.array(starts)
    group = np.full(len(points), -1)
    for _ in range(rounds):
        apart = (points**2).sum(axis=1)[:, None] - 2 * points @ means.T + (means**2).sum(axis=1)
        now = apart.argmin(axis=1)
        if np.array_equal(now, group):
            break
        group = now
        for g in np.unique(group):
            means[g] = points[group == g].mean(axis=0)
    return group
