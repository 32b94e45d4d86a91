"""Several signals that go on token by token, at once: what is common to all is run once.

Where a walk is longer than the decoder's context, it goes on from the header and the latest half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.generator.draw import Draw
from genmote.generator.layout import Rows
from genmote.ops.protocol import Span

if TYPE_CHECKING:
    from genmote.generator.layout import Layout
    from genmote.models.decoder import Decoder

CHUNK = 256  # rows that are run at once
Floats = NDArray[np.float32]


def embedded(decoder: Decoder, tokens: NDArray[Any], asks: NDArray[Any]) -> Any:
    """(N,) tokens and (N, ASKS) asks of those after them → (N, D)."""
    return decoder.embed(np.column_stack([tokens, asks]))


class Walk:
    """`paths` continuations of the same rows. `logits` (P, V) are of each one's next token."""

    def __init__(
        self,
        decoder: Decoder,
        layout: Layout,
        header: Rows,
        rows: Rows,
        first: NDArray[Any],
        paths: int,
        steps: int | None = None,
    ) -> None:
        """`header` stays whatever happens; `rows` come after it; `first` (ASKS,): of what the next token will be.
        `steps`: tokens that will be put, where that is known."""
        self.decoder, self.layout, self.header = decoder, layout, header
        self.capacity = layout.context
        if steps is not None:
            self.capacity = min(layout.context, len(header) + len(rows) + steps)
        self.paths = paths
        self._asked: dict[int, Floats] = {}
        self.asks = rows.asks
        self.tokens = np.broadcast_to(rows.tokens, (paths, len(rows)))  # (P, n)
        self._begin(first)

    def _room(self) -> int:
        return self.layout.context - len(self.header)

    def _begin(self, next_: NDArray[Any]) -> None:
        """Run the header and the latest rows."""
        keep = min(self.tokens.shape[1], max(1, self._room() // 2 if self.tokens.shape[1] >= self._room() else 1 << 30))
        self.held = len(self.header) + keep
        own = self.tokens[:, self.tokens.shape[1] - keep :]
        asks = np.concatenate([self.header.asks, self.asks[len(self.asks) - keep :], next_[None]])[1:]
        same = bool((own == own[:1]).all())
        self.caches: list[Any] = []
        logits = []
        for path in range(1 if same else self.paths):
            tokens = np.concatenate([self.header.tokens, own[path]])
            cache = self.decoder.cache(self.capacity)
            logits.append(self._run(cache, tokens, asks))
            self.caches.append(cache)
        if same:
            for _ in range(self.paths - 1):
                cache = self.decoder.cache(self.capacity)
                cache.copy_from(self.caches[0], self.held)
                self.caches.append(cache)
            logits *= self.paths
        self.logits: Floats = np.concatenate(logits)

    def _run(self, cache: Any, tokens: NDArray[Any], asks: NDArray[Any]) -> Floats:
        for at in range(0, len(tokens), CHUNK):
            part = slice(at, min(at + CHUNK, len(tokens)))
            x = embedded(self.decoder, tokens[part], asks[part])
            last = part.stop == len(tokens)
            found = self.decoder.forward(x, [Span(cache, 0, len(x))], logits="last" if last else None)
        assert found is not None
        return found

    def put(self, tokens: NDArray[Any], ask: NDArray[Any], next_: NDArray[Any]) -> None:
        """Go on with a token for each path (P,), each of which is `ask` (ASKS,), to one that is `next_`."""
        self.tokens = np.concatenate([self.tokens, tokens[:, None]], axis=1)
        self.asks = np.concatenate([self.asks, ask[None]])
        if self.held >= self.capacity:
            self.capacity = self.layout.context
            self._begin(next_)
            return
        ops, table = self.decoder.ops, self.decoder.weights.embedding
        x = ops.numpy(ops.embed(table, tokens.astype(np.int32)))
        for ask_ in next_[next_ >= 0].tolist():  # of all ways the same, and mostly as the step before
            if ask_ not in self._asked:
                self._asked[ask_] = ops.numpy(ops.embed(table, np.array([ask_], np.int32)))[0].copy()
            x += self._asked[ask_]
        spans = [Span(cache, n, 1) for n, cache in enumerate(self.caches)]
        found = self.decoder.forward(x, spans, logits="last")
        assert found is not None
        self.logits = found
        self.held += 1

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Go on with these paths alone."""
        self.caches = [cache for cache, stays in zip(self.caches, chosen.tolist(), strict=True) if stays]
        self.tokens, self.logits = self.tokens[chosen], self.logits[chosen]
        self.paths = len(self.caches)


def sampled(logits: Floats, allowed: NDArray[np.bool_], draw: Draw, temperature: float = 1.0) -> NDArray[np.int64]:
    """A token for each row (P,), drawn from those that are allowed, for all (V,) or for each (P, V); at temperature 0
    the likeliest."""
    if allowed.ndim == 1:
        columns = np.flatnonzero(allowed)
        scores = logits[:, columns]
    else:
        columns, scores = None, np.where(allowed, logits, np.float32(-np.inf))
    if temperature <= 0:
        found = scores.argmax(axis=1)
    else:
        shares = np.exp((scores - scores.max(axis=1, keepdims=True)) / np.float32(temperature))
        sums = np.cumsum(shares, axis=1, dtype=np.float64)
        below = sums <= draw.uniform(len(sums))[:, None] * sums[:, -1:]
        # Rounding may leave a number at the very end: then the last that has a share.
        last = scores.shape[1] - 1 - np.argmax(shares[:, ::-1] > 0, axis=1)
        found = np.minimum(below.sum(axis=1), last)
    return np.asarray(found if columns is None else columns[found])
