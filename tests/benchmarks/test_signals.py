"""What the signals set feeds its contestants: splits that share nothing, the same data for all, seasons that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import Bench
from benchmarks.process import REPOSITORY, ContestantError
from benchmarks.signals import detect, forecast, generate, labelled, models, sets, unusual
from genmote.generator.evaluate.data import Columns, Recording
from genmote.generator.evaluate.forecast import Window
from genmote.generator.scores import forecast as scores
from genmote.generator.scores import networks
from genmote.signals.kinds import Series

DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside the project")


def test_data_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(sets.NAMED, str(tmp_path))
    with pytest.raises(ContestantError, match="name the folder of data sets in GENMOTE_BENCH_SIGNALS"):
        sets.folder("fitbit")


def test_a_season_is_found_where_it_is_not_told() -> None:
    turn = np.sin(2 * np.pi * np.arange(300) / 37)[:, None].astype(np.float32)
    one = sets.ForecastSet("waves", lambda: ([], []), 200, 10, beats=(20, 60))
    assert one.season_of(turn) == 37
    assert sets.ForecastSet("days", lambda: ([], []), 200, 10, season=24).season_of(turn) == 24


def test_windows_are_what_comes_after_their_history() -> None:
    series = Series("x", np.arange(100, dtype=np.float32)[:, None] ** 2, 1.0, ("a",), ("",))
    one = sets.ForecastSet("squares", lambda: ([], [(series, 50)]), 20, 10, season=1)
    found = one.windows(100)
    assert [window.origin for window in found] == [50, 60, 70, 80, 90]
    for window in found:
        assert len(window.history) == 20 and window.history.values[-1, 0] == (window.origin - 1) ** 2
        assert window.actual[0, 0] == window.origin**2
    assert len(one.windows(3)) == 3


def test_parts_by_time_share_nothing() -> None:
    series = Series("x", np.arange(10, dtype=np.float32)[:, None], 1.0, ("a",), ("",))
    (learnt,), ((whole, first),) = sets.by_time([series], 0.7)
    assert learnt.values[-1, 0] == 6 and whole.values[first, 0] == 7


@pytest.mark.slow
@needs_data
def test_nobody_is_on_both_sides() -> None:
    for load in (sets.steps, sets.motion):
        learnt, judged = load()
        assert not {one.name for one in learnt} & {one.name for one, _ in judged}
    for load in (labelled.activities, labelled.days):
        learnt, judged = load()
        assert not {one.path for one in learnt} & {one.path for one in judged}


@needs_data
def test_normal_is_learnt_alone_and_both_are_judged() -> None:
    learnt, judged = unusual.failures()
    assert {one.whole for one in learnt} == {"normal"}
    assert {one.whole == "normal" for one in judged} == {True, False}
    assert not {one.path for one in learnt} & {one.path for one in judged}


def test_the_peers_are_shown_what_came_before_a_row() -> None:
    series = Series("x", np.arange(6, dtype=np.float32)[:, None], 1.0, ("a",), ("",))
    recording = Recording(REPOSITORY, series, "k", np.array(["n"] * 6, object))
    columns = Columns.fit([recording])
    found = detect.features(unusual.DetectSet(lambda: ([], []), ("n",), back=2), recording, columns)
    whole = columns(series)[:, 0]
    np.testing.assert_array_equal(found[5], whole[3:6])
    np.testing.assert_array_equal(found[0], whole[[0, 0, 0]])
    flat = detect.features(unusual.DetectSet(lambda: ([], []), ("n",), whole=True), recording, columns)
    assert flat.shape == (1, 6)


def test_scores_of_beats_are_said_of_the_rows_about_them() -> None:
    series = Series("x", np.zeros((10, 1), np.float32), 1.0, ("a",), ("",))
    recording = Recording(REPOSITORY, series, "k", np.array(["n"] * 10, object), (2, 6))
    assert detect.by_row(recording, np.array([1.0, 2.0])).tolist() == [1] * 4 + [2] * 6


def test_figures_of_a_perfect_forecast_are_nought() -> None:
    series = Series("x", np.arange(30, dtype=np.float32)[:, None], 1.0, ("a",), ("",))
    window = Window("x", 20, series.part(0, 20), series.values[20:25], scores.seasonal_scale(series.values[:20], 1))
    right = np.repeat(window.actual[None].astype(float), 9, axis=0)
    found = forecast.figures([window], {"ours": [right], "off": [right + 2]})
    assert found["ours"]["mase"] == 0 and found["off"]["mase"] == 2 and found["off"]["crps"] == pytest.approx(2)


def test_a_copy_is_told_by_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "GRU_STEPS", 5)
    draw = np.random.default_rng(0)
    real, held = (draw.standard_normal((60, 12, 1)).astype(np.float32) for _ in range(2))
    labels = np.array(["a", "b"] * 30)
    sides = [generate.Side(each, labels) for each in (real, held, real.copy())]
    given = generate.figures(*sides, of_real=50.0, seed=0)
    assert given["nearest"] > 95 and given["behind"] == pytest.approx(50 - given["accuracy"])


def test_a_model_is_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "KEPT", tmp_path)
    draw = np.random.default_rng(0)
    waves = [Series(f"w{n}", draw.standard_normal((200, 1)).astype(np.float32), 1.0, ("a",), ("",)) for n in range(3)]
    training = {"size": "tiny", "context": 64, "steps": 2, "bins": 8, "batch": 128}
    first = models.trained(Bench(quick=True), "noise", waves, training, 0)
    assert first.path is not None
    written = first.path.stat().st_mtime_ns
    assert models.trained(Bench(quick=True), "noise", waves, training, 0).path.stat().st_mtime_ns == written  # type: ignore[union-attr]
    assert models.trained(Bench(quick=True), "noise", waves, training, 1).path != first.path
    assert models.trained(Bench(quick=True), "noise", waves[:2], training, 0).path != first.path


def test_the_peers_need_nothing_of_ours() -> None:
    said = [node.module for node in ast.walk(ast.parse(models.OTHERS.read_text())) if isinstance(node, ast.ImportFrom)]
    assert said and not any(str(name).startswith(("genmote", "benchmarks")) for name in said)
