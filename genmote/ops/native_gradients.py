"""The native backward operations: C++ kernels over the packed weights, float32, on the op set's threads.

Every sum has one order (docs/numerics.md), so the bits are the same on every instruction set and for any number of
threads; NumPy's backward operations add otherwise and agree within a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from genmote.ops.exact import Float32
from genmote.ops.layer import Activation, Adapter, LayerSpec, Norm
from genmote.ops.native_ops import ACTIVATIONS, FLOATS, NativeOps
from genmote.ops.numpy_gradients import adapter_back
from genmote.ops.protocol import Rotary


def create(ops: NativeOps) -> NativeGradients:
    """The backward operations on an op set's threads and instruction set."""
    return NativeGradients(ops)


class NativeGradients:
    """Implements `ops.gradients.Gradients`. A matrix is never spelt out as a whole: 128 KB of it a thread at a time."""

    def __init__(self, ops: NativeOps) -> None:
        self.ops, self.machine = ops, ops.machine

    def matrix(self, dy: Float32, matrix: Any) -> Float32:
        dx = _padded(dy.shape[0], matrix.shape[1])
        self.machine.matmul_back(matrix, _whole(dy), dx)
        return _cut(dx, matrix.shape[1])

    def outer(self, a: Float32, b: Float32) -> Float32:
        if not a.size or not b.size:
            return np.zeros((a.shape[1], b.shape[1]), np.float32)
        if a.shape[1] > b.shape[1]:  # the kernel's vectors run along the longer side
            return np.ascontiguousarray(self.outer(b, a).T)
        product = _padded(a.shape[1], b.shape[1])
        self.machine.outer(_whole(a), _whole(b), product)
        return _cut(product, b.shape[1])

    def adapter(self, dy: Float32, x: Float32, adapter: Adapter, dx: Float32) -> tuple[Float32, Float32]:
        (rank, cols), (out, _) = adapter.down.shape, adapter.up.shape
        if not len(x) or cols % 16 or not {adapter.down.type, adapter.up.type} <= FLOATS or not dx.flags.c_contiguous:
            return adapter_back(self, dy, x, adapter, dx)
        da, db = _padded(rank, cols), _padded(rank, out)
        self.machine.adapt_back(adapter.down, adapter.up, adapter.scale, _whole(dy), _whole(x), dx, da, db)
        return da, np.ascontiguousarray(db[:, :out].T)

    def norm(self, dy: Float32, x: Float32, norm: Norm) -> tuple[Float32, Float32, Float32 | None]:
        x = _whole(x)
        dx, dgain = np.empty_like(x), np.empty_like(norm.gain)
        dbias = None if norm.bias is None else np.empty_like(norm.bias)
        self.machine.norm_back(_whole(dy), x, norm.gain, norm.eps, norm.centre, dx, dgain, dbias)
        return dx, dgain, dbias

    def rope(self, dy: Float32, rotary: Rotary, interleaved: bool) -> Float32:
        dx = np.array(dy, order="C")
        self.machine.rope(dx, rotary.cos, -rotary.sin, interleaved)
        return dx

    def attend(
        self, do: Float32, q: Float32, k: Float32, v: Float32, lengths: Sequence[int], spec: LayerSpec
    ) -> tuple[Float32, Float32, Float32]:
        do, q, k, v = (_whole(x) for x in (do, q, k, v))
        dq, dk, dv = (np.empty_like(x) for x in (q, k, v))
        if q.size:
            settings = ([int(n) for n in lengths], spec.scale, spec.score_cap, spec.window)
            self.machine.attend_back(do, q, k, v, *settings, dq, dk, dv)
        return dq, dk, dv

    def glu(self, d: Float32, gate: Float32, up: Float32, activation: Activation) -> tuple[Float32, Float32]:
        d, gate, up = (_whole(x) for x in (d, gate, up))
        dgate, dup = np.empty_like(gate), np.empty_like(up)
        self.machine.glu_back(d, gate, up, ACTIVATIONS[activation], dgate, dup)
        return dgate, dup

    def activate(self, d: Float32, x: Float32, activation: Activation) -> Float32:
        d, x = _whole(d), _whole(x)
        dx = np.empty_like(x)
        self.machine.activate_back(d, x, ACTIVATIONS[activation], dx)
        return dx

    def soft_cap(self, d: Float32, y: Float32, cap: float) -> Float32:
        d, y = _whole(d), _whole(y)
        dx = np.empty_like(y)
        self.machine.soft_cap_back(d, y, cap, dx)
        return dx

    def cross_entropy(self, logits: Float32, targets: Any, weights: Float32) -> float:
        targets = np.ascontiguousarray(targets, np.int32)
        loss: float = self.machine.cross_entropy(logits, targets, np.ascontiguousarray(weights, np.float32))
        return loss


def _whole(x: Float32) -> Float32:
    return np.ascontiguousarray(x, np.float32)


def _padded(rows: int, cols: int) -> Float32:
    """Room for the kernels' output, which writes whole vectors of 16."""
    return np.empty((rows, (cols + 15) // 16 * 16), np.float32)


def _cut(x: Float32, cols: int) -> Float32:
    return x if x.shape[1] == cols else np.ascontiguousarray(x[:, :cols])
