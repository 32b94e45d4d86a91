"""The weights of one transformer block, in the shape in which every op set takes them.

A `Layer` is data only: `models/families` fill it, `models/decoder.py` runs it step by step, and an op set that offers a
fused block may keep what it compiled from it in `Layer.fused`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Array = Any  # the op set's own array: np.ndarray for numpy and native, torch.Tensor for torch
Activation = Literal["silu", "gelu", "relu"]  # gelu is the tanh form, as Gemma and GPT-2 define it


@dataclass(frozen=True)
class Adapter:
    """Low-rank update of one `Linear` (LoRA, Hu et al. 2021): y += scale * up(down(x))."""

    down: Any  # Matrix (rank, in)
    up: Any  # Matrix (out, rank)
    scale: float


@dataclass(frozen=True)
class Linear:
    """y = x W^T + bias, plus the adapters' updates. `matrix` is what `Ops.matrix` returned, shape (out, in).

    Of low rank: y = (x down^T) matrix^T + bias; `matrix` is (out, rank) then.
    """

    matrix: Any
    bias: Array | None = None  # (out,) float32
    adapters: tuple[Adapter, ...] = ()
    down: Any | None = None  # Matrix (rank, in)


@dataclass(frozen=True)
class Norm:
    """RMS norm (bias is None and centre is False) or layer norm (centre is True), over the last axis."""

    gain: Array  # (D,) float32
    bias: Array | None = None
    eps: float = 1e-5
    centre: bool = False  # subtract the mean first: layer norm


class ExpertSource(Protocol):
    """Where one layer's experts come from when not all of them are in memory (`runtime/experts.py`)."""

    def expect(self, x: Array) -> None:
        """The layer's input (N, D), told before its attention runs: the time to begin to read what it will choose."""
        ...

    def take(self, x: Array, chosen: Array) -> Iterator[list[tuple[int, tuple[Any, Any, Any]]]]:
        """The chosen experts (N, used) of the rows x (N, D), as they arrive: lists of (expert, (gate, up, down)), each
        expert once. A list's matrices are good until the next list is asked for."""
        ...


@dataclass(frozen=True)
class Experts:
    """A mixture-of-experts feed-forward: each row goes through `used` of the experts that the router scores best."""

    router: Linear  # (E, D)
    gate: tuple[Any, ...]  # E matrices (F, D)
    up: tuple[Any, ...]  # E matrices (F, D)
    down: tuple[Any, ...]  # E matrices (D, F)
    used: int
    normalise: bool  # the weights of the chosen experts are scaled to sum to one
    source: ExpertSource | None = None  # instead of gate, up and down
    # What the choice is made by, given the router's softmax (N, E): to look at it, or to replay another model's.
    routing: Callable[[Array], Array] | None = None


def taken(x: Array, chosen: Array, experts: Experts) -> Iterator[list[tuple[int, tuple[Any, Any, Any]]]]:
    """The chosen experts (N, used) of the rows x (N, D), all at once or as their source gives them."""
    if experts.source is not None:
        yield from experts.source.take(x, chosen)
    else:
        numbers = sorted(set(chosen.reshape(-1).tolist()))
        yield [(e, (experts.gate[e], experts.up[e], experts.down[e])) for e in numbers]


@dataclass(frozen=True)
class LayerSpec:
    """What a block computes with; everything here is a constant of the model."""

    index: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float  # attention scores are q.k * scale
    activation: Activation = "silu"
    window: int = 0  # a row attends to itself and the window-1 rows before; 0: to all before
    rope: int = 0  # which of the model's rotary tables; -1: none (learned positions)
    rope_interleaved: bool = False  # pairs (0,1),(2,3)… (GGUF `llama`); otherwise (i, i+rot/2) (neox)
    score_cap: float = 0.0  # scores = cap * tanh(scores / cap); 0: none


@dataclass
class Layer:
    """One block: x += post(o(attend(q, k, v))); x += post(feed_forward(norm(x)))."""

    spec: LayerSpec
    attn_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    ffn_norm: Norm
    gate: Linear | None = None  # None: no gated unit, activation(up) instead (OPT)
    up: Linear | None = None
    down: Linear | None = None
    experts: Experts | None = None  # instead of gate, up, down
    q_norm: Norm | None = None  # per head (head_dim,), or over all heads (n_heads*head_dim,) as in OLMoE
    k_norm: Norm | None = None
    post_attn_norm: Norm | None = None  # Gemma 3: norm of the branch before it is added
    post_ffn_norm: Norm | None = None
    fused: Any = None  # an op set's own compiled form
