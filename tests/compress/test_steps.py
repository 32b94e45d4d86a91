"""The steps that need no learning: awq leaves the model what it was, hqq is no worse than what it began with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from genmote.compress import Calibration, Recipe, compress
from genmote.compress.block import Site
from genmote.compress.fold import Place, places
from genmote.compress.grid import Grid
from genmote.compress.layers import Model
from genmote.compress.steps.awq import Awq
from genmote.compress.steps.gptq import Gptq
from genmote.compress.steps.hqq import Hqq, half_quadratic
from genmote.compress.steps.low_rank import LowRank
from genmote.compress.steps.rtn import Rtn
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.ops import quant, torch_ops
from genmote.ops.torch_ops import Matrix
from tests.compress.test_run import logits, tokens

SHAPES = ["tiny-llama", "tiny-gemma3", "tiny-qwen2", "tiny-qwen3", "tiny-opt", "tiny-mixtral"]
QUANTISED = [name for name in quant.codec_names() if quant.TYPES[name].block_size > 1]
SMALL = Calibration(windows=3, length=24)


def uneven(name: str, path: Path) -> Path:
    """A model some of whose channels are much larger than others: norms' gains, and rows of v and up."""
    plain = path.with_name("plain.gguf")
    make_model(name, "F32", plain, 1)
    model, rng = ModelFile.open(plain), np.random.default_rng(3)
    tensors = []
    for info in model.tensors.values():
        values = model.tensor(info.name).copy()
        if "norm.weight" in info.name and info.name.startswith("blk"):
            values *= np.exp(rng.standard_normal(len(values))).astype(np.float32)
        if info.name.endswith(("attn_v.weight", "ffn_up.weight")):
            values *= np.exp(rng.standard_normal((len(values), 1))).astype(np.float32)
        tensors.append((info.name, info.type, info.shape, values))
    write_gguf(path, model.typed_metadata(), tensors)
    return path


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven(request.param, tmp_path_factory.mktemp("model") / f"{request.param}.gguf")


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are not rounded to float16, whose steps are other ones for scaled values."""
    monkeypatch.setattr(torch_ops, "round_half", lambda x: x)


def near(ours: np.ndarray, wanted: np.ndarray) -> bool:
    return bool(np.abs(ours - wanted).max() < 1e-4 * np.abs(wanted).max())


@pytest.mark.usefixtures("whole")
def test_any_factors_fold_exactly(model: Path, tmp_path: Path) -> None:
    """Not only awq's: every place of every family, with random factors."""
    source = Model(ModelFile.open(model))
    count = source.config.n_layers
    rng = np.random.default_rng(0)
    changed = {}
    for index in range(count):
        block = source.block(index, None)
        found = places(block)
        assert len(found) == (2 if "mixtral" in model.name else 4)
        for place in found:
            place.fold(torch.from_numpy(np.exp(rng.standard_normal(place.channels)).astype(np.float32)))
        changed |= {site.name: site.weight for site in block.sites.values() if site.changes}
        changed |= {vector.name: vector.value for vector in block.vectors.values() if vector.changes}
    assert len(changed) >= 8 * count if "mixtral" not in model.name else 5 * count
    file = ModelFile.open(model)
    tensors = [
        (i.name, i.type, i.shape, np.asarray(changed.get(i.name, file.tensor(i.name)))) for i in file.tensors.values()
    ]
    write_gguf(tmp_path / "folded.gguf", file.typed_metadata(), tensors)
    windows = tokens(model)
    assert near(logits(tmp_path / "folded.gguf", windows), logits(model, windows))


@pytest.mark.usefixtures("whole")
def test_awq_leaves_the_model_and_makes_rounding_better(model: Path, tmp_path: Path) -> None:
    made = compress(model, tmp_path / "awq.gguf", Recipe((Awq(powers=6),), SMALL))
    windows = tokens(model)
    wanted = logits(model, windows)
    assert near(logits(made.path, windows), wanted)
    figures = made.steps[0]["figures"]
    before, after = (sum(f[key] for f in figures.values()) for key in ("error_before", "error_after"))
    assert after < 0.9 * before, (before, after)
    assert all(f["error_after"] <= f["error_before"] for f in figures.values())
    errors = []
    for steps in ((Rtn(),), (Awq(powers=6), Rtn())):
        rounded = compress(model, tmp_path / "rounded.gguf", Recipe(steps, SMALL))
        errors.append(float(np.square(logits(rounded.path, windows) - wanted).mean()))
    assert errors[1] < errors[0] * (1.2 if "gemma3" in model.name else 1), errors  # its norms make noise of the errors


def test_what_follows_awq_compares_with_the_scaled_model(tmp_path: Path) -> None:
    """gptq aims at the original's outputs: with the unscaled channels as its inputs it would aim at something else."""
    model = uneven("tiny-llama", tmp_path / "model.gguf")
    windows = tokens(model)
    wanted = logits(model, windows)
    errors = []
    for follow in (False, True):
        recipe = Recipe((Awq(powers=6), Gptq(follow=follow)), SMALL)
        made = compress(model, tmp_path / "out.gguf", recipe)
        errors.append(float(np.square(logits(made.path, windows) - wanted).mean()))
    assert errors[1] < 3 * errors[0], errors  # 25 times with the unscaled channels


