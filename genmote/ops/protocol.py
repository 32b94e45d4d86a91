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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote.ops.cache import Heads, Streamed
from genmote.ops.layer import Activation, Array, Experts, Layer, Linear, Norm


class KVCache(Protocol):
    """Keys and values of one session, all layers: what attention sees of the rows before.

    A layer's rows lie in the order of the text. Where rows were evicted (`keep`), layers may hold different numbers of
    them; what a row's position was is in its rotation, and `position` goes on counting.
    """

    kind: str  # how rows are stored: f16, int8 or int4
    lengths: Sequence[int]  # (L,) rows that each layer holds
    position: int  # absolute position of the next row
    floor: int  # the position that `truncate` cannot go below: rows before it were evicted; 0 if none were
    capacity: int  # rows that a layer holds at most

    @property
    def length(self) -> int:
        """The most rows that a layer holds."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that the rows and queries take."""
        ...

    def advance(self, count: int) -> None:
        """`count` rows, stored in every layer by `attend`, count from now on."""
        ...

    def truncate(self, position: int) -> None:
        """Forget the rows at and after an absolute position, in all layers. SpecError below `floor`."""
        ...

    def keep(self, layer: int, rows: NDArray[np.integer[Any]]) -> None:
        """Evict all rows of a layer but these, (Hkv, n) ascending for each head; `floor` becomes `position`."""
        ...

    def keys(self, layer: int, head: int | None = None) -> NDArray[np.float32]:
        """The layer's keys as attention sees them, rotated to their positions: (T, Hkv, D); of one head: (T, 1, D)."""
        ...

    def values(self, layer: int, head: int | None = None) -> NDArray[np.float32]:
        """The layer's values as attention sees them: (T, Hkv, D); of one head: (T, 1, D)."""
        ...

    def queries(self, layer: int) -> NDArray[np.float32]:
        """Queries of the last rows, oldest first, rotated to their positions and rounded to float16: (n, H, D), n at
        most the number that the cache was made to keep."""
        ...

    def export(self, position: int | None = None) -> dict[str, NDArray[Any]]:
        """Plain arrays (docs/formats.md) of the rows before a position (None: of all), to save or copy a prefix."""
        ...

    def streamed(self, position: int | None = None) -> Mapping[str, NDArray[Any] | Streamed]:
        """What `export` gives, the large arrays in parts where the op set can: no second copy of the whole."""
        ...

    def restore(self, state: dict[str, NDArray[Any]], done: Callable[[], None] = ...) -> None:
        """Hold what `export` gave; `done` is called after each layer. SpecError for another kind or shape."""
        ...

    def copy_from(self, other: Any, position: int) -> None:
        """Hold the rows before a position of another cache of the same op set, kind and shape."""
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

    def cache(
        self,
        n_layers: int,
        n_kv_heads: Heads,
        head_dim: int,
        capacity: int,
        *,
        kind: str = "f16",
        queries: int = 0,
        n_heads: Heads = 0,
        **settings: Any,
    ) -> KVCache:
        """An empty cache for at most `capacity` rows. Heads: of every layer, or of each. `queries`: of how many of the
        last rows the queries are kept too (needs `n_heads`). Raises OpsError for a kind that the op set does not
        store."""
        ...

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
        """Store k, v (N, Hkv, D) as rows `cache.lengths[index] + i` of each span's cache, index = `layer.spec.index`,
        then causal attention of q (N, H, D) over what the layer holds: (N, H*D). The decoder calls `cache.advance`."""
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
