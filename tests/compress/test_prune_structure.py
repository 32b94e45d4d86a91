"""Channels, heads and whole blocks: what costs nothing goes first, the files run everywhere, killed runs go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genmote import ops
from genmote.compress import Calibration, Recipe, compress
from genmote.compress.calibration import windows as calibrate
from genmote.compress.cut import cut_blocks, cut_channels, cut_groups, original_blocks
from genmote.compress.fisher import output_moments, surprise
from genmote.compress.steps._base import Step
from genmote.compress.steps.gptq import Gptq
from genmote.compress.steps.prune_channels import PruneChannels
from genmote.compress.steps.prune_heads import PruneHeads
from genmote.compress.steps.prune_layers import Lost, PruneLayers
from genmote.compress.whole import Whole
from genmote.errors import SpecError
from genmote.models.config import read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.models.weights import GgufWeights
from genmote.ops.protocol import Span

SMALL = Calibration(windows=4, length=32)
TOKENS = np.random.default_rng(0).integers(0, 300, 24).astype(np.int32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def made(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            make_model(name, "F32", path, 1)
        return path

    return made


def changed(source: Path, target: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """The model with other numbers."""
    file = ModelFile.open(source)
    tensors = [(name, "F32", info.shape, change(name, file.tensor(name).copy())) for name, info in file.tensors.items()]
    write_gguf(target, file.typed_metadata(), tensors)
    return target


def logits(path: Path, op_set: str = "torch") -> np.ndarray:
    settings: dict[str, Any] = {"round_inputs": False} if op_set == "torch" else {}
    op = ops.load(op_set, **settings)
    weights = GgufWeights(ModelFile.open(path), op)
    decoder = Decoder(weights.config, weights, op)
    found = decoder.forward(TOKENS, [Span(decoder.cache(len(TOKENS)), 0, len(TOKENS))], logits="all")
    assert found is not None
    return found


def near(a: np.ndarray, b: np.ndarray, share: float) -> bool:
    return float(np.abs(a - b).max()) < share * float(np.abs(b).max())


def run(step: Step, model: Path, tmp_path: Path, calibration: Calibration = SMALL) -> tuple[ModelFile, dict[str, Any]]:
    made = compress(model, tmp_path / "out.gguf", Recipe((step,), calibration))
    return ModelFile.open(made.path), made.steps[0]["figures"]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-qwen2", "tiny-opt"])
def test_channels_that_are_never_used_go_and_nothing_changes(
    models: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    width = read_config(ModelFile.open(models(name))).ffn_widths[0]
    idle = np.random.default_rng(1).permutation(width)[: width // 2]

    def silence(tensor: str, values: np.ndarray) -> np.ndarray:
        if tensor == "blk.1.ffn_down.weight":
            values[:, idle] = 0
        return values

    model = changed(models(name), tmp_path / "idle.gguf", silence)
    layers = read_config(ModelFile.open(model)).n_layers
    step = PruneChannels(share=width // 2 / (width * layers), multiple=width // 4, at_once=4)
    file, figures = run(step, model, tmp_path)
    widths = [width] * layers
    widths[1] //= 2
    assert figures["channels"] == widths == list(read_config(file).ffn_widths)
    assert figures["expected_nats"] < 1e-6
    assert near(logits(tmp_path / "out.gguf"), logits(model), 1e-3)
    used = np.setdiff1d(np.arange(width), idle)
    assert np.array_equal(file.tensor("blk.1.ffn_up.weight"), ModelFile.open(model).tensor("blk.1.ffn_up.weight")[used])


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-opt", "tiny-mixtral"])
def test_heads_that_are_never_used_go_and_nothing_changes(
    models: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    spec = read_config(ModelFile.open(models(name))).layers[1]
    size = spec.n_heads // spec.n_kv_heads * spec.head_dim

    def silence(tensor: str, values: np.ndarray) -> np.ndarray:
        if tensor == "blk.1.attn_output.weight":
            values[:, size : 2 * size] = 0
        return values

    model = changed(models(name), tmp_path / "idle.gguf", silence)
    file, figures = run(PruneHeads(share=1 / (2 * spec.n_kv_heads)), model, tmp_path)
    assert figures["kv_heads"] == [spec.n_kv_heads, spec.n_kv_heads - 1] == list(read_config(file).kv_heads)
    assert near(logits(tmp_path / "out.gguf"), logits(model), 1e-3)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3", "tiny-opt", "tiny-mixtral"])
def test_a_block_that_does_nothing_goes_and_nothing_changes(
    models: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    def silence(tensor: str, values: np.ndarray) -> np.ndarray:
        idle = tensor.startswith("blk.1.") and any(x in tensor for x in ("attn_output", "ffn_down"))
        return values * 0 if idle else values

    model = changed(models(name), tmp_path / "idle.gguf", silence)
    before = ModelFile.open(model)
    count = read_config(before).n_layers
    file, figures = run(PruneLayers(share=1 / count), model, tmp_path)
    assert figures["gone"] == [1] and figures["kl"][0] < 1e-5
    assert near(logits(tmp_path / "out.gguf"), logits(model), 2e-2)
    assert original_blocks(file, before) == [0, *range(2, count)]
    for old, new in zip(read_config(before).layers[2:], read_config(file).layers[1:], strict=True):
        assert (old.window, old.rope, old.scale) == (new.window, new.rope, new.scale)


@pytest.mark.parametrize("op_set", ["numpy", "native"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3"])
def test_the_op_sets_run_what_is_left(models: Callable[[str], Path], tmp_path: Path, name: str, op_set: str) -> None:
    steps: tuple[Step, ...] = (PruneLayers(share=0.3), PruneChannels(share=0.3, multiple=16))
    if name == "tiny-llama":
        steps = (PruneHeads(share=0.25), PruneChannels(share=0.35, multiple=16))
    made = compress(models(name), tmp_path / "out.gguf", Recipe(steps, SMALL))
    config = read_config(ModelFile.open(made.path))
    assert len(set(config.ffn_widths)) > 1
    assert sum(config.ffn_widths) == sum(made.steps[1]["figures"]["channels"])
    assert near(logits(made.path, op_set), logits(made.path), 5e-3)


def test_as_many_from_each_block_where_asked(models: Callable[[str], Path], tmp_path: Path) -> None:
    file, _ = run(PruneChannels(share=0.4, multiple=32, even=True), models("tiny-llama"), tmp_path)
    assert file.metadata["llama.feed_forward_length"] == 96
    file, _ = run(PruneHeads(share=0.5, even=True), models("tiny-llama"), tmp_path)
    assert (file.metadata["llama.attention.head_count"], file.metadata["llama.attention.head_count_kv"]) == (2, 1)
    assert file.metadata["llama.attention.key_length"] == 16
    assert near(logits(tmp_path / "out.gguf", "numpy"), logits(tmp_path / "out.gguf"), 5e-3)


def test_blocks_keep_exactly_what_is_named(models: Callable[[str], Path], tmp_path: Path) -> None:
    model = models("tiny-llama")
    file, figures = run(PruneChannels(widths=("blk.1=48",)), model, tmp_path)
    assert figures["channels"] == [160, 48] == list(read_config(file).ffn_widths)
    kept, before = file.tensor("blk.1.ffn_up.weight"), ModelFile.open(model).tensor("blk.1.ffn_up.weight")
    assert sum((row == before).all(axis=1).any() for row in kept) == 48
    file, figures = run(PruneHeads(heads=("blk.0=1",)), model, tmp_path)
    assert figures["kv_heads"] == [1, 2] == list(read_config(file).kv_heads)
    assert near(logits(tmp_path / "out.gguf", "native"), logits(tmp_path / "out.gguf"), 5e-3)


def test_what_is_named_are_the_channels_that_a_share_would_leave(models: Callable[[str], Path], tmp_path: Path) -> None:
    model = models("tiny-llama")
    by_share, figures = run(PruneChannels(share=0.4), model, tmp_path)
    wanted = {name: by_share.tensor(name).copy() for name in by_share.tensors}
    widths = tuple(f"blk.{n}={width}" for n, width in enumerate(figures["channels"]))
    named, told = run(PruneChannels(widths=widths), model, tmp_path)
    assert told["expected_nats"] == figures["expected_nats"] > 0
    assert all(np.array_equal(wanted[name], named.tensor(name)) for name in wanted)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-opt"])
def test_what_is_left_is_nearer_to_the_original_than_a_plain_cut(
    models: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    model = models(name)
    file = ModelFile.open(model)
    calibration = Calibration(windows=32, length=64)
    windows = calibrate(model, file.sha256(), Calibration(windows=8, length=64, seed=7))

    def error(path: Path) -> float:
        with torch.no_grad():
            a, b = (Whole(p).final(windows) for p in (model, path))
        return float((a - b).square().mean())

    for step, cut in (
        (PruneChannels(share=0.5, multiple=16), cut_channels),
        (PruneHeads(share=0.5), cut_groups),
        (PruneLayers(share=0.5), None),
    ):
        _, figures = run(step, model, tmp_path, calibration)
        plain = tmp_path / "plain.gguf"
        if cut is None:
            cut_blocks(file, plain, np.setdiff1d(np.arange(2), figures["gone"]))
        else:
            left = figures["channels" if cut is cut_channels else "kv_heads"]
            cut(file, plain, [np.arange(n) for n in left])
        assert error(tmp_path / "out.gguf") < 0.9 * error(plain), step


def test_gradients_are_those_of_the_texts_surprise(models: Callable[[str], Path]) -> None:
    """Second moments of the gradient against finite differences: a nudge of one output row moves the surprise."""
    model, name = models("tiny-llama"), "blk.1.ffn_down.weight"
    window = TOKENS[None]
    found = output_moments(model, window, lambda tensor: tensor == name, lambda *_: None)[name]
    whole = Whole(model)
    layer = whole.blocks[1].layer
    assert layer.down is not None
    from dataclasses import replace

    def nudged(row: int, column: int, by: float) -> float:
        nudge = torch.zeros(len(TOKENS), 64)
        nudge[row, column] = by
        layer.down = replace(down, bias=nudge)
        with torch.no_grad():
            return float(surprise(whole, window))

    down = layer.down
    column = 5
    slopes = [(nudged(row, column, 0.5) - nudged(row, column, -0.5)) for row in range(len(TOKENS))]
    assert float(found[column, column]) == pytest.approx(float(np.mean(np.square(slopes))), rel=0.05)


@torch.no_grad()
def test_the_block_that_goes_is_the_one_that_is_missed_least(models: Callable[[str], Path]) -> None:
    model = models("tiny-gemma3")
    windows = np.random.default_rng(0).integers(0, 300, (2, 24)).astype(np.int32)
    whole = Whole(model)
    lost = Lost(whole, windows, lambda *_: None)
    gone: list[int] = []
    for _ in range(3):
        costs = {}
        for index in set(range(7)) - set(gone):
            states = whole.model.states(windows)
            for number, block in enumerate(whole.blocks):
                if number not in (*gone, index):
                    states = block.run(states)
            p, q = (
                torch.log_softmax(whole.logits(whole.ops.norm(x, whole.norm)), dim=1)
                for x in (list(whole.states(windows))[-1], states)
            )
            costs[index] = (p.exp() * (p - q)).sum(dim=1).mean().item()
        found, cost = lost.cheapest(gone, 7)
        assert found == min(costs, key=lambda index: costs[index])
        assert cost == pytest.approx(costs[found], rel=1e-3)
        gone.append(found)


@pytest.mark.parametrize(
    ("step", "moment"),
    [
        (PruneChannels(share=0.5, multiple=16), ("measuring blocks", 1)),
        (PruneChannels(share=0.5, multiple=16), ("refit: blocks", 1)),
        (PruneHeads(share=0.5), ("measuring blocks", 1)),
        (PruneLayers(share=0.5), ("fitting blocks", 1)),
    ],
)
def test_a_killed_run_goes_on(
    models: Callable[[str], Path], tmp_path: Path, step: Step, moment: tuple[str, int]
) -> None:
    model = models("tiny-llama")
    recipe = Recipe((step,), SMALL)
    wanted = compress(model, tmp_path / "whole.gguf", recipe).path.read_bytes()

    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "out.gguf", recipe, progress=kill)
    assert not (tmp_path / "out.gguf").exists()
    assert compress(model, tmp_path / "out.gguf", recipe).path.read_bytes() == wanted


def test_blocks_keep_the_numbers_that_they_had(models: Callable[[str], Path], tmp_path: Path) -> None:
    original = ModelFile.open(models("tiny-gemma3"))
    cut_blocks(original, tmp_path / "one.gguf", np.array([0, 2, 3, 5, 6]))
    cut_blocks(ModelFile.open(tmp_path / "one.gguf"), tmp_path / "two.gguf", np.array([1, 2, 4]))
    file = ModelFile.open(tmp_path / "two.gguf")
    assert original_blocks(file, original) == [2, 3, 6]
    assert np.array_equal(file.tensor("blk.2.ffn_up.weight"), original.tensor("blk.6.ffn_up.weight"))
    assert original_blocks(original, original) == list(range(7))
    with pytest.raises(SpecError, match="has 7 blocks and the original 3: which they were is not told"):
        original_blocks(original, file)


@pytest.mark.parametrize(
    ("use", "settings", "message"),
    [
        ("prune-channels", {"share": 1.0}, "share=1.0: use a share between 0 and 1, such as 0.25"),
        ("prune-channels", {"multiple": 0}, "multiple=0: use 1 or more"),
        ("prune-heads", {"share": 0}, "share=0.0: use a share between 0 and 1, such as 0.1"),
        ("prune-channels", {"widths": ["blk.0"]}, "widths='blk.0': write NAME=NUMBER, such as blk.0=1216"),
        ("prune-channels", {"widths": ["blk.0=many"]}, "widths='blk.0=many': write NAME=NUMBER"),
        ("prune-channels", {"widths": ["blk.0=0"]}, "widths='blk.0=0': write NAME=NUMBER"),
        ("prune-channels", {"widths": ["blk.0=8", "blk.0=16"]}, "widths: blk.0 is named twice"),
        ("prune-heads", {"heads": ["=2"]}, "heads='=2': write NAME=NUMBER, such as blk.0=2"),
        ("prune-layers", {"share": 2}, "share=2.0: use a share between 0 and 1, such as 0.1"),
        ("prune-layers", {"candidates": 0}, "candidates=0: use 1 or more"),
    ],
)
def test_settings_that_cannot_be(use: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe.of({"step": [{"use": use, **settings}]})


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("tiny-mixtral", PruneChannels(), "this model has experts, whose channels are not pruned; use prune-layers"),
        ("tiny-llama", PruneChannels(multiple=512), "multiple=512: the blocks have 160 channels; use a smaller one"),
        ("tiny-llama", PruneChannels(share=0.9, multiple=64), "share=0.9: with multiple=64 at most 0.600 can go"),
        ("tiny-llama", PruneChannels(share=0.01), "share=0.01: nothing would go; use a larger share"),
        ("tiny-olmoe", PruneHeads(), "is a norm over all heads, which they cannot be taken out of"),
        ("tiny-gemma3", PruneHeads(share=0.2), "1 of 7 key-value heads are to go, and one in each of 7 blocks stays"),
        ("tiny-llama", PruneHeads(share=0.01), "share=0.01: nothing would go; use a larger share"),
        ("tiny-llama", PruneChannels(widths=("blk.7=8",)), "widths: blk.7 has no channels to name; what has: blk.0 to"),
        ("tiny-llama", PruneChannels(widths=("blk.1=161",)), "widths: blk.1=161: wanted at most 160 channels"),
        ("tiny-llama", PruneHeads(heads=("blk.2=1",)), "heads: blk.2 has no key-value heads to name"),
        ("tiny-llama", PruneHeads(heads=("blk.0=3",)), "heads: blk.0=3: wanted at most 2 key-value heads"),
        ("tiny-llama", PruneLayers(share=0.9), "2 of 2 blocks would go; at least one goes and one stays"),
    ],
)
def test_what_a_model_cannot_give_up_is_told(
    models: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    step: Step,
    message: str,
) -> None:
    """Before any text is made."""
    monkeypatch.setattr("genmote.compress.calibration.windows", None)
    with pytest.raises(SpecError, match=message):
        compress(models(name), tmp_path / "out.gguf", Recipe((step,), SMALL))
    assert list(tmp_path.iterdir()) == []


def test_what_was_cut_is_rounded_beside_itself(models: Callable[[str], Path], tmp_path: Path) -> None:
    """GPTQ compares with the original's blocks; where shapes have changed, with those that it was given."""
    recipe = Recipe((PruneLayers(share=0.3), PruneChannels(share=0.3, multiple=32), Gptq(type="Q8_0")), SMALL)
    made = compress(models("tiny-gemma3"), tmp_path / "out.gguf", recipe, work=tmp_path / "work")
    between = next((tmp_path / "work").glob("02-*.gguf"))
    assert near(logits(made.path), logits(between), 0.05)
