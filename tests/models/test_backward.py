"""The decoder's gradients: every family against PyTorch's differentiation of the same forward pass, with adapters and
without; what is kept, what is left out, what is refused."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.models import lora
from genmote.models.backward import Backward, Batch
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model, shape_names
from genmote.models.weights import GgufWeights
from genmote.ops import gradients
from genmote.ops.layer import Adapter
from genmote.ops.numpy_gradients import NumpyGradients
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Span

FAMILIES = [name for name in shape_names() if name.startswith("tiny-")]


def batch_of(seed: int = 3, lengths: tuple[int, ...] = (11, 1, 8)) -> Batch:
    rng, count = np.random.default_rng(seed), sum(lengths)
    tokens, targets = (rng.integers(3, 250, count).astype(np.int32) for _ in range(2))
    weights = rng.random(count).astype(np.float32) * (rng.random(count) > 0.3)
    return Batch(tokens, lengths, targets, weights.astype(np.float32))


def model(shape: str, folder: Path, type_name: str = "F32") -> ModelFile:
    path = folder / f"{shape}-{type_name}.gguf"
    make_model(shape, type_name, path, seed=5)
    return ModelFile.open(path)


def pairs_of(file: ModelFile, rank: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numbers of an adapter of every matrix that the model has whole, the output matrix included where it has one."""
    rng = np.random.default_rng(8)
    shapes = lora.base_shapes(GgufWeights(file, NumpyOps()).config)
    shapes = {n: s for n, s in shapes.items() if n in file.tensors or n.replace(".weight", "_a.weight") in file.tensors}
    return {
        name: tuple(rng.standard_normal(s).astype(np.float32) * 0.1 for s in ((rank, cols), (out, rank)))  # type: ignore[misc]
        for name, (out, cols) in shapes.items()
    }


def decoder_of(file: ModelFile, ops: Any, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[Decoder, Any]:
    """The decoder with an adapter made of these numbers, and the adapter's matrices as the op set has them."""
    weights: Any = GgufWeights(file, ops)
    updates = {
        name: Adapter(*(ops.matrix("F32", x.shape, x.reshape(-1).view(np.uint8)) for x in pair), 0.7)
        for name, pair in pairs.items()
    }
    config = weights.config
    if updates:
        weights = lora.AdaptedWeights(weights, [(lora.Lora("made", updates), 1.0)])
    return Decoder(config, weights, ops), updates


def vectors_of(weights: Any) -> dict[str, Any]:
    """Every norm's and linear's vector by its name."""
    found = {
        f"{lora.OUTPUT_NORM}.weight": weights.output_norm.gain,
        f"{lora.OUTPUT_NORM}.bias": weights.output_norm.bias,
    }
    for layer in weights.layers:
        block = f"blk.{layer.spec.index}"
        for name, field in lora.NORMS.items():
            if (norm := getattr(layer, field)) is not None:
                found |= {f"{block}.{name}.weight": norm.gain, f"{block}.{name}.bias": norm.bias}
        for name, field in lora.PARTS.items():
            if (linear := getattr(layer, field)) is not None:
                found[f"{block}.{name}.bias"] = linear.bias
    return {name: vector for name, vector in found.items() if vector is not None}


def by_autograd(file: ModelFile, pairs: dict[str, Any], batch: Batch, **options: Any) -> tuple[float, dict[str, Any]]:
    torch = pytest.importorskip("torch")
    ops = importlib.import_module("genmote.ops.torch_ops").create(**options)
    decoder, updates = decoder_of(file, ops, pairs)
    learnt = vectors_of(decoder.weights)
    for name, update in updates.items():
        learnt |= {f"{name}.lora_a": update.down.weight, f"{name}.lora_b": update.up.weight}
    for tensor in learnt.values():
        tensor.requires_grad_(True)
    spans, start = [], 0
    for length in batch.lengths:
        spans.append(Span(decoder.cache(length), start, length))
        start += length
    logits = decoder.head(decoder.run(batch.tokens, spans))
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(batch.targets).long(), reduction="none")
    loss = (nats * torch.tensor(batch.weights)).sum()
    loss.backward()
    return float(loss.detach()), {name: tensor.grad.numpy() for name, tensor in learnt.items()}


