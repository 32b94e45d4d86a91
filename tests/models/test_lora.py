"""Adapters: the same as merging them into the weights, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import ModelFileError, OpsError, SpecError
from genmote.models.config import read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.lora import AdaptedWeights, base_shapes, read_lora
from genmote.models.make_model import make_model
from genmote.models.weights import GgufWeights
from genmote.models.write_lora import merge
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Ops, Span

RANK = 4
ABOUT = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", "adapter.lora.alpha": 8.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    make_model("tiny-llama", "F32", path, seed=9)
    return ModelFile.open(path)


def pairs(base: ModelFile, names: list[str], seed: int, rank: int = RANK) -> dict[str, np.ndarray]:
    rng, tensors = np.random.default_rng(seed), {}
    shapes = base_shapes(read_config(base))
    for name in names:
        out, cols = shapes[name]
        tensors[f"{name}.lora_a"] = 0.2 * rng.standard_normal((rank, cols)).astype(np.float32)
        tensors[f"{name}.lora_b"] = 0.2 * rng.standard_normal((out, rank)).astype(np.float32)
    return tensors


def adapter_file(path: Path, tensors: dict[str, np.ndarray], **about: Any) -> ModelFile:
    metadata = {key: value for key, value in (ABOUT | about).items() if value is not None}
    write_gguf(path, metadata, [(name, "F32", x.shape, np.ascontiguousarray(x)) for name, x in tensors.items()])
    return ModelFile.open(path)


def merged(base: ModelFile, path: Path, parts: list[tuple[dict[str, np.ndarray], float]]) -> ModelFile:
    """The base with scale * B A added to its weights, as a file of its own."""
    weights = {name: base.tensor(name).astype(np.float64) for name in base.tensors}
    for tensors, scale in parts:
        for name in {key.rsplit(".", 1)[0] for key in tensors}:
            a, b = (tensors[f"{name}.{part}"].astype(np.float64) for part in ("lora_a", "lora_b"))
            weights[name] += scale * b @ a
    whole = [(name, "F32", x.shape, np.ascontiguousarray(x, np.float32)) for name, x in weights.items()]
    write_gguf(path, base.typed_metadata(), whole)
    return ModelFile.open(path)


def logits(weights: Any, config: Any, ops: Ops) -> np.ndarray:
    decoder = Decoder(config, weights, ops)
    return decoder.forward([5, 6, 7, 8, 9], [Span(decoder.cache(5), 0, 5)], logits="all")


EVERY = [
    f"blk.{i}.{part}.weight"
    for i in range(2)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
]


@pytest.mark.parametrize("name", ["numpy", "native", "torch"])
def test_adapters_equal_merged_weights(name: str, base: ModelFile, tmp_path: Path) -> None:
    try:
        ops = op_sets.load(name)
    except OpsError as error:
        pytest.skip(str(error))
    first, second = pairs(base, EVERY, 1), pairs(base, EVERY[::3], 2, rank=2)
    whole = GgufWeights(merged(base, tmp_path / "m.gguf", [(first, 0.5 * 8 / 4), (second, -1.5)]), ops)
    wanted = logits(whole, whole.config, ops)

    plain = GgufWeights(base, ops)
    before = logits(plain, plain.config, ops)
    one = read_lora(adapter_file(tmp_path / "1.gguf", first), plain.config, ops)
    two = read_lora(adapter_file(tmp_path / "2.gguf", second, **{"adapter.lora.alpha": None}), plain.config, ops)
    adapted = AdaptedWeights(plain, [(one, 0.5), (two, -1.5)])
    got = logits(adapted, plain.config, ops)

    assert np.abs(wanted - before).max() > 0.2 * before.std()
    np.testing.assert_allclose(got, wanted, atol=2e-3 * wanted.std())
    assert np.array_equal(logits(plain, plain.config, ops), before)  # the base itself is as it was


def test_only_what_is_adapted_changes(base: ModelFile, tmp_path: Path) -> None:
    ops = NumpyOps()
    plain = GgufWeights(base, ops)
    lora = read_lora(adapter_file(tmp_path / "a.gguf", pairs(base, ["blk.1.ffn_up.weight"], 3)), plain.config, ops)
    plain.layers[1].fused = object()
    adapted = AdaptedWeights(plain, [(lora, 1.0)])
    assert adapted.layers[0] is plain.layers[0]
    assert adapted.layers[1].fused is None and plain.layers[1].up.adapters == ()
    assert adapted.layers[1].up.adapters[0].scale == 8 / RANK
    assert AdaptedWeights(plain, [(lora, 0.0)]).layers[1] is plain.layers[1]


def test_the_head_can_be_adapted(base: ModelFile, tmp_path: Path) -> None:
    ops = NumpyOps()
    plain = GgufWeights(base, ops)
    tensors = pairs(base, ["output.weight"], 4)
    adapted = AdaptedWeights(plain, [(read_lora(adapter_file(tmp_path / "a.gguf", tensors), plain.config, ops), 1.0)])
    decoder = Decoder(plain.config, plain, ops)
    states = decoder.hidden([5, 6, 7, 8, 9], [Span(decoder.cache(5), 0, 5)])
    change = 2 * states @ tensors["output.weight.lora_a"].T @ tensors["output.weight.lora_b"].T
    np.testing.assert_allclose(logits(adapted, plain.config, ops) - logits(plain, plain.config, ops), change, atol=1e-4)


Q = "blk.0.attn_q.weight"
WRONG: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], dict[str, Any], str]] = {
    "a model": (lambda t: None, {"general.type": "model"}, "is not a LoRA adapter"),
    "another kind": (lambda t: None, {"adapter.type": "control"}, "is not a LoRA adapter"),
    "another base": (
        lambda t: None,
        {"general.architecture": "gemma3"},
        "is an adapter for gemma3: this model is llama",
    ),
    "no base": (lambda t: None, {"general.architecture": None}, "is an adapter for None"),
    "alpha": (lambda t: None, {"adapter.lora.alpha": float("nan")}, "adapter.lora.alpha = nan: wanted a number"),
    "half a pair": (lambda t: t.pop(f"{Q}.lora_b"), {}, f"has only one of {Q}.lora_a and {Q}.lora_b"),
    "width": (lambda t: t.update({f"{Q}.lora_a": np.zeros((RANK, 32), np.float32)}), {}, "do not fit the model's"),
    "rank": (lambda t: t.update({f"{Q}.lora_b": np.zeros((64, 5), np.float32)}), {}, "do not fit the model's"),
    "unknown": (
        lambda t: t.update({"token_embd.weight.lora_a": np.zeros((4, 64), np.float32)}),
        {},
        "updates token_embd.weight, which cannot be adapted",
    ),
    "empty": (lambda t: t.clear(), {}, "has no tensors: the adapter changes nothing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_adapters_are_named(case: str, base: ModelFile, tmp_path: Path) -> None:
    spoil, about, message = WRONG[case]
    tensors = pairs(base, [Q], 5)
    spoil(tensors)
    adapter = adapter_file(tmp_path / "wrong.gguf", tensors, **about)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_lora(adapter, read_config(base), NumpyOps())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [float("nan"), 2000.0, float("-inf")])
def test_wrong_scales(scale: float, base: ModelFile, tmp_path: Path) -> None:
    ops = NumpyOps()
    plain = GgufWeights(base, ops)
    lora = read_lora(adapter_file(tmp_path / "a.gguf", pairs(base, [Q], 5)), plain.config, ops)
    with pytest.raises(SpecError, match=f"scale {scale} for adapter a.gguf: wanted a number from -1000 to 1000"):
        AdaptedWeights(plain, [(lora, scale)])


def test_a_gate_that_the_model_lacks(tmp_path: Path) -> None:
    make_model("tiny-opt", "F32", tmp_path / "opt.gguf")
    opt = ModelFile.open(tmp_path / "opt.gguf")
    tensors = pairs(opt, ["blk.0.ffn_gate.weight"], 6)
    adapter = adapter_file(tmp_path / "a.gguf", tensors, **{"general.architecture": "opt"})
    weights = GgufWeights(opt, ops := NumpyOps())
    with pytest.raises(
        ModelFileError, match="an adapter updates blk.0.ffn_gate.weight, which this model does not have"
    ):
        AdaptedWeights(weights, [(read_lora(adapter, weights.config, ops), 1.0)])


# -- merged files, and vectors of norms and biases ---------------------------------------------------------------------


def test_merge_adds_the_update_at_its_scale(base: ModelFile, tmp_path: Path) -> None:
    tensors = pairs(base, EVERY, seed=4)
    adapter = adapter_file(tmp_path / "a.gguf", tensors)
    changed = merge(base.path, adapter.path, tmp_path / "m.gguf", scale=0.5)
    wanted = merged(base, tmp_path / "w.gguf", [(tensors, 0.5 * 8.0 / RANK)])
    found = ModelFile.open(tmp_path / "m.gguf")
    assert set(changed) == set(EVERY) and set(changed.values()) == {"F32"}
    assert found.metadata.keys() == base.metadata.keys() and list(found.tensors) == list(base.tensors)
    for name in base.tensors:
        np.testing.assert_allclose(found.tensor(name), wanted.tensor(name), rtol=1e-5, atol=1e-6)
    merge(base.path, adapter.path, tmp_path / "m.gguf", type="Q8_0")
    found = ModelFile.open(tmp_path / "m.gguf")
    assert {found.tensors[name].type for name in EVERY} == {"Q8_0"}
    assert {found.tensors[name].type for name in base.tensors if name not in EVERY} == {"F32"}


def vectors_file(path: Path, vectors: dict[str, np.ndarray], **about: Any) -> ModelFile:
    return adapter_file(path, vectors, **{"adapter.type": "genmote.lora", **about})


def test_vectors_stand_for_the_base_s_own_at_their_scale(base: ModelFile, tmp_path: Path) -> None:
    rng, names = np.random.default_rng(2), ["blk.1.ffn_norm.weight", "output_norm.weight"]
    vectors = {
        name: base.tensor(name) + rng.standard_normal(base.tensors[name].shape).astype(np.float32) for name in names
    }
    file = vectors_file(tmp_path / "v.gguf", vectors)
    ops, config = NumpyOps(), read_config(base)
    lora = read_lora(file, config, ops)
    for scale in (1.0, 0.25):
        adapted = AdaptedWeights(GgufWeights(base, ops), [(lora, scale)])
        whole = {
            n: base.tensor(n) + (scale * (vectors[n] - base.tensor(n)) if n in vectors else 0) for n in base.tensors
        }
        path = tmp_path / "whole.gguf"
        write_gguf(path, base.typed_metadata(), [(n, "F32", x.shape, x.astype(np.float32)) for n, x in whole.items()])
        wanted = logits(GgufWeights(ModelFile.open(path), ops), config, ops)
        np.testing.assert_allclose(logits(adapted, config, ops), wanted, rtol=1e-4, atol=1e-4)
        assert adapted.layers[0] is adapted.base.layers[0]  # nothing of it has changed
    merge(base.path, file.path, tmp_path / "m.gguf", scale=0.25)
    np.testing.assert_allclose(
        logits(GgufWeights(ModelFile.open(tmp_path / "m.gguf"), ops), config, ops), wanted, rtol=1e-4, atol=1e-4
    )


def test_vectors_that_do_not_fit_are_refused(base: ModelFile, tmp_path: Path) -> None:
    ops, config = NumpyOps(), read_config(base)
    weights = GgufWeights(base, ops)

    def attach(vectors: dict[str, np.ndarray], **about: Any) -> None:
        AdaptedWeights(weights, [(read_lora(vectors_file(tmp_path / "v.gguf", vectors, **about), config, ops), 1.0)])

    attach({"output_norm.weight": np.ones(64, np.float32)})
    with pytest.raises(ModelFileError, match="output_norm.weight, which cannot be adapted"):
        attach({"output_norm.weight": np.ones(64, np.float32)}, **{"adapter.type": "lora"})
    with pytest.raises(ModelFileError, match=r"output_norm.weight, which this model has in shape \(64,\), not \(63,\)"):
        attach({"output_norm.weight": np.ones(63, np.float32)})
    with pytest.raises(ModelFileError, match=r"blk.0.attn_q.bias, which this model does not have"):
        attach({"blk.0.attn_q.bias": np.ones(64, np.float32)})
    with pytest.raises(ModelFileError, match=r"blk.7.attn_norm.weight, which this model does not have"):
        attach({"blk.7.attn_norm.weight": np.ones(64, np.float32)})
    with pytest.raises(ModelFileError, match="has another shape"):
        file = vectors_file(tmp_path / "v.gguf", {"output_norm.weight": np.ones(63, np.float32)})
        merge(base.path, file.path, tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match=r"which is no tensor of .*: it cannot be merged"):
        file = vectors_file(tmp_path / "v.gguf", {"blk.7.attn_norm.weight": np.ones(64, np.float32)})
        merge(base.path, file.path, tmp_path / "m.gguf")
