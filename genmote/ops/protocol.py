"""The op-set protocol: the small set of operations over which the decoder is written, once.

Every op set defines the same function; `numpy` is the plain reference. Arrays are float32, rows first. Conventions:

- N rows of a batch, possibly of several sessions; `Span` says which rows belong to whom.
- `linear` on a quantised matrix rounds its input to 8 bits per group of 32 along the row (`round_q8`): scale
  d = max|x| / 127, q = rint(x * (127 / max|x|)). That is part of the definition, so that integer kernels and the
  reference agree to float32 rounding. F32, F16 and BF16 matrices take x as it is.
- The KV cache keeps k and v rounded to float16; queries, scores and sums are float32.
- A row's result does not depend on the other rows of the batch.
- `numpy` and `native` add in the one order that `exact.py` states and so give the same bits, on every machine. `torch`
  adds in its own order: its logits keep to a bound (docs/numerics.md), its rows do feel their company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote.ops.layer import Activation, Array, Experts, Layer, Linear, Norm


class KVCache(Protocol):
    """Keys and values of one session, all layers. Rows are stored in order; `length` of them are valid."""

    length: int  # rows stored
    position: int  # absolute position of the next row (== length unless rows were evicted)
    capacity: int

    @property
    def nbytes(self) -> int:
        """Bytes that `length` rows take."""
        ...

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on (positions go back with them)."""
        ...

    def export(self, length: int | None = None) -> dict[str, NDArray[Any]]:
        """Plain arrays {"k": (L, T, Hkv, D) float16, "v": the same} of the first `length` rows (None: all that are
        valid), for saving or copying a prefix."""
        ...

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over what `export` gave; length and position become T."""
        ...


@dataclass(frozen=True)
class Span:
    """Rows [start, start + count) of the batch continue the session whose cache is `cache`."""

    cache: Any
    start: int
    count: int


@dataclass(frozen=True)
class Rotary:
    """Rotation of each row's position: cos and sin, (N, rot/2) float32."""

    cos: Array
    sin: Array


class Ops(Protocol):
    """One implementation of the operations. Shapes: N rows, D model width, H heads, F feed-forward width."""

    name: str
    exact: bool  # the same bits on every instruction set

    # -- weights ------------------------------------------------------------------------------------------------
    def matrix(self, type_name: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> Any:
        """Prepare a (out, in) weight from its GGUF bytes. Must not keep a second float copy longer than needed."""
        ...

    def vector(self, values: NDArray[np.float32]) -> Array: ...

    def cache(self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int) -> KVCache: ...

    # -- steps --------------------------------------------------------------------------------------------------
    def array(self, values: NDArray[np.float32]) -> Array:
        """From NumPy."""
        ...

    def numpy(self, x: Array) -> NDArray[np.float32]: ...

    def embed(self, table: Any, tokens: NDArray[np.int32]) -> Array:
        """Rows of a matrix, dequantised: (N,) → (N, D)."""
        ...

    def linear(self, x: Array, weight: Linear) -> Array:
        """(N, in) → (N, out)."""
        ...

    def norm(self, x: Array, norm: Norm) -> Array:
        """Over the last axis of (N, D) or (N, H, D)."""
        ...

    def rotary(self, positions: NDArray[np.int32], inv_freq: NDArray[np.float64], scale: float) -> Rotary:
        """cos/sin of positions * inv_freq (float64, rounded last), each times `scale` (YaRN; 1.0 otherwise)."""
        ...

    def rope(self, x: Array, rotary: Rotary, interleaved: bool) -> Array:
        """Rotate the first rot dimensions of each head: (N, H, D) → (N, H, D)."""
        ...

    def attend(self, q: Array, k: Array, v: Array, spans: Sequence[Span], layer: Layer) -> Array:
        """Store k, v (N, Hkv, D) at `cache.length + i` of each span's cache in layer `layer.spec.index`, then causal
        attention of q (N, H, D) over what the cache holds: (N, H*D). `cache.length` itself is moved by the decoder."""
        ...

    def glu(self, gate: Array, up: Array, activation: Activation) -> Array:
        """activation(gate) * up."""
        ...

    def activate(self, x: Array, activation: Activation) -> Array: ...

    def add(self, a: Array, b: Array) -> Array: ...

    def scale(self, x: Array, factor: float) -> Array: ...

    def soft_cap(self, x: Array, cap: float) -> Array:
        """cap * tanh(x / cap)."""
        ...

    def experts(self, x: Array, experts: Experts, activation: Activation) -> Array:
        """Softmax over the router's scores, the `used` best (ties: lower index first), their weights normalised if
        asked, sum of weight * down(activation(gate(x)) * up(x)) in order of falling score: (N, D) → (N, D)."""
        ...

    # -- optional fused form --------------------------------------------------------------------------------------
    # block(x, layer, rotary | None, spans) -> x | None : the whole of `decoder.block`, bit-identical to the steps,
    # possibly in place of x; None for a layer that it has no fused form for. No attribute where an op set has none.
