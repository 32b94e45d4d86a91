"""Zeros against their definitions: a slow plain optimal brain surgeon, sorted scores, and what the step leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genmote.compress import Calibration, Recipe, compress, sparse
from genmote.compress.steps.gptq import Gptq
from genmote.compress.steps.hqq import Hqq
from genmote.compress.steps.prune import Prune
from genmote.compress.steps.rtn import Rtn
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model

DAMP = 0.01
SHORT = Calibration(windows=3, length=24)


def problem(out: int = 6, cols: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, cols, generator=draw) @ torch.randn(cols, cols, generator=draw)
    return torch.randn(out, cols, generator=draw), rows.T @ rows / 300


def plain(weight: torch.Tensor, hessian: torch.Tensor, share: float, pattern: tuple[int, int] | None) -> torch.Tensor:
    """Row by row, column by column: the best change of the columns from j on that makes the weight at j zero, with the
    inverse of their part of H made anew each time. Choices are made at the beginning of each block."""
    w = weight.double().clone()
    out, cols = w.shape
    h = hessian.double() + torch.eye(cols, dtype=torch.float64) * DAMP * hessian.double().diagonal().mean()
    for start in range(0, cols, sparse.BLOCK):
        end = min(start + sparse.BLOCK, cols)
        inverse_at = {j: torch.linalg.inv(h[j:, j:])[0, 0] for j in range(start, end)}
        costs = torch.tensor([[float(w[r, j] ** 2 / inverse_at[j]) for j in range(start, end)] for r in range(out)])
        gone = torch.zeros(out, end - start, dtype=torch.bool)
        if pattern is None:
            order = sorted((float(costs[r, c]), r, c) for r in range(out) for c in range(end - start))
            for _, r, c in order[: round(share * len(order))]:
                gone[r, c] = True
        else:
            for r in range(out):
                for first in range(0, end - start, pattern[1]):
                    group = sorted(range(first, first + pattern[1]), key=lambda c: float(costs[r, c]))
                    gone[r, group[: pattern[1] - pattern[0]]] = True
        for r in range(out):
            for j in range(start, end):
                if gone[r, j - start]:
                    inverse = torch.linalg.inv(h[j:, j:])
                    w[r, j:] -= w[r, j] / inverse[0, 0] * inverse[0]
                    w[r, j] = 0
    return w


@pytest.mark.parametrize("block", [8, 24])
@pytest.mark.parametrize(("share", "pattern"), [(0.5, None), (0.3, None), (0.5, (2, 4)), (0.5, (1, 4))])
def test_sparsegpt_is_its_definition(
    monkeypatch: pytest.MonkeyPatch, block: int, share: float, pattern: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(sparse, "BLOCK", block)
    weight, hessian = problem()
    ours = sparse.sparsegpt(weight, hessian, share, pattern, DAMP)
    wanted = plain(weight, hessian, share, pattern)
    assert torch.equal(ours == 0, wanted == 0)
    assert torch.allclose(ours.double(), wanted, atol=1e-4)


def test_sparsegpt_loses_least_and_magnitude_most() -> None:
    """With inputs of different sizes that have something in common, as a model's are."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randn(128, generator=draw).exp()
    common = torch.randn(600, 12, generator=draw) @ torch.randn(12, 128, generator=draw)
    rows = (torch.randn(600, 128, generator=draw) + 0.7 * common) * sizes
    weight, hessian = torch.randn(48, 128, generator=draw), rows.T @ rows / 600

    def error(after: torch.Tensor) -> float:
        return float(((after - weight) @ hessian * (after - weight)).sum())

    lost = [
        error(sparse.sparsegpt(weight, hessian, 0.5, None, DAMP)),
        error(sparse.wanda(weight, hessian, 0.5, None)),
        error(sparse.magnitude(weight, 0.5, None)),
    ]
    assert 2 * lost[0] < lost[1] < lost[2] / 5


def test_magnitude_and_wanda_take_the_smallest() -> None:
    weight, hessian = problem()
    small = sparse.magnitude(weight, 0.25, None)
    assert int((small == 0).sum()) == weight.numel() // 4
    assert weight.abs()[small == 0].max() <= weight.abs()[small != 0].min()
    found = sparse.wanda(weight, hessian, 0.25, None)
    for row, kept in zip(weight, found, strict=True):
        scores = [abs(float(w)) * float(hessian[j, j]) ** 0.5 for j, w in enumerate(row)]
        assert set(torch.nonzero(kept == 0).flatten().tolist()) == set(np.argsort(scores)[:6].tolist())
    for after in (sparse.magnitude(weight, 0.5, (2, 4)), sparse.wanda(weight, hessian, 0.5, (2, 4))):
        assert ((after.reshape(6, -1, 4) == 0).sum(dim=2) == 2).all()
        assert torch.equal(after[after != 0], weight[after != 0])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mixtral"])
