"""Backward operations: the NumPy ones against PyTorch's differentiation of the torch op set and against differences in
float64; their refusals."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import OpsError
from genmote.ops import gradients, quant
from genmote.ops.layer import Layer, LayerSpec, Linear, Norm
from genmote.ops.numpy_gradients import NumpyGradients
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Span

OPS = NumpyOps()
GRADIENTS = gradients.of(OPS)
RNG = np.random.default_rng(6)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def differences(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, d: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The gradient of sum(d * f(x)) by central differences in float64."""
    x, found = x.astype(np.float64), np.zeros(x.shape)
    for place in np.ndindex(*x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        high, low = ((d * f(m)).sum() for m in moved)
        found[place] = (high - low) / (2 * step)
    return found


def near(got: Any, wanted: np.ndarray, tolerance: float = 2e-5) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("type_name", quant.codec_names())
def test_matrix_is_the_product_with_the_dequantised_weight(type_name: str) -> None:
    weight, dy = normal(600, 256), normal(3, 600)
    raw = quant.quantize(type_name, weight)
    wanted = dy.astype(np.float64) @ quant.dequantize(type_name, raw, weight.shape).astype(np.float64)
    near(GRADIENTS.matrix(dy, OPS.matrix(type_name, weight.shape, raw)), wanted)


def test_outer() -> None:
    a, b = normal(9, 4), normal(9, 7)
    near(GRADIENTS.outer(a, b), sum(np.outer(x, y) for x, y in zip(a.astype(np.float64), b, strict=True)))


@pytest.mark.parametrize("shape", [(3, 16), (2, 3, 16)])
@pytest.mark.parametrize(("centre", "bias"), [(False, False), (True, True), (True, False)])
def test_norm(shape: tuple[int, ...], centre: bool, bias: bool) -> None:
    x, dy, gain, shift = normal(*shape) * 3, normal(*shape), normal(16), normal(16) if bias else None

    def run(x: np.ndarray, gain: np.ndarray, shift: np.ndarray | None) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True) if centre else x
        y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-3) * gain
        return y if shift is None else y + shift

    dx, dgain, dbias = GRADIENTS.norm(dy, x, Norm(gain, shift, 1e-3, centre))
    near(dx, differences(lambda x: run(x, gain, shift), x, dy))
    near(dgain, differences(lambda gain: run(x, gain, shift), gain, dy))
    assert (dbias is not None) == bias
    if shift is not None and dbias is not None:
        near(dbias, differences(lambda shift: run(x, gain, shift), shift, dy))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_turns_back(interleaved: bool) -> None:
    x, d = normal(4, 3, 16), normal(4, 3, 16)
    rotary = OPS.rotary(np.array([0, 1, 77, 3000], np.int32), 10.0 ** -np.arange(6), 1.0)
    back = GRADIENTS.rope(OPS.rope(x, rotary, interleaved), rotary, interleaved)
    near(back, x)  # without a scale the rotation's transpose undoes it
    scaled = OPS.rotary(np.array([0, 1, 77, 3000], np.int32), 10.0 ** -np.arange(6), 1.3)
    left = (OPS.rope(x, scaled, interleaved).astype(np.float64) * d).sum()
    assert left == pytest.approx((x.astype(np.float64) * GRADIENTS.rope(d, scaled, interleaved)).sum(), rel=1e-5)


SPECS: list[dict[str, Any]] = [{}, {"window": 5}, {"score_cap": 1.5}, {"n_kv_heads": 1}, {"n_kv_heads": 4, "window": 3}]


def layer_of(changes: dict[str, Any]) -> Layer:
    fields = {"index": 0, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "scale": 0.4, **changes}
    nothing: Any = None
    return Layer(LayerSpec(**fields), *[nothing] * 6)


