"""The whole forward pass, once, over any op set. Read from top to bottom.

N rows (tokens of one or several sessions), D model width, H query heads, Hkv key/value heads, Dh head width,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ContextError, SpecError
from genmote.models.config import Config
from genmote.models.weights import WeightSource
from genmote.ops.layer import Activation, Array, Layer, Linear, Norm
from genmote.ops.protocol import KVCache, Ops, Rotary, Span

Rows = Literal["last", "all"] | Sequence[int]  # "last": one row for each span, in the order of the spans


def block(ops: Ops, x: Array, layer: Layer, rotary: Rotary | None, spans: Sequence[Span]) -> Array:
    """One transformer block, (N, D) → (N, D). An op set's own `block` must give these very bits."""
    h = attention(ops, ops.norm(x, layer.attn_norm), layer, rotary, spans)
    x = ops.add(x, h if layer.post_attn_norm is None else ops.norm(h, layer.post_attn_norm))
    h = feed_forward(ops, ops.norm(x, layer.ffn_norm), layer)
    return ops.add(x, h if layer.post_ffn_norm is None else ops.norm(h, layer.post_ffn_norm))


def attention(ops: Ops, h: Array, layer: Layer, rotary: Rotary | None, spans: Sequence[Span]) -> Array:
    """The first half of a block, before its residual, (N, D) → (N, D)."""
    spec, rows = layer.spec, h.shape[0]
    q = _heads(ops, ops.linear(h, layer.q), spec.n_heads, layer.q_norm)  # (N, H, Dh)
    k = _heads(ops, ops.linear(h, layer.k), spec.n_kv_heads, layer.k_norm)  # (N, Hkv, Dh)
    v = ops.linear(h, layer.v).reshape(rows, spec.n_kv_heads, spec.head_dim)  # (N, Hkv, Dh)
    if rotary is not None:
        q = ops.rope(q, rotary, spec.rope_interleaved)
        k = ops.rope(k, rotary, spec.rope_interleaved)
    return ops.linear(ops.attend(q, k, v, spans, layer), layer.o)  # (N, H*Dh) → (N, D)


def feed_forward(ops: Ops, h: Array, layer: Layer) -> Array:
    """The second half of a block, before its residual: gated, plain, or a mixture of experts, (N, D) → (N, D)."""
    activation = layer.spec.activation
    if layer.experts is not None:
        return ops.experts(h, layer.experts, activation)
    if layer.up is None or layer.down is None:
        raise SpecError(f"layer {layer.spec.index} has no feed-forward: give it up and down, or experts")
    return ops.linear(_inner(ops, h, layer.up, layer.gate, activation), layer.down)


def _inner(ops: Ops, h: Array, up: Linear, gate: Linear | None, activation: Activation) -> Array:
    """(N, D) → (N, F); what it is made of is let go before the next product."""
    wide = ops.linear(h, up)
    return ops.activate(wide, activation) if gate is None else ops.glu(ops.linear(h, gate), wide, activation)


