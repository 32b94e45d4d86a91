"""The spine: recipes, layers, resumption, output whole or absent. Steps of the tests' own stand in for real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from genmote import ops
from genmote.compress import Calibration, Recipe, compress
from genmote.compress.block import Block, Inputs, Site
from genmote.compress.layers import Model
from genmote.compress.steps._base import LayerStep
from genmote.compress.steps.rtn import Rtn
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.models.requantise import convert_type
from genmote.models.weights import GgufWeights
from genmote.ops.protocol import Span

SHAPES = ["tiny-llama", "tiny-gemma3", "tiny-qwen2", "tiny-qwen3", "tiny-opt", "tiny-mixtral", "tiny-olmoe"]
SMALL = Calibration(windows=3, length=24)


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    make_model(request.param, "F32", path, 1)
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "llama.gguf"
    make_model("tiny-llama", "F32", path, 1)
    return path


def logits(path: Path, windows: np.ndarray) -> np.ndarray:
    """By the torch op set, all rows: (n, T, V)."""
    torch_ops = ops.load("torch", round_inputs=False)
    file = ModelFile.open(path)
    weights = GgufWeights(file, torch_ops)
    decoder = Decoder(weights.config, weights, torch_ops)
    found = []
    for window in windows:
        cache = decoder.cache(len(window))
        found.append(decoder.forward(window, [Span(cache, 0, len(window))], logits="all"))
    return np.array(found)


def tokens(path: Path, count: int = 3, length: int = 24) -> np.ndarray:
    vocab = ModelFile.open(path).tensors["token_embd.weight"].shape[0]
    return np.random.default_rng(0).integers(0, vocab, (count, length)).astype(np.int32)


def test_the_blocks_one_after_another_are_the_model(model: Path) -> None:
    """The states that are carried through blocks end in the logits of the whole decoder."""
    windows = tokens(model)
    found = Model(ModelFile.open(model))
    states = found.final_states(windows, lambda *_: None)
    head = found.site(found.head_name)
    cap = found.config.logit_cap
    ours = states @ head.weight.T
    ours = cap * torch.tanh(ours / cap) if cap else ours
    wanted = logits(model, windows)
    assert np.allclose(ours.numpy().reshape(wanted.shape), wanted, atol=2e-4 * np.abs(wanted).max())


@dataclass(frozen=True)
class Doubled(LayerStep):
    """Sees every matrix with its inputs; doubles one of them, so that what comes after must see that."""

    def compress_layer(self, block: Block) -> None:
        seen: dict[str, Inputs] = {}

        def visit(site: Site, inputs: Inputs) -> None:
            assert inputs.rows.shape[1] == site.weight.shape[1]
            assert torch.allclose(inputs.hessian * max(1, len(inputs.rows)), inputs.rows.T @ inputs.rows, atol=1e-3)
            seen[site.name] = inputs
            if "attn_v" in site.name:
                site.replace(2 * site.weight)

        block.sweep(visit)
        assert set(seen) == set(block.sites)
        q, k, v = (seen[f"blk.{block.index}.attn_{part}.weight"] for part in "qkv")
        assert q is k and k is v


def test_a_layer_step_sees_all_matrices_and_what_it_left_before(model: Path, tmp_path: Path) -> None:
    made = compress(model, tmp_path / "out.gguf", Recipe((Doubled(),), SMALL))
    before, after = ModelFile.open(model), ModelFile.open(made.path)
    assert list(after.tensors) == list(before.tensors)
    for name in before.tensors:
        factor = 2 if name.endswith("attn_v.weight") else 1
        assert np.array_equal(after.tensor(name), factor * before.tensor(name)), name


def test_rtn_gives_the_bytes_of_requantising(model: Path, tmp_path: Path) -> None:
    convert_type(model, tmp_path / "wanted.gguf", "Q4_0", embedding_type="Q8_0")
    recipe = Recipe((Rtn(type="Q4_0", head_type="Q8_0"),))
    compress(model, tmp_path / "out.gguf", recipe)
    ours, wanted = ModelFile.open(tmp_path / "out.gguf"), ModelFile.open(tmp_path / "wanted.gguf")
    for name, info in wanted.tensors.items():
        if name == "token_embd.weight" and "output.weight" in wanted.tensors:
            continue  # where it is no head it stays
        assert ours.tensors[name].type == info.type
        assert np.array_equal(ours.raw(name), wanted.raw(name)), name
    assert ours.metadata["general.file_type"] == 2
    assert ours.metadata["genmote.compress.source"] == ModelFile.open(model).sha256()
    assert json.loads(ours.metadata["genmote.compress.recipe"])["step"] == json.loads(
        json.dumps(recipe.values()["step"])
    )