def test_the_step_leaves_zeros_and_says_that_they_gain_nothing(tmp_path: Path, name: str, method: str) -> None:
    make_model(name, "F32", tmp_path / "model.gguf", 1)
    recipe = Recipe((Prune(method=method, pattern="2:4"),), Calibration(windows=3, length=24))  # type: ignore[arg-type]
    made = compress(tmp_path / "model.gguf", tmp_path / "out.gguf", recipe)
    assert "no smaller and the engine no faster" in made.steps[0]["note"]
    before, after = ModelFile.open(tmp_path / "model.gguf"), ModelFile.open(made.path)
    for info in before.tensors.values():
        if info.name.startswith("blk.") and len(info.shape) > 1 and "gate_inp" not in info.name:
            zeros = (after.tensor(info.name).reshape(-1, 4) == 0).sum(axis=1)
            assert (zeros == 2).all(), info.name
        else:
            assert np.array_equal(after.raw(info.name), before.raw(info.name)), info.name
    figures = made.steps[0]["figures"]
    assert all(told["zeros"] == 0.5 and 0 <= told["error"] < 1 for told in figures.values())


@pytest.mark.parametrize(
    ("step", "kind", "prune"),
    [
        *((Gptq, kind, Prune(pattern="2:4")) for kind in ("Q4_0", "Q8_0", "GM4_32", "GM3_32", "Q3_K")),
        (Gptq, "Q4_0", Prune(method="magnitude", share=0.3)),
        (Rtn, "Q4_0", Prune()),
        (Hqq, "GM3_32", Prune()),
    ],
)
def test_zeros_stay_when_they_are_stored(tmp_path: Path, step: Any, kind: str, prune: Prune) -> None:
    shape = "tiny-llama-256" if kind == "Q3_K" else "tiny-mixtral"
    make_model(shape, "F32", tmp_path / "model.gguf", 1)
    recipe = Recipe((prune, step(type=kind)), SHORT)
    made = compress(tmp_path / "model.gguf", tmp_path / "out.gguf", recipe, work=tmp_path / "work")
    assert "note" not in made.steps[1]
    (between,) = (tmp_path / "work").glob("01-prune-*.gguf")
    before, after = ModelFile.open(between), ModelFile.open(made.path)
    count = 0
    for info in before.tensors.values():
        zeros = before.tensor(info.name) == 0
        if info.name.startswith("blk.") and len(info.shape) > 1 and after.tensors[info.name].type == kind:
            count += 1
            assert zeros.mean() > 0.29 and (after.tensor(info.name)[zeros] == 0).all(), info.name
            assert (after.tensor(info.name) == 0).mean() < 0.8
    assert count >= 8


@pytest.mark.parametrize(("step", "kind"), [(Rtn, "Q4_1"), (Rtn, "IQ4_NL"), (Gptq, "GM2_32")])
def test_a_type_without_a_zero_is_told(llama: Path, tmp_path: Path, step: Any, kind: str) -> None:
    steps = (Prune(), step(type="Q4_0", types=(f"*.attn_?.weight={kind}", f"*.ffn_up.weight={kind}")))
    made = compress(llama, tmp_path / "out.gguf", Recipe(steps, SHORT))
    told = f"{kind} has no exact zero: those of 8 pruned matrices become small numbers (Q4_0, for one, keeps zeros)"
    assert made.steps[1]["note"] == told
    one = compress(llama, tmp_path / "out.gguf", Recipe((Prune(), step(types=(f"blk.0.attn_q.weight={kind}",))), SHORT))
    assert f"{kind} has no exact zero: those of 1 pruned matrix become" in one.steps[1]["note"]
    dense = compress(llama, tmp_path / "out.gguf", Recipe((step(type=kind),), SHORT))
    assert "zero" not in dense.steps[0].get("note", "")


def test_zeros_among_codes_are_no_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers that are stored in four bits many are zero: a step that stores them anew may change these."""
    make_model("tiny-llama", "Q4_0", tmp_path / "model.gguf", 1)
    file = ModelFile.open(tmp_path / "model.gguf")
    assert (file.tensor("blk.0.attn_q.weight") == 0).mean() > sparse.SPARSE
    found = []
    for share in (sparse.SPARSE, 2.0):
        monkeypatch.setattr(sparse, "SPARSE", share)
        found.append(
            ModelFile.open(compress(file.path, tmp_path / "out.gguf", Recipe((Gptq(type="GM3_32"),), SHORT)).path)
        )
    assert all(np.array_equal(found[0].raw(name), found[1].raw(name)) for name in file.tensors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1}, "share=1.0: use a share between 0 and 1, such as 0.5"),
        ({"pattern": "4:2"}, "pattern='4:2': write N:M with N below M, such as 2:4"),
        ({"pattern": "half"}, "pattern='half': write N:M"),
        ({"damp": 0}, "damp=0: use more than 0"),
        ({"method": "best"}, "method='best', wanted one of magnitude, wanda, sparsegpt"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Recipe.of({"step": [{"use": "prune", **settings}]})


def test_rows_that_a_pattern_does_not_fit_are_told(tmp_path: Path) -> None:
    make_model("tiny-llama", "F32", tmp_path / "model.gguf", 1)
    recipe = Recipe((Prune(pattern="2:5"),), Calibration(windows=3, length=24))
    with pytest.raises(SpecError, match=r"pattern=2:5: blk.0.attn_q.weight has rows of 64, no multiple"):
        compress(tmp_path / "model.gguf", tmp_path / "out.gguf", recipe)
