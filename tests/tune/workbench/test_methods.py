"""Each method against its plain definition: gradients against PyTorch's differentiation of the whole pass, a step
against the rule that the method is named for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from genmote import registry
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.ops import quant
from genmote.tune.examples import Examples
from genmote.tune.settings import ROOM, Tuning
from genmote.tune.trainer import scheduled
from genmote.tune.workbench._base import State, Whole, block_of
from genmote.tune.workbench._plan import named
from genmote.tune.workbench._trainer import WorkbenchTrainer
from genmote.tune.workbench.dora import LENGTH, row_lengths

EVERY = [0, 1, 2, 3]
TUNING = Tuning(method="full", steps=6, batch=4, context=32, rate=0.01, warmup=0.0, clip=1e9)


@dataclass(frozen=True)
class Seen(Whole):
    """Moves nothing, and keeps the gradients."""

    learnt: ClassVar[str] = "nothing"
    gradients: dict[int, Any] = field(default_factory=dict)

    def update(self, numbers: Any, gradient: Any, state: State, rate: float, decay: float) -> None:
        self.gradients[numbers.data_ptr()] = gradient.clone()


def trainer(file: ModelFile, method: str, **changes: Any) -> WorkbenchTrainer:
    return WorkbenchTrainer(file, named(method), replace(TUNING, method=method, **changes))


def numbers(of: WorkbenchTrainer) -> dict[str, Any]:
    return {name: array.copy() for name, array in of.numbers.items()}


@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"rows": 16}, {"logit_rows": 3}], ids=str)
@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3", "tiny-opt", "tiny-olmoe"])
def test_gradients_are_those_of_the_whole_pass(
    shape: str, changes: dict[str, Any], some: Examples, reference: Any, tmp_path: Path
) -> None:
    """By layers, computed again or not, in one pass or several, logits of some rows at a time."""
    make_model(shape, "F32", tmp_path / "m.gguf", seed=2)
    file = ModelFile.open(tmp_path / "m.gguf")
    loss, tensors, wanted = reference(file, some, EVERY)
    method = Seen()
    ours = WorkbenchTrainer(file, method, replace(TUNING, **changes))
    assert ours.step(some, EVERY, 1) == pytest.approx(loss, rel=1e-5)
    found = {name: method.gradients.get(x.data_ptr()) for name, x in ours.tensors.items()}
    assert set(found) == set(tensors)
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6 + 1e-4 * float(gradient.abs().max())), (
                name
            )


def test_full_is_adamw(plain: ModelFile, some: Examples) -> None:
    """Three steps beside AdamW's definition in float64, decay included; no gradient is left."""
    ours = trainer(plain, "full", decay=0.1)
    theirs = {name: array.astype(np.float64) for name, array in numbers(ours).items()}
    first, second = ({name: 0 * array for name, array in theirs.items()} for _ in range(2))
    for step in (1, 2, 3):
        gradients = Seen()
        seen = WorkbenchTrainer(plain, gradients, TUNING)
        for name, array in seen.numbers.items():
            array[...] = ours.numbers[name]
        seen.step(some, EVERY, step)
        ours.step(some, EVERY, step)
        rate = scheduled(ours.tuning, step)
        for name, x in seen.tensors.items():
            g = gradients.gradients[x.data_ptr()].double().numpy()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            move = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            theirs[name] -= rate * (move + 0.1 * theirs[name])
            assert np.abs(ours.numbers[name] - theirs[name]).max() < 1e-4, name
    assert all(x.grad is None for x in ours.tensors.values())


def test_lomo_is_gradient_descent(plain: ModelFile, some: Examples, reference: Any) -> None:
    _, tensors, gradients = reference(plain, some, EVERY)
    ours = trainer(plain, "lomo")
    ours.step(some, EVERY, 1)
    for name, x in ours.tensors.items():
        moved = tensors[name].detach() - scheduled(ours.tuning, 1) * gradients[name]
        assert torch.allclose(x, moved, rtol=1e-4, atol=1e-6), name
    assert ours.states == {}


def test_lomo_shortens_long_gradients(plain: ModelFile, some: Examples) -> None:
    before = trainer(plain, "lomo", clip=0.1)
    was = numbers(before)
    before.step(some, EVERY, 1)
    lengths = [float(np.linalg.norm(before.numbers[name] - was[name])) for name in was]
    assert max(lengths) == pytest.approx(scheduled(before.tuning, 1) * 0.1, rel=1e-2)


