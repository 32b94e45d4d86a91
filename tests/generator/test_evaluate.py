"""The five evaluations, with models of which it is known what they must get."""

from __future__ import annotations

import csv
import wave
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.generator.evaluate import compress, data, detect, forecast, generate, impute
from genmote.generator.windows import held_out
from genmote.signals.kinds import Field, Frames, Grid, Mark, Records, Series, Signal

from .standin import Bootstrap, Fresh


def table(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def recording(
    values: np.ndarray, labels: Sequence[str] | None = None, name: str = "a", **more: object
) -> data.Recording:
    channels = tuple(f"c{n}" for n in range(values.shape[1]))
    series = Series(name, values.astype(np.float32), 10.0, channels, ("V",) * len(channels))
    rows = None if labels is None else np.array(list(labels), object)
    return data.Recording(Path(f"{name}.csv"), series, "state", rows, **more)  # type: ignore[arg-type]


def noise(count: int, seed: int, phi: float = 0.6, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, channels))
    for n in range(1, count):
        drawn[n] = phi * drawn[n - 1] + (1 - phi**2) ** 0.5 * drawn[n]
    return drawn


# Recordings


def test_a_label_column_and_what_is_dropped_are_not_shown(tmp_path: Path) -> None:
    rows = [[n, n * 0.5, n % 7, int(n > 5)] for n in range(20)]
    path = table(tmp_path / "a.csv", ["time (s)", "x (V)", "secret", "attack"], rows)
    (one,) = data.load([path], label="attack", drop=["secret"])
    assert isinstance(one.signal, Series) and one.signal.channels == ("x",)
    assert one.signal.grid is not None and one.signal.grid.integers.shape == (20, 1)
    assert one.rows is not None and one.rows.tolist() == ["0"] * 6 + ["1"] * 14 and one.whole is None
    rows = [[n, "ab"[n % 2], n, "ok"] for n in range(20)]
    path = table(tmp_path / "b.csv", ["time (s)", "word", "x", "state"], rows)
    (one,) = data.load([path], label="state", drop=["word"])
    assert isinstance(one.signal, Records) and [f.name for f in one.signal.fields] == ["x"] and one.whole == "ok"
    assert forecast.as_series(one).values[:, 0].tolist() == list(range(20)), "numbers alone are a series"
    (one,) = data.load([path])
    with pytest.raises(SignalError, match="b.csv: word, state are no numbers; leave them out with --drop"):
        forecast.as_series(one)


def test_marks_say_something_of_rows() -> None:
    beats = (Mark(2, 3, "N"), Mark(6, 7, "V"), Mark(0, 10, "(N"))
    series = Series("ecg", np.zeros((10, 1), np.float32), 100.0, ("I",), ("mV",), marks=beats)
    one = data.prepared(series, Path("ecg.hea"), None, ())
    assert one.rows is not None and one.rows.tolist() == ["N"] * 4 + ["V"] * 6 and one.points == (2, 6)
    assert isinstance(one.signal, Series) and one.signal.marks == (), "the model is not shown them"
    spans = Series("s", np.zeros((5, 1), np.float32), 1.0, ("x",), ("",), marks=(Mark(1, 4, "walk"),))
    one = data.prepared(spans, Path("s.csv"), None, ())
    assert one.rows is not None and one.rows.tolist() == ["", "walk", "walk", "walk", ""] and one.points == ()


def test_the_only_label_of_a_recording_is_its_label() -> None:
    series = Series("s", np.zeros((3, 1), np.float32), 1.0, ("x",), ("",), labels={"fault": "jam", "modality": "force"})
    one = data.prepared(series, Path("s"), None, ())
    assert (one.key, one.whole, one.signal.labels) == ("fault", "jam", {"modality": "force"})
    two = Series("s", np.zeros((3, 1), np.float32), 1.0, ("x",), ("",), labels={"a": "1", "b": "2"})
    assert data.prepared(two, Path("s"), None, ()).rows is None
    assert data.prepared(two, Path("s"), "b", ()).whole == "2"


