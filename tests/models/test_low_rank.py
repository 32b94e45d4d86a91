"""Linears of low rank: the product that they stand for, the same bits from numpy and native, adapters on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import ModelFileError, OpsError
from genmote.models.config import read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.lora import AdaptedWeights, base_shapes, read_lora
from genmote.models.make_model import make_model
from genmote.models.weights import GgufWeights
from genmote.ops import quant
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Span

OP_SETS = ["numpy", "native", "torch"]
IDS = [5, 6, 7, 8, 9, 200, 31]
Tensors = dict[str, np.ndarray]


def loaded(name: str) -> Any:
    try:
        return op_sets.load(name)
    except OpsError as error:
        pytest.skip(str(error))


def logits(model: ModelFile, ops: Any, adapter: ModelFile | None = None, steps: tuple[int, ...] = (7,)) -> np.ndarray:
    weights: Any = GgufWeights(model, ops)
    config = weights.config
    if adapter is not None:
        weights = AdaptedWeights(weights, [(read_lora(adapter, config, ops), 0.5)])
    decoder = Decoder(config, weights, ops)
    cache, parts, at = decoder.cache(len(IDS)), [], 0
    for count in steps:
        parts.append(decoder.forward(IDS[at : at + count], [Span(cache, 0, count)], logits="all"))
        at += count
    return np.concatenate(parts)


def written(path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[str, np.ndarray]]) -> ModelFile:
    coded = [(n, k, x.shape, quant.quantize(k, np.ascontiguousarray(x, np.float32))) for n, (k, x) in tensors.items()]
    write_gguf(path, metadata, coded)
    return ModelFile.open(path)


def whole(model: ModelFile, path: Path, updates: Tensors | None = None) -> ModelFile:
    """The same model with each pair multiplied out, and `updates` added."""
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for name in model.tensors:
        if name.endswith("_b.weight"):
            continue
        key, x = name, model.tensor(name)
        if name.endswith("_a.weight"):
            key = name.replace("_a.weight", ".weight")
            x = model.tensor(name.replace("_a.", "_b.")).astype(np.float64) @ x.astype(np.float64)
        tensors[key] = ("F32", x + (updates or {}).get(key, 0))
    return written(path, model.typed_metadata(), tensors)


def of_ranks(path: Path, ranks: dict[str, int], kind: str) -> ModelFile:
    """A tiny model of which some linears are made of low rank, by singular values; factors of type `kind` where they
    fit its blocks."""
    make_model("tiny-llama", kind, path, seed=4)
    model = ModelFile.open(path)
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for name, info in model.tensors.items():
        rank = next((r for part, r in ranks.items() if f".{part}.weight" in name), 0)
        if not rank:
            tensors[name] = (info.type, model.tensor(name))
            continue
        u, s, v = np.linalg.svd(model.tensor(name), full_matrices=False)
        tensors[name.replace(".weight", "_a.weight")] = (quant.fallback(kind, v.shape[1]), v[:rank] * s[:rank, None])
        tensors[name.replace(".weight", "_b.weight")] = (quant.fallback(kind, rank), u[:, :rank])
    metadata = model.typed_metadata()
    del model
    return written(path, metadata, tensors)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = tmp_path_factory.mktemp("low") / "m.gguf"
    make_model("tiny-low-rank", "F32", path, seed=6)
    return ModelFile.open(path)


@pytest.mark.parametrize("name", OP_SETS)
def test_a_pair_is_its_product(name: str, plain: ModelFile, tmp_path: Path) -> None:
    ops = loaded(name)
    wanted = logits(whole(plain, tmp_path / "whole.gguf"), ops)
    assert {"blk.0.attn_q_a.weight", "blk.1.ffn_down_b.weight", "output_a.weight"} < set(plain.tensors)
    assert wanted.std() > 0.05
    np.testing.assert_allclose(logits(plain, ops), wanted, atol=2e-4 * wanted.std())


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "F16"])
@pytest.mark.parametrize(
    "ranks",
    [
        {"attn_q": 20, "ffn_down": 7},  # no multiple of a block: the second factor stays floats
        {"attn_k": 32, "attn_v": 1, "attn_output": 32},
        {"ffn_gate": 32},
        {"ffn_up": 64, "ffn_gate": 20},
        {"ffn_up": 3},
    ],
    ids=lambda ranks: "+".join(ranks),
)
def test_any_part_and_any_rank_has_the_same_bits(kind: str, ranks: dict[str, int], tmp_path: Path) -> None:
    model = of_ranks(tmp_path / "m.gguf", ranks, kind)
    wanted = logits(model, NumpyOps())
    native = pytest.importorskip("genmote.ops.native_ops", exc_type=OpsError)
    for isa in [name for name in native._native.isa_names() if native._native.isa_runs(name)]:
        for threads in (1, 3):
            ops = native.create(isa=isa, threads=threads)
            for steps in ((7,), (1,) * 7, (3, 4)):
                assert np.array_equal(logits(model, ops, steps=steps), wanted), (isa, threads, steps)


def adapter_for(model: ModelFile, path: Path) -> tuple[ModelFile, Tensors]:
    """An adapter of every matrix, and what it adds to each at scale 0.5."""
    rng, tensors, added = np.random.default_rng(2), {}, {}
    for name, (out, cols) in base_shapes(read_config(model)).items():
        a, b = (0.2 * rng.standard_normal(shape).astype(np.float32) for shape in ((4, cols), (out, 4)))
        tensors |= {f"{name}.lora_a": ("F32", a), f"{name}.lora_b": ("F32", b)}
        added[name] = 0.5 * 8 / 4 * b.astype(np.float64) @ a.astype(np.float64)
    about = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    return written(path, {**about, "adapter.lora.alpha": 8.0}, tensors), added


@pytest.mark.parametrize("name", OP_SETS)
def test_adapters_on_top_equal_merged_weights(name: str, plain: ModelFile, tmp_path: Path) -> None:
    ops = loaded(name)
    adapter, added = adapter_for(plain, tmp_path / "a.gguf")
    wanted = logits(whole(plain, tmp_path / "whole.gguf", added), ops)
    got = logits(plain, ops, adapter)
    assert np.abs(got - logits(plain, ops)).max() > 0.2 * wanted.std()
    np.testing.assert_allclose(got, wanted, atol=2e-3 * wanted.std())
    if name == "native":
        assert np.array_equal(got, logits(plain, NumpyOps(), adapter))


def changed(model: ModelFile, path: Path, change: dict[str, np.ndarray | None]) -> ModelFile:
    tensors = {name: ("F32", model.tensor(name)) for name in model.tensors if change.get(name, 0) is not None}
    return written(path, model.typed_metadata(), tensors | {n: ("F32", x) for n, x in change.items() if x is not None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blk.0.attn_q_b.weight": None}, "has no tensor blk.0.attn_q_b.weight, which a llama model needs"),
        ({"blk.0.attn_q_a.weight": None}, "has no tensor blk.0.attn_q.weight, which a llama model needs"),
        ({"output_b.weight": None}, "has no tensor output_b.weight"),
        (
            {"blk.0.attn_q_b.weight": np.zeros((64, 31))},
            r"blk.0.attn_q_b.weight has shape \(64, 31\): the metadata asks for \(64, 32\)",
        ),
        (
            {"blk.0.attn_q_a.weight": np.zeros((32, 63))},
            r"blk.0.attn_q_a.weight has shape \(32, 63\): the metadata asks for \(32, 64\)",
        ),
        ({"blk.0.attn_q_a.weight": np.zeros(32)}, r"blk.0.attn_q_a.weight has shape \(32,\)"),
        (
            {"blk.0.attn_q.weight": np.zeros((64, 64))},
            r"has 2 tensors that a llama model does not use \(blk.0.attn_q_a",
        ),
    ],
)
def test_half_a_pair_is_refused(
    change: dict[str, np.ndarray | None], message: str, plain: ModelFile, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        GgufWeights(changed(plain, tmp_path / "m.gguf", change), NumpyOps())