def by_hand(decoder: Decoder, wanted: Any, batch: Batch, **options: Any) -> tuple[float, dict[str, np.ndarray]]:
    found: dict[str, np.ndarray] = {}

    def give(name: str, gradient: np.ndarray) -> None:
        assert name not in found  # each once
        found[name] = gradient.copy()

    loss = Backward(decoder, gradients.of(decoder.ops), wanted, **options).step(batch, give)
    return loss, found


def check(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(np.abs(g).max()) for g in wanted.values())
    assert scale > 1e-3
    for name, gradient in wanted.items():
        assert found[name].dtype == np.float32
        largest = max(float(np.abs(gradient).max()), 1e-3 * scale)
        assert np.abs(found[name] - gradient).max() < tolerance * largest, name


@pytest.mark.parametrize("shape", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True])
def test_every_family_has_autograd_s_gradients(shape: str, adapted: bool, tmp_path: Path) -> None:
    file, batch = model(shape, tmp_path), batch_of()
    pairs = pairs_of(file) if adapted else {}
    loss, wanted = by_autograd(file, pairs, batch)
    decoder, _ = decoder_of(file, NumpyOps(), pairs)
    got, found = by_hand(decoder, wanted, batch, logit_rows=5)
    assert got == pytest.approx(loss, rel=1e-5)
    check(found, wanted, 2e-3)
    assert Backward(decoder, gradients.of(decoder.ops), ()).loss(batch) == pytest.approx(got, rel=1e-9)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q8_0"])
def test_gradients_of_a_quantised_base_go_straight_through(type_name: str, tmp_path: Path) -> None:
    """The torch op set rounds inputs as the engine does and passes gradients through, so the two agree where rounding
    falls alike: in all but what a different last bit has moved to another of 255 steps."""
    file, batch = model("tiny-llama", tmp_path, type_name), batch_of()
    pairs = pairs_of(file)
    loss, wanted = by_autograd(file, pairs, batch)
    decoder, _ = decoder_of(file, NumpyOps(), pairs)
    got, found = by_hand(decoder, wanted, batch)
    assert got == pytest.approx(loss, rel=1e-3)
    check(found, wanted, 0.05)
    # And they are near the gradients of the function that rounds nothing.
    _, plain = by_autograd(file, pairs, batch, round_inputs=False)
    check(found, plain, 0.15)


def test_gradients_are_those_of_the_loss_by_differences(tmp_path: Path) -> None:
    """Without PyTorch: along a random direction of all adapter numbers the loss changes as the gradients say."""
    file, batch = model("tiny-qwen3", tmp_path), batch_of()
    pairs, rng = pairs_of(file), np.random.default_rng(1)
    names = {f"{name}.lora_{part}" for name in pairs for part in "ab"}
    _, found = by_hand(decoder_of(file, NumpyOps(), pairs)[0], names, batch)
    ways = {name: [rng.standard_normal(x.shape).astype(np.float32) for x in pair] for name, pair in pairs.items()}
    slope = sum(
        float((found[f"{name}.lora_{part}"].astype(np.float64) * way).sum())
        for name, both in ways.items()
        for part, way in zip("ab", both, strict=True)
    )
    losses = []
    for step in (1e-3, -1e-3):
        moved = {n: tuple(x + np.float32(step) * w for x, w in zip(pairs[n], ways[n], strict=True)) for n in pairs}
        decoder, _ = decoder_of(file, NumpyOps(), moved)  # type: ignore[arg-type]
        losses.append(Backward(decoder, gradients.of(decoder.ops), ()).loss(batch))
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_only_what_is_wanted_is_given_and_no_layer_below_is_gone_through(tmp_path: Path) -> None:
    file, batch = model("tiny-llama", tmp_path), batch_of()
    pairs = pairs_of(file)
    decoder, _ = decoder_of(file, NumpyOps(), pairs)
    last = decoder.config.n_layers - 1
    wanted = {f"blk.{last}.{part}.weight.lora_{ab}" for part in ("attn_q", "ffn_down") for ab in "ab"}
    _, whole = by_hand(decoder, {f"{n}.lora_{p}" for n in pairs for p in "ab"}, batch)
    times = 0
    ways = gradients.of(decoder.ops)
    attend = ways.attend

    def counted(*args: Any) -> Any:
        nonlocal times
        times += 1
        return attend(*args)

    ways.attend = counted  # type: ignore[method-assign]
    some: dict[str, np.ndarray] = {}
    Backward(decoder, ways, wanted).step(batch, some.__setitem__)
    assert times == 1 and some.keys() == wanted
    assert all(np.array_equal(some[name], whole[name]) for name in wanted)