def test_what_cannot_be_judged_is_told(tmp_path: Path) -> None:
    series = Series("s", np.zeros((3, 1), np.float32), 1.0, ("x",), ("",), labels={"a": "1", "b": "2"})
    with pytest.raises(SignalError, match="s: has no label 'c': it has x, a, b"):
        data.prepared(series, Path("s"), "c", ())
    with pytest.raises(SignalError, match="s: has no 'y' to leave out with --drop: it has x"):
        data.prepared(series, Path("s"), None, ["y"])
    with pytest.raises(SignalError, match="s: nothing is left without x; leave out less"):
        data.prepared(series, Path("s"), None, ["x"])
    frames = Frames("f", "points", [np.zeros((1, 2))], ("x", "y"), ("m", "m"))
    with pytest.raises(SignalError, match="f.bin: holds frames; series and records are judged so far"):
        data.prepared(frames, Path("f.bin"), None, ())
    with pytest.raises(SignalError, match="holds no signal; name files of recordings, or their folders"):
        data.load([tmp_path])
    a = table(tmp_path / "a.csv", ["time (s)", "x"], [[n, n] for n in range(9)])
    b = table(tmp_path / "b.csv", ["time (s)", "y"], [[n, n] for n in range(9)])
    with pytest.raises(SignalError, match="b.csv: has channels y, a.csv has channels x; wanted recordings of one kind"):
        data.load([a, b])
    with pytest.raises(SignalError, match="b.csv: has channels y, a.csv of --train has channels x"):
        data.together(data.load([a]), data.load([b]))
    c = tmp_path / "c.csv"
    c.write_bytes(a.read_bytes())
    with pytest.raises(SignalError, match="c.csv: is a.csv of --train once more; wanted recordings"):
        data.together(data.load([a]), data.load([c]))
    c.write_text(c.read_text().replace("8", "9"))  # as long, but another one
    data.together(data.load([a]), data.load([c]))
    with pytest.raises(SignalError, match="a.csv: is in --train and in --test"):
        data.together(data.load([a]), data.load([a]))


