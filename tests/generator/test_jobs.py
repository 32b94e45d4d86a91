from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError, SpecError
from genmote.generator import detect
from genmote.generator.draw import Draw
from genmote.generator.generate import _begun as begun_from
from genmote.generator.layout import Layout, joined
from genmote.generator.material import chosen
from genmote.generator.model import Generator
from genmote.generator.train import Training, forms, train
from genmote.generator.walk import Walk, embedded, sampled
from genmote.ops.protocol import Span
from genmote.signals import coding
from genmote.signals.kinds import Frames, Records, Series
from tests.generator.conftest import doors, wave, waves


def known(model: Generator, seed: int = 101, steps: int = 90, kind: str = "slow") -> Series:
    return wave(seed, steps, kind)


def test_a_walk_gives_what_one_pass_gives(model: Generator) -> None:
    """To the bit: what is stepped through by several ways at once is what is run at once."""
    layout, signal = model.layout, known(model)
    header, rows = layout.header(signal), layout.rows(signal)
    walk = Walk(model.decoder, layout, header, rows[:40], rows.asks[40], 3)
    for n in range(40, 60):
        walk.put(np.repeat(rows.tokens[n], 3), rows.asks[n], rows.asks[n + 1])
    everything = joined([header, rows[:60]])
    x = embedded(model.decoder, everything.tokens, np.concatenate([everything.asks[1:], rows.asks[60:61]]))
    cache = model.decoder.cache(layout.context)
    logits = model.decoder.forward(x, [Span(cache, 0, len(x))])
    assert logits is not None and (walk.logits == logits).all()


def test_a_walk_longer_than_the_context_goes_on(model: Generator) -> None:
    (made,) = model.generate(1, steps=300, labels={"speed": "slow"}, seed=1)
    assert len(made) == 300
    late = made.values[200:, 0]
    assert late.std() > 0.4  # still a wave


def test_a_seed_generates_the_same_again(model: Generator) -> None:
    a, b = (model.generate(2, steps=30, seed=5) for _ in range(2))
    c = model.generate(2, steps=30, seed=6)
    assert all(np.array_equal(x.values, y.values) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0].values, c[0].values) and not np.array_equal(a[0].values, a[1].values)


def crossings(series: Series) -> int:
    return int((np.diff(np.sign(series.values[:, 0])) != 0).sum())


def test_a_label_decides_what_is_generated(model: Generator) -> None:
    slow, fast = (model.generate(6, steps=80, labels={"speed": speed}, seed=2) for speed in ("slow", "fast"))
    assert np.median([crossings(s) for s in slow]) < 0.7 * np.median([crossings(s) for s in fast])
    assert slow[0].labels["speed"] == "slow"


def test_what_is_generated_begins_as_it_is_told(model: Generator) -> None:
    begun = known(model, steps=30)
    (made,) = model.generate(1, steps=20, prefix=begun, seed=1)
    assert len(made) == 50
    bound = max(bound.absolute for bound in model.codec.error().values())
    inside = np.clip(begun.values, made.values.min(), made.values.max())
    assert np.abs(made.values[:30] - inside).max() < bound + 0.1


