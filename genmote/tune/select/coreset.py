"""Examples that no other lies far from: k-centre, greedily, over the model's states (Sener & Savarese 2018, arXiv
1708.00489; within twice the best radius: Gonzalez 1985, doi 10.1016/0304-3975(85)90224-5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genmote.tune.select._base import Floats, Indices, Seen, Select


@dataclass(frozen=True)
class Coreset(Select):
    """Takes one pass over the examples, and a distance of each to every chosen one."""

    def pick(self, seen: Seen, count: int) -> Indices:
        return centres(directions(seen.reading().hidden), count)


def directions(hidden: np.ndarray) -> Floats:
    """States from their mean, scaled to length 1."""
    apart = np.asarray(hidden, np.float64)
    apart = apart - apart.mean(axis=0)
    return np.asarray(apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-12))


def centres(points: Floats, count: int) -> Indices:
    """Row numbers: the row nearest to the mean, then each time the one that is farthest from all before it. Equal rows
    come after all others."""
    chosen = np.empty(count, np.int64)
    chosen[0] = np.argmin(((points - points.mean(axis=0)) ** 2).sum(axis=1))
    nearest = np.full(len(points), np.inf)  # squared distance to the nearest centre; -1 for centres
    for n in range(1, count):
        nearest = np.minimum(nearest, ((points - points[chosen[n - 1]]) ** 2).sum(axis=1))
        nearest[chosen[:n]] = -1
        chosen[n] = np.argmax(nearest)
    return chosen