def test_galore_of_full_rank_is_adamw_and_of_less_moves_in_the_leading_directions(
    plain: ModelFile, some: Examples, reference: Any
) -> None:
    full, whole = trainer(plain, "full"), trainer(plain, "galore:rank=4096")
    low = trainer(plain, "galore:rank=4,scale=0.5")
    was, (_, _, gradients) = numbers(low), reference(plain, some, EVERY)
    for each in (full, whole, low):
        each.step(some, EVERY, 1)
    assert all(np.array_equal(full.numbers[name], whole.numbers[name]) for name in was)
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "blk.1.ffn_up.weight"):
        g = gradients[name].numpy().astype(np.float64)
        left, _, right = np.linalg.svd(g, full_matrices=False)
        # Adam's first direction is the sign of what it is given; the signs of singular vectors cancel.
        if g.shape[0] <= g.shape[1]:
            direction = left[:, :4] @ np.sign(left[:, :4].T @ g)
        else:
            direction = np.sign(g @ right[:4].T) @ right[:4]
        moved = (was[name] - low.numbers[name]) / (0.5 * scheduled(low.tuning, 1))
        assert np.corrcoef(moved.ravel(), direction.ravel())[0, 1] > 0.99, name
        assert np.linalg.matrix_rank(moved, tol=1e-2 * np.linalg.norm(moved)) <= 4
    state = low.states["blk.0.attn_q.weight"]
    assert state["first"].shape in ((4, was["blk.0.attn_q.weight"].shape[1]), (was["blk.0.attn_q.weight"].shape[0], 4))
    basis = state["basis"].copy()
    low.step(some, EVERY, 2)
    assert np.array_equal(low.states["blk.0.attn_q.weight"]["basis"], basis)  # until `every` steps are over


def test_adalomo_moves_by_a_part_of_a_tensor_s_size(plain: ModelFile, some: Examples, reference: Any) -> None:
    ours = trainer(plain, "adalomo")
    was, (_, _, gradients) = numbers(ours), reference(plain, some, EVERY)
    ours.step(some, EVERY, 1)
    rate = scheduled(ours.tuning, 1)
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_norm.weight", "token_embd.weight"):
        g = gradients[name].numpy().astype(np.float64)
        squares = g**2 + 1e-30
        if g.ndim > 1:  # Adafactor's factors: rows times columns over the sum of all
            squares = squares.mean(1)[:, None] * squares.mean(0)[None] / squares.mean()
        direction = g / np.sqrt(squares)
        direction /= max(1.0, float(np.sqrt(np.mean(direction**2))))
        wanted = rate * max(1e-3, float(np.sqrt(np.mean(was[name].astype(np.float64) ** 2)))) * direction
        assert np.allclose(was[name] - ours.numbers[name], wanted, rtol=0.02, atol=1e-6), name
    kept = sum(array.nbytes for state in ours.states.values() for array in state.values())
    assert kept < 0.1 * sum(array.nbytes for array in was.values())


