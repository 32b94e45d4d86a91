"""The reference backward operations: NumPy, plain, for any op set whose arrays are NumPy's.

Sums are NumPy's (BLAS): unlike the forward operations these have no stated order, and a bound instead
(docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from genmote.ops.exact import Float32
from genmote.ops.gradients import Gradients
from genmote.ops.layer import Activation, Adapter, LayerSpec, Linear, Norm
from genmote.ops.numpy_cache import within_half
from genmote.ops.protocol import Ops, Rotary

CHUNK_ROWS = 512  # rows of a matrix that are dequantised at a time
QUERY_ROWS = 256  # query rows whose probabilities are held at a time


def create(ops: Ops) -> NumpyGradients:
    """The NumPy backward operations over an op set's matrices."""
    return NumpyGradients(ops)


class NumpyGradients:
    """Implements `ops.gradients.Gradients`. Of the op set `embed`, which dequantises rows of a
    matrix, and `rope` are used."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops

    def matrix(self, dy: Float32, matrix: Any) -> Float32:
        dx = np.zeros((dy.shape[0], matrix.shape[1]), np.float32)
        for start in range(0, matrix.shape[0], CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, matrix.shape[0]), dtype=np.int32)
            dx += dy[:, rows[0] : rows[-1] + 1] @ self.ops.embed(matrix, rows)
        return dx

    def outer(self, a: Float32, b: Float32) -> Float32:
        product: Float32 = a.T @ b
        return product

    def adapter(self, dy: Float32, x: Float32, adapter: Adapter, dx: Float32) -> tuple[Float32, Float32]:
        return adapter_back(self, dy, x, adapter, dx)

    def norm(self, dy: Float32, x: Float32, norm: Norm) -> tuple[Float32, Float32, Float32 | None]:
        if norm.centre:
            x = x - x.mean(axis=-1, keepdims=True)
        inverse = 1 / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(norm.eps))
        unit = x * inverse  # the norm's output before gain and bias
        du = dy * norm.gain
        dx = inverse * (du - unit * (du * unit).mean(axis=-1, keepdims=True))
        if norm.centre:
            dx -= dx.mean(axis=-1, keepdims=True)
        rows = tuple(range(x.ndim - 1))
        return dx, (dy * unit).sum(axis=rows), None if norm.bias is None else dy.sum(axis=rows)

    def rope(self, dy: Float32, rotary: Rotary, interleaved: bool) -> Float32:
        dx: Float32 = self.ops.rope(dy, Rotary(rotary.cos, -rotary.sin), interleaved)
        return dx

    def attend(
        self, do: Float32, q: Float32, k: Float32, v: Float32, lengths: Sequence[int], spec: LayerSpec
    ) -> tuple[Float32, Float32, Float32]:
        k, v = (within_half(x).astype(np.float16).astype(np.float32) for x in (k, v))
        do = do.reshape(q.shape)
        dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
        group = spec.n_heads // spec.n_kv_heads
        begin = 0
        for length in lengths:
            for first in range(begin, begin + length, QUERY_ROWS):
                rows = slice(first, min(first + QUERY_ROWS, begin + length))
                seen = slice(max(begin, first + 1 - spec.window) if spec.window else begin, rows.stop)
                for head in range(spec.n_heads):
                    of = head // group
                    dq[rows, head], dkeys, dvalues = _attend_head(
                        do[rows, head], q[rows, head], k[seen, of], v[seen, of], first - seen.start, spec
                    )
                    dk[seen, of] += dkeys
                    dv[seen, of] += dvalues
            begin += length
        return dq, dk, dv

    def glu(self, d: Float32, gate: Float32, up: Float32, activation: Activation) -> tuple[Float32, Float32]:
        return self.activate(d * up, gate, activation), d * self.ops.activate(gate, activation)

    def activate(self, d: Float32, x: Float32, activation: Activation) -> Float32:
        one, half = np.float32(1), np.float32(0.5)
        if activation == "relu":
            return np.where(x > 0, d, np.float32(0))
        if activation == "silu":
            share = half + half * np.tanh(half * x)  # the logistic function, which cannot overflow so
            silu: Float32 = d * share * (one + x * (one - share))
            return silu
        c, a = np.float32(0.7978845608), np.float32(0.044715)
        t = np.tanh(c * (x + a * x * x * x))
        gelu: Float32 = d * half * (one + t + x * (one - t * t) * c * (one + 3 * a * x * x))
        return gelu

    def soft_cap(self, d: Float32, y: Float32, cap: float) -> Float32:
        share = y / np.float32(cap)
        result: Float32 = d * (1 - share * share)
        return result

    def cross_entropy(self, logits: Float32, targets: Any, weights: Float32) -> float:
        rows = np.arange(logits.shape[0])
        logits -= logits.max(axis=-1, keepdims=True)
        told = logits[rows, targets].astype(np.float64)
        np.exp(logits, out=logits)
        total = logits.sum(axis=-1)
        loss = float((weights * (np.log(total.astype(np.float64)) - told)).sum())
        logits *= (weights / total)[:, None]
        logits[rows, targets] -= weights
        return loss


def adapter_back(
    gradients: Gradients, dy: Float32, x: Float32, adapter: Adapter, dx: Float32
) -> tuple[Float32, Float32]:
    """`Gradients.adapter` out of products with its matrices."""
    scaled = dy * np.float32(adapter.scale)
    dlow, low = gradients.matrix(scaled, adapter.up), gradients.ops.linear(x, Linear(adapter.down))  # (N, rank)
    dx += gradients.matrix(dlow, adapter.down)
    return gradients.outer(dlow, x), gradients.outer(scaled, low)


def _attend_head(
    do: Float32, q: Float32, k: Float32, v: Float32, before: int, spec: LayerSpec
) -> tuple[Float32, Float32, Float32]:
    """One head: query rows q, do (n, D), keys and values (T, D) of which `before` lie before the first query's own."""
    own = before + np.arange(q.shape[0])[:, None]
    at = np.arange(k.shape[0])
    hidden = at > own  # (n, T)
    if spec.window:
        hidden |= at <= own - spec.window
    scores = (q @ k.T) * np.float32(spec.scale)
    if spec.score_cap:
        scores = np.float32(spec.score_cap) * np.tanh(scores / np.float32(spec.score_cap))
    slope = 1 - np.square(scores / np.float32(spec.score_cap)) if spec.score_cap else np.float32(1)
    powers = np.exp(np.where(hidden, np.float32(-np.inf), scores - np.where(hidden, -np.inf, scores).max(-1)[:, None]))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    dshares = do @ v.T
    dscores = shares * (dshares - (shares * dshares).sum(axis=-1, keepdims=True)) * slope * np.float32(spec.scale)
    return dscores @ k, dscores.T @ q, shares.T @ do
