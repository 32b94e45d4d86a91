"""The reference op set: NumPy, slow and plain. The other op sets are held to it.

Each row of a batch goes through its own matrix-vector products, so that its bits do not depend on its company: BLAS
orders the sums of a matrix-matrix product by the shape of the whole batch. What is not a product is computed in
float64 by `elementary` and rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.ops import quant
from genmote.ops.elementary import exp, sigmoid, sin_cos
from genmote.ops.layer import Activation, Experts, Layer, Linear, Norm
from genmote.ops.protocol import Rotary, Span

Float32 = NDArray[np.float32]

GROUP = 32  # numbers of a row that share one scale in `round_q8`
CHUNK_ROWS = 512  # output rows of a matrix that are dequantised and multiplied at a time
PLAIN = ("F32", "F16", "BF16")  # types whose input is not rounded
FLOAT_BYTES = 1 << 30
GELU = 0.7978845608028654  # sqrt(2 / pi)


def create(*, float_bytes: int = FLOAT_BYTES) -> NumpyOps:
    """The NumPy op set; `float_bytes`: see `NumpyOps`."""
    return NumpyOps(float_bytes=float_bytes)


@dataclass(eq=False)
class Matrix:
    """A weight (out, in): the file's bytes, and its float32 form once it was used and the allowance had room."""

    type_name: str
    shape: tuple[int, int]
    raw: NDArray[np.uint8]
    floats: Float32 | None = None


class NumpyCache:
    """Keys and values of one session, all layers: (L, rows, Hkv, D) float16; the storage grows with the text."""

    def __init__(self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int) -> None:
        self.length = 0
        self.position = 0
        self.capacity = capacity
        self.k = np.zeros((n_layers, 0, n_kv_heads, head_dim), np.float16)
        self.v = self.k.copy()

    @property
    def nbytes(self) -> int:
        layers, _, heads, dim = self.k.shape
        return 2 * 2 * layers * self.length * heads * dim

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise SpecError(f"cannot cut a cache of {self.length} rows to {length}; give a number from 0 to its length")
        self.position -= self.length - length
        self.length = length

    def export(self) -> dict[str, NDArray[Any]]:
        return {"k": self.k[:, : self.length].copy(), "v": self.v[:, : self.length].copy()}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        k, v = check_state(state, self.k.shape, self.capacity)
        self.k, self.v = k.copy(), v.copy()
        self.length = self.position = k.shape[1]

    def store(self, layer: int, k: Float32, v: Float32) -> None:
        """Write rows (n, Hkv, D) after the valid ones; the decoder moves `length` when all layers are through."""
        end = self.length + k.shape[0]
        if end > self.k.shape[1]:
            rows = min(max(end, 2 * self.k.shape[1], 64), self.capacity)
            self.k, self.v = (_grown(x, rows) for x in (self.k, self.v))
        with np.errstate(over="ignore"):
            self.k[layer, self.length : end] = k
            self.v[layer, self.length : end] = v


def _grown(x: NDArray[np.float16], rows: int) -> NDArray[np.float16]:
    grown = np.zeros((x.shape[0], rows, *x.shape[2:]), x.dtype)
    grown[:, : x.shape[1]] = x
    return grown


def check_state(
    state: dict[str, NDArray[Any]], like: tuple[int, ...], capacity: int
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """The arrays of an exported cache, if they fit one of storage shape `like` (L, any, Hkv, D); else SpecError."""
    arrays = [np.asarray(state.get(name, ())) for name in ("k", "v")]
    for x in arrays:
        if x.ndim != 4 or x.dtype != np.float16 or (x.shape[0], *x.shape[2:]) != (like[0], *like[2:]):
            raise SpecError(
                f"a saved prefix of {x.dtype} {x.shape}: wanted float16 "
                f"({like[0]}, tokens, {like[2]}, {like[3]}); save it again with this model"
            )
    if arrays[0].shape != arrays[1].shape or arrays[0].shape[1] > capacity:
        raise SpecError(
            f"a saved prefix of {arrays[0].shape[1]} and {arrays[1].shape[1]} tokens: wanted as many keys as values, "
            f"at most {capacity}"
        )
    return arrays[0], arrays[1]


def round_q8(x: Float32) -> Float32:
    """Each group of 32 numbers rounded to 8 bits: what integer kernels multiply. (N, K) → (N, K)

    Scale d = max|x| / 127 in float32; numbers q = rint(x * (127 / max|x|)); the result is q * d.

    >>> round_q8(np.linspace(-127, 127.6, 32, dtype=np.float32)[None])[0, :2].round(3).tolist()
    [-126.595, -118.557]
    """
    groups = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, GROUP)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    # Below 1e-30 the inverse overflows or nearly so: such a group is zero.
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=~(largest < 1e-30))
    rounded: Float32 = np.rint(groups * inverse) * (largest / np.float32(127))
    return rounded.reshape(x.shape)


