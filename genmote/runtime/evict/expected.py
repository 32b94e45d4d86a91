"""Rows that queries yet to come are expected to use (Expected Attention, Devoto et al. 2025).

Queries of a head are taken as normally distributed, with the mean m and covariance C of the last ones. Then
E[exp(q . k)] = exp(m . k + k C k / 2), and a row is worth its share of that, times the length of its value: how far it
would move the output. The paper estimates m and C before the rotation and rotates them to positions to come; here they
come from the last block's queries as they stand, whose positions are the nearest to those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from genmote.runtime.evict._base import Evict, Float32, Seen, at_once
from genmote.spec import setting


@dataclass(frozen=True)
class Expected(Evict):
    """`floor` is added to each share, so that values count also where hardly any attention is expected."""

    reads = ("keys", "values")

    recent: float = setting("share of the kept rows that are the latest ones", default=0.5)
    observe: int = setting("queries whose mean and covariance are used", default=64)
    floor: float = setting("added to the expected share of attention, as a part of an even share", default=0.0)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.observe < 2:
            yield f"observe={self.observe}: use 2 or more"
        if self.floor < 0:
            yield f"floor={self.floor:g}: use 0 or more"

    def queries(self, block: int) -> int:
        return min(self.observe, block)

    def score(self, seen: Seen) -> Float32:
        keys, queries = seen.by_head(self.observe)  # (Hkv, D, T), (Hkv, G, n, D)
        heads, group, count, dim = queries.shape
        rows = keys.shape[2]
        mean = queries.mean(axis=2)  # (Hkv, G, D)
        centred = (queries - mean[:, :, None]) / np.float32(np.sqrt(2 * count))
        expected = mean @ keys
        step = at_once(heads * group * rows)
        for first in range(0, count, step):  # k C k = |(q - m) k|**2 / n
            some = centred[:, :, first : first + step].reshape(heads, -1, dim)
            spread = (some @ keys).reshape(heads, group, -1, rows)
            expected += np.einsum("hgnt,hgnt->hgt", spread, spread)
        expected -= expected.max(axis=-1, keepdims=True)
        np.exp(expected, out=expected)
        expected /= expected.sum(axis=-1, keepdims=True)
        lengths = np.sqrt(np.einsum("thd,thd->ht", seen.values, seen.values))  # (Hkv, T), without a copy
        share = expected.mean(axis=1) + np.float32(self.floor / rows)
        return np.ascontiguousarray(share * lengths)
