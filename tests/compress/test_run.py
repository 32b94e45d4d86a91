"""The spine: recipes, layers, resumption, output whole or absent. Steps of the tests' own stand in for real ones."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from genmote import ops
from genmote.compress import Calibration, Recipe, compress
from genmote.compress.block import Block, Inputs, Site
from genmote.compress.layers import Model, Overlaid
from genmote.compress.steps._base import LayerStep, ModelStep, Sight, Step
from genmote.compress.steps.gptq import Gptq
from genmote.compress.steps.rtn import Rtn
from genmote.compress.steps.vocabulary import Vocabulary
from genmote.errors import ModelFileError, OpsError, SpecError, UserError
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
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
            counts = torch.ones(len(inputs.rows)) if inputs.counts is None else inputs.counts
            wanted = sum((c * torch.outer(x, x) for c, x in zip(counts, inputs.rows, strict=True)), torch.zeros(()))
            assert torch.allclose(inputs.hessian * counts.sum(), wanted, rtol=1e-3, atol=1e-3 * float(counts.sum()))
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


@dataclass(frozen=True)
class Compared(LayerStep):
    """Spoils each block after it has looked at what it is shown of the original."""

    log: ClassVar[list[str]] = []

    @property
    def compares(self) -> bool:
        return True

    def compress_layer(self, block: Block) -> None:
        other = block.original
        assert other is not None and block.x is not None and other.x is not None
        assert torch.equal(block.x, other.x) == (block.index == 0)
        seen: dict[str, Inputs] = {}

        def visit(site: Site, inputs: Inputs) -> None:
            seen[site.name.split(".")[2]] = inputs
            site.replace(1.1 * site.weight)

        block.sweep(visit)
        # From the definition, step by step; the block has no post norms.
        ops, layer = block.ops, block.layer
        assert torch.equal(seen["attn_q"].original, ops.norm(other.x, other.layer.attn_norm))
        assert seen["attn_q"].counts is None and seen["attn_q"].lack is None
        o, down = seen["attn_output"], seen["ffn_down"]
        assert torch.allclose(o.lack, other.x - block.x)
        mid = block.x + o.rows @ layer.o.matrix.weight.T
        other_mid = other.x + o.original @ other.layer.o.matrix.weight.T
        assert torch.allclose(down.lack, other_mid - mid, atol=1e-4)
        after = mid + down.rows @ (layer.down.matrix.weight / 1.1).T
        assert torch.allclose(down.counts, 1 / after.square().sum(1), rtol=1e-3)
        counts = down.counts / down.counts.sum()
        assert torch.allclose(down.hessian, torch.einsum("n,ni,nj->ij", counts, down.rows, down.rows), atol=1e-4)
        assert torch.allclose(down.cross, torch.einsum("n,ni,nj->ij", counts, down.original, down.rows), atol=1e-4)
        assert torch.allclose(down.owed, torch.einsum("n,ni,nj->ij", counts, down.lack, down.rows), atol=1e-4)
        self.log.append(f"block {block.index}")


def test_a_step_that_compares_is_shown_the_original(llama: Path, tmp_path: Path) -> None:
    Compared.log.clear()
    compress(llama, tmp_path / "out.gguf", Recipe((Compared(),), SMALL))
    assert Compared.log == ["block 0", "block 1"]


@dataclass(frozen=True)
class Killed(LayerStep):
    """Halves the first matrix of each block, and dies at block `at`, once."""

    at: int = 1
    log: ClassVar[list[int]] = []

    def compress_layer(self, block: Block) -> None:
        if block.index == self.at and self.at not in self.log:
            self.log.append(self.at)
            raise KeyboardInterrupt
        self.log.append(100 + block.index)
        site = next(iter(block.sites.values()))
        assert block.x is not None
        site.replace(site.weight * (1 + block.x.mean()))


@dataclass(frozen=True)
class Negated(ModelStep):
    """Rewrites the file: the output norm with the other sign."""

    calibrates: ClassVar[bool] = False
    log: ClassVar[list[Path]] = []

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        assert sight.windows is None and sight.folder.is_dir()
        self.log.append(source)
        model = ModelFile.open(source)
        tensors = [
            (i.name, i.type, i.shape, -model.tensor(i.name) if i.name == "output_norm.weight" else model.raw(i.name))
            for i in model.tensors.values()
        ]
        write_gguf(target, model.typed_metadata(), tensors)
        return {"negated": 1}


def test_a_run_goes_on_where_it_was(llama: Path, tmp_path: Path) -> None:
    """Interrupted in the second step's second block: the first step and the first block are not done again."""
    Killed.log.clear()
    Negated.log.clear()
    recipe = Recipe((Negated(), Killed(at=1), Rtn(type="Q8_0")), SMALL)
    out = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        compress(llama, out, recipe)
    assert not out.exists() and Killed.log == [100, 1] and len(Negated.log) == 1
    made = compress(llama, out, recipe)
    assert Killed.log == [100, 1, 101] and len(Negated.log) == 1
    assert not (tmp_path / "out.gguf.work").exists() and [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert [step["use"] for step in made.steps] == ["test-run", "test-run", "rtn"]
    assert made.steps[0]["figures"] == {"negated": 1}
    compress(llama, tmp_path / "whole.gguf", recipe)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_changed_recipe_goes_on_from_what_is_the_same(llama: Path, tmp_path: Path) -> None:
    Negated.log.clear()
    work = tmp_path / "work"
    compress(llama, tmp_path / "a.gguf", Recipe((Negated(), Rtn(type="Q8_0"))), work=work)
    compress(llama, tmp_path / "b.gguf", Recipe((Negated(), Rtn(type="Q4_0"))), work=work)
    assert len(Negated.log) == 1
    assert ModelFile.open(tmp_path / "b.gguf").tensors["blk.0.attn_q.weight"].type == "Q4_0"
    compress(llama, tmp_path / "c.gguf", Recipe((Rtn(type="Q8_0"), Negated())), work=work)
    assert len(Negated.log) == 2 and len(list(work.glob("*.gguf"))) == 5


def test_a_damaged_part_is_told(llama: Path, tmp_path: Path) -> None:
    Killed.log.clear()
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        compress(llama, tmp_path / "a.gguf", Recipe((Killed(at=1),), SMALL), work=work)
    part = next(work.rglob("block-0000.gguf"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(SpecError, match="block-0000.gguf: is damaged; remove it, and the step goes on"):
        compress(llama, tmp_path / "a.gguf", Recipe((Killed(at=1),), SMALL), work=work)


def test_experts_may_come_to_have_types_of_their_own(tmp_path: Path) -> None:
    make_model("tiny-mixtral", "F32", tmp_path / "m.gguf", 1)

    @dataclass(frozen=True)
    class Second(Rtn):
        def quantise(self, site: Site, type_name: str, inputs: Inputs | None) -> None:
            super().quantise(site, "Q4_0" if "[1]" in site.name else "Q8_0", inputs)

    made = compress(tmp_path / "m.gguf", tmp_path / "out.gguf", Recipe((Second(),)))
    model = ModelFile.open(made.path)
    assert model.tensors["blk.0.ffn_up.0.weight"].type == "Q8_0"
    assert model.tensors["blk.0.ffn_up.1.weight"].type == "Q4_0"
    assert "blk.0.ffn_up_exps.weight" not in model.tensors
    assert np.isfinite(logits(made.path, tokens(made.path, 1, 8))).all()


def test_only_an_expert_of_its_own_takes_the_place_of_a_tensor(tmp_path: Path) -> None:
    make_model("tiny-mixtral", "F32", tmp_path / "m.gguf", 1)
    numbers = np.zeros((2, 2), np.float32)
    added = ["blk.0.ffn_up.1.weight", "blk.0.attn_q_a.weight", "blk.0.attn_q_b.weight", "output_a.weight", "other"]
    write_gguf(tmp_path / "over.gguf", {}, [(name, "F32", (2, 2), numbers) for name in added])
    file = Overlaid(ModelFile.open(tmp_path / "m.gguf"))
    before = set(file.tensors)
    file.overlay(ModelFile.open(tmp_path / "over.gguf"))
    assert set(file.tensors) == before - {"blk.0.ffn_up_exps.weight"} | set(added)
    assert not file.tensor("output_a.weight").any()


def test_gptq_keeps_more_than_rounding(model: Path, tmp_path: Path, own_home: Path) -> None:
    """By the logits on text that was not calibrated on; every family, experts without rows among them."""
    text = tokens(model)
    wanted = logits(model, text)

    def loss(recipe: Recipe, name: str) -> float:
        found = logits(compress(model, tmp_path / name, recipe).path, text)
        return float(np.square(found - wanted).mean())

    rounded = loss(Recipe((Rtn(type="Q4_0"),)), "rtn.gguf")
    calibration = Calibration(windows=16, length=64)
    few = "olmoe" in model.name  # rows for each expert
    found = loss(Recipe((Gptq(type="Q4_0", head_type="Q8_0"),), calibration), "gptq.gguf")
    assert found < rounded * (1.02 if few else 1)


@pytest.mark.parametrize(("types", "read"), [(("blk.1.*=Q4_0",), [0, 1]), (("token_embd.weight=Q4_0",), [])])
def test_blocks_after_the_last_that_changes_are_not_read(
    types: tuple[str, ...], read: list[int], tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those before it, what does not change is not solved for."""
    make_model("tiny-gemma3", "F32", tmp_path / "m.gguf", 1)
    seen: list[int] = []
    swept: list[int] = []

    @dataclass(frozen=True)
    class Watched(Gptq):
        def compress_layer(self, block: Block) -> None:
            seen.append(block.index)
            super().compress_layer(block)

    sweep = Block.sweep
    monkeypatch.setattr(Block, "sweep", lambda block, visit: (swept.append(block.index), sweep(block, visit)))
    made = compress(tmp_path / "m.gguf", tmp_path / "out.gguf", Recipe((Watched(type="keep", types=types),), SMALL))
    assert ModelFile.open(tmp_path / "m.gguf").metadata["gemma3.block_count"] > 2
    assert seen == read and swept == read[-1:]
    stored = {info.name for info in ModelFile.open(made.path).tensors.values() if info.type == "Q4_0"}
    assert stored and all(name.startswith(types[0].partition("*")[0].partition("=")[0]) for name in stored)


def test_the_head_is_compressed_before_the_blocks_see_it(tmp_path: Path, own_home: Path) -> None:
    make_model("tiny-gemma3", "F32", tmp_path / "m.gguf", 1)  # its embedding is its head
    seen: list[torch.Tensor] = []

    @dataclass(frozen=True)
    class Watched(Gptq):
        def compress_layer(self, block: Block) -> None:
            assert block.x is not None and block.original is not None and block.original.x is not None
            seen.extend([block.x, block.original.x] if block.index == 0 else [])

    recipe = Recipe((Watched(head_type="Q4_0"),), SMALL)
    made = compress(tmp_path / "m.gguf", tmp_path / "out.gguf", recipe)
    assert ModelFile.open(made.path).tensors["token_embd.weight"].type == "Q4_0"
    assert not torch.equal(seen[0], seen[1]) and torch.allclose(seen[0], seen[1], atol=0.2 * float(seen[1].abs().max()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no steps: write a \\[\\[step\\]\\]"),
        ({"step": [{"use": "gptk"}]}, "step 1: no step is called 'gptk', did you mean gptq"),
        ({"step": [{"type": "Q4_0"}]}, "step 1: use=None: name a step \\(known: .*gptq"),
        ({"step": [{"use": "gptq", "type": "Q9"}]}, "tensor type 'Q9' is unknown"),
        ({"step": [{"use": "gptq", "type": "I8"}]}, "I8: weights cannot be stored so"),
        (
            {"step": [{"use": "gptq", "damp": 0, "ridge": -1, "hold": -2, "sweeps": -1}]},
            "damp=0: use more than 0, such as 0.01; ridge=-1: use 0 or more, such as 0.1; "
            "hold=-2: use 0 or more, such as 0.1; sweeps=-1: use 0 or more",
        ),
        ({"step": [{"use": "rtn", "types": ["Q4_0"]}]}, "types='Q4_0': write PATTERN=TYPE"),
        ({"step": [{"use": "rtn"}], "calibration": 5}, "calibration=5: wanted a table"),
        ({"steps": []}, "steps is no part of a recipe"),
        (
            {"step": [{"use": "rtn"}], "calibration": {"windows": 0, "length": 3, "seed": -1}},
            "windows=0: use 1 or more; length=3: use windows of 16 tokens or more; seed=-1: use 0 or more",
        ),
    ],
)
def test_recipes_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe.of(values)


def test_recipe_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[calibration]\nwindows = 3\n[[step]]\nuse = "gptq"\ntypes = ["*attn_v*=Q5_0"]\n')
    recipe = Recipe.read(path)
    assert recipe.calibration.windows == 3 and recipe.steps == (Gptq(types=("*attn_v*=Q5_0",)),)
    assert Recipe.of(recipe.values()) == recipe
    path.write_text("[")
    with pytest.raises(SpecError, match="recipe.toml: not TOML"):
        Recipe.read(path)
    with pytest.raises(SpecError, match="cannot be read .*: wanted a recipe in TOML"):
        Recipe.read(tmp_path / "none.toml")


def test_outputs_that_cannot_be(llama: Path, tmp_path: Path) -> None:
    recipe = Recipe((Rtn(),))
    with pytest.raises(UserError, match="is no folder; make it first"):
        compress(llama, tmp_path / "none" / "out.gguf", recipe)
    (tmp_path / "link.gguf").symlink_to(tmp_path / "none" / "out.gguf")
    with pytest.raises(UserError, match="link.gguf: .*none is no folder; make it first"):
        compress(llama, tmp_path / "link.gguf", recipe)
    with pytest.raises(UserError, match="is a folder; name the file to write in it"):
        compress(llama, tmp_path, recipe)
    with pytest.raises(UserError, match="is the model itself; name another file"):
        compress(llama, llama, recipe)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe cannot be written \(it is a pipe, not a file\); name another file"):
        compress(llama, tmp_path / "pipe", recipe)
    with pytest.raises(SpecError, match="the recipe has no steps"):
        compress(llama, tmp_path / "out.gguf", Recipe(()))


def test_without_pytorch_it_says_what_to_install(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmote.compress.recipe.importlib.util.find_spec", lambda name: None)
    with pytest.raises(OpsError, match="compress needs PyTorch.*pip install 'genmote\\[workbench\\]'"):
        compress(llama, tmp_path / "out.gguf", Recipe((Rtn(),)))


def test_a_broken_model_is_told(llama: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Broken(LayerStep):
        def compress_layer(self, block: Block) -> None:
            site = block.sites[f"blk.{block.index}.attn_v.weight"]
            if block.index == 0:
                site.replace(site.weight * float("nan"))

    with pytest.raises(SpecError, match="block 0: the calibration text's states are not finite"):
        compress(llama, tmp_path / "out.gguf", Recipe((Broken(),), SMALL))
    assert not (tmp_path / "out.gguf").exists()


@dataclass(frozen=True)
class Odd(Step):
    calibrates: ClassVar[bool] = False


def test_a_step_that_is_neither_kind_is_told(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="test-run is neither a layer step nor a model step"):
        compress(llama, tmp_path / "out.gguf", Recipe((Odd(),)))


@pytest.mark.parametrize("use", ["rtn", "gptq", "prune-layers"])
def test_a_family_that_is_unknown_is_told(llama: Path, tmp_path: Path, own_home: Path, use: str) -> None:
    file = ModelFile.open(llama)
    metadata = {key.replace("llama.", "mamba9.", 1): value for key, value in file.typed_metadata().items()} | {
        "general.architecture": "mamba9"
    }
    tensors = [(info.name, info.type, info.shape, file.raw(info.name)) for info in file.tensors.values()]
    write_gguf(tmp_path / "other.gguf", metadata, tensors)
    with pytest.raises(ModelFileError, match="no model family is called 'mamba9'"):
        compress(tmp_path / "other.gguf", tmp_path / "out.gguf", Recipe.of({"step": [{"use": use}]}))
    assert not (tmp_path / "out.gguf").exists()


def test_gradients_that_are_no_numbers_are_told(llama: Path, tmp_path: Path) -> None:
    file, tensors = ModelFile.open(llama), []
    for info in file.tensors.values():
        values = file.tensor(info.name).copy()
        if info.name == "token_embd.weight":
            values[:] = 3e38  # numbers, but no sum of them is one
        tensors.append((info.name, info.type, info.shape, values))
    write_gguf(tmp_path / "huge.gguf", file.typed_metadata(), tensors)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    recipe = Recipe.of(
        {"step": [{"use": "prune-channels"}], "calibration": {"windows": 2, "length": 24, "text": str(text)}}
    )
    with pytest.raises(SpecError, match="ffn_down.weight: the text's gradient is not finite; the model is damaged"):
        compress(tmp_path / "huge.gguf", tmp_path / "out.gguf", recipe)


@dataclass(frozen=True)
class BrokenEnd(LayerStep):
    """Spoils the last block, which no other block comes after."""

    def compress_layer(self, block: Block) -> None:
        if block.index == 1:
            site = block.sites["blk.1.ffn_down.weight"]
            site.replace(site.weight * float("inf"))


def test_a_last_block_that_a_step_broke_is_told(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="block 1: the calibration text's states are not finite"):
        compress(llama, tmp_path / "out.gguf", Recipe((BrokenEnd(),), SMALL))
    assert not (tmp_path / "out.gguf").exists()


def spoilt(model: Path, path: Path, name: str, value: float) -> Path:
    """The model with one number of the tensor `name` replaced."""
    file, tensors = ModelFile.open(model), []
    for info in file.tensors.values():
        values = file.tensor(info.name).copy()
        if info.name == name:
            values.reshape(-1)[5] = value
        tensors.append((info.name, info.type, info.shape, values))
    write_gguf(path, file.typed_metadata(), tensors)
    return path


@pytest.mark.parametrize(
    "step",
    [
        {"use": "rtn"},
        {"use": "hqq", "turns": 1},
        {"use": "gptq"},
        {"use": "awq"},
        {"use": "prune"},
        {"use": "low-rank", "multiple": 8},
        {"use": "prune-channels"},
        {"use": "prune-heads", "share": 0.5},
        {"use": "prune-layers", "share": 0.5},
    ],
    ids=lambda step: step["use"],
)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_every_step_tells_a_damaged_matrix(
    llama: Path, tmp_path: Path, step: dict[str, Any], value: float, own_home: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    broken = spoilt(llama, tmp_path / "broken.gguf", "blk.1.ffn_up.weight", value)
    recipe = Recipe.of({"step": [step], "calibration": {"windows": 2, "length": 24, "text": str(text)}})
    with pytest.raises(
        SpecError, match=r"blk\.1\.ffn_up\.weight: not all its numbers are finite; the model is damaged"
    ):
        compress(broken, tmp_path / "out.gguf", recipe)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("name", ["blk.0.ffn_norm.weight", "output_norm.weight", "token_embd.weight"])
def test_what_a_step_leaves_as_it_is_is_looked_at_too(llama: Path, tmp_path: Path, name: str) -> None:
    broken = spoilt(llama, tmp_path / "broken.gguf", name, float("nan"))
    with pytest.raises(SpecError, match=f"{name}: not all its numbers are finite"):
        compress(broken, tmp_path / "out.gguf", Recipe((Rtn(),)))


@pytest.mark.parametrize(
    "step",
    [{"use": "gptq", "ridge": 0}, {"use": "prune"}, {"use": "low-rank", "multiple": 8}],
    ids=lambda step: step["use"],
)
def test_a_damp_too_little_for_the_text_is_told(
    llama: Path, tmp_path: Path, step: dict[str, Any], own_home: Path
) -> None:
    """Fewer rows than inputs, and next to no damping: the second moment has no factors."""
    recipe = Recipe.of({"step": [step | {"damp": 1e-30}], "calibration": {"windows": 1, "length": 16}})
    with pytest.raises(
        SpecError, match=r"blk\..*: damp=1e-30 is too little for its inputs .*; raise it, such as to 1e-29"
    ):
        compress(llama, tmp_path / "out.gguf", recipe)


@pytest.mark.parametrize("use", ["gptq", "prune", "low-rank", "prune-layers"])
@pytest.mark.parametrize("damp", [0.0, float("inf")])
def test_a_damp_that_is_no_share_is_told(use: str, damp: float) -> None:
    with pytest.raises(SpecError, match=f"damp={damp:g}: use more than 0, such as 0.01"):
        Recipe.of({"step": [{"use": use, "damp": damp}]})


def test_a_text_is_told_by_its_name_and_what_is_in_it(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home of a user"
    folder.mkdir()
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    text = folder / "text.txt"
    calibration = Calibration(windows=2, length=24, text=text)
    made = compress(llama, tmp_path / "out.gguf", Recipe((Gptq(), Vocabulary(size=300, text=text)), calibration))
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    recipe = json.loads(ModelFile.open(made.path).metadata["genmote.compress.recipe"])
    assert recipe["calibration"]["text"] == recipe["step"][1]["text"] == f"text.txt (SHA-256 {digest})"
    assert made.steps[1]["settings"]["text"] == f"text.txt (SHA-256 {digest})"
    assert b"home of a user" not in made.path.read_bytes() and "home of a user" not in json.dumps(made.steps)


def test_a_poor_text_is_told_once(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ha " * 400)
    poor = Calibration(windows=2, length=64, text=text)
    made = compress(llama, tmp_path / "out.gguf", Recipe((Rtn(type="Q8_0"), Gptq(), Gptq(type="Q5_0")), poor))
    first, second, third = (step.get("note", "") for step in made.steps)
    assert "repeats itself" in second and "fewer than the 160 inputs" in second and not first and not third


@pytest.mark.parametrize(
    "step",
    [
        {"use": "gptq"},
        {"use": "gptq", "type": "Q2_K"},
        {"use": "awq", "powers": 3},
        {"use": "prune"},
        {"use": "prune", "method": "wanda"},
        {"use": "low-rank", "multiple": 8},
        {"use": "prune-channels"},
        {"use": "prune-heads", "share": 0.5},
        {"use": "prune-layers", "share": 0.5},
        {"use": "distill", "tokens": 128, "batch": 2, "length": 32, "measured": 2},
    ],
    ids=lambda step: f"{step['use']}-{step.get('method', '')}",
)
@pytest.mark.parametrize("dead", ["some", "all"])
def test_dead_inputs_break_no_step(
    llama: Path, tmp_path: Path, own_home: Path, step: dict[str, Any], dead: str
) -> None:
    """Channels that are always 0, of both norms, of a head of v and of the feed-forward part; or all of them."""
    file, tensors = ModelFile.open(llama), []
    for info in file.tensors.values():
        values = file.tensor(info.name).copy()
        if info.name.endswith(("attn_norm.weight", "ffn_norm.weight", "attn_v.weight", "ffn_up.weight")):
            values[: None if dead == "all" else 5] = 0
        tensors.append((info.name, info.type, info.shape, values))
    write_gguf(tmp_path / "dead.gguf", file.typed_metadata(), tensors)
    recipe = Recipe.of({"step": [step], "calibration": {"windows": 3, "length": 24}})
    made = compress(tmp_path / "dead.gguf", tmp_path / "out.gguf", recipe)
    after = ModelFile.open(made.path)
    assert all(np.isfinite(after.tensor(name)).all() for name in after.tensors)
    told = json.dumps(made.steps, default=str)
    assert "NaN" not in told and "Infinity" not in told
    text = tokens(made.path)
    if (
        after.tensors["token_embd.weight"].shape == file.tensors["token_embd.weight"].shape
        and step["use"] != "low-rank"
    ):
        assert np.isfinite(logits(made.path, text)).all()


def test_what_is_not_ours_in_the_work_folder_stays(tmp_path: Path) -> None:
    make_model("tiny-llama", "F16", tmp_path / "m.gguf")
    folder = tmp_path / "out.gguf.work"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    compress(tmp_path / "m.gguf", tmp_path / "out.gguf", Recipe((Rtn(),)))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_without_pytorch_a_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OpsError, match="compress needs PyTorch, which is not installed"):
        Recipe.of({"step": [{"use": "gptq"}]})