class NumpyOps:
    """Implements `ops.protocol.Ops`. `float_bytes`: memory that dequantised weights may keep; what is beyond is
    dequantised `CHUNK_ROWS` rows at a time at every use (the bits are the same, the time is not)."""

    name = "numpy"
    exact = False  # the sums of a matrix-vector product are in BLAS's order, which differs between processors

    def __init__(self, *, float_bytes: int = FLOAT_BYTES) -> None:
        self.float_bytes_left = float_bytes

    # -- weights ------------------------------------------------------------------------------------------------

    def matrix(self, type_name: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> Matrix:
        return Matrix(quant.by_name(type_name).name, (int(shape[0]), int(shape[1])), raw)

    def vector(self, values: Float32) -> Float32:
        return np.array(values, np.float32)

    def cache(self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int) -> NumpyCache:
        return NumpyCache(n_layers, n_kv_heads, head_dim, capacity)

    # -- steps --------------------------------------------------------------------------------------------------

    def array(self, values: Float32) -> Float32:
        return np.ascontiguousarray(values, np.float32)

    def numpy(self, x: Float32) -> Float32:
        return x

    def embed(self, table: Matrix, tokens: NDArray[np.int32]) -> Float32:
        return quant.dequantize_rows(table.type_name, table.raw, table.shape, tokens)

    def linear(self, x: Float32, weight: Linear) -> Float32:
        y = self._product(x, weight.matrix)
        if weight.bias is not None:
            y += weight.bias
        for adapter in weight.adapters:
            y += np.float32(adapter.scale) * self._product(self._product(x, adapter.down), adapter.up)
        return y

    def norm(self, x: Float32, norm: Norm) -> Float32:
        y = x.astype(np.float64)
        if norm.centre:
            y -= y.mean(axis=-1, keepdims=True)
        y /= np.sqrt(np.square(y).mean(axis=-1, keepdims=True) + norm.eps)
        y *= norm.gain
        if norm.bias is not None:
            y += norm.bias
        return y.astype(np.float32)

    def rotary(self, positions: NDArray[np.int32], inv_freq: NDArray[np.float64], scale: float) -> Rotary:
        sin, cos = sin_cos(positions[:, None].astype(np.float64) * inv_freq)  # (N, rot/2)
        return Rotary((cos * scale).astype(np.float32), (sin * scale).astype(np.float32))

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
        y[..., second] = a * sin + b * cos
        return y

    def attend(self, q: Float32, k: Float32, v: Float32, spans: Sequence[Span], layer: Layer) -> Float32:
        spec = layer.spec
        out = np.empty((q.shape[0], spec.n_heads, spec.head_dim), np.float32)
        for span in spans:
            cache, rows = span.cache, slice(span.start, span.start + span.count)
            cache.store(spec.index, k[rows], v[rows])
            end = cache.length + span.count
            first = max(0, cache.length + 1 - spec.window) if spec.window else 0  # the oldest row that any row sees
            keys = cache.k[spec.index, first:end].astype(np.float32).transpose(1, 0, 2)  # (Hkv, T, D)
            values = cache.v[spec.index, first:end].astype(np.float32).transpose(1, 0, 2)
            for i in range(span.count):
                stop = cache.length + i + 1
                start = max(0, stop - spec.window) if spec.window else 0
                seen = slice(start - first, stop - first)
                out[span.start + i] = self._attend_row(q[span.start + i], keys[:, seen], values[:, seen], layer)
        return out.reshape(q.shape[0], -1)

    def glu(self, gate: Float32, up: Float32, activation: Activation) -> Float32:
        return self.activate(gate, activation) * up

    def activate(self, x: Float32, activation: Activation) -> Float32:
        if activation == "relu":
            return np.maximum(x, np.float32(0))
        wide = x.astype(np.float64)
        if activation == "silu":
            return (wide * sigmoid(wide)).astype(np.float32)
        # gelu: 0.5 x (1 + tanh u) = x sigmoid(2u)
        return (wide * sigmoid(2 * GELU * (wide + 0.044715 * wide * wide * wide))).astype(np.float32)

    def add(self, a: Float32, b: Float32) -> Float32:
        return a + b

    def scale(self, x: Float32, factor: float) -> Float32:
        return x * np.float32(factor)

    def soft_cap(self, x: Float32, cap: float) -> Float32:
        wide = 2.0 * sigmoid(2.0 / cap * x.astype(np.float64)) - 1.0  # tanh u = 2 sigmoid(2u) - 1
        return (cap * wide).astype(np.float32)

    def experts(self, x: Float32, experts: Experts, activation: Activation) -> Float32:
        chosen, weights = self._route(self.linear(x, experts.router), experts)  # (N, used) each
        parts = np.empty((*chosen.shape, x.shape[1]), np.float32)  # (N, used, D)
        for expert in np.unique(chosen):
            rows, places = np.nonzero(chosen == expert)
            gate = self._product(x[rows], experts.gate[expert])
            up = self._product(x[rows], experts.up[expert])
            parts[rows, places] = self._product(self.glu(gate, up, activation), experts.down[expert])
        total = np.zeros_like(x)
        for place in range(experts.used):  # in order of falling score
            total += weights[:, place, None] * parts[:, place]
        return total

    # -- helpers ------------------------------------------------------------------------------------------------

    def _route(self, scores: Float32, experts: Experts) -> tuple[NDArray[np.int64], Float32]:
        """Scores (N, E) → the chosen experts, best first, and their weights, (N, used) each."""
        powers = exp(scores - scores.max(axis=-1, keepdims=True))
        shares = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : experts.used]
        weights = np.take_along_axis(shares, chosen, axis=-1)
        return chosen, weights / weights.sum(axis=-1, keepdims=True) if experts.normalise else weights

    def _product(self, x: Float32, matrix: Matrix) -> Float32:
        """(N, in) → (N, out) with the input rounded as the matrix's type asks."""
        out, _ = matrix.shape
        rounded = x if matrix.type_name in PLAIN else round_q8(x)
        columns = np.ascontiguousarray(rounded, np.float32)[:, :, None]  # (N, in, 1): one product for each row
        y = np.empty((x.shape[0], out), np.float32)
        floats = self._floats(matrix)
        for start in range(0, out, CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, out))
            chunk = self._dequantise(matrix, rows) if floats is None else floats[rows]
            y[:, rows] = np.matmul(chunk, columns)[:, :, 0]
        return y

    def _floats(self, matrix: Matrix) -> Float32 | None:
        """The float32 form: a view where the file stores it, kept where the allowance has room, else None."""
        if matrix.floats is None:
            size = 4 * matrix.shape[0] * matrix.shape[1]
            if matrix.type_name == "F32" and matrix.raw.ctypes.data % 4 == 0:
                matrix.floats = matrix.raw.reshape(-1).view(np.float32).reshape(matrix.shape)
            elif size <= self.float_bytes_left:
                self.float_bytes_left -= size
                matrix.floats = quant.dequantize(matrix.type_name, matrix.raw, matrix.shape)
        return matrix.floats

    def _dequantise(self, matrix: Matrix, rows: slice) -> Float32:
        lines = matrix.raw.reshape(matrix.shape[0], -1)[rows]
        return quant.dequantize(matrix.type_name, lines.reshape(-1), (lines.shape[0], matrix.shape[1]))

    def _attend_row(self, q: Float32, keys: Float32, values: Float32, layer: Layer) -> Float32:
        """One row's attention: q (H, D) over keys and values (Hkv, T, D) → (H, D)."""
        spec = layer.spec
        grouped = q.reshape(spec.n_kv_heads, -1, spec.head_dim)  # (Hkv, G, D): G query heads share a key head
        scores = np.matmul(grouped, keys.transpose(0, 2, 1)) * np.float32(spec.scale)  # (Hkv, G, T)
        if spec.score_cap:
            scores = self.soft_cap(scores, spec.score_cap)
        powers = exp(scores - scores.max(axis=-1, keepdims=True)).astype(np.float32)
        mixed = np.matmul(powers, values)  # (Hkv, G, D)
        total = powers.sum(axis=-1, keepdims=True, dtype=np.float64)
        result: Float32 = (mixed / total).astype(np.float32)
        return result.reshape(q.shape)
