"""Sessions that forget: how many rows an engine's sessions hold, and which rows go.

An `Eviction` is a setting of the engine; an `Evictor` is what one session needs of it. A session is cut at fixed
positions, whole blocks of its own rows, so that a text comes out the same in any company and however its prompt is
sliced. Which rows go is decided by a policy (`evict/NAME.py`); the arithmetic is NumPy's, on the rows as attention
sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote import registry
from genmote.errors import SpecError
from genmote.ops.cache import ROWS_DECODED
from genmote.runtime.evict import _layers
from genmote.runtime.evict._base import PART_NUMBERS, Evict, Seen
from genmote.spec import member

if TYPE_CHECKING:
    from genmote.models.config import Config
    from genmote.models.decoder import Decoder
    from genmote.ops.layer import LayerSpec
    from genmote.ops.protocol import KVCache

ROOM = "genmote.runtime.evict"
DEFAULT, SHARE = "expected+retrieval", 0.25  # the policy, and the share of the context, where only the other is given
LEAST_ROWS = 32
LEAST_SHARE = 0.28  # of the mean, what every layer keeps where layers differ
MOST_SHARE = 6  # times the mean, what none goes beyond: a plan counts with it, and models known so far stay below


@lru_cache(maxsize=64)
def policy(text: str) -> tuple[Evict, str]:
    """The policy and the way to share out rows that a text names: ``NAME[+LAYERS][:FIELD=VALUE,...]``.

    >>> policy("window:sinks=2")
    (Window(sinks=2, recent=0.25), 'even')
    >>> policy("snapkv+pyramid")[1]
    'pyramid'
    """
    head, _, settings = text.partition(":")
    name, _, layers = head.partition("+")
    policy = member(ROOM, Evict, f"{name}:{settings}", what="eviction policy", where=f"evict={text!r}")
    if layers and layers not in _layers.KINDS:
        raise SpecError(_layers.unknown(layers))
    return policy, layers or "even"


def names() -> list[str]:
    """The policies that there are."""
    return registry.names(ROOM)


@dataclass(frozen=True)
class Eviction:
    """A layer holds at most `rows` rows, on average over the layers: it is cut whenever a block has come on top of
    what it keeps, by that block."""

    name: str
    policy: Evict
    layers: str
    rows: int
    context: int

    @property
    def block(self) -> int:
        """Rows between two cuts: a sixteenth of what a layer holds. Fewer would keep more, and cut more often."""
        return max(8, self.rows // 16 // 8 * 8)

    @property
    def queries(self) -> int:
        """How many of the last rows' queries the cache must keep."""
        return min(self.block, self.policy.queries(self.block))

    def kept(self, decoder: Decoder) -> list[int]:
        """Rows that each layer keeps at a cut, whole blocks. Layers whose attention has a window keep no more."""
        block = self.block
        blocks = self._shared(_layers.weights(self.layers, decoder))
        windows = [layer.spec.window for layer in decoder.weights.layers]
        return [
            min(int(n), -(-window // block)) * block if window else int(n) * block
            for n, window in zip(blocks, windows, strict=True)
        ]

    def _shared(self, weight: NDArray[np.float64]) -> NDArray[np.int64]:
        """Blocks that each layer keeps."""
        mean = self.rows // self.block - 1
        most = min(-(-self.context // self.block), MOST_SHARE * mean)
        least = mean if self.layers == "even" else max(1, round(LEAST_SHARE * mean))
        return _layers.shared(weight, mean, least, most)

    def longest(self, layers: int) -> int:
        """Rows that one of so many layers may hold at most, whatever the model's layers turn out to be worth."""
        alone = np.eye(1, layers)[0]  # all that is to be shared goes to one layer
        weight = alone if self.layers == "retrieval" else _layers.fixed(self.layers, layers)
        return min(self.context, (int(self._shared(weight).max()) + 1) * self.block)

    def scratch_bytes(self, config: Config, longest: int) -> int:
        """What choosing rows takes for a moment where no layer holds more than `longest`: one head's keys and values
        as floats, with a copy of the keys, and attention weights, in parts where they are many; a layer's queries and
        scores; and of all layers the rows that stay."""
        dim, kv_heads = config.head_dim, max(config.kv_heads)
        group = max(heads // kv for heads, kv in zip(config.heads, config.kv_heads, strict=True))
        one = group * longest  # of one query, which is looked at whole
        weights = min(max(PART_NUMBERS, one), self.queries * one) * (3 if config.layers[0].score_cap else 1)
        weights += 2 * one if self.queries else 0  # and their sums
        if self.layers == "retrieval":  # finding out which layers look back comes first
            weights = max(weights, group * 2 * _layers.REPEATED**2)
        read, copied = len(self.policy.reads), int(self.queries > 0)
        decoded = (4 * read + 2) * longest * dim + 20 * ROWS_DECODED * dim if read else 0
        scored = 4 * (read + copied) * longest * dim + 4 * weights
        one_layer = self.queries * (6 * max(config.heads) + 8 * group) * dim + 48 * kv_heads * longest
        all_layers = sum(config.kv_heads) * self.rows * (8 if self.policy.accumulates else 4)
        return max(decoded, scored) + one_layer + all_layers

    def told(self) -> str:
        """What is lost, for people."""
        return f"rows beyond {self.rows} a layer are evicted ({self.name})"


def eviction(evict: str | None, kv_tokens: float | None, context: int) -> Eviction | None:
    """The setting for sessions of up to `context` tokens; None where nothing is to be evicted.

    `kv_tokens`: rows a layer may hold, or a share of the context below 1. Raises SpecError.
    """
    if evict is None and kv_tokens is None:
        return None
    name = DEFAULT if evict is None else evict
    found, layers = policy(name)
    given = SHARE if kv_tokens is None else kv_tokens
    wrong = isinstance(given, bool) or not isinstance(given, int | float) or given <= 0
    rows = 0 if wrong else int(given * context) if given < 1 else int(given)
    if rows < LEAST_ROWS or (not wrong and given >= 1 and given != rows):
        told = f"{kv_tokens:g}" if isinstance(kv_tokens, float) else repr(kv_tokens)
        raise SpecError(
            f"kv_tokens={told} with a context of {context}: use a whole number from {LEAST_ROWS} up, "
            f"or a share of the context below 1 that makes at least {LEAST_ROWS} rows"
        )
    if rows >= context:
        return None
    made = Eviction(name, found, layers, rows, context)
    if found.sinks >= (kept := rows - made.block):
        raise SpecError(
            f"evict={name!r} always keeps the first {found.sinks} rows, and {kept} are all that a "
            f"layer of {rows} keeps: use fewer sinks or more kv_tokens"
        )
    return made


def lossy(kv: str, setting: Eviction | None) -> tuple[str, ...]:
    """What storing keys and values so loses of the model's accuracy, a line each."""
    told = () if kv == "f16" else (f"keys and values are rounded to {kv}",)
    return told if setting is None else (*told, setting.told())


@dataclass(frozen=True)
class Cut:
    """Rows that stay in each layer that is cut, (Hkv, kept), and the scores to carry on, (Hkv, held) for each layer."""

    rows: dict[int, NDArray[np.int32]]
    scores: list[NDArray[np.float32]]


class Evictor:
    """Cuts one session's cache. `kept`: rows that each layer keeps (`Eviction.kept`)."""

    def __init__(self, eviction: Eviction, decoder: Decoder, kept: list[int]) -> None:
        self.eviction, self.kept = eviction, kept
        self.scratch_bytes = eviction.scratch_bytes(decoder.config, min(eviction.context, max(kept) + eviction.block))
        self._specs = [layer.spec for layer in decoder.weights.layers]
        self._first = eviction.block if eviction.policy.accumulates else min(kept) + eviction.block
        self.done = 0  # position of the last cut
        self._scores: list[NDArray[np.float32]] = [np.zeros((s.n_kv_heads, 0), np.float32) for s in self._specs]

    @property
    def next(self) -> int:
        """The position at which the session is cut before its next row."""
        return self.done + self.eviction.block if self.done else self._first

    def begin(self, position: int) -> None:
        """Begin with a session that already holds so many rows: what is too much goes at its next row."""
        if position > self._first:
            self.done = position - self.eviction.block

    def choose(self, cache: KVCache) -> Cut:
        """What to cut at the position `next`; nothing is changed yet."""
        policy, block = self.eviction.policy, self.eviction.block
        chosen: dict[int, NDArray[np.int32]] = {}
        scores = list(self._scores)
        for spec, kept in zip(self._specs, self.kept, strict=True):
            layer = spec.index
            held = cache.lengths[layer]
            full = held >= kept + block
            if spec.window:  # attention there counts rows from the end: the latest stay, without a gap
                if full:
                    rows = np.arange(held - kept, held, dtype=np.int32)
                    chosen[layer] = np.broadcast_to(rows, (spec.n_kv_heads, kept))
            elif full or policy.accumulates:
                carried = np.pad(scores[layer], ((0, 0), (0, held - scores[layer].shape[1])))
                found = policy.keep(self._worth(cache, spec, carried), kept if full else held)
                if policy.accumulates:
                    scores[layer] = found.scores
                if full:
                    chosen[layer] = found.rows.astype(np.int32)
        return Cut(chosen, scores)

    def _worth(self, cache: KVCache, spec: LayerSpec, carried: NDArray[np.float32]) -> NDArray[np.float32]:
        """How much each row is worth to each head, (Hkv, T). Only what the policy reads is read, one head at a time."""
        policy = self.eviction.policy
        queries = cache.queries(spec.index) if self.eviction.queries else np.zeros((0, spec.n_heads, 0), np.float32)
        return np.concatenate(
            [
                policy.score(Seen.head(cache, spec, head, policy.reads, queries, carried))
                for head in range(spec.n_kv_heads)
            ]
        )

    def apply(self, cache: KVCache, cut: Cut) -> None:
        """Evict. Interrupted, the cache is of no use."""
        for layer, rows in cut.rows.items():
            cache.keep(layer, rows)
        self._scores, self.done = cut.scores, self.next

    def export(self) -> dict[str, NDArray[Any]]:
        """Plain arrays for saving, beside the cache's own."""
        counts = [self.done, *(x.shape[1] for x in self._scores)]
        name = _named(self.eviction)
        return {
            "evict": np.frombuffer(name.encode(), np.uint8),
            "evict_counts": np.array(counts, np.int64),
            "evict_scores": np.concatenate([x.reshape(-1) for x in self._scores]),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over what `export` gave; `check` has passed."""
        self.done, *counts = (int(n) for n in state["evict_counts"])
        heads = [spec.n_kv_heads for spec in self._specs]
        ends = np.cumsum([h * n for h, n in zip(heads, counts, strict=True)])[:-1]
        parts = np.split(np.array(state["evict_scores"], np.float32), ends)
        self._scores = [x.reshape(h, n) for x, h, n in zip(parts, heads, counts, strict=True)]


def check(state: Mapping[str, NDArray[Any]], eviction: Eviction | None) -> None:
    """Raise SpecError unless a saved state was made with this setting."""
    found = bytes(state["evict"]).decode(errors="replace") if "evict" in state else "none"
    wanted = "none" if eviction is None else _named(eviction)
    if found != wanted:
        raise SpecError(
            f"a prefix saved with eviction {found}, this engine evicts {wanted}: load it alike, or save anew"
        )


def _named(eviction: Eviction) -> str:
    """All that decides which rows stay; the context sets the most that a layer keeps."""
    return f"{eviction.name} {eviction.rows} of {eviction.context}"
