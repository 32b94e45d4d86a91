"""Stretches that are told by a scale of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import ModelFileError, SignalError
from genmote.generator.model import Generator
from genmote.generator.scale import Scale, pieces
from genmote.generator.train import train
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.signals.kinds import Series
from tests.generator.conftest import SETTINGS, doors, wave, waves

VALUES = np.array([[0.0, 5.0], [2.0, 5.0], [np.nan, 5.0], [4.0, 5.0]], np.float32)


def test_a_scale_is_what_it_says() -> None:
    size, level = Scale.of(VALUES, "size"), Scale.of(VALUES, "level")
    assert size.middle.tolist() == [0, 0] and size.spread.tolist() == [2, 5]
    assert level.middle.tolist() == [2, 5] and level.spread[0] == pytest.approx(np.std([0, 2, 4]))
    assert level.spread[1] == 1  # which never changes


@pytest.mark.parametrize("own", ["none", "size", "level"])
def test_what_is_told_comes_back(own: str) -> None:
    draw = np.random.default_rng(0)
    for values in (VALUES, 1e6 + draw.standard_normal((50, 2)).astype(np.float32), np.full((3, 2), np.nan, np.float32)):
        series = Series("x", values, 1.0, ("a", "b"), ("", ""))
        scale = Scale.of(values, own)  # type: ignore[arg-type]
        np.testing.assert_allclose(scale.back(scale.told(series).values), values, rtol=1e-6, atol=1e-6)


def test_zero_stays_zero_by_size() -> None:
    series = Series("x", VALUES, 1.0, ("a", "b"), ("", ""))
    assert Scale.of(VALUES, "size").told(series).values[0, 0] == 0


def test_records_have_no_scale() -> None:
    with pytest.raises(SignalError, match="door-0: is no series, and only those have a scale: train without --scale"):
        pieces([doors(0)], 100, "size")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learnt from waves of many sizes and heights."""
    path = tmp_path_factory.mktemp("scale") / "sizes.gguf"
    signals = [larger(one, 3.0 ** (n % 5), 10.0 * n) for n, one in enumerate(waves())]
    train(signals, path, replace(SETTINGS, scale="level"))
    return path


def larger(series: Series, size: float, height: float) -> Series:
    return replace(series, values=(series.values * size + height).astype(np.float32))


def test_chance_is_told_in_the_same_terms(tmp_path: Path) -> None:
    """Recordings that are alike but for a jump of size in the middle: each stretch by its own scale, and so are those
    that the model is compared with."""
    signals = []
    for seed in range(12):
        low, high = wave(seed, 200), larger(wave(seed + 50, 200), 1e4, 0.0)
        signals.append(replace(low, values=np.concatenate([low.values, high.values])))
    card = train(signals, tmp_path / "m.gguf", replace(SETTINGS, scale="level", steps=1, context=128))
    even = train(waves(12), tmp_path / "e.gguf", replace(SETTINGS, scale="level", steps=1, context=128))
    assert card["chance_nats"] == pytest.approx(even["chance_nats"], abs=0.3)


def test_a_size_that_was_never_seen_is_forecast(path: Path) -> None:
    model = Generator.load(path, threads=1)
    whole = larger(wave(900, 120), 5000.0, -1e5)
    history, actual = whole.part(0, 80), whole.values[80:90]
    found = model.forecast(history, 10, paths=16, seed=1)
    off = np.abs(found.series.values - actual).mean()
    assert off < 0.4 * np.abs(history.values[-1] - actual).mean()


def test_a_gap_in_a_size_that_was_never_seen_is_filled(path: Path) -> None:
    model = Generator.load(path, threads=1)
    whole = larger(wave(901, 90), 5000.0, -1e5)
    values = whole.values.copy()
    values[40:48] = np.nan
    found = model.impute(replace(whole, values=values), paths=8, seed=1)
    np.testing.assert_array_equal(found.series.values[:40], whole.values[:40])
    off = np.abs(found.series.values[40:48] - whole.values[40:48]).mean()
    assert off < 0.4 * np.abs(whole.values[39] - whole.values[40:48]).mean()


def test_what_goes_on_keeps_the_scale_of_what_was_told(path: Path) -> None:
    model = Generator.load(path, threads=1)
    prefix = larger(wave(902, 60), 5000.0, -1e5)
    (made,) = model.generate(1, steps=20, prefix=prefix, seed=1)
    assert isinstance(made, Series) and np.abs(made.values + 1e5).max() < 15000


def test_what_needs_a_size_of_its_own_is_refused(path: Path) -> None:
    model = Generator.load(path, threads=1)
    with pytest.raises(SignalError, match="tells all by the scale of what came before: give a prefix"):
        model.generate(1, steps=20)
    with pytest.raises(SignalError, match="to score samples, train without --scale"):
        model.scores(wave(1))


def test_a_scale_that_is_not_known(path: Path, tmp_path: Path) -> None:
    file = ModelFile.open(path)
    tensors = [(name, "F32", each.shape, file.tensor(name)) for name, each in file.tensors.items()]
    write_gguf(tmp_path / "odd.gguf", {**file.typed_metadata(), "genmote.generator.scale": "wide"}, tensors)
    with pytest.raises(ModelFileError, match="scale is 'wide', this genmote knows none, size, level"):
        Generator.load(tmp_path / "odd.gguf")
