"""The PyTorch op set against the reference, step by step; its gradients against differences; its refusals."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import OpsError, SpecError
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.models.weights import GgufWeights
from genmote.ops import quant
from genmote.ops.layer import Adapter, Experts, Layer, LayerSpec, Linear, Norm
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.numpy_ops import round_q8 as reference_round_q8
from genmote.ops.protocol import Span

torch = pytest.importorskip("torch")
torch_ops = importlib.import_module("genmote.ops.torch_ops")

RNG = np.random.default_rng(21)
REFERENCE = NumpyOps()


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def both(step: Callable[[Any], Any], tolerance: float = 2e-5) -> None:
    """The step's results agree; it takes an op set and gives that op set's array."""
    ops = torch_ops.create()
    np.testing.assert_allclose(ops.numpy(step(ops)), step(REFERENCE), rtol=tolerance, atol=tolerance)


def matrix(ops: Any, values: np.ndarray, type_name: str) -> Any:
    return ops.matrix(type_name, values.shape, quant.quantize(type_name, values))


@pytest.mark.parametrize("type_name", quant.codec_names())
def test_linear_with_bias_and_adapters(type_name: str) -> None:
    x, w, bias, down, up = normal(5, 256), normal(24, 256), normal(24), normal(4, 256), normal(24, 4)

    def step(ops: Any) -> Any:
        adapter = Adapter(matrix(ops, down, "F32"), matrix(ops, up, "F16"), 0.5)
        return ops.linear(ops.array(x), Linear(matrix(ops, w, type_name), ops.vector(bias), (adapter,)))

    both(step, 1e-4)


def test_embed_norm_and_activations() -> None:
    table, x, gain, bias = normal(9, 64), normal(5, 64) * 4, normal(64), normal(64)
    both(lambda ops: ops.embed(matrix(ops, table, "Q4_0"), np.array([3, 8, 3], np.int32)), 0)
    both(lambda ops: ops.norm(ops.array(x), Norm(ops.vector(gain), None, 1e-6)))
    both(lambda ops: ops.norm(ops.array(x), Norm(ops.vector(gain), ops.vector(bias), 1e-5, True)))
    for activation in ("silu", "gelu", "relu"):
        both(lambda ops, a=activation: ops.activate(ops.array(x), a))
        both(lambda ops, a=activation: ops.glu(ops.array(x), ops.array(-x), a))
    both(lambda ops: ops.soft_cap(ops.array(x), 3.0))
    both(lambda ops: ops.add(ops.array(x), ops.scale(ops.array(x), 0.3)))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [8, 16])
def test_rope(interleaved: bool, dims: int) -> None:
    x, positions, inv_freq = normal(4, 3, 16), np.array([0, 1, 77, 30000], np.int32), 10.0 ** -np.arange(dims // 2)
    both(lambda ops: ops.rope(ops.array(x), ops.rotary(positions, inv_freq, 1.1), interleaved))


@pytest.mark.parametrize("spec", [{}, {"window": 5}, {"score_cap": 1.5}, {"n_kv_heads": 1}])
def test_attention_over_two_sessions(spec: dict[str, Any]) -> None:
    fields = {"index": 1, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "scale": 0.4, **spec}
    nothing: Any = None
    layer = Layer(LayerSpec(**fields), *[nothing] * 6)
    steps = [(normal(9, 4, 8), *(normal(9, fields["n_kv_heads"], 8) for _ in "kv")) for _ in range(3)]

    def run(ops: Any) -> Any:
        caches, out = [ops.cache(2, fields["n_kv_heads"], 8, 200) for _ in range(2)], []
        for q, k, v in steps * 8:
            spans = [Span(caches[0], 0, 7), Span(caches[1], 7, 2)]
            out.append(ops.numpy(ops.attend(ops.array(q), ops.array(k), ops.array(v), spans, layer)))
            for span in spans:
                span.cache.advance(span.count)
        return ops.array(np.concatenate(out))

    both(run)


@pytest.mark.parametrize("normalise", [False, True])
def test_experts(normalise: bool) -> None:
    x, router = normal(7, 32), normal(4, 32)
    weights = [[normal(*shape) for _ in range(4)] for shape in ((64, 32), (64, 32), (32, 64))]

    def step(ops: Any) -> Any:
        gate, up, down = (tuple(matrix(ops, w, "Q8_0") for w in group) for group in weights)
        return ops.experts(
            ops.array(x), Experts(Linear(matrix(ops, router, "F32")), gate, up, down, 2, normalise), "silu"
        )

    both(step, 2e-2)  # a step of the rounding to 8 bits


def test_rounding_gives_the_reference_s_values_and_passes_gradients() -> None:
    x = torch.tensor(normal(3, 96) * 7, requires_grad=True)
    rounded = torch_ops.round_q8(x)
    q, d = reference_round_q8(x.detach().numpy())
    assert np.array_equal(rounded.detach().numpy(), (q * d[:, :, None]).reshape(3, 96))
    (rounded * 2).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))

    x.grad = None
    halved = torch_ops.round_half(x)
    assert np.array_equal(halved.detach().numpy(), x.detach().numpy().astype(np.float16).astype(np.float32))
    halved.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert not torch_ops.round_q8(torch.full((1, 32), 1e-35)).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch")
    for shape in ("tiny-llama", "tiny-gemma3", "tiny-opt", "tiny-mixtral"):
        make_model(shape, "F32", path / f"{shape}.gguf", seed=3)
    return path


def decoder_of(path: Path, **options: Any) -> Decoder:
    ops = op_sets.load("torch", **options)
    weights = GgufWeights(ModelFile.open(path), ops)
    return Decoder(weights.config, weights, ops)


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3", "tiny-opt", "tiny-mixtral"])
def test_gradients_through_the_whole_decoder(shape: str, folder: Path) -> None:
    decoder = decoder_of(folder / f"{shape}.gguf")
    trained = {
        "embedding": decoder.weights.embedding,
        "k": decoder.weights.layers[0].k.matrix,
        "v": decoder.weights.layers[1].v.matrix,
        "o": decoder.weights.layers[0].o.matrix,
    }
    if decoder.weights.layers[0].experts is not None:
        trained |= {
            "router": decoder.weights.layers[0].experts.router.matrix,
            "expert": decoder.weights.layers[0].experts.down[0],
        }
    # Its own numbers: where an expert is chosen anew within a step, the difference is none of the gradient.
    ids = np.random.default_rng(0).integers(3, 300, 24)

    def loss() -> Any:
        x = decoder.run(ids[:-1], [Span(decoder.cache(23), 0, 23)])
        return torch.nn.functional.cross_entropy(decoder.head(x), torch.tensor(ids[1:]))

    for weight in trained.values():
        weight.weight.requires_grad_(True)
    loss().backward()
    for name, weight in trained.items():
        gradient = weight.weight.grad
        assert gradient is not None and gradient.abs().max() > 0, name
        direction, step, ends = gradient / gradient.norm(), 0.004 / (1 + float(gradient.norm())), []
        for sign in (1, -1):
            with torch.no_grad():
                weight.weight += sign * step * direction
                ends.append(float(loss()))
                weight.weight -= sign * step * direction
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.08), name


def test_no_gradients_where_none_are_asked(folder: Path) -> None:
    decoder = decoder_of(folder / "tiny-llama.gguf")
    assert not decoder.run([1, 2, 3], [Span(decoder.cache(3), 0, 3)]).requires_grad


def test_input_rounding_can_be_left_out() -> None:
    x, w = normal(3, 64), normal(8, 64)
    ops = op_sets.load("torch", round_inputs=False)
    plain = ops.matrix("Q8_0", w.shape, quant.quantize("Q8_0", w))
    np.testing.assert_allclose(
        ops.numpy(ops.linear(ops.array(x), Linear(plain))), x @ plain.weight.numpy().T, rtol=1e-4
    )


def test_bfloat16_stays_near(folder: Path) -> None:
    exact, coarse = (decoder_of(folder / "tiny-llama.gguf", dtype=dtype) for dtype in ("float32", "bfloat16"))
    a, b = (d.forward([5, 6, 7, 8], [Span(d.cache(4), 0, 4)], logits="all") for d in (exact, coarse))
    assert b.dtype == np.float32 and 0 < np.abs(a - b).max() < 0.1 * a.std()


def test_a_cache_saves_and_refuses() -> None:
    ops = op_sets.load("torch")
    cache = ops.cache(2, 2, 8, 10)
    rows = normal(4, 2, 8)
    for layer in range(2):
        cache.store(layer, *[ops.array(rows)] * 3)
    cache.advance(4)
    assert cache.nbytes == 4 * 2 * 2 * 8 * 2 * 2
    other = REFERENCE.cache(2, 2, 8, 10)
    other.restore(cache.export())
    assert np.array_equal(other.export()["k"][4 * 2 :].reshape(rows.shape), rows.astype(np.float16))
    fresh = ops.cache(2, 2, 8, 10)
    fresh.restore(other.export())
    assert (fresh.length, fresh.position) == (4, 4) and np.array_equal(fresh.export()["v"], cache.export()["v"])
    cache.truncate(1)
    assert (cache.length, cache.position) == (1, 1)
    with pytest.raises(SpecError, match="cannot cut a cache of 1 rows to 2"):
        cache.truncate(2)
    with pytest.raises(SpecError, match="at most 3"):
        ops.cache(2, 2, 8, 3).restore(other.export())


def test_wrong_device_and_dtype() -> None:
    with pytest.raises(OpsError, match="device 'gpu9' cannot be used by this PyTorch; try cpu"):
        op_sets.load("torch", device="gpu9")
    with pytest.raises(OpsError, match="dtype 'int8': the torch op set computes in float32, bfloat16 or float16"):
        op_sets.load("torch", dtype="int8")


def test_without_pytorch_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "genmote.ops.torch_ops", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OpsError, match="op set 'torch' needs PyTorch, which is not installed: run pip install torch"):
        op_sets.load("torch")


def test_adapters_train(folder: Path) -> None:
    decoder = decoder_of(folder / "tiny-llama.gguf")
    ops, layers = decoder.ops, decoder.weights.layers
    down, up = (
        ops.matrix("F32", (4, 64), normal(4, 64).view(np.uint8)),
        ops.matrix("F32", (64, 4), np.zeros(1024, np.uint8)),
    )
    up.weight.requires_grad_(True)
    layers[0] = replace(layers[0], q=replace(layers[0].q, adapters=(Adapter(down, up, 2.0),)))
    before = decoder.head(decoder.run([5, 6, 7], [Span(decoder.cache(3), 0, 3)]))
    before[-1, 9].backward()
    with torch.no_grad():
        up.weight += 0.05 * up.weight.grad / up.weight.grad.norm()
    after = decoder.head(decoder.run([5, 6, 7], [Span(decoder.cache(3), 0, 3)]))
    assert after[-1, 9] > before[-1, 9]