@pytest.mark.parametrize("changes", SPECS)
@pytest.mark.parametrize("lengths", [(9,), (7, 1, 4), (300, 20)])
def test_attention_against_autograd(changes: dict[str, Any], lengths: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    torch_ops = importlib.import_module("genmote.ops.torch_ops").create()
    layer, rows = layer_of(changes), sum(lengths)
    heads = layer.spec.n_kv_heads
    q, k, v, do = normal(rows, 4, 8), normal(rows, heads, 8) * 3, normal(rows, heads, 8), normal(rows, 32)
    spans, start = [], 0
    for length in lengths:
        spans.append(Span(torch_ops.cache(1, heads, 8, length), start, length))
        start += length
    tensors = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    out = torch_ops.attend(*tensors, spans, layer)
    (out * torch.tensor(do)).sum().backward()
    for got, tensor in zip(GRADIENTS.attend(do, q, k, v, lengths, layer.spec), tensors, strict=True):
        near(got, tensor.grad.numpy(), 1e-4)


def test_attention_of_a_window_sees_only_its_rows() -> None:
    """Queries in several blocks with a window: no key outside any query's window gets a gradient."""
    layer, rows = layer_of({"window": 3}), 600
    do = np.zeros((rows, 32), np.float32)
    do[520] = 1
    _, dk, dv = GRADIENTS.attend(do, normal(rows, 4, 8), normal(rows, 2, 8), normal(rows, 2, 8), (rows,), layer.spec)
    assert np.flatnonzero(np.abs(dv).sum(axis=(1, 2))).tolist() == [518, 519, 520]
    assert set(np.flatnonzero(np.abs(dk).sum(axis=(1, 2)))) <= {518, 519, 520}


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_activations(activation: Any) -> None:
    x, up, d = normal(3, 16) * 3, normal(3, 16), normal(3, 16)
    f = ACTIVATIONS[activation]
    near(GRADIENTS.activate(d, x, activation), differences(f, x, d))
    dgate, dup = GRADIENTS.glu(d, x, up, activation)
    near(dgate, differences(lambda gate: f(gate) * up, x, d))
    near(dup, differences(lambda up: f(x) * up, up, d))
    far = np.array([[-1e4, 1e4]], np.float32)
    assert np.isfinite(GRADIENTS.activate(np.ones_like(far), far, activation)).all()


def test_soft_cap() -> None:
    x, d = normal(3, 16) * 4, normal(3, 16)
    near(GRADIENTS.soft_cap(d, OPS.soft_cap(x, 3.0), 3.0), differences(lambda x: 3.0 * np.tanh(x / 3.0), x, d), 1e-4)


def test_cross_entropy() -> None:
    logits, targets = normal(4, 30) * 5, np.array([0, 29, 7, 7], np.int32)
    weights = np.array([1.0, 0.0, 0.5, 2.0], np.float32)

    def loss(x: np.ndarray) -> np.ndarray:
        rows = np.arange(4)
        return weights * (np.log(np.exp(x).sum(axis=-1)) - x[rows, targets])

    wanted = differences(loss, logits, np.ones(4))
    total = float(loss(logits.astype(np.float64)).sum())
    assert GRADIENTS.cross_entropy(logits, targets, weights) == pytest.approx(total, rel=1e-6)
    near(logits, wanted)
    assert not logits[1].any()  # a row of weight zero
    high = np.array([[1e4, -1e4]], np.float32)
    assert GRADIENTS.cross_entropy(high, np.array([1], np.int32), np.ones(1, np.float32)) == pytest.approx(2e4)


def test_no_argument_is_changed() -> None:
    x, d, gate = normal(4, 4, 8), normal(4, 4, 8), normal(4, 32)
    kept = [a.copy() for a in (x, d, gate)]
    flat = d.reshape(4, 32)
    GRADIENTS.norm(d, x, Norm(normal(8), normal(8), 1e-5, True))
    GRADIENTS.attend(flat, x, x, x, (4,), layer_of({"n_kv_heads": 4}).spec)
    GRADIENTS.glu(flat, gate, flat, "silu")
    GRADIENTS.rope(d, OPS.rotary(np.arange(4, dtype=np.int32), np.ones(4), 1.0), False)
    assert all(np.array_equal(a, b) for a, b in zip((x, d, gate), kept, strict=True))


def test_over_another_op_set_s_matrices() -> None:
    """NumPy's backward reads a matrix through `embed` alone, so any op set of NumPy arrays will do."""
    native = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError).create()
    weight, dy = normal(40, 64), normal(5, 40)
    raw = quant.quantize("Q4_0", weight)
    matrices = [ops.matrix("Q4_0", weight.shape, raw) for ops in (native, OPS)]
    assert np.array_equal(NumpyGradients(native).matrix(dy, matrices[0]), GRADIENTS.matrix(dy, matrices[1]))
    x = OPS.linear(dy @ weight, Linear(matrices[1]))
    assert np.array_equal(NumpyGradients(native).activate(x, x, "gelu"), GRADIENTS.activate(x, x, "gelu"))


def test_an_op_set_without_backward_operations_is_refused() -> None:
    assert isinstance(gradients.of(op_sets.load("numpy")), NumpyGradients)
    with pytest.raises(OpsError, match="'torch' has no backward operations: train with numpy or native"):
        gradients.of(SimpleNamespace(name="torch"))  # type: ignore[arg-type]