def test_inputs_kept_in_half_the_memory_move_gradients_little(tmp_path: Path) -> None:
    file, batch = model("tiny-llama", tmp_path), batch_of()
    decoder, _ = decoder_of(file, NumpyOps(), pairs_of(file))
    wanted = {f"{name}.lora_{part}" for name in pairs_of(file) for part in "ab"}
    loss, whole = by_hand(decoder, wanted, batch)
    same, halved = by_hand(decoder, wanted, batch, half=True)
    assert same == loss  # the forward pass is the same
    check(halved, whole, 0.01)
    assert any(not np.array_equal(halved[name], whole[name]) for name in wanted)


def test_the_loss_is_the_engine_s(tmp_path: Path) -> None:
    """Each text's loss is that of the logits that the decoder gives for it alone."""
    file, batch = model("tiny-gemma3", tmp_path), batch_of()
    decoder, _ = decoder_of(file, NumpyOps(), {})
    total, start = 0.0, 0
    for length in batch.lengths:
        rows = slice(start, start + length)
        logits = decoder.forward(batch.tokens[rows], [Span(decoder.cache(length), 0, length)], logits="all")
        assert logits is not None
        wide = logits.astype(np.float64)
        nats = np.log(np.exp(wide).sum(axis=-1)) - wide[np.arange(length), batch.targets[rows]]
        total += float((nats * batch.weights[rows]).sum())
        start += length
    assert Backward(decoder, gradients.of(decoder.ops), ()).loss(batch) == pytest.approx(total, rel=1e-5)


def test_rows_that_say_nothing_cost_no_logits_and_give_none(tmp_path: Path) -> None:
    file, batch = model("tiny-llama", tmp_path), batch_of()
    nothing = replace(batch, weights=np.zeros_like(batch.weights))
    decoder, _ = decoder_of(file, NumpyOps(), pairs_of(file))
    loss, found = by_hand(decoder, {f"blk.0.attn_q.weight.lora_{ab}" for ab in "ab"}, nothing)
    assert loss == 0 and not any(gradient.any() for gradient in found.values())


def test_numpy_and_native_forward_passes_give_the_same_gradients(tmp_path: Path) -> None:
    native = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here").create(threads=1)
    file, batch = model("tiny-llama", tmp_path, "Q4_0"), batch_of()
    pairs = pairs_of(file)
    wanted = {f"{name}.lora_{part}" for name in pairs for part in "ab"}
    results = []
    for ops in (NumpyOps(), native):
        decoder, _ = decoder_of(file, ops, pairs)
        found: dict[str, np.ndarray] = {}
        loss = Backward(decoder, NumpyGradients(ops), wanted).step(batch, found.__setitem__)
        results.append((loss, found))
    assert results[0][0] == results[1][0]  # the forward passes give the same bits, and all else is one code
    assert all(np.array_equal(results[0][1][name], results[1][1][name]) for name in wanted)
