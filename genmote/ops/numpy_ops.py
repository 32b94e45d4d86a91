"""The reference op set: NumPy, slow and plain, and bit for bit what the native kernels compute.

Sums are taken in the order that `exact` states, so a row's bits depend neither on its company nor on the machine. The
one use of BLAS is on whole numbers: a group's dot product stays below 2**24, and float32 adds such numbers exactly in
any order. All the rest is written for reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.ops import quant
from genmote.ops.cache import Heads
from genmote.ops.exact import LANES, Float32, chain, exp, row_squares, row_sum, sin_cos, tanh
from genmote.ops.kv_codes import rotate
from genmote.ops.layer import Activation, Experts, Layer, Linear, Norm, taken
from genmote.ops.numpy_cache import NumpyCache
from genmote.ops.protocol import Rotary, Span

GROUP = 32  # numbers of a row that share one scale when they are rounded to 8 bits
PLAIN = ("F32", "F16", "BF16")  # types whose input is not rounded
CHUNK_ROWS = 512  # output rows of a matrix that are unpacked and multiplied at a time
STEP_NUMBERS = 1 << 17  # products that a chain of sums holds at a time: what a processor's cache takes
FLOAT_BYTES = 1 << 30


def create(*, float_bytes: int = FLOAT_BYTES) -> NumpyOps:
    """The NumPy op set; `float_bytes`: see `NumpyOps`."""
    return NumpyOps(float_bytes=float_bytes)


@dataclass(eq=False)
class Unpacked:
    """Rows of a weight ready to multiply: number i of a row is codes[i] * scale[i // size] + offset[i // size], where a
    group of `size` (16 or 32) shares a scale. A weight of a plain type has codes alone."""

    codes: Float32  # (rows, in) whole numbers
    scale: Float32 | None = None  # (in / size, rows)
    offset: Float32 | None = None  # (in / size, rows), where the type has offsets

    def part(self, rows: slice) -> Unpacked:
        return Unpacked(self.codes[rows], *(None if x is None else x[:, rows] for x in (self.scale, self.offset)))


@dataclass(eq=False)
class Matrix:
    """A weight (out, in): the file's bytes, and their unpacked form from the first use on, where memory allows."""

    type_name: str
    shape: tuple[int, int]
    raw: NDArray[np.uint8]
    unpacked: Unpacked | None = None

    def rows(self, rows: slice) -> Unpacked:
        """Some rows of the weight."""
        if self.unpacked is not None:
            return self.unpacked.part(rows)
        lines = self.raw.reshape(self.shape[0], -1)[rows]
        count, cols = lines.shape[0], self.shape[1]
        if self.type_name == "F32":
            return Unpacked(lines.view(np.float32))
        if self.type_name in PLAIN:
            return Unpacked(quant.dequantize(self.type_name, lines.reshape(-1), (count, cols)))
        parts = quant.unpack(self.type_name, lines.reshape(-1))
        scale, offset = (
            None if x is None else np.ascontiguousarray(x.reshape(count, -1).T) for x in (parts.scale, parts.offset)
        )
        return Unpacked(parts.codes.astype(np.float32).reshape(count, cols), scale, offset)


def round_q8(x: Float32) -> tuple[Float32, Float32]:
    """Each group of 32 numbers as whole numbers and one scale: (N, K) → q (N, K/32, 32), d (N, K/32), x ~ q * d.

    d = max|x| / 127, q = rint(x * (127 / max|x|)), each step rounded to float32.

    >>> q, d = round_q8(np.linspace(-127, 127.6, 32, dtype=np.float32)[None])
    >>> q[0, 0, :3].tolist(), bool(d[0, 0] == np.float32(127.6) / np.float32(127))
    ([-126.0, -118.0, -110.0], True)
    """
    groups = np.asarray(x, np.float32).reshape(x.shape[0], -1, GROUP)
    largest = np.abs(groups).max(axis=-1)
    # Below 1e-30 the inverse overflows or nearly so: such a group is zero.
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=~(largest < 1e-30))
    return np.rint(groups * inverse[:, :, None]), largest / np.float32(127)