def test_at_temperature_nought_there_is_one_way(model: Generator) -> None:
    a, b = (model.generate(1, steps=20, seed=seed, temperature=0.0)[0] for seed in (1, 2))
    assert np.array_equal(a.values, b.values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"steps": 0}, "steps=0"),
        ({"temperature": -1.0}, "temperature=-1"),
    ],
)
def test_settings_that_cannot_be(model: Generator, settings: dict[str, float], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        model.generate(**settings)  # type: ignore[arg-type]


def test_labels_that_the_model_does_not_know(model: Generator) -> None:
    with pytest.raises(SignalError, match="label speed=walking: the model was told of speed: fast, slow"):
        model.generate(1, steps=5, labels={"speed": "walking"})
    with pytest.raises(SignalError, match="label age=3"):
        model.generate(1, steps=5, labels={"age": "3"})


def test_one_channel_alone_is_generated(model: Generator) -> None:
    (made,) = model.generate(1, steps=12, channels=("b",), seed=1)
    assert isinstance(made, Series) and made.channels == ("b",) and made.values.shape == (12, 1)
    with pytest.raises(SignalError, match="channel 'z': the model knows a, b"):
        model.generate(1, steps=5, channels=("z",))


def of_two(most: str = "pulse") -> Generator:
    """Knows two modalities, the most of `most`; without weights."""
    signals = []
    for modality, channel in (("ecg", "II"), ("pulse", "light")):
        values = np.zeros((40 if modality == most else 20, 1), np.float32)
        signals.append(Series("x", values, 50.0, (channel,), ("mV",), labels={"modality": modality}))
    layout = Layout(coding.fit("bins", signals), False, 64)
    return Generator(None, layout, {"forms": forms(signals)})  # type: ignore[arg-type]


@pytest.mark.parametrize("most", ["ecg", "pulse"])
def test_what_is_not_told_is_as_most_recordings_were(most: str) -> None:
    model = of_two(most)
    assert model.empty().labels["modality"] == most
    assert model.empty({"modality": "ecg"}).channels == ("II",)
    assert model.empty(channels=("light",)).labels["modality"] == "pulse"


@pytest.mark.parametrize(("channel", "modality"), [("II", "ecg"), ("light", "pulse")])
def test_an_unknown_modality_is_that_of_recordings_with_such_channels(channel: str, modality: str) -> None:
    model = of_two()
    series = Series("x", np.zeros((8, 1), np.float32), 50.0, (channel,), ("mV",))
    for labels in ({}, {"modality": "weather"}):
        assert model.fitted(replace(series, labels=labels)).labels == {"modality": modality}
    own = replace(series, labels={"modality": "ecg"})
    assert model.fitted(own).labels == {"modality": "ecg"}
    assert begun_from(model, own, {}, ()).labels == {"modality": "ecg"}
    assert begun_from(model, own, {"modality": "pulse"}, ()).labels == {"modality": "pulse"}


def test_what_goes_on_keeps_what_it_began_with_and_its_times(model: Generator) -> None:
    begun = replace(known(model, steps=20), start_s=1e9)
    (steady,) = model.generate(1, steps=3, prefix=begun, seed=1)
    assert isinstance(steady, Series) and np.array_equal(steady.values[:20], begun.values)
    assert steady.start_s == 1e9 and steady.rate_hz == begun.rate_hz
    uneven = np.cumsum(np.where(np.arange(20) % 5, 0.05, 0.2))
    (timed,) = model.generate(1, steps=3, prefix=replace(begun, rate_hz=0.0, times_s=uneven, start_s=None), seed=1)
    assert isinstance(timed, Series) and timed.rate_hz == 0 and timed.times_s is not None
    assert np.array_equal(timed.times_s[:20], uneven)
    np.testing.assert_allclose(np.diff(timed.times_s[19:]), 0.05)


def test_channels_that_cannot_be_asked_for(model: Generator) -> None:
    with pytest.raises(SignalError, match="what goes on from a prefix has its channels"):
        model.generate(1, steps=3, prefix=known(model, steps=20), channels=("a",))
    with pytest.raises(SignalError, match="channel 'a' is asked for twice"):
        model.generate(1, steps=3, channels=("a", "a"))


def test_a_prefix_of_another_kind(model: Generator) -> None:
    with pytest.raises(SignalError, match="is no series"):
        model.generate(1, steps=5, prefix=doors(1, 5))


def test_rows_are_generated(of_rows: Generator) -> None:
    (made,) = of_rows.generate(1, steps=12, seed=1)
    assert isinstance(made, Records) and 10 <= len(made) <= 12
    what = made.column("what").tolist()
    assert sum(a != b for a, b in pairwise(what)) >= 8  # in turn
    (on,) = of_rows.generate(1, steps=4, prefix=doors(9, 6), seed=1)
    assert on.column("what").tolist()[:6] == doors(9, 6).column("what").tolist()


@pytest.mark.slow
def test_series_of_patches_are_as_long_as_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "patch.gguf"
    train(waves(6, 400), path, Training(size="tiny", context=96, steps=3, batch=512, codec="patch"))
    model = Generator.load(path, threads=1)
    assert [len(one) for one in model.generate(2, steps=40, seed=1)] == [40, 40]
    (on,) = model.generate(1, steps=20, prefix=wave(1, 32), seed=1)
    assert len(on) == 52
    with pytest.raises(SignalError, match="no token for each sample"):
        model.forecast(wave(1, 32), 4)


@pytest.mark.slow
def test_frames_are_generated(tmp_path: Path) -> None:
    pictures = [np.full((8, 8, 1), n % 2, np.float32) for n in range(40)]
    frames = Frames("lamp", "grid", pictures, ("grey",), ("",))
    path = tmp_path / "frames.gguf"
    train([frames], path, Training(size="tiny", context=256, steps=40, batch=1024, bins=4, rate=4e-3))
    (made,) = Generator.load(path, threads=1).generate(1, steps=2, seed=1)
    assert isinstance(made, Frames) and len(made) == 2 and made.frames[0].shape == (8, 8, 1)
    assert all(np.isfinite(frame).all() for frame in made.frames)
    off = [np.abs(frame - np.median(frame)).mean() for frame in made.frames]
    assert np.mean(off) < 0.35  # nearly all on or all off; by chance it is a half


def test_a_forecast_is_better_than_the_last_value(model: Generator) -> None:
    errors, naive = [], []
    for seed in range(6):
        signal = known(model, 200 + seed, 100)
        found = model.forecast(signal.part(0, 80), 20, paths=24, seed=1)
        wanted = signal.values[80:]
        errors.append(np.abs(found.series.values - wanted).mean())
        naive.append(np.abs(signal.values[79] - wanted).mean())
    assert np.mean(errors) < 0.5 * np.mean(naive)


def test_quantiles_of_a_forecast_rise_and_times_go_on(model: Generator) -> None:
    signal = replace(known(model), start_s=50.0)
    found = model.forecast(signal, 16, paths=12)
    low, middle, high = found.quantiles((0.1, 0.5, 0.9))
    assert found.samples.shape == (12, 16, 2)
    assert (low <= middle).all() and (middle <= high).all()
    assert found.series.start_s == pytest.approx(50.0 + 90 / 20)
    assert np.array_equal(found.series.values, middle)


def test_times_of_their_own_go_on(model: Generator) -> None:
    signal = known(model, steps=40)
    timed = replace(signal, rate_hz=0.0, times_s=np.arange(40) * 0.05)
    times = model.forecast(timed, 3, paths=2).series.times_s
    assert times is not None
    np.testing.assert_allclose(times, [2.0, 2.05, 2.1])


def test_what_is_there_is_kept_and_gaps_are_filled_well(model: Generator) -> None:
    ours, lines = [], []
    for seed in range(4):
        signal = known(model, 300 + seed, 80)
        values = signal.values.copy()
        values[30:45] = np.nan
        values[60:62, 0] = np.nan
        found = model.impute(replace(signal, values=values), paths=12)
        assert np.array_equal(found.series.values[~np.isnan(values)], values[~np.isnan(values)])
        assert not np.isnan(found.samples).any()
        ours.append(np.abs(found.series.values[30:45] - signal.values[30:45]).mean())
        line = np.linspace(values[29], values[45], 17)[1:-1]
        lines.append(np.abs(line - signal.values[30:45]).mean())
    assert np.mean(ours) < 0.6 * np.mean(lines)


def test_a_gap_at_either_end(model: Generator) -> None:
    signal = known(model, steps=60)
    values = signal.values.copy()
    values[:5] = values[-5:] = np.nan
    found = model.impute(replace(signal, values=values), paths=4)
    assert not np.isnan(found.series.values).any()


def test_no_step_with_all_its_samples(model: Generator) -> None:
    signal = known(model, steps=60)
    values = signal.values.copy()
    values[::2, 0] = values[1::2, 1] = np.nan
    found = model.impute(replace(signal, values=values), paths=4)
    there = ~np.isnan(values)
    assert np.array_equal(found.series.values[there], values[there]) and np.isfinite(found.series.values).all()


def test_nothing_to_go_by(model: Generator, of_rows: Generator) -> None:
    signal = known(model, steps=20)
    with pytest.raises(SignalError, match="no sample is there"):
        model.impute(replace(signal, values=np.full_like(signal.values, np.nan)))
    with pytest.raises(SignalError, match="no sample to go on from"):
        model.forecast(signal.part(0, 0), 5)
    with pytest.raises(SpecError, match="steps=0"):
        model.forecast(signal, 0)
    for paths in (0, 10_001):
        with pytest.raises(SpecError, match=f"paths={paths}: use 1 to 10000"):
            model.impute(signal, paths=paths)
        with pytest.raises(SpecError, match=f"paths={paths}: use 1 or more, and at most 10000"):
            model.forecast(signal, 3, paths=paths)
    with pytest.raises(SignalError, match="no token for each sample: train one with --codec bins"):
        of_rows.forecast(signal, 5)
    other = replace(signal, channels=("a", "c"))
    with pytest.raises(SignalError, match="c .* not there when the codec was fitted"):
        model.forecast(other, 5)


def test_scores_do_not_feel_how_a_signal_is_cut(model: Generator) -> None:
    signal = known(model, steps=300)  # longer than the context
    whole = model.scores(signal)
    scorer = model.scorer()
    cuts = [0, 1, 2, 9, 150, 151, 290, 300]
    parts = [scorer.push(signal.part(a, b)) for a, b in pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), whole) and len(whole) == 300
    assert len(scorer.push(signal.part(0, 0))) == 0


