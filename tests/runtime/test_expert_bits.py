"""Experts in fewer bits: what is measured is the definition, and the file is the model with just those changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import SpecError
from genmote.models import packed
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.models.weights import GgufWeights
from genmote.ops import quant
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Span
from genmote.runtime.expert_bits import changes, store_fewer

TOKENS = np.random.default_rng(5).integers(0, 280, 40).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any) -> ModelFile:
    path = tmp_path_factory.mktemp("bits") / "model.gguf"
    make_model("tiny-mixtral", "q8_0", path, seed=3)
    return ModelFile.open(path)


def logits(model: ModelFile, ops: Any, tokens: Any = TOKENS) -> Any:
    weights = GgufWeights(model, ops)
    decoder = Decoder(weights.config, weights, ops)
    return decoder.forward(tokens, [Span(decoder.cache(64), 0, len(tokens))], logits="all")


def test_the_change_is_that_of_the_mixtures_answer(model: ModelFile) -> None:
    """By the definition, with one token: its two experts' answers in eight bits and in four, times their weights."""
    ops = NumpyOps()
    token = TOKENS[:1]
    told: list[tuple[str, int, int]] = []
    got = changes(model, ops, token, "Q4_0", window=1, progress=lambda *step: told.append(step))
    assert [step[1:] for step in told] == [(0, 1), (1, 1)]  # progress ends at all of it
    weights = GgufWeights(model, ops)
    seen: dict[str, Any] = {}
    layer = weights.layers[0]
    experts = layer.experts
    plain = ops.experts

    def watch(x: Any, given: Any, activation: Any) -> Any:
        seen.setdefault("x", x.copy())
        return plain(x, given, activation)

    ops.experts = watch  # type: ignore[method-assign]
    decoder = Decoder(weights.config, weights, ops)
    decoder.forward(token, [Span(decoder.cache(4), 0, 1)])
    x = seen["x"]
    scores = ops.linear(x, experts.router)[0].astype(np.float64)
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    best = np.argsort(-shares)[: experts.used]
    for expert in range(len(shares)):
        answers = []
        for type_name in ("Q8_0", "Q4_0"):
            parts = []
            for part in ("gate", "up", "down"):
                each = model.tensor(f"blk.0.ffn_{part}_exps.weight")[expert]
                parts.append(ops.matrix(type_name, each.shape, quant.quantize(type_name, each)))
            gate, up, down = parts
            answers.append(ops._product(ops.glu(ops._product(x, gate), ops._product(x, up), "silu"), down))
        weight = shares[expert] / shares[best].sum() if expert in best else 0.0
        wanted = weight**2 * np.square(answers[0].astype(np.float64) - answers[1]).sum()
        np.testing.assert_allclose(got[0, expert], wanted, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_only_the_least_are_stored_in_fewer_bits(model: ModelFile, tmp_path: Path, share: float) -> None:
    ops = NumpyOps()
    change = np.random.default_rng(1).random((2, 4))
    count = store_fewer(model, tmp_path / "fewer.gguf", change, "Q4_0", share)
    fewer = ModelFile.open(tmp_path / "fewer.gguf")
    assert count == round(share * 8) == fewer.metadata["genmote.experts.fewer_bits.count"]
    least = {divmod(int(flat), 4) for flat in np.argsort(change, axis=None)[:count]}
    for layer in range(2):
        for expert in range(4):
            for part in ("gate", "up", "down"):
                whole, single = f"blk.{layer}.ffn_{part}_exps.weight", f"blk.{layer}.ffn_{part}.{expert}.weight"
                if whole in fewer.tensors:
                    assert not any(at == layer for at, _ in least)
                    np.testing.assert_array_equal(fewer.raw(whole), model.raw(whole))
                    continue
                assert fewer.tensors[single].type == ("Q4_0" if (layer, expert) in least else "Q8_0")
                kept = model.tensor(whole)[expert]
                step = 0.0 if (layer, expert) not in least else np.abs(kept).max() / 7
                assert np.abs(fewer.tensor(single) - kept).max() <= step
    got, same = logits(fewer, ops), logits(model, ops)
    assert np.array_equal(got, same) == (count == 0)


def test_native_runs_mixed_experts_to_the_same_bits(model: ModelFile, tmp_path: Path) -> None:
    """Resident and on demand, against the numpy op set."""
    native_ops = pytest.importorskip("genmote.ops.native_ops", exc_type=ImportError)
    from genmote.runtime.experts import open_experts
    from genmote.runtime.footprint import weights as footprint

    store_fewer(model, tmp_path / "fewer.gguf", np.random.default_rng(1).random((2, 4)), "Q4_0", 0.4)
    fewer, ops = ModelFile.open(tmp_path / "fewer.gguf"), native_ops.create(threads=2)
    wanted = logits(fewer, NumpyOps())
    np.testing.assert_array_equal(logits(fewer, ops), wanted)
    found = packed.pack(fewer, ops, tmp_path / "fewer.packed")
    each = open_experts(found, 1)[1].slot_bytes
    decoder, cache = open_experts(found, 3 * each)
    got = decoder.forward(TOKENS, [Span(decoder.cache(64), 0, len(TOKENS))], logits="all")
    np.testing.assert_array_equal(got, wanted)
    sizes = {stored.nbytes for layer in cache.stored for stored in layer}
    assert len(sizes) == 2
    assert footprint(fewer).experts < footprint(model).experts


def test_what_cannot_be_measured_is_told(model: ModelFile, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a text of 40 tokens: wanted 256; give a mixture and some thousand tokens"):
        changes(model, NumpyOps(), TOKENS, "Q4_0")
    make_model("tiny-llama", "q8_0", tmp_path / "plain.gguf")
    with pytest.raises(SpecError, match="a model without experts; give a mixture"):
        changes(ModelFile.open(tmp_path / "plain.gguf"), NumpyOps(), TOKENS, "Q4_0", window=8)
    with pytest.raises(SpecError, match=r"share=1\.5: wanted 0 to 1"):
        store_fewer(model, tmp_path / "fewer.gguf", np.zeros((2, 4)), "Q4_0", 1.5)