@pytest.mark.parametrize("method", ["lisa:layers=1,every=2", "badam:every=2"])
def test_layers_that_do_not_learn_keep_their_bits_and_no_averages(
    method: str, plain: ModelFile, some: Examples, tmp_path: Path
) -> None:
    make_model("tiny-llama-256", "F32", tmp_path / "m.gguf", seed=2)
    file = ModelFile.open(tmp_path / "m.gguf")
    ours = trainer(file, method, rate=1e-3, steps=20)
    learnt: list[set[int]] = []
    for step in range(1, 9):
        was = numbers(ours)
        ours.step(some, EVERY, step)
        changed = {name for name in was if not np.array_equal(was[name], ours.numbers[name])}
        assert changed == set(ours.states)  # nothing is kept of others
        learnt.append({block_of(name) for name in changed})
    n_layers = ours.model.config.n_layers
    if method.startswith("lisa"):
        assert all(-1 in blocks and len(blocks) == 2 for blocks in learnt)
    else:
        turns = [*reversed(range(n_layers)), -1]
        assert learnt == [{turns[step // 2 % len(turns)]} for step in range(8)]
    assert learnt[::2] == learnt[1::2] and len({tuple(blocks) for blocks in learnt}) > 1
    again = trainer(file, method, rate=1e-3, steps=20)
    assert set(again.method.active(tuple(again.tensors), again.tuning, 3)) == {
        name for name in again.tensors if block_of(name) in learnt[2]
    }


def test_rslora_is_lora_that_counts_by_the_root_of_the_rank(plain: ModelFile, some: Examples, tmp_path: Path) -> None:
    rs, lora = trainer(plain, "rslora", rank=16, alpha=4.0), trainer(plain, "lora", rank=16, alpha=16.0)
    for each in (rs, lora):
        each.step(some, EVERY, 1)
        each.step(some, EVERY, 2)
        each.write(tmp_path / f"{each.tuning.method}.gguf", {})
    assert all(np.array_equal(rs.numbers[name], lora.numbers[name]) for name in lora.numbers)
    alphas = [ModelFile.open(tmp_path / f"{name}.gguf").metadata["adapter.lora.alpha"] for name in ("rslora", "lora")]
    assert alphas == [16.0, 16.0]  # which readers divide by the rank: 4 / sqrt(16) = 16 / 16
    assert named("rslora").factor(Tuning(method="rslora", rank=64)) == 1.0


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q6_K", "F16"])
def test_qlora_is_lora_on_the_dequantised_weights(kind: str, some: Examples, tmp_path: Path) -> None:
    make_model("tiny-llama-256", kind, tmp_path / "m.gguf", seed=2)
    file = ModelFile.open(tmp_path / "m.gguf")
    packed, floats = trainer(file, "qlora", on="all,norms"), trainer(file, "lora", on="all,norms")
    for step in (1, 2, 3):
        losses = [each.step(some, EVERY, step) for each in (packed, floats)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, array in packed.numbers.items():
        assert np.allclose(array, floats.numbers[name], atol=2e-4), name
    held = sum(matrix.raw.numel() for matrix in packed.model.matrices.values())  # type: ignore[union-attr]
    assert held == sum(info.nbytes for info in file.tensors.values() if len(info.shape) > 1)


def test_dora_is_a_direction_and_a_length(plain: ModelFile, some: Examples, tmp_path: Path) -> None:
    ours = trainer(plain, "dora", rate=0.02)
    layer, name = ours.decoder.weights.layers[0], "blk.0.attn_q.weight"
    x = torch.randn(5, ours.model.config.width)
    base = plain.tensor(name)
    with torch.no_grad():
        assert torch.allclose(ours.model.ops.linear(x, layer.q), x @ torch.tensor(base).T, atol=1e-5)  # it begins as W
    first = ours.step(some, EVERY, 1)
    for step in range(2, 6):
        last = ours.step(some, EVERY, step)
    assert last < first
    down, up, length = (ours.tensors[f"{name}.{part}"].detach() for part in ("lora_a", "lora_b", "length"))
    whole = torch.tensor(base) + 2 * up @ down  # alpha is twice the rank
    direction = whole / whole.norm(dim=1, keepdim=True)
    layer = ours.decoder.weights.layers[0]
    assert torch.allclose(row_lengths(layer.q), whole.norm(dim=1), rtol=1e-4)
    with torch.no_grad():
        assert torch.allclose(ours.model.ops.linear(x, layer.q), x @ (length[:, None] * direction).T, atol=1e-4)
    # The gradient of a length is that of the definition, with the direction's norm as a constant.
    factor = (length / whole.norm(dim=1)).requires_grad_()
    (factor[:, None] * whole @ x.T).square().sum().backward()
    assert f"{name}{LENGTH}" in ours.tensors and factor.grad is not None
    ours._at_once = False  # gradients stay
    ours.model.ops.linear(x, layer.q).square().sum().backward()
    found = ours.tensors[f"{name}{LENGTH}"].grad
    assert found is not None and torch.allclose(found, factor.grad / whole.norm(dim=1), rtol=1e-3)
    ours.write(tmp_path / "m.gguf", {})
    assert np.allclose(
        ModelFile.open(tmp_path / "m.gguf").tensor(name), (length[:, None] * direction).numpy(), atol=1e-5
    )


def test_a_whole_model_is_written_in_the_base_s_types_or_others(some: Examples, tmp_path: Path) -> None:
    make_model("tiny-olmoe", "Q8_0", tmp_path / "m.gguf", seed=2)
    file = ModelFile.open(tmp_path / "m.gguf")
    ours = trainer(file, "full", rate=1e-3)
    ours.step(some, EVERY, 1)
    ours.write(tmp_path / "same.gguf", {"general.name": "mine"})
    same = ModelFile.open(tmp_path / "same.gguf")
    assert {n: (i.type, i.shape) for n, i in same.tensors.items()} == {
        n: (i.type, i.shape) for n, i in file.tensors.items()
    }
    assert same.metadata["general.name"] == "mine"
    experts = same.tensor("blk.0.ffn_up_exps.weight")
    for name, array in ours.numbers.items():
        found = experts[int(name[-2])] if name.startswith("blk.0.ffn_up_exps.weight[") else None
        found = same.tensor(name) if name in same.tensors else found
        if found is not None:
            assert np.abs(found - array).max() <= np.abs(array).max() / 127 + 1e-6, name
    other = WorkbenchTrainer(file, named("full"), replace(ours.tuning, type="F16"))
    other.write(tmp_path / "f16.gguf", {})
    kinds = {info.type for info in ModelFile.open(tmp_path / "f16.gguf").tensors.values() if len(info.shape) > 1}
    assert kinds == {"F16", "F32"} and quant.by_name("F16")  # the router stays as it is
    with pytest.raises(SpecError, match="Q9"):
        WorkbenchTrainer(file, named("full"), replace(ours.tuning, type="Q9")).write(tmp_path / "x.gguf", {})


@pytest.mark.parametrize("on", ["norms", "head", "attn_q,ffn_down", "attention,norms"])
def test_only_what_is_asked_for_learns(on: str, plain: ModelFile, some: Examples) -> None:
    ours = trainer(plain, "full", on=on)
    expected = {
        "norms": {name for name in plain.tensors if "norm" in name},
        "head": {"output.weight"} & set(plain.tensors) or {"token_embd.weight"},
        "attn_q,ffn_down": {name for name in plain.tensors if name.endswith(("attn_q.weight", "ffn_down.weight"))},
        "attention,norms": {
            name for name in plain.tensors if "norm" in name or ("attn_" in name and name.startswith("blk"))
        },
    }[on]
    assert set(ours.tensors) == expected == set(ours.method.shapes(plain, ours.tuning))
    was = numbers(ours)
    ours.step(some, EVERY, 1)
    assert all(not np.array_equal(was[name], ours.numbers[name]) for name in was)
    with pytest.raises(SpecError, match="on=biases: this llama model has none of these"):
        trainer(plain, "full", on="biases")


@pytest.mark.parametrize("name", registry.names(ROOM))
def test_what_is_planned_to_learn_and_to_be_kept_is_what_does(name: str, plain: ModelFile, some: Examples) -> None:
    ours = trainer(plain, name, rate=1e-3)
    shapes = ours.method.shapes(plain, ours.tuning)
    assert shapes == {name: tuple(x.shape) for name, x in ours.tensors.items()}
    ours.step(some, EVERY, 1)
    assert set(ours.states) <= set(ours.method.active(tuple(shapes), ours.tuning, 1))
    kept = {name: sum(a.nbytes for a in state.values() if a.ndim) for name, state in ours.states.items()}
    assert all(kept[name] == ours.method.state_bytes(shapes[name]) for name in kept)
    most = ours.method.most_active(shapes, ours.tuning)
    assert sum(kept.values()) <= sum(map(ours.method.state_bytes, most.values()))
    assert math.isfinite(ours.judge(some)) and ours.method.learnt and ours.method.rate > 0


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("galore:rank=0", "rank=0, every=200, scale=0.25: use such as"),
        ("galore:ranks=4", "ranks is no setting, did you mean rank"),
        ("lisa:layers=0", "layers=0, every=10: use 1 or more"),
        ("badam:every=-1", "every=-1: use 0 or more"),
        ("lora:rank=x", "'rank=x'|rank is no setting"),
    ],
)
def test_settings_of_a_method_that_cannot_be(method: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        named(method)