def test_the_channel_with_the_largest_part_in_a_score(model: Generator, of_rows: Generator) -> None:
    signal = known(model, steps=80)
    values = signal.values.copy()
    values[40:44, 1] = 9.0
    signal = replace(signal, values=values)
    each = model.scorer().each(signal)
    np.testing.assert_allclose(each.mean(axis=1), model.scores(signal), rtol=1e-6)
    whole = detect.Detector(model, 1.0, smooth=4).push(signal)
    assert [whole.channel(row) for row in range(40, 44)] == ["b"] * 4
    assert [whole.channel(row) for row in range(80)] == [signal.channels[int(n)] for n in each.argmax(axis=1)]
    assert {"a", "b"} == {whole.channel(row) for row in range(80)}
    cut = detect.Detector(model, 1.0, smooth=4)
    parts = [cut.push(signal.part(a, b)) for a, b in ((0, 41), (41, 42), (42, 80))]
    assert np.array_equal(np.concatenate([part.most[part.before :] for part in parts]), whole.most)
    assert detect.Detector(of_rows, 1.0).push(doors(9)).channel(5) is None


def test_the_oddest_row_of_an_alarm(model: Generator) -> None:
    """One spike: smoothed scores stay high after it, and highest where another row adds a little."""
    signal = known(model, steps=80)
    values = signal.values.copy()
    values[40] = 30.0
    signal = replace(signal, values=values)
    own = model.scores(signal)
    whole = detect.Detector(model, 1.0, smooth=8).push(signal)
    np.testing.assert_allclose(whole.own, own, rtol=1e-6)
    assert whole.oddest(40, 48) == whole.oddest(47, 48) == 40  # row 47's score is of row 40, too
    assert whole.oddest(48, 60) == 41 + int(own[41:60].argmax())
    assert whole.oddest(2, 4) == int(own[:4].argmax())
    cut = detect.Detector(model, 1.0, smooth=8)
    for start, stop in pairwise((0, 3, 44, 45, 80)):
        part = cut.push(signal.part(start, stop))
        assert part.before == min(start, 7)
        for row in range(stop - start):
            assert start + part.oddest(row, stop - start) == whole.oddest(start + row, stop)
            assert part.channel(part.oddest(row, row + 1)) == whole.channel(whole.oddest(start + row, start + row + 1))