def _heads(ops: Ops, x: Array, n_heads: int, norm: Norm | None) -> Array:
    """(N, H*Dh) → (N, H, Dh), normalised over each head or over all of them, as the norm's width says."""
    rows, width = x.shape
    if norm is not None and norm.gain.shape[0] == width:
        x, norm = ops.norm(x, norm), None
    x = x.reshape(rows, n_heads, width // n_heads)
    return x if norm is None else ops.norm(x, norm)


class Decoder:
    """A model ready to run: what it computes (`config`), its weights, and the op set that computes it."""

    def __init__(self, config: Config, weights: WeightSource, ops: Ops, *, fused: bool = True) -> None:
        """`fused` lets the op set run its own form of a block where it has one; the bits are the same."""
        self.config, self.weights, self.ops = config, weights, ops
        self.before_pass: Callable[[int, int], None] | None = (
            None  # told of how many rows logits are wanted, and all rows
        )
        self._block = getattr(ops, "block", None) if fused else None

    def cache(self, capacity: int, *, kind: str = "f16", queries: int = 0, **settings: Any) -> KVCache:
        """An empty KV cache for one session of at most `capacity` rows a layer; see `Ops.cache`. `settings`: the op
        set's own, such as the native one's `spill`."""
        config = self.config
        shape = (config.n_layers, config.kv_heads, config.head_dim)
        return self.ops.cache(*shape, capacity, kind=kind, queries=queries, n_heads=config.heads, **settings)

    def forward(
        self, inputs: Any, spans: Sequence[Span], *, logits: Rows | None = "last"
    ) -> NDArray[np.float32] | None:
        """Run the rows through the model; float32 logits (M, V) of the rows asked for, None if none are.

        `inputs`: token ids (N,) or (N, A) (see `embed`), or embeddings (N, D) float32. The spans cover the rows in
        order. Each span's cache then holds its rows; after an exception every cache is as it was. A long prompt is fed
        in chunks by the caller: memory grows with N. Raises ContextError where a cache is full, SpecError for a bad
        token.
        """
        wanted = 0
        if logits is not None:
            wanted = sum(s.count for s in spans) if logits == "all" else len(spans if logits == "last" else logits)
        x = self.run(inputs, spans, head=wanted)
        result = None if logits is None else self.ops.numpy(self.head(self._pick(x, spans, logits)))
        self._advance(spans)
        return result

    def hidden(self, inputs: Any, spans: Sequence[Span], *, rows: Rows = "all") -> NDArray[np.float32]:
        """Like `forward`, but the final normalised states (M, D) instead of logits."""
        x = self.run(inputs, spans)
        result = self.ops.numpy(self.ops.norm(self._pick(x, spans, rows), self.weights.output_norm))
        self._advance(spans)
        return result

    def embed(self, tokens: Any) -> Array:
        """Input embeddings of token ids, (N,) → (N, D), scaled as the model wants them (Gemma: by sqrt(D)). Of ids
        (N, A) the sum of each row's, in order; past the first column -1 is none."""
        ids = np.asarray(tokens, dtype=np.int64)
        ids = ids if ids.ndim == 2 else ids.reshape(-1, 1)
        first, *more = ids.T
        bad = ids[(ids < np.append(0, np.full(len(more), -1))) | (ids >= self.config.vocab_size)]
        if bad.size:
            raise SpecError(
                f"token {bad[0]}: the vocabulary has {self.config.vocab_size}; use the model's own tokenizer"
            )
        x = self.ops.embed(self.weights.embedding, first.astype(np.int32))
        for column in more:
            if len(there := np.flatnonzero(column >= 0)):
                x[there] += self.ops.embed(self.weights.embedding, column[there].astype(np.int32))
        return x if self.config.embedding_scale == 1.0 else self.ops.scale(x, self.config.embedding_scale)

    def run(self, inputs: Any, spans: Sequence[Span], *, head: int = 0) -> Array:
        """All blocks, inputs as `forward` takes them → (N, D) before the final norm; no cache's length is moved.
        `head`: of how many rows at once the output matrix will be wanted next."""
        self._check(len(inputs), spans)
        if self.before_pass is not None:
            self.before_pass(head, sum(span.count for span in spans))
        x, tables = self.start(inputs, spans)
        for layer in self.weights.layers:
            rotary = tables[layer.spec.rope] if layer.spec.rope >= 0 else None
            x = self.block(x, layer, rotary, spans)
        return x

    def block(self, x: Array, layer: Layer, rotary: Rotary | None, spans: Sequence[Span]) -> Array:
        """One block, in the op set's own form where it has one, possibly in place of `x`."""
        fused = self._block(x, layer, rotary, spans) if self._block else None
        return block(self.ops, x, layer, rotary, spans) if fused is None else fused

    def start(self, inputs: Any, spans: Sequence[Span]) -> tuple[Array, list[Rotary]]:
        """What the first block is given: the states (N, D) of the inputs (as `forward` takes them), and the rotations
        of each of the model's tables."""
        config, ops = self.config, self.ops
        positions = np.concatenate(
            [np.arange(s.cache.position, s.cache.position + s.count, dtype=np.int32) for s in spans]
        )  # (N,)
        if getattr(inputs, "ndim", 1) < 2 or (isinstance(inputs, np.ndarray) and inputs.dtype.kind in "iu"):
            x = self.embed(inputs)
        else:
            x = ops.array(inputs) if isinstance(inputs, np.ndarray) else inputs
        if self.weights.position_embedding is not None:
            x = ops.add(x, ops.embed(self.weights.position_embedding, self._learned(positions)))
        return x, [ops.rotary(positions, rope.inv_freq, rope.scale) for rope in config.ropes]

    def head(self, x: Array) -> Array:
        """Final norm and output matrix, (M, D) → logits (M, V)."""
        logits = self.ops.linear(self.ops.norm(x, self.weights.output_norm), self.weights.head)
        return self.ops.soft_cap(logits, self.config.logit_cap) if self.config.logit_cap else logits

    def _pick(self, x: Array, spans: Sequence[Span], rows: Rows) -> Array:
        if rows == "all":
            return x
        return x[[s.start + s.count - 1 for s in spans] if rows == "last" else list(rows)]

    def _advance(self, spans: Sequence[Span]) -> None:
        for span in spans:
            span.cache.advance(span.count)

    def _check(self, n_rows: int, spans: Sequence[Span]) -> None:
        start = 0
        for span in spans:
            if span.start != start or span.count < 1:
                raise SpecError(
                    f"a span of {span.count} rows at {span.start}: spans cover the rows in order, from {start}"
                )
            start += span.count
            if span.cache.length + span.count > span.cache.capacity:
                raise ContextError(
                    f"{span.cache.length} + {span.count} tokens: the context holds {span.cache.capacity}; "
                    "shorten the text or ask for a larger context"
                )
        if start != n_rows or not spans:
            raise SpecError(
                f"{n_rows} rows but spans for {start}: each row belongs to one span, and there is at least one"
            )
        if len({id(span.cache) for span in spans}) != len(spans):
            raise SpecError("two spans of one batch share a cache; join them into one span")

    def _learned(self, positions: NDArray[np.int32]) -> NDArray[np.int32]:
        if positions.max() >= self.config.context_length:
            raise ContextError(
                f"position {positions.max()}: the model learned {self.config.context_length}; shorten the text"
            )
        return positions