def test_awq_leaves_out_what_two_thin_matrices_read(tmp_path: Path, whole: None) -> None:
    model = uneven("tiny-llama", tmp_path / "model.gguf")
    thin = compress(model, tmp_path / "thin.gguf", Recipe((LowRank(share=0.3, multiple=8),), SMALL))
    scaled = compress(thin.path, tmp_path / "scaled.gguf", Recipe((Awq(powers=2),), SMALL))
    windows = tokens(model)
    assert near(logits(scaled.path, windows), logits(thin.path, windows))


def test_awq_tries_no_power_that_makes_numbers_too_large_for_the_type() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    weight[0, 0] = 29.0  # GM3_32 holds no more than 30
    site = Site("blk.0.ffn_up.weight", "F32", Matrix(weight, False), np.empty(0, np.uint8))
    place = Place("ffn_norm", (), (site,), 64, lambda factors: factors)
    size = torch.linspace(10, 0.1, 64)
    factors, before, after = Awq(type="GM3_32").search(place, torch.eye(64), size)
    assert after <= before and float((weight * factors).abs().max()) <= 30
    with pytest.raises(SpecError, match="GM3_32 cannot hold"):
        Awq(type="GM3_32").error(place, size / (size.max() * size.min()).sqrt(), torch.eye(64))


def test_a_dead_channel_and_one_that_is_too_large(tmp_path: Path) -> None:
    model = uneven("tiny-llama", tmp_path / "model.gguf")
    file = ModelFile.open(model)

    def spoilt(name: str, value: float) -> Path:
        tensors = []
        for info in file.tensors.values():
            values = file.tensor(info.name).copy()
            if info.name == "blk.1.attn_norm.weight":
                values[5] = value
            tensors.append((info.name, info.type, info.shape, values))
        write_gguf(tmp_path / name, file.typed_metadata(), tensors)
        return tmp_path / name

    dead = spoilt("dead.gguf", 0.0)
    made = compress(dead, tmp_path / "out.gguf", Recipe((Awq(powers=4), Gptq()), SMALL))
    assert np.isfinite(logits(made.path, tokens(dead))).all()
    broken = spoilt("huge.gguf", 1e38)  # a number, but nothing can be computed with it
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    told = "blk.1.attn_output.weight: its inputs on the calibration text are not finite numbers"
    with pytest.raises(SpecError, match=told):
        compress(broken, tmp_path / "out2.gguf", Recipe((Awq(),), Calibration(windows=2, length=16, text=text)))


@pytest.mark.parametrize("name", QUANTISED)
def test_hqq_lowers_the_norm_and_stores_what_it_found(name: str) -> None:
    rng = np.random.default_rng(0)
    weight = torch.from_numpy((rng.standard_t(3, (24, 256)) * 0.02).astype(np.float32))
    grid = Grid(name, weight, torch.ones(256))
    unit = torch.where(grid.scale == 0, 1.0, grid.scale.abs()).clone()
    goal = weight.T.contiguous()
    codes, before, after = half_quadratic(goal, grid, 0.7, 10)
    stored = quant.dequantize(name, grid.bytes(codes), weight.shape)
    error = ((goal - torch.from_numpy(stored).T).reshape(len(unit), grid.group, -1) / unit[:, None]).abs()
    assert float(error.pow(0.7).mean()) == pytest.approx(after, rel=1e-4)
    coarse = quant.layout(name).units is not None  # scales so far apart that none nearby is better
    assert after <= before and (after < before or coarse or quant.TYPES[name].bits_per_weight > 5.4)
    assert float((codes[..., None] - grid.levels).abs().amin(-1).max()) == 0


def test_hqq_takes_zeros(tmp_path: Path) -> None:
    grid = Grid("Q4_1", torch.zeros(3, 32), torch.ones(32))
    codes, before, after = half_quadratic(torch.zeros(32, 3), grid, 0.5, 3)
    assert before == after == 0 and not quant.dequantize("Q4_1", grid.bytes(codes), (3, 32)).any()


def test_hqq_on_a_model_needs_no_text(tmp_path: Path) -> None:
    model = uneven("tiny-llama", tmp_path / "model.gguf")
    made = compress(model, tmp_path / "out.gguf", Recipe((Hqq(type="Q4_1", turns=5),)))
    figures = made.steps[0]["figures"]
    assert all(f["type"] == "Q4_1" and f["norm_after"] <= f["norm_before"] for f in figures.values())


@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ({"use": "hqq", "norm": 1.0}, "norm=1: use more than 0 and less than 1"),
        ({"use": "hqq", "turns": 0}, "turns=0: use 1 or more"),
        ({"use": "awq", "powers": 0}, "powers=0: use 1 or more"),
        ({"use": "awq", "rows": 0}, "rows=0: use 1 or more"),
        ({"use": "awq", "type": "F16"}, "type=F16: scaling gains nothing"),
        ({"use": "awq", "type": "Q9"}, "tensor type 'Q9' is unknown"),
    ],
)
def test_settings_that_make_no_sense(step: dict[str, object], fault: str) -> None:
    with pytest.raises(SpecError, match=fault):
        Recipe.of({"step": [step]})
