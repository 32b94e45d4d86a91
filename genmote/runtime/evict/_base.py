"""What every eviction policy stands on: a member of this folder is a frozen dataclass with one `score`.

A layer holds at most `budget + block` rows; whenever it does, it is cut to the `budget` rows of each key-value head
that score highest. The first rows (`sinks`) and the last (`recent`) are kept whatever they score: attention leans on
the first (Xiao et al. 2023), and the next words on the last.

>>> from genmote.runtime.evict.window import Window
>>> keys = np.zeros((6, 1, 2), np.float32)
>>> window = Window(sinks=1, recent=0.0)
>>> window.keep(window.score(Seen(keys, keys, keys[:0], np.zeros((1, 6), np.float32))), 3).rows.tolist()
[[0, 4, 5]]
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from genmote.spec import setting

if TYPE_CHECKING:
    from genmote.ops.layer import LayerSpec
    from genmote.ops.protocol import KVCache

Float32 = NDArray[np.float32]
PART_NUMBERS = 1 << 18  # attention weights held at once


@dataclass(frozen=True)
class Seen:
    """Some of a layer's heads as a policy sees them: T rows, Hkv key-value heads, the H query heads that share them, D
    numbers a head. All are float32, as attention uses them: keys and queries are rotated to their positions."""

    keys: Float32  # (T, Hkv, D); (0, Hkv, D) for a policy that does not read them
    values: Float32  # (T, Hkv, D); likewise
    queries: Float32  # (n, H, D): of the last n rows, oldest first
    carried: Float32  # (Hkv, T): the scores that rows had when they were last scored; 0 for newer ones
    scale: float = 1.0  # a score is query . key * scale
    cap: float = 0.0  # soft cap of the scores; 0: none

    @classmethod
    def head(
        cls, cache: KVCache, spec: LayerSpec, head: int, reads: Collection[str], queries: Float32, carried: Float32
    ) -> Seen:
        """One key-value head of a layer whose last queries are (n, H, D) and whose carried scores are (Hkv, T)."""
        nothing = np.zeros((0, 1, spec.head_dim), np.float32)
        group = spec.n_heads // spec.n_kv_heads
        return cls(
            cache.keys(spec.index, head) if "keys" in reads else nothing,
            cache.values(spec.index, head) if "values" in reads else nothing,
            queries[:, head * group : (head + 1) * group],
            carried[head : head + 1],
            spec.scale,
            spec.score_cap,
        )

    def by_head(self, last: int) -> tuple[Float32, Float32]:
        """Keys (Hkv, D, T), and the last queries, scaled, of the G heads that share each: (Hkv, G, n, D)."""
        return self._by_head(slice(len(self.queries) - min(last, len(self.queries)), None))

    def _by_head(self, some: slice) -> tuple[Float32, Float32]:
        _, heads, dim = self.keys.shape
        queries = self.queries[some]
        grouped = queries.reshape(len(queries), heads, -1, dim).transpose(1, 2, 0, 3) * np.float32(self.scale)
        # In one piece each, without which NumPy multiplies far slower.
        return np.ascontiguousarray(self.keys.transpose(1, 2, 0)), np.ascontiguousarray(grouped)

    def attention(self, first: int = 0, last: int | None = None) -> Float32:
        """Attention weights of the queries [first, last), (H, m, T)."""
        rows, heads, _ = self.keys.shape
        keys, queries = self._by_head(slice(first, last))
        _, group, count, _ = queries.shape
        scores = (queries.reshape(heads, group * count, -1) @ keys).reshape(heads * group, count, rows)
        if self.cap:
            scores = np.float32(self.cap) * np.tanh(scores / np.float32(self.cap))
        seen = rows - len(self.queries) + first  # the row of the first query
        for at in range(count):  # a query sees the rows up to its own
            scores[:, at, seen + at + 1 :] = -np.inf
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        return scores

    def mass(self, last: int) -> Float32:
        """Attention that each row gets from the last `last` queries, summed over them, mean over the query heads that
        share a key-value head: (Hkv, T)."""
        rows, heads, _ = self.keys.shape
        total = np.zeros((heads, rows), np.float32)
        step = at_once(self.queries.shape[1] * rows)
        for first in range(len(self.queries) - min(last, len(self.queries)), len(self.queries), step):
            each = self.attention(first, first + step)  # (H, m, T)
            total += each.sum(axis=1).reshape(heads, -1, rows).mean(axis=1)
        return total


def at_once(numbers: int) -> int:
    """How many queries are looked at together, each of which takes so many numbers."""
    return max(1, PART_NUMBERS // numbers)


@dataclass(frozen=True)
class Kept:
    """The rows that stay, ascending in each head, and their scores: (Hkv, budget) each."""

    rows: NDArray[np.int64]
    scores: Float32


@dataclass(frozen=True)
class Evict:
    """The base of all policies; fields are the settings, as in ``--evict snapkv:recent=0.2``."""

    sinks: int = setting("rows at the beginning that are always kept", default=4)
    recent: float = setting("share of the kept rows that are the latest ones", default=0.25)

    accumulates = False  # whether every query counts, so that scores are brought up to date at the end of each block
    reads: ClassVar[tuple[str, ...]] = ("keys",)  # what `score` reads of the rows, "keys" and "values"

    def faults(self) -> Iterable[str]:
        if self.sinks < 0:
            yield f"sinks={self.sinks}: use 0 or more"
        if not 0 <= self.recent <= 1:
            yield f"recent={self.recent:g}: use a share from 0 to 1"

    def queries(self, block: int) -> int:
        """How many of the last rows' queries `score` needs, at most `block`."""
        return 0

    def score(self, seen: Seen) -> Float32:
        """How much each row is worth to each key-value head, (Hkv, T); the highest stay. Heads are shown one after the
        other, so that a layer never lies in memory as floats."""
        raise NotImplementedError

    def together(self, scores: Float32) -> Float32:
        """The scores of all of a layer's heads, (Hkv, T), where they have a say in each other's."""
        return scores

    def keep(self, scores: Float32, budget: int) -> Kept:
        """Choose `budget` of a layer's rows for each head. Where scores are equal, later rows stay."""
        scores = self.together(scores)
        return Kept(chosen := self.choose(scores, budget), np.take_along_axis(scores, chosen, axis=1))

    def choose(self, scores: Float32, budget: int) -> NDArray[np.int64]:
        """The `budget` best rows of each head, ascending, with the sinks and the latest among them: (Hkv, budget)."""
        rows = scores.shape[1]
        if budget >= rows:
            return np.broadcast_to(np.arange(rows), scores.shape).copy()
        sinks = min(self.sinks, budget)
        recent = min(budget - sinks, round(self.recent * budget))
        worth = np.where(np.isfinite(scores), scores, np.float32(0))
        worth[:, :sinks] = np.inf
        worth[:, rows - recent :] = np.inf
        order = np.argsort(worth[:, ::-1], axis=1, kind="stable")[:, rows - budget :]
        return np.sort(rows - 1 - order, axis=1)
