"""Stored matrices taken apart, and codes and scales of theirs that learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genmote.compress import Calibration, Recipe, compress
from genmote.compress.adam import Adam
from genmote.compress.block import Site
from genmote.compress.grid import half
from genmote.compress.latent import EDGE, PLACE, UNIT, Latent
from genmote.compress.steps.distill import Distill
from genmote.compress.steps.rtn import Rtn
from genmote.compress.stored import Stored
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.ops import quant
from genmote.ops.torch_ops import Matrix

QUANTISED = [name for name in quant.codec_names() if quant.TYPES[name].block_size > 1]
SMALL = Calibration(windows=4, length=32)
SHORT = Distill(tokens=24 * 4 * 32, batch=4, at_once=2, length=32, measured=8, rate=3e-4, top=32)


def weights(rows: int = 6, cols: int = 512) -> torch.Tensor:
    return torch.from_numpy((np.random.default_rng(0).standard_normal((rows, cols)) * 0.05).astype(np.float32))


def site(name: str) -> Site:
    weight = weights()
    raw = quant.quantize(name, weight.numpy())
    return Site("w", name, Matrix(torch.from_numpy(quant.dequantize(name, raw, tuple(weight.shape))), False), raw)


@pytest.mark.parametrize("name", QUANTISED)
def test_parts_mean_the_numbers_and_go_back_to_the_bytes(name: str) -> None:
    whole = site(name)
    stored, raw, weight = Stored(whole), whole.raw, whole.weight
    assert torch.equal(stored.values(), weight)
    stored.store()
    assert np.array_equal(whole.raw, raw) and torch.equal(whole.weight, weight)


@pytest.mark.parametrize("name", QUANTISED)
def test_slopes_are_the_gradient_by_the_parts(name: str) -> None:
    stored = Stored(site(name))
    stored.unit.requires_grad_(True)
    if stored.base is not None:
        stored.base.requires_grad_(True)
    gradient = torch.from_numpy(np.random.default_rng(1).standard_normal((stored.rows, stored.cols)).astype(np.float32))
    (stored.values() * gradient).sum().backward()
    unit, base = stored.slopes(gradient)
    assert torch.allclose(unit, stored.unit.grad, atol=1e-3)
    if stored.base is not None:
        assert torch.allclose(base, stored.base.grad, atol=1e-3)


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("codes", [True, False])
def test_learning_begins_at_what_is_stored(name: str, codes: bool) -> None:
    whole = site(name)
    raw, weight = whole.raw, whole.weight.clone()
    latent = Latent(whole, weights(), codes=codes)
    assert torch.equal(whole.weight, weight) and whole.weight.requires_grad
    with torch.no_grad():
        latent.stored.store()
    assert np.array_equal(whole.raw, raw)


@pytest.mark.parametrize("name", QUANTISED)
def test_codes_and_scales_learn_a_nearer_matrix(name: str) -> None:
    """Towards another matrix by squared error, on the type's grid at each step."""
    whole = site(name)
    latent = Latent(whole, weights(), codes=True)
    # Half a level off where the codes are, and a little larger: codes and scales have both something to learn.
    layout = latent.stored.layout
    off = 0.5 * float(np.diff(layout.levels.astype(int)).mean()) * latent.stored.scale().abs()
    off = off.repeat_interleave(layout.group, dim=1)
    goal = whole.weight.detach() * 1.02 + off * torch.randn(6, 512, generator=torch.Generator().manual_seed(2))
    adam, first = Adam(latent.parameters), float((whole.weight.detach() - goal).square().mean())
    for _ in range(60):
        (whole.weight - goal).square().sum().backward()
        latent.gather()
        adam.step(1e-2, longest=1e9)
        latent.put()
    with torch.no_grad():
        latent.stored.store()
    assert float((whole.weight - goal).square().mean()) < 0.8 * first
    kept = quant.dequantize(name, whole.raw, (6, 512))
    assert np.array_equal(kept, whole.weight.numpy())
    assert np.array_equal(quant.unpack(name, whole.raw).codes.reshape(-1), latent.stored.codes.numpy().reshape(-1))