def test_a_folder_is_all_that_a_reader_knows_each_recording_once(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", ["time (s)", "x (mV)"], [[n, n] for n in range(9)])
    (tmp_path / "picture.bin").write_bytes(bytes(range(256)))
    (tmp_path / "r.hea").write_text("r 1 1 9\nr.dat 16 1/mV 16 0 0 0 0 x\n")
    (tmp_path / "r.dat").write_bytes(np.arange(9, dtype="<i2").tobytes())
    notes: list[str] = []
    (tmp_path / "s.hea").write_text("s 1 1 9\ns.dat 16 1/mV 16 0 0 0 0 x\n")
    found = data.load([tmp_path], notes=notes)
    assert f"left out: {tmp_path / 's.hea'}: its samples s.dat are absent: wanted them beside it" in notes
    with pytest.raises(SignalError, match="its samples s.dat are absent"):
        data.load([tmp_path / "s.hea"])
    assert [one.path.name for one in found] == ["a.csv", "r.hea"]
    assert f"{tmp_path}: 1 files that no reader knows are left out" in notes


def test_rows_as_numbers() -> None:
    values = np.array([[1.0, 5], [3, 5], [np.nan, 5]])
    columns = data.Columns.fit([recording(values)])
    assert columns(recording(values).signal).tolist() == [[-1, 0], [1, 0], [1, 0]], "a gap is what was before"
    fields = (Field("n", "number"), Field("w", "category"), Field("t", "text"))
    cells = tuple(np.array(column, object) for column in (["a", "b", "a"], ["x", "y", None]))
    records = Records("r", fields, (np.array([0.0, 0, 1e6]), *cells))
    columns = data.Columns.fit([data.Recording(Path("r"), records)])
    assert columns.names == ("n", "w a", "w b")
    found = columns(records)
    assert found.shape == (3, 3) and found.mean(axis=0) == pytest.approx(0, abs=1e-6)
    assert found.std(axis=0) == pytest.approx(1) and found[0, 1] == found[2, 1] > 0 > found[1, 1]


# Generation


def labelled_recordings(seed: int, count: int = 3) -> list[data.Recording]:
    """Each changes between a quick and a slow state."""
    found = []
    for n in range(count):
        parts = [noise(320, 100 * seed + 10 * n + k, phi) for k, phi in enumerate((0.2, 0.85))]
        found.append(recording(np.concatenate(parts), ["quick"] * 320 + ["slow"] * 320, f"r{seed}{n}"))
    return found


def test_generation_by_copies() -> None:
    """Useful, alike, and leaking."""
    train, test = labelled_recordings(1), labelled_recordings(2)
    seen: list[Signal] = []

    def make(signals: Sequence[Signal], labels: tuple[str, ...] = ()) -> Bootstrap:
        seen.extend(signals)
        assert labels == ("state",)
        return Bootstrap(signals, labels)

    told: list[str] = []
    result = generate.evaluate(train, test, make, steps=32, networks=False, notes=told)
    assert len(seen) == 60 and {s.labels["state"] for s in seen} == {"quick", "slow"}
    values = result.values
    assert values["windows"] == {"train": 60, "test": 60, "synthetic": 60} and not told
    useful = values["trained_on"]
    assert useful["real"]["accuracy"] > 0.95 and abs(useful["behind_points"]) < 6
    leaks = values["leakage"]
    assert leaks["synthetic_to_train"] == 0 and leaks["closer_to_train"] == 1
    # A bootstrap copies about 63% of the windows.
    assert leaks["membership_nearest"] == pytest.approx(0.5 + 0.63 / 2, abs=0.08)
    assert leaks["membership_nearest_by_chance"] == pytest.approx(0.5, abs=0.12)
    assert leaks["membership_likelihood"] == 1.0
    assert values["autocorrelation"]["train"] < 0.1 and values["discriminative"] is None
    assert [item["what"] for item in result.items].count("synthetic") == 60
    item = next(item for item in result.items if item["what"] == "test")
    assert {"by_real", "by_synthetic", "label", "nats", "to_synthetic", "start", "recording"} <= set(item)
    assert len(result.panels) == 2


@pytest.mark.parametrize("whole", [False, True], ids=["windows", "recordings"])
def test_members_are_what_training_did_not_hold_out(whole: bool) -> None:
    """A model that knows all that training learns from, and nothing of what training judges itself by."""

    def make(signals: Sequence[Signal], labels: tuple[str, ...] = ()) -> Bootstrap:
        return Bootstrap(held_out(signals, 3)[0], labels)

    sides = [labelled_recordings(seed, 10) for seed in (1, 5)]
    if whole:
        sides = [[replace(one, key="", rows=None) for one in side] for side in sides]
    values = generate.evaluate(*sides, make, steps=32, networks=False, seed=3).values
    assert values["leakage"]["membership_likelihood"] == 1.0


@pytest.mark.slow
def test_generation_that_is_fresh_leaks_nothing() -> None:
    train, test, other = (labelled_recordings(seed, 10) for seed in (1, 2, 3))
    source = [window.signal for window in generate.windows(other, 32, 999, 0, [])]

    def make(signals: Sequence[Signal], labels: tuple[str, ...] = ()) -> Fresh:
        return Fresh(signals, labels, source)

    leaks = generate.evaluate(train, test, make, steps=32, networks=False).values["leakage"]
    assert leaks["membership_nearest"] == pytest.approx(0.5, abs=0.08)
    assert leaks["closer_to_train"] == pytest.approx(0.5, abs=0.15) and leaks["synthetic_to_train"] > 0.3


def test_generation_with_shuffled_labels_is_useless() -> None:
    class Shuffled(Bootstrap):
        def generate(self, count: int = 1, *, labels: object = None, **more: object) -> list[Signal]:
            other = {"state": "slow" if labels == {"state": "quick"} else "quick"}
            return super().generate(count, labels=other, **more)  # type: ignore[arg-type]

    result = generate.evaluate(labelled_recordings(1), labelled_recordings(2), Shuffled, steps=32, networks=False)
    assert result.values["trained_on"]["synthetic"]["accuracy"] < 0.1
    assert result.values["trained_on"]["behind_points"] > 85


def test_windows_made_by_anything_are_judged() -> None:
    train, test = labelled_recordings(1), labelled_recordings(2)
    known, unseen = (generate.windows(side, 32, 99, 0, []) for side in (train, test))
    columns = data.Columns.fit(train)
    made, labels = generate.stacked(known, columns), np.array([window.label for window in known], object)
    values = generate.judge(known, unseen, made, labels, columns, networks=False).values
    assert values["trained_on"]["behind_points"] == 0 and values["autocorrelation"]["train"] == 0
    assert values["leakage"]["membership_nearest"] == 1 and values["leakage"]["membership_likelihood"] is None
    told: list[str] = []
    generate.judge(known, unseen, made, np.full(len(made), "", object), columns, networks=False, notes=told)
    assert told == ["generated windows have no label: train on synthetic, test on real is left out"]


@pytest.mark.slow
def test_rows_that_stand_for_themselves() -> None:
    fields = (Field("n", "number"), Field("w", "category"))

    def side(seed: int) -> list[data.Recording]:
        rng = np.random.default_rng(seed)
        rows = np.array(rng.choice(["ok", "dos"], 300).tolist(), object)
        bytes_ = np.round(np.exp(rng.normal(np.where(rows == "ok", 4, 8), 1)))
        words = np.array([rng.choice(["tcp", "udp"] if row == "ok" else ["tcp"]) for row in rows], object)
        return [data.Recording(Path(f"{seed}.csv"), Records("r", fields, (bytes_, words)), "class", rows)]

    result = generate.evaluate(side(0), side(1), Bootstrap, steps=1, networks=False)
    assert result.values["trained_on"]["real"]["accuracy"] > 0.9 and result.values["trained_on"]["behind_points"] < 5
    assert result.values["autocorrelation"] is None and result.values["discriminative_rocket"]["train"] < 0.15


def test_generation_without_labels_or_with_short_signals_tells_so() -> None:
    class Short(Bootstrap):
        def generate(self, count: int = 1, *, steps: int | None = None, **more: object) -> list[Signal]:
            return [s.part(0, 20) for s in super().generate(count, steps=steps, **more)]  # type: ignore[arg-type]

    train, test = ([recording(noise(800, n))] for n in (0, 1))
    told: list[str] = []
    result = generate.evaluate(train, test, Short, steps=32, networks=False, notes=told)
    assert "25 of 25 generated signals are shorter than 32 rows; their last row stays" in told
    assert any("train on synthetic, test on real is left out" in line for line in told)
    assert "trained_on" not in result.values and result.values["short"] == 25


def test_a_model_with_the_label_as_a_column_is_read_by_it() -> None:
    values = np.concatenate([noise(400, 1), np.repeat([[0.0], [1.0]], 200, axis=0)], axis=1)
    both = Series("s", values.astype(np.float32), 10.0, ("c0", "state"), ("V", ""))
    one = data.prepared(both, Path("s.csv"), "state", ())
    model = Bootstrap([both])
    known = generate.windows([one], 20, 99, 0, [])
    columns = data.Columns.fit([one])
    made, labels, _ = generate.generated(model, known, "state", columns, 20, 0, one, lambda *step: None)
    assert made.shape == (20, 20, 1) and set(labels) == {"0", "1"}
    other = Bootstrap([Series("s", values[:, :1].astype(np.float32), 10.0, ("other",), ("V",))])
    with pytest.raises(SignalError, match="the model generates other; wanted c0 as in --train"):
        generate.generated(other, known, "", columns, 20, 0, one, lambda *step: None)


def test_too_few_windows_are_told() -> None:
    with pytest.raises(SignalError, match="--train: has 3 windows of 32 rows, wanted at least 20"):
        generate.evaluate([recording(noise(100, 0))], [recording(noise(800, 1))], Bootstrap, steps=32)


def test_windows_about_beats() -> None:
    one = recording(noise(100, 0), ["N"] * 50 + ["V"] * 50, points=(3, 40, 60, 98))
    found = generate.windows([one], 20, 99, 0, [])
    assert [(w.start, w.label) for w in found] == [(30, "N"), (50, "V")]
    assert all(w.signal.labels == {"state": w.label} and len(w.signal) == 20 for w in found)


def test_windows_are_drawn_and_what_is_left_out_is_told() -> None:
    told: list[str] = []
    one = recording(noise(200, 0), [""] * 40 + ["a"] * 160)
    found = generate.windows([one, recording(noise(5, 0), ["a"] * 5)], 20, 6, 0, told)
    assert len(found) == 6 and told == [
        "1 recordings are shorter than 20 rows: left out",
        "2 windows without a label are left out",
        "6 of 8 windows are drawn",
    ]


# Forecasts


def test_origins_roll_and_no_forecast_sees_what_comes() -> None:
    one = recording(np.arange(100.0)[:, None])
    found = forecast.windows([one], context=20, horizon=10, stride=15, season=1, most=99)
    assert [w.origin for w in found] == [20, 35, 50, 65, 80]
    for w in found:
        assert w.history.values[:, 0].tolist() == list(range(w.origin - 20, w.origin))
        assert w.actual[:, 0].tolist() == list(range(w.origin, w.origin + 10)) and w.scale.tolist() == [1]
    assert len(forecast.windows([one], context=20, horizon=10, stride=1, season=1, most=7)) == 7
    with pytest.raises(SignalError, match="the longest recording has 100 rows, wanted at least 110"):
        forecast.windows([one], context=100, horizon=10, stride=1, season=1, most=7)


def test_a_forecast_of_what_comes_is_perfect_and_the_naive_one_is_what_its_definition_gives() -> None:
    values = np.cumsum(noise(400, 0, 0.0, channels=2), axis=0) + 50
    values[210] = np.nan
    chosen = forecast.windows([recording(values)], context=30, horizon=8, stride=8, season=2, most=99)
    by_end = {w.origin: w.actual for w in chosen}

    def oracle(history: Series, steps: int) -> np.ndarray:
        at = next(w.origin for w in chosen if w.history is history)
        return np.repeat(np.nan_to_num(by_end[at])[None], 9, axis=0)

    result = forecast.judge(chosen, {"oracle": oracle, "naive": forecast.naive(2)})
    perfect, plain = result.values["sides"]["oracle"], result.values["sides"]["naive"]
    assert (perfect["mase"], perfect["crps"], perfect["crps_scaled"], perfect["coverage"]) == (0, 0, 0, 1)
    off, losses, sizes = [], [], []
    for w in chosen:
        quantiles = forecast.naive(2)(w.history, 8)
        for step in range(8):
            for channel in range(2):
                actual = float(w.actual[step, channel])
                if np.isfinite(actual):
                    off.append(abs(actual - quantiles[4, step, channel]) / w.scale[channel])
                    tau = np.arange(1, 10) / 10
                    gap = actual - quantiles[:, step, channel]
                    losses.append((channel, np.mean(2 * np.where(gap >= 0, tau * gap, (tau - 1) * gap))))
                    sizes.append((channel, abs(actual)))
    assert plain["mase"] == pytest.approx(np.mean(off))
    relative = [np.mean([x for c, x in losses if c == n]) / np.mean([x for c, x in sizes if c == n]) for n in range(2)]
    assert plain["crps"] == pytest.approx(np.mean(relative))
    assert plain["channels"]["c1"]["crps"] == pytest.approx(np.mean([x for c, x in losses if c == 1]))
    assert 0.6 < plain["coverage"] < 1 and result.values["unscaled"] == 0
    still = forecast.windows([recording(np.ones((60, 1)))], context=30, horizon=8, stride=8, season=1, most=9)
    flat = forecast.judge(still, {"naive": forecast.naive(1)})
    assert flat.values["unscaled"] == len(still) and np.isnan(flat.values["sides"]["naive"]["mase"])
    assert (
        len(result.items) == len(chosen) and result.items[0]["naive"]["mase"] > 0 == result.items[0]["oracle"]["mase"]
    )
    assert [panel.band is not None for panel in result.panels] == [True, True]
    with pytest.raises(SignalError, match=r"naive: gave \(9, 3, 2\), wanted \(9, 8, 2\)"):
        forecast.judge(chosen, {"naive": lambda history, steps: np.zeros((9, 3, 2))})


def test_a_model_forecasts_by_the_quantiles_of_its_paths() -> None:
    train, test = ([recording(np.cumsum(noise(600, n, 0.0), axis=0), name=f"r{n}")] for n in (0, 1))
    result = forecast.evaluate(train, test, Bootstrap, context=40, horizon=10, most=20, paths=200)
    sides = result.values["sides"]
    assert result.values["windows"] == 20 and result.values["stride"] == 10
    assert sides["model"]["coverage"] == pytest.approx(0.8, abs=0.12)
    assert sides["model"]["mase"] == pytest.approx(sides[forecast.NAIVE]["mase"], rel=0.15), "both go on from the last"


# Gaps


def test_gaps_are_taken_out_and_judged() -> None:
    walk = np.cumsum(noise(600, 0, 0.0, channels=2), axis=0)
    train, test = [recording(walk)], [recording(walk[::-1].copy(), name="b")]
    chosen = impute.gaps(test, (4, 10), context=50, most=99, seed=3)
    assert len(chosen) == 24
    for gap in chosen:
        values = gap.series.values
        assert np.isnan(values[gap.missing]).all() and np.isfinite(np.delete(values, gap.missing, axis=0)).all()
        assert (np.delete(values, gap.missing, axis=0) == np.delete(gap.actual, gap.missing, axis=0)).all()
        assert gap.missing.start >= 12 and gap.missing.stop <= 38
        assert (gap.actual == test[0].signal.values[gap.begin : gap.begin + 50]).all()  # type: ignore[union-attr]
    again = impute.gaps(test, (4, 10), context=50, most=99, seed=3)
    assert [g.missing for g in again] == [g.missing for g in chosen]
    result = impute.evaluate(train, test, Bootstrap, lengths=(4, 10), context=50, seed=3)
    by_length = result.values["by_length"]
    assert by_length["4"]["model"]["mae_scaled"] == pytest.approx(by_length["4"]["linear"]["mae_scaled"], rel=1e-5)
    assert by_length["4"]["linear"]["mae_scaled"] < by_length["10"]["linear"]["mae_scaled"]
    assert by_length["10"]["linear"]["mae_scaled"] < by_length["10"]["last value"]["mae_scaled"], "of a random walk"
    plain = []
    for gap in chosen[12:]:
        start, stop = gap.missing.start, gap.missing.stop
        line = np.linspace(gap.actual[start - 1, 0], gap.actual[stop, 0], 12)[1:11]
        plain.append(np.abs(line - gap.actual[start:stop, 0]))
    assert by_length["10"]["linear"]["channels"]["c0"] == pytest.approx(np.mean(plain), rel=1e-4)
    assert len(result.items) == 24 and len(result.panels) == 3


def test_gaps_that_do_not_fit_are_told() -> None:
    one = [recording(noise(30, 0))]
    with pytest.raises(SignalError, match="the longest recording has 30 rows, wanted 40; use a smaller --context"):
        impute.gaps(one, (4,), context=40, most=9, seed=0)
    with pytest.raises(SignalError, match="a gap of 11 rows in 20: use at most half, or a larger --context"):
        impute.gaps(one, (4, 11), context=20, most=9, seed=0)
    with pytest.raises(SignalError, match=r"poor: gave \(3, 1\), wanted \(20, 1\)"):
        impute.judge(
            impute.gaps(one, (4,), context=20, most=9, seed=0), {"poor": lambda s: np.zeros((3, 1))}, np.ones(1)
        )


def test_what_is_missing_is_missing_in_the_grid_too() -> None:
    integers = np.arange(6)[:, None]
    grid = Grid(integers, np.ones(1), np.zeros(1))
    series = Series("s", grid.values(), 1.0, ("x",), ("",), grid=grid)
    holed = impute.without(series, 2, 4)
    assert holed.grid is not None
    assert (np.isnan(holed.grid.values()) == np.isnan(holed.values)).all() and np.isnan(holed.values).sum() == 2
    assert series.grid is not None and (series.grid.integers == integers).all()


# Detection


def test_detection_of_rows() -> None:
    def one(seed: int, unusual: slice, name: str) -> data.Recording:
        values = noise(400, seed)
        labels = np.full(400, "0", object)
        values[unusual] += 9
        labels[unusual] = "1"
        return recording(values, labels.tolist(), name)

    shown: list[Signal] = []

    def make(signals: Sequence[Signal], labels: tuple[str, ...] = ()) -> Bootstrap:
        shown.extend(signals)
        return Bootstrap(signals)

    train, test = [one(0, slice(100, 150), "a")], [one(1, slice(200, 260), "b")]
    result = detect.evaluate(train, test, make)
    assert max(float(np.abs(s.values).max()) for s in shown if isinstance(s, Series)) < 6, "no attack is learnt from"
    assert sum(map(len, shown)) == 90 + 225, "a tenth is kept back"
    values = result.values
    assert (values["judged"], values["items"], values["unusual"], values["normal"]) == ("row", 400, 60, ["0"])
    for side in ("model", detect.Z_DISTANCE):
        assert values["sides"][side]["auroc"] > 0.99 and values["sides"][side]["recall"] > 0.95
    assert values["kept_back"] == 10 + 25
    assert [item["unusual"] for item in result.items] == [200 <= n < 260 for n in range(400)]
    (shades,) = {tuple(panel.shades) for panel in result.panels}
    assert shades == ((200.0, 260.0),)


def test_a_detector_that_guesses_is_told_to() -> None:
    rng = np.random.default_rng(0)
    test = [recording(noise(2000, 0), rng.choice(["0", "1"], 2000).tolist())]
    kept = [recording(noise(500, 1), ["0"] * 500)]
    result = detect.judge(test, kept, {"dice": lambda s: rng.random(len(s))}, ["0"], quantile=0.9)
    found = result.values["sides"]["dice"]
    assert found["auroc"] == pytest.approx(0.5, abs=0.04) and found["auprc"] == pytest.approx(0.5, abs=0.05)
    assert found["threshold"] == pytest.approx(0.9, abs=0.04) and found["recall"] == pytest.approx(0.1, abs=0.04)


def test_detection_of_marks_and_recordings_takes_means() -> None:
    beats = recording(noise(90, 0), ["N"] * 30 + ["V"] * 30 + ["~"] * 30, points=(15, 45, 75))
    rows = np.arange(90.0)
    found = detect.items(beats, whole=False, ignored=["~"])
    assert found.labels.tolist() == ["N", "V"] and found.scores(rows).tolist() == [14.5, 44.5]
    whole = [recording(np.full((20, 1), k), ["ok" if k < 4 else "jam"] * 20, f"r{k}") for k in range(6)]
    result = detect.judge(whole, whole[:4], {"value": lambda s: s.values[:, 0]}, ["ok"])  # type: ignore[union-attr]
    assert result.values["judged"] == "recording" and result.values["sides"]["value"]["auroc"] == 1
    assert [item["value"] for item in result.items] == [0, 1, 2, 3, 4, 5]
    assert detect.smoothed(np.array([4.0, 0, 2, 6]), 2).tolist() == [4, 2, 1, 4]


def test_normal_rows_of_records_are_chosen_row_by_row() -> None:
    fields = (Field("n", "number"),)
    records = Records("r", fields, (np.arange(10.0),), times_s=np.arange(10.0))
    rows = np.array(["ok", "dos"] * 5, object)
    (one,) = detect.clean([data.Recording(Path("r"), records, "class", rows)], ["ok"])
    assert isinstance(one.signal, Records) and one.signal.columns[0].tolist() == [0, 2, 4, 6, 8]
    assert one.signal.times_s is not None and one.signal.times_s.tolist() == [0, 2, 4, 6, 8]
    test = data.Recording(Path("t"), records, "class", rows)
    many = [data.Recording(Path(str(n)), records, "class", rows) for n in range(20)]
    told: list[str] = []
    result = detect.evaluate(many, [test], partial(Bootstrap), notes=told)
    assert result.values["sides"]["model"]["auroc"] == 1.0 and result.values["kept_back"] == 10
    assert told == ["only 10 normal items were kept back to set the threshold by: precision, recall and f1 say little"]


def test_what_is_normal_must_be_there() -> None:
    train = [recording(noise(100, 0), ["a"] * 60 + ["b"] * 40)]
    assert detect.normal_of(train, ()) == ["a"]
    assert detect.normal_of([recording(noise(3, 0), ["dos", "dos", "Normal"])], ()) == ["Normal"]
    assert detect.normal_of([recording(noise(5, 0), ["0", "n", "n", "x", "x"])], ()) == ["n"], "which word is not told"
    with pytest.raises(SignalError, match="normal='c': no row of --train is so; there are a, b"):
        detect.normal_of(train, ["c"])
    with pytest.raises(SignalError, match="--train: has no label, by which what is normal could be told"):
        detect.normal_of([recording(noise(9, 0))], ())
    mixed = [recording(noise(100, 0), ["a", "b"] * 50)]
    with pytest.raises(SignalError, match=r"--train: has no stretch of 32 normal rows \(a\)"):
        detect.clean(mixed, ["a"])
    with pytest.raises(SignalError, match="--test: has no label, by which what is unusual could be told"):
        detect.judge([recording(noise(9, 0))], [], {}, ["a"])
    with pytest.raises(SignalError, match=r"--test: all of its 9 items are normal \(a\); wanted some of both"):
        detect.judge([recording(noise(9, 0), "a" * 9)], [], {}, ["a"])
    with pytest.raises(SignalError, match="--test: all of its 9 items are unusual; wanted some of both"):
        detect.judge([recording(noise(9, 0), "b" * 9)], [], {}, ["a"])
    with pytest.raises(SignalError, match=r"short: gave \(3,\) scores, wanted \(100,\)"):
        detect.judge(train, [], {"short": lambda s: np.zeros(3)}, ["a"])


# Compression


def test_compression_is_counted_against_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = (3000 * np.sin(np.arange(8000) / 20) + 20 * noise(8000, 0)[:, 0]).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(samples.tobytes())
    result = compress.evaluate(data.load([path]))
    values, (item,) = result.values, result.items
    assert values["plain_bytes"] == 16_000 and item["samples"] == 8000
    assert values["sides"]["ours"]["bytes"] < values["sides"][values["best_peer"]]["bytes"] < 16_000
    assert values["sides"]["ours"]["ratio"] == 16_000 / item["ours_bytes"]
    assert values["smaller_than_best_peer_percent"] > 10 and values["model_paid_after_mb"] == 0
    assert values["mb_per_s"] > 0 and (values["joules_per_mb"] is None) == (values["energy"] == "unavailable")
    assert len(result.panels) == 3


def test_what_is_not_whole_numbers_is_left_out_or_rounded() -> None:
    told: list[str] = []
    one = recording(noise(500, 0), name="a")
    with pytest.raises(SignalError, match="--test: holds no series of whole numbers; give --max-error"):
        compress.evaluate([one], notes=told)
    assert told == ["a.csv: is no series of whole numbers (see --max-error); left out"]
    coarse = compress.evaluate([one], max_error=0.1).values["sides"]["ours"]["bytes"]
    fine = compress.evaluate([one], max_error=0.001).values["sides"]["ours"]["bytes"]
    assert coarse < fine


def test_numbers_that_stand_for_none(tmp_path: Path) -> None:
    path = tmp_path / "air.csv"
    path.write_text("time,T\n" + "".join(f"{60 * n},{-200 if n == 3 else n}\n" for n in range(8)))
    (plain,), (cleaned,) = data.load([path]), data.load([path], missing=(-200.0,))
    assert isinstance(plain.signal, Series) and isinstance(cleaned.signal, Series)
    assert plain.signal.values[3, 0] == -200 and np.flatnonzero(np.isnan(cleaned.signal.values[:, 0])).tolist() == [3]
