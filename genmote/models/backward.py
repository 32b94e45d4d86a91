"""The decoder's backward pass: the gradients of adapters, norms and biases, over any op set that has `ops.gradients`.

The forward pass is the engine's own and keeps each layer's input alone; on the way back a layer is computed again, gone
through, and let go of (recomputation by layer: Chen et al. 2016, arXiv 1604.06174). So a pass takes the inputs of all
layers and what one layer is made of. Logits are made and gone through some rows at a time, of those rows alone that
count. A gradient is handed on as soon as it is known, and is not kept.

Each step of a block gives its result and a function that takes the result's gradient to its input's. Gradients go
straight through the roundings of the forward pass (`ops/gradients.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.models import decoder as forward
from genmote.models.decoder import Decoder
from genmote.models.parts import HEAD, OUTPUT_NORM
from genmote.ops.exact import Float32
from genmote.ops.gradients import Gradients
from genmote.ops.layer import Activation, Experts, Layer, Linear, Norm, taken
from genmote.ops.protocol import Rotary, Span

LOGIT_ROWS = 32  # rows whose logits are held at a time

# Called with a gradient's name and the gradient: for the adapter of tensor T `T.lora_a` (rank, in) and `T.lora_b`
# (out, rank); for a norm's or a linear's vector its own name in the file, such as `blk.0.attn_norm.weight`.
Give = Callable[[str, Float32], None]
# Told of each layer before it is computed, and of the one after it, if any: for weights that come from the disk.
BeforeLayer = Callable[[int, int | None], None]
Back = Callable[[Float32], Float32]  # the gradient of a step's result → of its input


@dataclass(frozen=True)
class Batch:
    """Whole texts, one after another, and what each row should say next."""

    tokens: NDArray[np.int32]  # (N,), or (N, A) as `Decoder.embed` takes them
    lengths: tuple[int, ...]  # rows of each text; their sum is N
    targets: NDArray[np.int32]  # (N,) the token after each row
    weights: Float32  # (N,) what a row's loss counts; rows of 0 say nothing


def states(decoder: Decoder, batch: Batch, before_layer: BeforeLayer = lambda index, following: None) -> Float32:
    """What the last block gives for each row of a batch, (N, D). Keys and values are held of one layer at a time."""
    sessions = _sessions(decoder, batch.lengths)
    x: Float32
    x, tables = decoder.start(batch.tokens, sessions(decoder.weights.layers[0]))
    count = len(decoder.weights.layers)
    for index, layer in enumerate(decoder.weights.layers):
        before_layer(index, index + 1 if index + 1 < count else None)
        x = decoder.block(x, _alone(layer), _rotary(layer, tables), sessions(layer))
    return x


class Backward:
    """Losses and gradients of a decoder. An adapter that is learnt is the last of its linear's."""

    def __init__(
        self,
        decoder: Decoder,
        gradients: Gradients,
        wanted: Collection[str],
        *,
        half: bool = False,
        logit_rows: int = LOGIT_ROWS,
    ) -> None:
        """`wanted`: names of gradients, as `Give` is told them; an adapter's two come together. `half`: keep layers'
        inputs rounded to float16, in half the memory; a layer is then computed again from the rounded input.
        `logit_rows`: of how many rows logits are held at a time."""
        self.decoder, self.gradients, self.wanted = decoder, gradients, frozenset(wanted)
        self.kept = np.float16 if half else np.float32
        self.logit_rows = logit_rows
        of_layers = [int(name.split(".")[1]) for name in self.wanted if name.startswith("blk.")]
        self.lowest = min(of_layers, default=decoder.config.n_layers)  # below it nothing is wanted: no way back
        self._give: Give = lambda name, gradient: None
        self.before_layer: BeforeLayer = lambda index, following: None

    def loss(self, batch: Batch) -> float:
        """Sum over the rows of weight * -log p(target), in nats."""
        return self._head(states(self.decoder, batch, self.before_layer), batch, back=False)[0]

    def step(self, batch: Batch, give: Give) -> float:
        """The loss, as `loss` has it; `give` is told each wanted gradient, the last layer's first. It may at once
        change the vector that it is told of, and an adapter's matrices with the second of the two."""
        self._give = give
        sessions = _sessions(self.decoder, batch.lengths)
        x, tables = self.decoder.start(batch.tokens, sessions(self.decoder.weights.layers[0]))
        layers, inputs = self.decoder.weights.layers, []
        for index, layer in enumerate(layers):
            self.before_layer(index, min(index + 1, len(layers) - 1))
            if index >= self.lowest:
                inputs.append(_rounded(x, self.kept))
            x = forward.block(self.decoder.ops, x, _alone(layer), _rotary(layer, tables), sessions(layer))
        loss, d = self._head(x, batch, back=True)
        del x
        for index in reversed(range(self.lowest, len(layers))):
            self.before_layer(index, index - 1 if index > self.lowest else None)
            layer = layers[index]
            x = inputs.pop().astype(np.float32)
            rotary, spans = _rotary(layer, tables), sessions(layer)
            middle, back_attention = self._attention(x, layer, rotary, spans, batch.lengths)
            back_feed_forward = self._feed_forward(middle, layer)
            del x, middle
            d = back_feed_forward(d)
            del back_feed_forward
            d = back_attention(d)
            del back_attention
        return loss

    # -- the two halves of a block, with their residuals ----------------------------------------------------------

    def _attention(
        self, x: Float32, layer: Layer, rotary: Rotary | None, spans: Sequence[Span], lengths: Sequence[int]
    ) -> tuple[Float32, Back]:
        ops, spec, rows, block = self.decoder.ops, layer.spec, x.shape[0], f"blk.{layer.spec.index}"
        h, back_norm = self._norm(x, layer.attn_norm, f"{block}.attn_norm")
        q, back_q = self._heads(h, layer.q, layer.q_norm, rotary, spec.n_heads, layer, "q")
        k, back_k = self._heads(h, layer.k, layer.k_norm, rotary, spec.n_kv_heads, layer, "k")
        v, back_v = self._linear(h, layer.v, f"{block}.attn_v")
        v = v.reshape(rows, spec.n_kv_heads, spec.head_dim)
        out, back_o = self._linear(ops.attend(q, k, v, spans, _alone(layer)), layer.o, f"{block}.attn_output")
        out, back_post = self._post(out, layer.post_attn_norm, f"{block}.post_attention_norm")

        def back(d: Float32) -> Float32:
            dq, dk, dv = self.gradients.attend(back_o(back_post(d)), q, k, v, lengths, spec)
            dh = back_q(dq)
            dh += back_k(dk)
            dh += back_v(dv.reshape(rows, -1))
            dx = back_norm(dh)
            dx += d
            return dx

        return ops.add(x, out), back

    def _feed_forward(self, x: Float32, layer: Layer) -> Back:
        ops, activation, block = self.decoder.ops, layer.spec.activation, f"blk.{layer.spec.index}"
        h, back_norm = self._norm(x, layer.ffn_norm, f"{block}.ffn_norm")
        if layer.experts is not None:
            mixed, experts = ops.experts(h, layer.experts, activation), layer.experts
            _, back_mixed = self._post(mixed, layer.post_ffn_norm, f"{block}.post_ffw_norm")
            return lambda d: d + back_norm(self._experts(back_mixed(d), h, experts, activation))
        assert layer.up is not None and layer.down is not None
        up, back_up = self._linear(h, layer.up, f"{block}.ffn_up")
        gate, back_gate = None, None
        if layer.gate is None:
            inner = ops.activate(up, activation)
        else:
            gate, back_gate = self._linear(h, layer.gate, f"{block}.ffn_gate")
            inner = ops.glu(gate, up, activation)
        needed = layer.post_ffn_norm is not None  # else what the last product gives is not asked for
        out, back_down = self._linear(inner, layer.down, f"{block}.ffn_down", run=needed)
        del inner
        _, back_post = self._post(out, layer.post_ffn_norm, f"{block}.post_ffw_norm")

        def back(d: Float32) -> Float32:
            dinner = back_down(back_post(d))
            if gate is None or back_gate is None:
                dh = back_up(self.gradients.activate(dinner, up, activation))
            else:
                dgate, dup = self.gradients.glu(dinner, gate, up, activation)
                del dinner
                dh = back_up(dup)
                del dup
                dh += back_gate(dgate)
            dx = back_norm(dh)
            dx += d
            return dx

        return back

    def _experts(self, d: Float32, h: Float32, experts: Experts, activation: Activation) -> Float32:
        """Through a mixture of experts to its input: through the chosen ones, and through what each of them counts.
        Which ones are chosen stays as it is."""
        ops, gradients = self.decoder.ops, self.gradients
        scores = ops.linear(h, experts.router)  # (N, E)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : experts.used]
        weights = np.take_along_axis(shares, chosen, axis=-1)
        total = weights.sum(axis=-1, keepdims=True) if experts.normalise else np.ones((len(h), 1), np.float32)
        weights /= total
        dh, dweights = np.zeros_like(h), np.zeros_like(weights)
        for expert, (gate, up, down) in chain.from_iterable(taken(h, chosen, experts)):
            rows, places = np.nonzero(chosen == expert)
            own = h[rows]
            gated, wide = ops.linear(own, Linear(gate)), ops.linear(own, Linear(up))
            said = ops.linear(ops.glu(gated, wide, activation), Linear(down))
            dweights[rows, places] = (d[rows] * said).sum(axis=-1)
            dinner = gradients.matrix(d[rows] * weights[rows, places, None], down)
            dgate, dup = gradients.glu(dinner, gated, wide, activation)
            dh[rows] += gradients.matrix(dgate, gate) + gradients.matrix(dup, up)
        if experts.normalise:
            dweights = (dweights - (dweights * weights).sum(axis=-1, keepdims=True)) / total
        dshares = np.zeros_like(shares)
        np.put_along_axis(dshares, chosen, dweights, axis=-1)
        dscores = shares * (dshares - (dshares * shares).sum(axis=-1, keepdims=True))
        dh += gradients.matrix(dscores, experts.router.matrix)
        return dh

    def _heads(
        self, h: Float32, linear: Linear, norm: Norm | None, rotary: Rotary | None, count: int, layer: Layer, part: str
    ) -> tuple[Float32, Back]:
        """Queries or keys as `attend` takes them: (N, D) → (N, count, Dh)."""
        ops, spec, rows, block = self.decoder.ops, layer.spec, h.shape[0], f"blk.{layer.spec.index}"
        x, back_linear = self._linear(h, linear, f"{block}.attn_{part}")
        together = norm is None or norm.gain.shape[0] == x.shape[1]  # no norm, or one over all heads together
        heads = (rows, count, spec.head_dim)
        x, back_norm = self._post(x if together else x.reshape(heads), norm, f"{block}.attn_{part}_norm")
        x = x.reshape(heads)
        if rotary is not None:
            x = ops.rope(x, rotary, spec.rope_interleaved)

        def back(d: Float32) -> Float32:
            if rotary is not None:
                d = self.gradients.rope(d, rotary, spec.rope_interleaved)
            return back_linear(back_norm(d.reshape(rows, -1) if together else d).reshape(rows, -1))

        return x, back

    # -- steps ----------------------------------------------------------------------------------------------------

    def _linear(self, x: Float32, linear: Linear, name: str, *, run: bool = True) -> tuple[Any, Back]:
        """The linear of tensor NAME.weight; `run` False: its result is not wanted."""
        ops, gradients = self.decoder.ops, self.gradients
        tensor = f"{name}.weight"
        kept = x if f"{tensor}.lora_a" in self.wanted else None

        def back(d: Float32) -> Float32:
            dx = gradients.matrix(d, linear.matrix)
            if linear.down is not None:
                dx = gradients.matrix(dx, linear.down)
            for adapter in linear.adapters:
                if kept is None or adapter is not linear.adapters[-1]:
                    dx += gradients.matrix(gradients.matrix(d * np.float32(adapter.scale), adapter.up), adapter.down)
                    continue
                da, db = gradients.adapter(d, kept, adapter, dx)
                self._give(f"{tensor}.lora_a", da)
                self._give(f"{tensor}.lora_b", db)
            if f"{name}.bias" in self.wanted:
                self._give(f"{name}.bias", d.sum(axis=0))
            return dx

        return ops.linear(x, linear) if run else None, back

    def _norm(self, x: Float32, norm: Norm, name: str) -> tuple[Float32, Back]:
        def back(d: Float32) -> Float32:
            dx, dgain, dbias = self.gradients.norm(d, x, norm)
            if f"{name}.weight" in self.wanted:
                self._give(f"{name}.weight", dgain)
            if dbias is not None and f"{name}.bias" in self.wanted:
                self._give(f"{name}.bias", dbias)
            return dx

        return self.decoder.ops.norm(x, norm), back

    def _post(self, x: Any, norm: Norm | None, name: str) -> tuple[Any, Back]:
        """A norm that not every family has."""
        return (x, lambda d: d) if norm is None else self._norm(x, norm, name)

    # -- the beginning and the end --------------------------------------------------------------------------------

    def _head(self, x: Float32, batch: Batch, *, back: bool) -> tuple[float, Float32]:
        """The loss, and the gradient of what the last layer gave (N, D); rows of weight 0 are left out."""
        decoder, head, cap = self.decoder, self.decoder.weights.head, self.decoder.config.logit_cap
        loss, d, found = 0.0, np.zeros_like(x) if back else x, dict[str, Float32]()
        give, self._give = self._give, lambda name, more: found.__setitem__(name, found.get(name, 0) + more)
        counted = np.flatnonzero(batch.weights)
        for start in range(0, len(counted), self.logit_rows):
            rows = counted[start : start + self.logit_rows]
            h, back_norm = self._norm(x[rows], decoder.weights.output_norm, OUTPUT_NORM)
            logits, back_head = self._linear(h, head, HEAD.removesuffix(".weight"))
            said = None
            if cap:
                said = decoder.ops.soft_cap(logits, cap)
                logits = said.copy()
            loss += self.gradients.cross_entropy(logits, batch.targets[rows], batch.weights[rows])
            if back:
                if said is not None:
                    logits = self.gradients.soft_cap(logits, said, cap)
                d[rows] = back_norm(back_head(logits))
            del logits, said  # before the next are made
        self._give = give
        for name, gradient in found.items():
            give(name, gradient)
        return loss, d


def _sessions(decoder: Decoder, lengths: Sequence[int]) -> Callable[[Layer], list[Span]]:
    """The texts' spans, whose caches hold the keys and values of one layer, the one that is computed."""
    made: dict[int, list[Span]] = {}

    def of(layer: Layer) -> list[Span]:
        heads = layer.spec.n_kv_heads
        if heads not in made:
            starts = np.cumsum([0, *lengths]).tolist()
            made[heads] = [
                Span(decoder.ops.cache(1, heads, layer.spec.head_dim, count), start, count)
                for start, count in zip(starts, lengths, strict=False)
            ]
        return made[heads]

    return of


def _alone(layer: Layer) -> Layer:
    """The layer, with its keys and values in a cache of one layer."""
    return replace(layer, spec=replace(layer.spec, index=0), fused=None)


def _rotary(layer: Layer, tables: list[Rotary]) -> Rotary | None:
    return tables[layer.spec.rope] if layer.spec.rope >= 0 else None


def _rounded(x: Float32, kind: Any) -> NDArray[Any]:
    """A layer's input as it is kept; what float16 cannot hold becomes its largest."""
    return x if kind is np.float32 else np.clip(x, -65504, 65504).astype(kind)