def test_a_number_half_way_between_codes_moves_first() -> None:
    whole = site("Q4_0")
    latent = Latent(whole, weights(), codes=True)
    assert latent.places is not None
    codes = latent.stored.codes.clone()
    start = latent.places.clone()
    apart = PLACE * start - (codes.float() + 8)
    assert float(apart.abs().max()) <= EDGE + 1e-5
    other = Latent(whole, whole.weight.detach() * 3, codes=True)  # far from what is stored: begins at the codes
    far = (3 * codes.float() - codes.float()).abs() > EDGE
    assert other.places is not None
    assert torch.allclose((PLACE * other.places - (codes.float() + 8))[far], torch.zeros(()), atol=1e-4)
    latent.put()
    latent.places += 0.1 / PLACE  # a tenth of a level up
    latent.put()
    moved = latent.stored.codes != codes
    inside, sure = codes < 7, (apart - 0.4).abs() > 1e-3
    assert torch.equal(moved & inside & sure, (apart > 0.4) & inside & sure) and bool(moved.any())
    latent.places.copy_(start)
    latent.units += 0.1 / UNIT
    latent.put()
    assert torch.equal(latent.stored.codes, codes)
    unit = Stored(site("Q4_0")).unit
    assert torch.allclose(latent.stored.unit, half(unit + 0.1 * unit.abs()), rtol=1e-2)


def test_an_expert_that_no_token_came_to_stays() -> None:
    whole = site("Q4_1")
    latent = Latent(whole, None, codes=True)
    latent.gather()
    assert all(p.grad is None for p in latent.parameters)


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gemma3", "tiny-mixtral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    make_model(request.param, "F32", path, 1)
    return path


@pytest.mark.parametrize("train", ["codes", "scales"])
def test_a_stored_model_learns_and_stays_as_large(model: Path, tmp_path: Path, train: str) -> None:
    rough = Rtn(type="GM3_32")  # coarse: there is something to learn
    made = compress(
        model,
        tmp_path / "out.gguf",
        Recipe((rough, replace(SHORT, train=train, rate=5e-5 if train == "codes" else 3e-4)), SMALL),
        work=tmp_path / "w",
    )
    figures = made.steps[1]["figures"]
    assert figures["kl_after"] < 0.99 * figures["kl_before"]
    before, after = ModelFile.open(next((tmp_path / "w").glob("01-*.gguf"))), ModelFile.open(made.path)
    assert list(after.tensors) == list(before.tensors)
    changed, experts = 0, 0
    for name, info in after.tensors.items():
        assert info.type == before.tensors[name].type and info.nbytes == before.tensors[name].nbytes
        if info.type == "GM3_32":
            a, b = (quant.unpack("GM3_32", file.raw(name)) for file in (before, after))
            changed += int((a.codes != b.codes).sum())
            experts += int((a.codes != b.codes).sum()) if "_exps" in name else 0
    assert (changed > 0) == (train == "codes")
    if "ffn_up_exps" in str(list(after.tensors)):
        assert (experts > 0) == (train == "codes")


def test_what_learning_spoils_is_left_as_it_was(model: Path, tmp_path: Path) -> None:
    recipe = Recipe((Rtn(type="Q4_1"), replace(SHORT, train="codes", rate=0.3)), SMALL)
    made = compress(model, tmp_path / "out.gguf", recipe, work=tmp_path / "w")
    assert "learning did not help" in made.steps[1]["note"] and "the model is left as it was" in made.steps[1]["note"]
    before, after = ModelFile.open(next((tmp_path / "w").glob("01-*.gguf"))), ModelFile.open(made.path)
    assert all(np.array_equal(before.raw(name), after.raw(name)) for name in before.tensors)


@pytest.mark.parametrize("train", ["codes", "scales"])
def test_there_must_be_something_stored(model: Path, tmp_path: Path, train: str) -> None:
    with pytest.raises(
        SpecError, match=f"train={train}: no matrix is stored in codes; a step such as gptq comes before"
    ):
        compress(model, tmp_path / "out.gguf", Recipe((replace(SHORT, train=train),), SMALL))
