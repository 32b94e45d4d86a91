"""Expected damages against their definition, and against what the engine measures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from genmote.compress import Calibration, Recipe, calibration, compress, solve
from genmote.compress.allocate import Option
from genmote.compress.check import Check
from genmote.compress.expected import DAMPING, Sample, conditional, damage, damages, sample
from genmote.compress.farm import Farm
from genmote.compress.grid import Grid
from genmote.compress.search import written
from genmote.compress.sensitivity import measure
from genmote.compress.steps.rtn import Rtn
from genmote.errors import OpsError, SpecError, UserError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.ops import quant

TYPES = ("F16", "Q8_0", "Q5_0", "Q4_0")


def nothing(*_: object) -> None:
    pass


def job(seed: int = 0, rows: int = 6, cols: int = 64, **more: object) -> tuple[Sample, np.ndarray]:
    """A matrix with correlated inputs (N, cols)."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(500, cols)) @ rng.normal(size=(cols, cols))).astype(np.float32)
    weights, gains = rng.normal(size=(rows, cols)).astype(np.float32), rng.exponential(size=rows).astype(np.float32)
    weighted = x.T @ (x * rng.exponential(size=(len(x), 1)).astype(np.float32)) / len(x)
    return Sample(weights, gains, weighted, x.T @ x / len(x), TYPES, **more), x  # type: ignore[arg-type]


def test_the_damage_is_that_of_the_outputs_errors() -> None:
    """Where a row's gradients are in the same proportions everywhere, the damage is the definition's very sum."""
    rng = np.random.default_rng(1)
    x, error = rng.normal(size=(300, 32)), rng.normal(size=(5, 32)).astype(np.float32)
    shares, strength = rng.exponential(size=5), rng.exponential(size=300)
    squares = strength[:, None] * shares  # (N, out) of g
    weighted = (x.T @ (x * squares.sum(1, keepdims=True)) / 300).astype(np.float32)
    gains = (squares.sum(0) / squares.sum()).astype(np.float32)
    wanted = 0.5 * np.mean([(squares[i] * np.square(error @ x[i])).sum() for i in range(300)])
    assert damage(Sample(error, gains, weighted, weighted, ()), error) == pytest.approx(wanted, rel=1e-4)


def test_an_embedding_pays_for_being_looked_up_too() -> None:
    shown, looked_up = np.arange(6, dtype=np.float32), np.linspace(0, 1, 64, dtype=np.float32)
    plain, _ = job()
    made, _ = job(shown=shown, looked_up=looked_up)
    error = np.random.default_rng(1).normal(size=made.rows.shape).astype(np.float32)
    more = 0.5 * sum(shown[row] * looked_up[i] * error[row, i] ** 2 for row in range(6) for i in range(64))
    assert damage(made, error) - damage(plain, error) == pytest.approx(more, rel=1e-3)


def test_what_is_left_for_a_quantiser_that_compensates_is_by_the_definition() -> None:
    """Each column in turn is given an error, which the columns after it make up for by least squares."""
    made, _ = job(cols=32)
    h = made.hessian.astype(np.float64) + DAMPING * np.mean(np.diag(made.hessian)) * np.eye(32)
    order = np.argsort(-np.diag(made.hessian))
    found = conditional(made.hessian, made.weighted)
    for at, column in enumerate(order):
        later = order[at + 1 :]
        error = np.zeros(32)
        error[column] = 1.0
        if later.size:
            error[later] = -np.linalg.solve(h[np.ix_(later, later)], h[later, column])
        assert found[column] == pytest.approx(error @ made.weighted @ error, rel=1e-3)


def test_the_expected_error_of_gptq_is_what_gptq_leaves() -> None:
    made, _ = job(rows=64, cols=128)
    h = solve.damped(torch.from_numpy(made.hessian), DAMPING)
    goal = torch.from_numpy(made.rows).T.contiguous()
    for number, name in enumerate(("Q8_0", "Q5_0", "Q4_0"), TYPES.index("Q8_0")):
        grid = Grid(name, torch.from_numpy(made.rows), torch.ones(128))
        codes = solve.gptq(goal, h, grid)
        real = damage(made, (solve.values(codes, grid) - goal).T.numpy())
        plain, compensated = damages(made)[number]
        assert 0.7 < compensated / real < 1.4
        assert compensated < 0.7 * plain  # so that the rest says something


def test_fewer_bits_do_more_damage_and_compensation_less() -> None:
    made, _ = job(cols=128)
    found = damages(made)
    assert [plain for plain, _ in found] == sorted(plain for plain, _ in found)
    assert all(0 < compensated < plain for plain, compensated in found)


def test_sampled_rows_stand_for_all() -> None:
    gains = np.random.default_rng(0).exponential(size=5000).astype(np.float32) ** 3
    rows, factors = sample(gains)
    assert len(set(rows.tolist())) == len(rows) == 128
    assert factors.sum() == pytest.approx(5000, rel=1e-3)
    assert (gains[rows] * factors).sum() == pytest.approx(gains.sum(), rel=0.1)


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gemma3", "tiny-olmoe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    make_model(request.param, "F32", path, 1)
    return path


