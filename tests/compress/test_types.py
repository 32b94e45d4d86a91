"""Which tensor type each matrix gets, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genmote.compress import Calibration, Recipe, compress, solve
from genmote.compress.block import Inputs, Site
from genmote.compress.steps import gptq
from genmote.compress.steps.gptq import Gptq
from genmote.compress.steps.rtn import Rtn
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.ops import quant
from genmote.ops.torch_ops import Matrix

SMALL = Calibration(windows=2, length=24)
TABLE = "token_embd.weight"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its embedding is not, and it has experts."""
    path = tmp_path_factory.mktemp("model") / "mixtral.gguf"
    make_model("tiny-mixtral", "F32", path, 1)
    return path


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("*attn_z*", r"types: no matrix fits \*attn_z\*; this model's are such as .*blk\.0\.attn_q\.weight"),
        ("blk.7.attn_q.weight", r"no matrix fits blk\.7\.attn_q\.weight"),
        ("*norm*", r"no matrix fits \*norm\*"),  # vectors are stored as they are, whatever a rule says
    ],
)
def test_a_pattern_that_fits_nothing_is_told(llama: Path, tmp_path: Path, rule: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        compress(llama, tmp_path / "out.gguf", Recipe((Rtn(types=(f"{rule}=Q8_0", "*attn_q*=Q8_0")),)))
    assert list(tmp_path.iterdir()) == []


def test_a_router_is_no_matrix_that_a_pattern_may_name(mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no matrix fits \*ffn_gate_inp\*"):
        compress(mixtral, tmp_path / "out.gguf", Recipe((Rtn(types=("*ffn_gate_inp*=Q8_0",)),)))


def test_experts_and_matrices_without_a_block_fit_patterns(mixtral: Path, tmp_path: Path) -> None:
    rules = ("blk.*.ffn_up_exps.weight=Q5_0", "output.weight=Q8_0")
    made = ModelFile.open(compress(mixtral, tmp_path / "out.gguf", Recipe((Rtn(types=rules),))).path)
    assert made.tensors["blk.1.ffn_up_exps.weight"].type == "Q5_0"
    assert made.tensors["blk.1.ffn_down_exps.weight"].type == "Q4_0"
    assert made.tensors["output.weight"].type == "Q8_0" and made.tensors[TABLE].type == "F32"


@pytest.mark.parametrize("step", [Rtn, Gptq])
@pytest.mark.parametrize("kind", ["Q4_0", "F16"])
def test_an_embedding_that_is_no_head_is_rounded(
    mixtral: Path, tmp_path: Path, own_home: Path, step: Any, kind: str
) -> None:
    made = compress(mixtral, tmp_path / "out.gguf", Recipe((step(types=(f"{TABLE}={kind}",)),), SMALL))
    before, after = ModelFile.open(mixtral), ModelFile.open(made.path)
    assert after.tensors[TABLE].type == kind and after.tensors["output.weight"].type == "F32"
    wanted = quant.quantize(kind, before.tensor(TABLE))
    assert np.array_equal(after.raw(TABLE), wanted.reshape(-1).view(np.uint8))
    assert made.steps[0]["figures"][TABLE] == {"type": kind}
    told = "token_embd.weight is looked up in, not multiplied: it is rounded to the nearest"
    assert made.steps[0].get("note", "").startswith(told) == (step is Gptq)


def test_what_is_learned_after_the_embedding_sees_it_rounded(mixtral: Path, tmp_path: Path, own_home: Path) -> None:
    """Rounding it first and learning then gives the same file."""
    compress(mixtral, tmp_path / "table.gguf", Recipe((Rtn(type="keep", types=(f"{TABLE}=Q4_0",)),)))
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    same = Calibration(windows=2, length=24, text=text)
    recipe = Recipe((Gptq(follow=False, types=(f"{TABLE}=Q4_0",)),), same)
    one = compress(mixtral, tmp_path / "one.gguf", recipe)
    two = compress(tmp_path / "table.gguf", tmp_path / "two.gguf", Recipe((Gptq(follow=False),), same))
    files = [ModelFile.open(made.path) for made in (one, two)]
    assert all(np.array_equal(files[0].raw(name), files[1].raw(name)) for name in files[0].tensors)


def test_a_head_type_leaves_an_embedding_that_is_no_head(mixtral: Path, tmp_path: Path) -> None:
    made = ModelFile.open(compress(mixtral, tmp_path / "out.gguf", Recipe((Rtn(head_type="Q8_0"),))).path)
    assert made.tensors["output.weight"].type == "Q8_0" and made.tensors[TABLE].type == "F32"


def test_types_that_give_way_are_told(llama: Path, tmp_path: Path) -> None:
    """Rows of 64 and 160 numbers do not fit Q4_K's blocks of 256."""
    made = compress(llama, tmp_path / "out.gguf", Recipe((Rtn(type="q4_K", types=("*attn_v*=Q8_0",)),)))
    matrices = [n for n, i in ModelFile.open(llama).tensors.items() if n.startswith("blk") and len(i.shape) > 1]
    count = len([name for name in matrices if "attn_v" not in name])
    told = f"{count} matrices have rows of 64 or 160 numbers, which Q4_K's blocks of 256 do not fit: stored as Q5_0"
    assert made.steps[0]["note"] == told
    assert {ModelFile.open(made.path).tensors[name].type for name in matrices} == {"Q5_0", "Q8_0"}
    assert "note" not in compress(llama, tmp_path / "out.gguf", Recipe((Rtn(type="Q4_0"),))).steps[0]


def test_a_single_matrix_that_gives_way(llama: Path, tmp_path: Path) -> None:
    made = compress(llama, tmp_path / "out.gguf", Recipe((Rtn(type="keep", types=("blk.0.attn_q.weight=Q6_K",)),)))
    told = "1 matrix has rows of 64 numbers, which Q6_K's blocks of 256 do not fit: stored as Q8_0"
    assert made.steps[0]["note"] == told


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "IQ4_NL", "Q6_K", "Q2_K"])
def test_a_large_matrix_is_solved_in_slices_of_rows_to_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Rows are independent of each other, given the second moment of the inputs, also with what blocks before owe."""
    rng = np.random.default_rng(0)
    rows, cols = 2500, 256
    weight = torch.from_numpy(rng.standard_normal((rows, cols)).astype(np.float32))
    x = torch.from_numpy(rng.standard_normal((600, cols)).astype(np.float32)) * torch.arange(1, cols + 1) ** -0.5
    other = x + 0.1 * torch.from_numpy(rng.standard_normal((600, cols)).astype(np.float32))
    lack = 0.1 * torch.from_numpy(rng.standard_normal((600, rows)).astype(np.float32))
    step, found = Gptq(sweeps=1), []
    for numbers in (1 << 23, 1):
        monkeypatch.setattr(gptq, "NUMBERS", numbers)
        site = Site("m", "F32", Matrix(weight.clone(), False), np.zeros(0, np.uint8))
        step.quantise(site, kind, Inputs(x, other, lack))
        found.append(site)
    one, sliced = found
    assert np.array_equal(one.raw, sliced.raw) and torch.equal(one.weight, sliced.weight)
    inputs = Inputs(x, other, lack)
    h = solve.damped(inputs.hessian, step.damp, step.ridge).double()
    held = solve.damped(inputs.hessian, step.damp, step.hold)
    aimed = solve.target(weight, inputs.hessian, inputs.cross, held, inputs.owed).double()
    left = one.weight.double() - aimed
    plain = float(torch.einsum("ri,ij,rj->", left, h, left) / torch.einsum("ri,ij,rj->", aimed, h, aimed))
    assert one.figures["error"] == pytest.approx(plain, rel=1e-3)
    assert sliced.figures["error"] == pytest.approx(one.figures["error"], rel=1e-4) and one.figures["error"] > 0
