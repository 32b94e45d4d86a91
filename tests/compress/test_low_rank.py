"""Low rank: the best of its rank against a search, ranks by budget, and files that run as two products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from genmote.compress import Calibration, Recipe, compress
from genmote.compress.cut import factor_names
from genmote.compress.low_rank import ranks, spectrum
from genmote.compress.steps.low_rank import LowRank
from genmote.compress.whole import Whole
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from tests.compress import test_prune_structure as structure

SMALL = Calibration(windows=6, length=64)
SHAPES = ["tiny-llama", "tiny-gemma3", "tiny-opt", "tiny-mixtral"]


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 8, generator=draw) @ torch.randn(8, 8, generator=draw)
    return torch.randn(6, 8, generator=draw), rows.T @ rows / 200, torch.rand(6, generator=draw) + 0.1


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_factors_are_the_best_of_their_rank(rank: int) -> None:
    """Against gradient descent over all factors, from several starts, on the loss itself."""
    weight, hessian, gradients = problem()
    found = spectrum(weight, hessian, gradients, 1e-9)

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        change = b @ a - weight
        return (gradients[:, None] * change * (change @ hessian)).sum() / 2

    a, b = found.factors(rank)
    ours = float(loss(a, b))
    assert a.shape == (rank, 8) and b.shape == (6, rank)
    assert ours == pytest.approx(float(found.damage[6 - rank]), rel=1e-3)
    best = float("inf")
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        factors = [torch.randn(*x.shape, generator=draw).requires_grad_() for x in (a, b)]
        descent = torch.optim.LBFGS(factors, max_iter=500, line_search_fn="strong_wolfe")

        def closure(descent: torch.optim.LBFGS = descent, factors: list[torch.Tensor] = factors) -> torch.Tensor:
            descent.zero_grad()
            value = loss(*factors)
            value.backward()
            return value

        descent.step(closure)
        best = min(best, float(closure().detach()))
    assert ours <= best * 1.001
    assert best == pytest.approx(ours, rel=0.02)


def test_ranks_that_save_nothing_are_none() -> None:
    for out, cols, multiple in ((64, 64, 8), (64, 160, 16), (576, 192, 32), (8, 8, 32)):
        found = ranks(out, cols, multiple)
        assert all(rank % multiple == 0 and rank * (out + cols) < out * cols for rank in found)
        top = (found[0] if found else 0) + multiple
        assert top * (out + cols) >= out * cols


@pytest.mark.parametrize("name", SHAPES)
def test_the_file_has_two_thin_matrices_for_one_and_runs(tmp_path: Path, name: str) -> None:
    make_model(name, "F32", tmp_path / "model.gguf", 1)
    made = compress(tmp_path / "model.gguf", tmp_path / "out.gguf", Recipe((LowRank(share=0.3, multiple=8),), SMALL))
    chosen = made.steps[0]["figures"]["ranks"]
    before, after = ModelFile.open(tmp_path / "model.gguf"), ModelFile.open(made.path)
    saved = total = 0
    for info in before.tensors.values():
        a, b = factor_names(info.name)
        part = info.name.split(".")[2] if info.name.startswith("blk.") else ""
        numbers = int(np.prod(info.shape))
        if len(info.shape) == 2 and part.startswith(("attn_", "ffn_")) and "inp" not in part:
            total += numbers
        if info.name in chosen:
            rank = chosen[info.name]
            assert after.tensors[a].shape == (rank, info.shape[1]) and after.tensors[b].shape == (info.shape[0], rank)
            assert info.name not in after.tensors
            saved += numbers - rank * sum(info.shape)
        else:
            assert np.array_equal(after.raw(info.name), before.raw(info.name))
    assert 0.3 * total <= saved < 0.4 * total
    for op_set in ("numpy", "native"):
        assert structure.near(structure.logits(made.path, op_set), structure.logits(made.path), 5e-3)


def test_matrices_get_exactly_the_ranks_that_are_named(llama: Path, tmp_path: Path) -> None:
    step = LowRank(ranks=("blk.0.ffn_up.weight=20", "blk.1.attn_q.weight=7"))
    made = compress(llama, tmp_path / "out.gguf", Recipe((step,), SMALL))
    assert made.steps[0]["figures"]["ranks"] == {"blk.0.ffn_up.weight": 20, "blk.1.attn_q.weight": 7}
    file = ModelFile.open(made.path)
    assert file.tensors["blk.0.ffn_up_a.weight"].shape == (20, 64)
    assert file.tensors["blk.1.attn_q_b.weight"].shape == (64, 7)
    assert len(file.tensors) == len(ModelFile.open(llama).tensors) + 2
    assert structure.near(structure.logits(made.path, "native"), structure.logits(made.path), 5e-3)


def test_a_matrix_of_low_rank_loses_nothing(llama: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)

    def thin(name: str, values: np.ndarray) -> np.ndarray:
        if name != "blk.1.ffn_up.weight":
            return values
        return (draw.normal(size=(160, 16)) @ draw.normal(size=(16, 64)) / 16).astype(np.float32)

    model = structure.changed(llama, tmp_path / "thin.gguf", thin)
    step = LowRank(share=0.5, multiple=16, only="*blk.1.ffn_up*")
    made = compress(model, tmp_path / "out.gguf", Recipe((step,), SMALL))
    assert made.steps[0]["figures"]["ranks"] == {"blk.1.ffn_up.weight": 16}
    assert structure.near(structure.logits(made.path), structure.logits(model), 2e-3)


def test_whitening_beats_the_plain_decomposition(llama: Path, tmp_path: Path) -> None:
    step = LowRank(share=0.5, multiple=8, only="*ffn_down*")
    made = compress(llama, tmp_path / "out.gguf", Recipe((step,), Calibration(windows=16, length=64)))
    ranks_of = made.steps[0]["figures"]["ranks"]

    def plain(name: str, values: np.ndarray) -> np.ndarray:
        if name not in ranks_of:
            return values
        u, s, vt = np.linalg.svd(values, full_matrices=False)
        return (u * s)[:, : ranks_of[name]] @ vt[: ranks_of[name]]

    structure.changed(llama, tmp_path / "plain.gguf", plain)
    windows = np.random.default_rng(3).integers(0, 300, (8, 64)).astype(np.int32)
    with torch.no_grad():
        wanted, ours, theirs = (Whole(path).final(windows) for path in (llama, made.path, tmp_path / "plain.gguf"))
    assert (ours - wanted).square().mean() < 0.95 * (theirs - wanted).square().mean()


@pytest.mark.parametrize("moment", [("measuring ranks", 1), ("making factors", 1)])
def test_a_killed_run_goes_on(llama: Path, tmp_path: Path, moment: tuple[str, int]) -> None:
    recipe = Recipe((LowRank(share=0.3, multiple=8),), SMALL)
    wanted = compress(llama, tmp_path / "whole.gguf", recipe).path.read_bytes()

    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(llama, tmp_path / "out.gguf", recipe, progress=kill)
    assert compress(llama, tmp_path / "out.gguf", recipe).path.read_bytes() == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "share=0.0: use a share between 0 and 1, such as 0.2"),
        ({"multiple": 0}, "multiple=0: use 1 or more"),
        ({"damp": 0}, "damp=0: use more than 0"),
        ({"ranks": ["blk.0.attn_q.weight"]}, "write NAME=NUMBER, such as blk.3.attn_q.weight=96"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe.of({"step": [{"use": "low-rank", **settings}]})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (LowRank(only="*nothing*"), "fits no linear layer of a block; try"),
        (
            LowRank(ranks=("blk.0.attn_x.weight=8",)),
            "ranks: blk.0.attn_x.weight has no ranks to name; what has: blk.0.",
        ),
        (LowRank(ranks=("blk.0.attn_q.weight=32",)), "ranks: blk.0.attn_q.weight=32: wanted at most 31 ranks"),
        (LowRank(share=0.99, multiple=8), "share=0.99: with multiple=8 at most 0."),
    ],
)
def test_what_cannot_be_is_told(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: LowRank, message: str
) -> None:
    """Before any text is made."""
    monkeypatch.setattr("genmote.compress.calibration.windows", None)
    with pytest.raises(SpecError, match=message):
        compress(llama, tmp_path / "out.gguf", Recipe((step,), SMALL))
    assert list(tmp_path.iterdir()) == []


def test_what_is_of_low_rank_is_not_pruned_after(llama: Path, tmp_path: Path) -> None:
    from genmote.compress.steps.prune_channels import PruneChannels

    recipe = Recipe((LowRank(share=0.3, multiple=8), PruneChannels(multiple=16)), SMALL)
    with pytest.raises(SpecError, match="is one of two low-rank factors; put prune-channels before low-rank"):
        compress(llama, tmp_path / "out.gguf", recipe)