def options(model: Path, folder: Path, types: tuple[str, ...] = TYPES) -> dict[str, list[Option]]:
    windows = calibration.windows(model, ModelFile.open(model).sha256(), Calibration(windows=6, length=64))
    with Farm(workers=1) as farm:
        return measure(model, windows, types, folder, farm, compensated=False, progress=nothing)


def test_expected_divergences_are_those_that_the_engine_measures(model: Path, tmp_path: Path) -> None:
    """Each kind of matrix by itself rounded to Q4_0: expected and measured nats a token, within a factor of 2.5, and
    mostly in the same order."""
    found = options(model, tmp_path / "sensitivity")
    made = compress(model, tmp_path / "q4.gguf", Recipe((Rtn(type="Q4_0", head_type="Q4_0"),)))
    source = ModelFile.open(model)
    text = written(source, Calibration(length=64), 8, nothing)
    check = Check(source, ModelFile.open(made.path), text, 64, tmp_path, nothing)
    kinds = sorted({name.split(".")[2] if name.startswith("blk") else name for name in found})
    expected, measured = [], []
    for kind in kinds:
        names = [name for name in found if kind in name]
        expected.append(sum(option.damage for name in names for option in found[name] if option.what == "Q4_0"))
        measured.append(check.divergence(names))
    ratios = np.array(measured) / np.array(expected)
    told = {kind: (a, b) for kind, a, b in zip(kinds, expected, measured, strict=True)}
    assert np.all((ratios > 0.4) & (ratios < 2.5)), told
    assert np.corrcoef(np.log(expected), np.log(measured))[0, 1] > 0.85, told


def test_options_have_the_bytes_of_the_file_and_keeping_costs_nothing(model: Path, tmp_path: Path) -> None:
    found = options(model, tmp_path)
    tensors = ModelFile.open(model).tensors
    for name, each in found.items():
        assert each[0] == Option("keep", tensors[name].nbytes, 0.0)
        assert [option.bytes for option in each[1:]] == [quant.nbytes(x.what, tensors[name].shape) for x in each[1:]]
        assert [x.what for x in each[1:]] == list(TYPES)
    matrices = {n for n, i in tensors.items() if len(i.shape) > 1 and "gate_inp" not in n}
    assert set(found) == matrices - ({"token_embd.weight"} if "output.weight" in tensors else set())


def test_a_killed_measurement_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Path
) -> None:
    whole = options(llama, tmp_path / "whole")
    tried: list[int] = []
    real: Callable[[Sample], list[tuple[float, float]]] = damages

    def failing(job: Sample) -> list[tuple[float, float]]:
        tried.append(1)
        if len(tried) == 10:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr("genmote.compress.sensitivity.damages", failing)
    with pytest.raises(KeyboardInterrupt):
        options(llama, tmp_path / "cut")
    done = len(list((tmp_path / "cut").glob("damage-*.json")))
    assert done > 0
    again = options(llama, tmp_path / "cut")
    assert again == whole
    count = len(tried)
    assert options(llama, tmp_path / "cut") == whole and len(tried) == count  # nothing is tried again
    assert not list((tmp_path / "cut").glob("states-*"))


def test_a_model_that_computes_no_numbers_is_refused(tmp_path: Path, llama: Path) -> None:
    from genmote.models.gguf_write import write_gguf

    file = ModelFile.open(llama)
    windows = calibration.windows(llama, file.sha256(), Calibration(windows=2, length=16))
    tensors = []
    for info in file.tensors.values():
        raw = file.raw(info.name).copy()
        if info.name == "blk.1.ffn_down.weight":
            raw.view(np.float32)[:] = 3e38  # numbers, but their sums are none
        tensors.append((info.name, info.type, info.shape, raw))
    broken = tmp_path / "broken.gguf"
    write_gguf(broken, file.typed_metadata(), tensors)
    with Farm(workers=1) as farm, pytest.raises(SpecError, match="block 1: .* not finite"):
        measure(broken, windows, TYPES, tmp_path / "s", farm, compensated=False, progress=nothing)


def square(x: int) -> int:
    return x * x


def test_a_farm_of_threads_keeps_the_order() -> None:
    with Farm(workers=2) as farm:
        assert list(farm.map(square, range(20))) == [x * x for x in range(20)]
        assert list(farm.map(square, [3])) == [9]


def test_without_ray_the_message_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        OpsError, match=r"--ray auto needs Ray, which is not installed: run pip install 'genmote\[cluster\]'"
    ):
        Farm("auto")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: no cluster answers there"),
        ("nowhere", "wanted HOST:PORT, ray://HOST:PORT, auto or local"),
        ("host:port", "wanted HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_told(address: str, message: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=message):
        Farm(address)


def test_offline_no_cluster_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("GENMOTE_OFFLINE", "1")
    with pytest.raises(UserError, match="ray wants to reach example.org, but GENMOTE_OFFLINE is set"):
        Farm("ray://example.org:10001")


@pytest.mark.slow
def test_a_farm_of_ray_gives_the_same() -> None:
    """In a process of its own: Ray leaves threads and sockets behind, which this suite takes for faults."""
    pytest.importorskip("ray")
    program = (
        "from genmote.compress.farm import Farm\n"
        "from genmote.cli._output import size\n"
        "with Farm('local') as farm:\n"
        "    print(list(farm.map(size, [5, 2000])))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert ran.stdout.strip().endswith("['5 B', '2.0 kB']"), ran.stderr