def test_scores_are_what_the_model_says(model: Generator) -> None:
    """Against one plain pass."""
    signal = known(model, steps=50)
    layout = model.layout
    rows = joined([layout.header(signal), layout.rows(signal)])
    x = embedded(model.decoder, rows.tokens[:-1], rows.asks[1:])
    logits = model.decoder.forward(x, [Span(model.decoder.cache(layout.context), 0, len(x))], logits="all")
    assert logits is not None
    head, n = layout.codec.head.size, len(layout.header(signal))
    own = logits[n - 1 :, head:].astype(np.float64)
    nats = np.log(np.exp(own).sum(axis=1)) - own[np.arange(100), rows.tokens[n:] - head]
    inside = model.scorer()._outside(signal)
    np.testing.assert_allclose(
        model.scores(signal) - inside.mean(axis=1), nats.reshape(50, 2).mean(axis=1), rtol=1e-4, atol=1e-4
    )


def test_what_is_odd_scores_high(model: Generator) -> None:
    signal = known(model, steps=200)
    values = signal.values.copy()
    values[120:140] = 0.4
    scores = model.scores(replace(signal, values=values))
    assert scores[121:141].mean() > scores[20:110].mean() + 1
    far = signal.values.copy()
    far[150] = 50.0
    farther = signal.values.copy()
    farther[150] = 5000.0
    farthest = signal.values.copy()
    farthest[150] = np.inf, -np.inf
    odd = [replace(signal, values=each) for each in (signal.values, far, farther, farthest)]
    at = [model.scores(each)[150] for each in odd]
    assert at[0] < at[1] < at[2] < at[3] < np.inf
    assert np.isfinite(detect.Detector(model, 1.0, smooth=4).push(odd[3]).scores).all()