class NumpyOps:
    """Implements `ops.protocol.Ops`. `float_bytes`: memory that unpacked weights may keep (four bytes a weight and its
    scales); what is beyond is unpacked `CHUNK_ROWS` rows at a time at every use: the same bits, in more time."""

    name = "numpy"
    exact = True

    def __init__(self, *, float_bytes: int = FLOAT_BYTES) -> None:
        self.float_bytes_left = float_bytes

    # -- weights ------------------------------------------------------------------------------------------------

    def matrix(self, type_name: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> Matrix:
        return Matrix(quant.by_name(type_name).name, (int(shape[0]), int(shape[1])), raw)

    def vector(self, values: Float32) -> Float32:
        return np.array(values, np.float32)

    def cache(self, n_layers: int, n_kv_heads: Heads, head_dim: int, capacity: int, **settings: Any) -> NumpyCache:
        return NumpyCache(n_layers, n_kv_heads, head_dim, capacity, **settings)

    # -- steps --------------------------------------------------------------------------------------------------

    def array(self, values: Float32) -> Float32:
        return np.ascontiguousarray(values, np.float32)

    def numpy(self, x: Float32) -> Float32:
        return x

    def embed(self, table: Matrix, tokens: NDArray[np.int32]) -> Float32:
        return quant.dequantize_rows(table.type_name, table.raw, table.shape, tokens)

    def linear(self, x: Float32, weight: Linear) -> Float32:
        low = x if weight.down is None else self._product(x, weight.down)
        y = self._product(low, weight.matrix)
        if weight.bias is not None:
            y += weight.bias
        for adapter in weight.adapters:
            y += np.float32(adapter.scale) * self._product(self._product(x, adapter.down), adapter.up)
        return y

    def norm(self, x: Float32, norm: Norm) -> Float32:
        width = np.float32(x.shape[-1])
        if norm.centre:
            x = x - (row_sum(x) / width)[..., None]
        inverse = np.float32(1) / np.sqrt(row_squares(x) / width + np.float32(norm.eps))
        y: Float32 = x * inverse[..., None] * norm.gain
        return y if norm.bias is None else y + norm.bias

    def rotary(self, positions: NDArray[np.int32], inv_freq: NDArray[np.float64], scale: float) -> Rotary:
        sin, cos = sin_cos(positions[:, None] * inv_freq)  # (N, rot/2)
        return Rotary(cos.astype(np.float32) * np.float32(scale), sin.astype(np.float32) * np.float32(scale))

    def rope(self, x: Float32, rotary: Rotary, interleaved: bool) -> Float32:
        half = rotary.cos.shape[1]
        cos, sin = rotary.cos[:, None], rotary.sin[:, None]  # (N, 1, rot/2)
        if interleaved:
            first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        else:
            first, second = slice(half), slice(half, 2 * half)
        a, b = x[..., first], x[..., second]  # (N, H, rot/2)
        y = x.copy()
        y[..., first] = a * cos - b * sin
        y[..., second] = b * cos + a * sin
        return y

    def attend(self, q: Float32, k: Float32, v: Float32, spans: Sequence[Span], layer: Layer) -> Float32:
        spec = layer.spec
        out = np.empty_like(q)
        for span in spans:
            cache, end = span.cache, span.start + span.count
            cache.store(spec.index, q[span.start : end], k[span.start : end], v[span.start : end])
            held = cache.lengths[spec.index]
            seen = max(1, STEP_NUMBERS // (spec.n_heads * spec.head_dim * (held + span.count)))
            for start in range(span.start, end, seen):  # as many query rows at a time as memory allows
                rows = slice(start, min(start + seen, end))
                first = held + start - span.start
                out[rows] = self._attend_rows(q[rows], cache, first, layer)
        return out.reshape(q.shape[0], -1)

    def glu(self, gate: Float32, up: Float32, activation: Activation) -> Float32:
        return self.activate(gate, activation) * up

    def activate(self, x: Float32, activation: Activation) -> Float32:
        one = np.float32(1)
        if activation == "relu":
            return np.where(x > 0, x, np.float32(0))
        if activation == "silu":
            silu: Float32 = x / (one + exp(-x))
            return silu
        inner = np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)  # sqrt(2/pi) (x + 0.044715 x**3)
        gelu: Float32 = np.float32(0.5) * x * (one + tanh(inner))
        return gelu

    def add(self, a: Float32, b: Float32) -> Float32:
        return a + b

    def scale(self, x: Float32, factor: float) -> Float32:
        return x * np.float32(factor)

    def soft_cap(self, x: Float32, cap: float) -> Float32:
        return np.float32(cap) * tanh(x / np.float32(cap))

    def experts(self, x: Float32, experts: Experts, activation: Activation) -> Float32:
        chosen, weights = self._route(self.linear(x, experts.router), experts)  # (N, used) each
        parts = np.empty((*chosen.shape, x.shape[1]), np.float32)  # (N, used, D)
        for some in taken(x, chosen, experts):
            for expert, (gate, up, down) in some:
                rows, places = np.nonzero(chosen == expert)
                inner = self.glu(self._product(x[rows], gate), self._product(x[rows], up), activation)
                parts[rows, places] = self._product(inner, down)
        total = np.zeros_like(x)
        for place in range(experts.used):  # in order of falling score
            total += weights[:, place, None] * parts[:, place]
        return total

    # -- helpers ------------------------------------------------------------------------------------------------

    def _route(self, scores: Float32, experts: Experts) -> tuple[NDArray[np.int64], Float32]:
        """Scores (N, E) → the chosen experts, best first, and their weights, (N, used) each."""
        powers = exp(scores - scores.max(axis=-1, keepdims=True))
        shares = powers * (np.float32(1) / row_sum(powers))[:, None]
        if experts.routing is not None:
            shares = experts.routing(shares)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : experts.used]
        weights = np.take_along_axis(shares, chosen, axis=-1)
        if experts.normalise:
            total = weights[:, 0]
            for place in range(1, experts.used):
                total = total + weights[:, place]
            weights = weights / total[:, None]
        return chosen, weights

    def _product(self, x: Float32, matrix: Matrix) -> Float32:
        """(N, in) → (N, out) with the input rounded as the matrix's type asks."""
        self._keep(matrix)
        rounds = matrix.type_name not in PLAIN
        y = np.empty((x.shape[0], matrix.shape[0]), np.float32)
        for start in range(0, matrix.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            weight = matrix.rows(rows)
            steps = matrix.shape[1] // (GROUP if rounds else 1)
            some = max(1, STEP_NUMBERS // (steps * weight.codes.shape[0]))
            for first in range(0, x.shape[0], some):  # as many rows at a time as memory allows
                part = x[first : first + some]
                exact = _plain(part, weight.codes) if weight.scale is None else _quantised(part, weight, weight.scale)
                y[first : first + some, rows] = exact
        return y

    def _keep(self, matrix: Matrix) -> None:
        """Unpack the whole matrix if that takes memory and the allowance has room for it."""
        size = 4 * matrix.shape[0] * matrix.shape[1]
        if matrix.unpacked is None and matrix.type_name != "F32" and size <= self.float_bytes_left:
            matrix.unpacked = matrix.rows(slice(None))
            self.float_bytes_left -= size

    def _attend_rows(self, q: Float32, cache: NumpyCache, first: int, layer: Layer) -> Float32:
        """Attention of n rows, the cache's rows first, first + 1, …: q (n, H, D) → (n, H, D)."""
        spec, n = layer.spec, q.shape[0]
        rows = np.arange(first, first + n)
        begin = max(0, first + 1 - spec.window) // LANES * LANES if spec.window else 0  # a multiple of 16: see row_sum
        shown = slice(begin, first + n)
        keys, key_scale = cache.levels(spec.index, "k", shown)  # (T, Hkv, D), (T, Hkv) or None
        values, value_scale = cache.levels(spec.index, "v", shown)
        if key_scale is not None:
            q = rotate(q)
        at = np.arange(begin, first + n)
        hidden = at > rows[:, None]  # (n, T)
        if spec.window:
            hidden |= at <= rows[:, None] - spec.window

        grouped = q.reshape(n, spec.n_kv_heads, -1, spec.head_dim).astype(np.float64)  # (n, Hkv, G, D)
        scores = chain(
            np.moveaxis(grouped, -1, 0)[..., None] * np.moveaxis(keys, 0, -1).swapaxes(0, 1)[:, None, :, None]
        )  # steps over D: (n, Hkv, G, 1) x (Hkv, 1, T) → (n, Hkv, G, T)
        if key_scale is not None:
            scores = scores * key_scale.T[:, None]
        scores = scores * np.float32(spec.scale)
        if spec.score_cap:
            scores = self.soft_cap(scores, spec.score_cap)
        scores = np.where(hidden[:, None, None], np.float32(-np.inf), scores)
        powers = exp(scores - scores.max(axis=-1, keepdims=True))
        shares = powers if value_scale is None else powers * value_scale.T[:, None]
        mixed = chain(
            np.moveaxis(shares, -1, 0)[..., None].astype(np.float64) * values[:, None, :, None]
        )  # steps over T: (n, Hkv, G, 1) x (Hkv, 1, D) → (n, Hkv, G, D)
        inverse = np.float32(1) / row_sum(powers)
        result: Float32 = (mixed * inverse[..., None]).reshape(q.shape)
        return result if value_scale is None else rotate(result)


def _quantised(x: Float32, weight: Unpacked, scale: Float32) -> Float32:
    """Rows x (N, in) times a quantised weight (out, in): (N, out). For each group of 32, in order:
    y = fma(sum of q * codes, scale * d, y), then y = fma(offset, d * sum of q, y); halves of 16 one after the other."""
    n, out = x.shape[0], weight.codes.shape[0]
    q, d = round_q8(x)  # (N, groups, 32), (N, groups)
    parts = scale.shape[0]  # groups, or halves of groups, that share a scale
    halves = parts // d.shape[1]
    q = q.reshape(n, parts, -1)
    codes = weight.codes.reshape(out, parts, -1)
    dots = np.matmul(q.transpose(1, 0, 2), codes.transpose(1, 2, 0))  # (parts, N, out), whole numbers
    d = np.repeat(d, halves, axis=1).T  # (parts, N)
    kinds = 1 if weight.offset is None else 2
    steps = np.empty((parts // halves, kinds, halves, n, out))  # in this order
    shape = (parts // halves, halves, n, out)
    scales = (scale[:, None] * d[:, :, None]).reshape(shape)  # rounded to float32, as every step is
    np.multiply(dots.reshape(shape), scales, out=steps[:, 0], dtype=np.float64)
    if weight.offset is not None:
        sums = d * q.sum(axis=-1).T  # (parts, N)
        steps[:, 1] = (weight.offset[:, None] * sums[:, :, None].astype(np.float64)).reshape(shape)
    return chain(steps.reshape(-1, n, out))


def _plain(x: Float32, weight: Float32) -> Float32:
    """Rows x (N, in) times a weight of floats (out, in): one chain over the columns, (N, out)."""
    out = max(1, STEP_NUMBERS // x.size)
    wide = x.T[:, :, None].astype(np.float64)  # (in, N, 1)
    parts = [chain(wide * weight[start : start + out].T[:, None]) for start in range(0, weight.shape[0], out)]
    return np.concatenate(parts, axis=1)
