"""The backward operations of an op set: what training on a device needs beside `protocol.Ops`.

Arrays are float32 NumPy, rows first, as in the protocol. The forward pass is the engine's own; its roundings (inputs of
quantised matrices to 8 bits, keys and values to float16) pass gradients straight through (Bengio et al. 2013, arXiv
1308.3432): a gradient is that of the function without the rounding, taken at the values with it.

An op set NAME has its own in `ops/NAME_gradients.py`, with a function `create(ops)`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

from genmote.errors import OpsError
from genmote.ops.exact import Float32
from genmote.ops.layer import Activation, Adapter, LayerSpec, Norm
from genmote.ops.protocol import Ops, Rotary


class Gradients(Protocol):
    """One implementation. Shapes: N rows, H heads, Hkv key-value heads, D width of a row or of a head, V vocabulary.

    No argument is changed, save the logits of `cross_entropy` and the dx of `adapter`. What is returned is the caller's
    to change.
    """

    ops: Any  # the op set whose backward operations these are

    def matrix(self, dy: Float32, matrix: Any) -> Float32:
        """Through y = x W^T to x: dy (N, out) → dy W (N, in), W the dequantised numbers of what `Ops.matrix` gave."""
        ...

    def outer(self, a: Float32, b: Float32) -> Float32:
        """a^T b, (N, p) and (N, q) → (p, q): a weight's gradient out of its output's and its input."""
        ...

    def adapter(self, dy: Float32, x: Float32, adapter: Adapter, dx: Float32) -> tuple[Float32, Float32]:
        """Through y += scale * up(down(x)): dx (N, in) += the gradient of x; gradients of down (rank, in) and up
        (out, rank)."""
        ...

    def norm(self, dy: Float32, x: Float32, norm: Norm) -> tuple[Float32, Float32, Float32 | None]:
        """Through `Ops.norm` over the last axis of x (N, D) or (N, H, D): gradients of x, of the gain (D,) and, where
        there is one, of the bias (D,)."""
        ...

    def rope(self, dy: Float32, rotary: Rotary, interleaved: bool) -> Float32:
        """Through `Ops.rope`: the rotation back, (N, H, D) → (N, H, D)."""
        ...

    def attend(
        self, do: Float32, q: Float32, k: Float32, v: Float32, lengths: Sequence[int], spec: LayerSpec
    ) -> tuple[Float32, Float32, Float32]:
        """Through `Ops.attend`, do (N, H*D) → gradients of q (N, H, D), k and v (N, Hkv, D), all as `attend` was given
        them (k and v not yet rounded to float16). The rows are whole sessions, one after another, of `lengths` rows
        each, that began with empty caches. Probabilities are computed again and never held for all heads at once."""
        ...

    def glu(self, d: Float32, gate: Float32, up: Float32, activation: Activation) -> tuple[Float32, Float32]:
        """Through activation(gate) * up: gradients of gate and up."""
        ...

    def activate(self, d: Float32, x: Float32, activation: Activation) -> Float32:
        """Through activation(x)."""
        ...

    def soft_cap(self, d: Float32, y: Float32, cap: float) -> Float32:
        """Through y = cap * tanh(x / cap), given what came out: d * (1 - (y / cap)**2)."""
        ...

    def cross_entropy(self, logits: Float32, targets: Any, weights: Float32) -> float:
        """Sum over rows of weight * (log sum exp(logits) - logits[target]), added in float64. `logits` (N, V) are
        replaced by their gradient, weight * (softmax - one at the target). `targets` (N,) int32, `weights` (N,)."""
        ...


def of(ops: Ops) -> Gradients:
    """The backward operations that belong to an op set. OpsError for one that has none (`torch` has its own way)."""
    name = f"genmote.ops.{ops.name}_gradients"
    if importlib.util.find_spec(name) is None:
        raise OpsError(f"op set {ops.name!r} has no backward operations: train with numpy or native")
    gradients: Gradients = importlib.import_module(name).create(ops)
    return gradients