def test_scores_of_rows(of_rows: Generator) -> None:
    records = doors(8, 40)
    what = records.columns[0].copy()
    what[20] = what[19]  # not in turn
    odd = replace(records, columns=(what, records.columns[1]))
    scores = of_rows.scores(odd)
    assert len(scores) == 40 and scores[20] == scores[10:].max()


def test_a_threshold_lets_through_what_is_clean(model: Generator) -> None:
    clean = known(model, 400, 300)
    limit = detect.threshold(model, [clean], 0.99, smooth=4)
    detector = detect.Detector(model, limit, smooth=4)
    found = detector.push(clean)
    assert found.alarms.mean() <= 0.011
    scores = model.scores(clean)
    plain = np.array([scores[max(0, n - 3) : n + 1].mean() for n in range(300)])
    np.testing.assert_allclose(found.scores, plain, rtol=1e-4)
    again = detect.Detector(model, limit, smooth=4)
    parts = [again.push(clean.part(a, b)).scores for a, b in ((0, 2), (2, 3), (3, 100), (100, 300))]
    np.testing.assert_allclose(np.concatenate(parts), found.scores, rtol=1e-5)


def test_thresholds_that_cannot_be(model: Generator) -> None:
    with pytest.raises(SpecError, match="quantile=1.0"):
        detect.threshold(model, [known(model)], 1.0)
    with pytest.raises(SignalError, match="5 clean samples: wanted at least 20"):
        detect.threshold(model, [known(model, steps=9)])
    with pytest.raises(SpecError, match="smooth=0"):
        detect.Detector(model, 1.0, smooth=0)


def test_channels_never_seen_together_go_each_by_itself(model: Generator) -> None:
    forms = [{"modality": "series", "rate_hz": 20.0, "channels": [c], "units": ["mV"]} for c in "ab"]
    apart = Generator(model.decoder, model.layout, {"forms": forms})
    signal = known(model, steps=60)
    both = apart.forecast(signal, 8, paths=4, seed=3)
    ones = [apart.forecast(chosen(signal, [c]), 8, paths=4, seed=3) for c in "ab"]
    assert both.series.channels == ("a", "b")
    assert np.array_equal(both.samples, np.concatenate([one.samples for one in ones], axis=2))
    scores = np.mean([apart.scores(chosen(signal, [c])) for c in "ab"], axis=0)
    np.testing.assert_allclose(apart.scores(signal), scores, rtol=1e-6)
    values = signal.values.copy()
    values[30:34, 1] = np.nan
    filled = apart.impute(replace(signal, values=values), paths=3)
    assert not np.isnan(filled.series.values).any()
    assert np.array_equal(filled.series.values[:, 0], signal.values[:, 0])
    assert model.together(("a", "b")) == [[0, 1]]


def test_the_beginning_of_a_stream_is_no_alarm(model: Generator) -> None:
    found = detect.Detector(model, -1.0).push(known(model, steps=20))
    assert not found.alarms[: detect.SETTLES].any() and found.alarms[detect.SETTLES :].all()


def test_drawing_keeps_to_the_shares() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1]], np.float32))
    allowed = np.array([True, True, False])
    draw = Draw(0)
    found = np.concatenate([sampled(logits, allowed, draw) for _ in range(4000)])
    assert (found < 2).all()
    assert abs((found == 0).mean() - 7 / 9) < 0.03


def test_jobs_leave_the_large_modules_of_numpy_alone(trained: Path) -> None:
    """`numpy.random` takes 6 MB of a small device, and OpenSSL with it."""
    code = """
import sys
import numpy as np
from genmote.generator.model import Generator
from genmote.signals.kinds import Series
model = Generator.load(sys.argv[1], threads=1)
values = np.sin(np.arange(80) / 3).astype(np.float32)[:, None].repeat(2, axis=1)
history = Series("wave", values, 20.0, ("a", "b"), ("mV", "mV"))
model.forecast(history, 3, paths=2)
model.scores(history)
model.generate(1, steps=3)
print(*sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code, str(trained)], capture_output=True, text=True, check=True)
    assert not {"numpy.random", "hashlib", "torch"} & set(ran.stdout.split())
