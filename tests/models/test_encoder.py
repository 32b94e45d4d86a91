"""The sensor encoder: the same bits over both op sets, whatever the signal; what its file must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import ModelFileError, SignalError, SpecError
from genmote.models import encoder
from genmote.models.encoder import Encoder, Form
from genmote.models.gguf import ModelFile
from genmote.models.patches import (
    BINS,
    FEATURES,
    MOST_CHANNELS,
    PLACES,
    WHOLE,
    as_series,
    letters,
    number,
    patches,
    portrait,
)  # fmt: skip
from genmote.ops import numpy_ops
from genmote.signals.kinds import Field, Frames, Records, Series

FORM = Form(out=96, width=64, ffn=96, bridge=64, slots=12, join=2)


def wave(samples: int = 500, channels: int = 3, rate_hz: float = 100.0, seed: int = 0) -> Series:
    values = np.random.default_rng(seed).standard_normal((samples, channels)).cumsum(axis=0).astype(np.float32)
    names = tuple(f"lead {n}" for n in range(channels))
    return Series("wave", values, rate_hz, names, ("mV",) * channels)


def rows(count: int = 30) -> Records:
    draw = np.random.default_rng(5)
    words = np.array(["on" if n % 3 else None for n in range(count)], object)
    fields = (Field("what", "category"), Field("size", "number", "B"))
    return Records("rows", fields, (words, draw.random(count)), np.cumsum(draw.random(count)))


def uneven() -> Series:
    times = np.cumsum(np.random.default_rng(6).exponential(3.0, 90))
    return replace(wave(90, 2), rate_hz=0.0, times_s=times)


def gappy() -> Series:
    series = wave(300, 2)
    series.values[40:200, 0] = np.nan
    series.values[:, 1] = np.nan
    return series


SIGNALS = {
    "fast": wave(5000, 12, 500.0),
    "slow": wave(48, 1, 1 / 3600),
    "one sample": wave(1, 1),
    "uneven": uneven(),
    "gappy": gappy(),
    "rows": rows(),
    "one row": rows(1),
    "no times": replace(rows(5), times_s=None),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("encoder") / "encoder.gguf", "Q8_0")


def made(path: Path, type: str, form: Form = FORM) -> Path:
    about = encoder.metadata(form, "small", "0" * 64, "tiny")
    encoder.write(path, form, encoder.fresh(form, 1, 0.2), type, about)
    return path


def on(path: Path, ops: str) -> Encoder:
    if ops == "numpy":
        return Encoder.load(ModelFile.open(path), numpy_ops.create())
    native = pytest.importorskip("genmote.ops._native") and __import__("genmote.ops.native_ops", fromlist=["create"])
    return Encoder.load(ModelFile.open(path), native.create(threads=1))


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("type", ["Q8_0", "F16"])
def test_numpy_and_native_give_the_same_bits(tmp_path: Path, name: str, type: str) -> None:
    file = made(tmp_path / "e.gguf", type)
    first, second = on(file, "numpy").embed(SIGNALS[name]), on(file, "native").embed(SIGNALS[name])
    assert np.array_equal(first, second) and np.isfinite(first).all()
    assert 1 <= len(first) <= FORM.embeddings and first.shape[1] == FORM.out
    assert 0.1 < np.sqrt((first**2).mean()) < 0.4  # as large as asked for


def test_several_signals_in_one_pass_are_each_as_alone(path: Path) -> None:
    one = on(path, "numpy")
    every = [one.patches(signal) for signal in SIGNALS.values()]
    together = encoder.forward(one.ops, one.weights, every)
    assert np.array_equal(together, np.concatenate([one.embed(each) for each in every]))


def test_a_signal_says_something(path: Path) -> None:
    """Its shape, its level, how long it lasts, its unit and its name, and when each thing was."""
    one, series = on(path, "numpy"), wave(400, 1)
    plain = one.embed(series)
    others = {
        "shape": wave(400, 1, seed=9),
        "level": replace(series, values=series.values + 1000),
        "spread": replace(series, values=series.values * 50),
        "rate": replace(series, rate_hz=1.0),
        "unit": replace(series, units=("°C",)),
        "name": replace(series, channels=("lead 7",)),
        "order": replace(series, values=series.values[::-1].copy()),
        "gap": replace(series, values=np.where(np.arange(400)[:, None] > 350, np.nan, series.values)),
        "channel": wave(400, 2),
    }
    for name, other in others.items():
        assert np.abs(one.embed(other) - plain).max() > 1e-4, name


def test_the_order_of_channels_says_nothing_where_one_block_looks_across(path: Path) -> None:
    one, series = on(path, "numpy"), wave(300, 3)
    turned = replace(series, values=series.values[:, ::-1].copy(), channels=series.channels[::-1])
    assert np.abs(one.embed(series) - one.embed(turned)).max() < 1e-4


def test_later_slots_are_seen_by_earlier_ones(path: Path) -> None:
    """One of the blocks runs backward."""
    one, series = on(path, "numpy"), wave(400, 1)
    seen = one.patches(series)
    seen.rows[0, -1, :BINS] += 1
    assert np.abs(one.embed(seen)[0] - one.embed(series)[0]).max() > 1e-5


# -- patches -----------------------------------------------------------------------------------------------------------


def test_bins_are_means_of_their_samples() -> None:
    values = np.arange(12 * BINS * 4, dtype=np.float32)[:, None]
    found = patches(Series("ramp", values, 10.0, ("x",), ("",)), 12)
    centre, spread = np.median(values), (np.quantile(values, 0.9) - np.quantile(values, 0.1)) / 2
    means = (values.reshape(-1, 4).mean(axis=1) - centre) / spread
    assert np.allclose(found.rows[0, :, :BINS].reshape(-1), means / (1 + np.abs(means) / 8), atol=1e-6)
    assert (found.rows[0, :, BINS : 2 * BINS] == 1).all()
    assert found.rows.shape == (2, 12, 2 * BINS + FEATURES) and (found.rows[1, :, : 2 * BINS] == 0).all()
    assert np.allclose(found.spans_s[:, 0], np.arange(12) * len(values) / 10 / 12)


def test_missing_samples_are_told_and_count_for_nothing() -> None:
    series = wave(480, 1)
    hole = series.values.copy()
    hole[100:140] = np.nan
    found = patches(replace(series, values=hole), 10)
    assert (found.rows[0, 2, BINS : 2 * BINS] == 0)[3:-6].all() and (found.rows[0, 5, BINS : 2 * BINS] == 1).all()
    wild = replace(series, values=np.where(np.isnan(hole), np.inf, hole))
    assert np.array_equal(patches(wild, 10).rows, found.rows)
    nothing = patches(replace(series, values=np.full_like(hole, np.nan)), 10)
    assert np.isfinite(nothing.rows).all() and (nothing.rows[0, :, : 2 * BINS] == 0).all()


def test_samples_at_times_of_their_own_lie_where_they_were_taken() -> None:
    times = np.array([0.0, 1.0, 2.0, 98.0, 99.0])
    series = Series("odd", np.array([[0.0], [1], [0], [5], [6]], np.float32), 0.0, ("x",), ("",), times)
    there = patches(series, 10).rows[0, 0, BINS : 2 * BINS]
    # The last sample lasts as long as the others do on average: 124 s in all, of which a bin is a 32nd.
    assert np.flatnonzero(there).tolist() == [0, 25]


def test_how_a_channel_moves_and_with_which_others() -> None:
    """Energies by pace, and correlations by the other's name, whatever the order."""
    t = np.arange(4096)
    slow, quick = np.sin(t / 300), np.sin(t * 2.5)
    values = np.stack([slow, quick, -slow], axis=1).astype(np.float32)
    series = Series("a", values, 1.0, ("slow", "quick", "back"), ("",) * 3)
    found = patches(series, 8).rows[:, 0, 2 * BINS :]
    pace, shared = found[:3, 33:43], found[:3, 50:77]
    assert pace[0].argmax() == 9 and pace[1].argmax() == 0 and np.allclose(pace[0], pace[2], atol=1e-5)
    assert shared[0].min() == pytest.approx(-1, abs=1e-4) and np.abs(shared[1]).max() < 0.05
    assert shared[0].argmin() != shared[2].argmin()  # the one is told of the other
    order = [2, 0, 1]
    names = tuple(series.channels[n] for n in order)
    turned = patches(replace(series, values=values[:, order].copy(), channels=names), 8).rows[:, 0, 2 * BINS :]
    assert np.allclose(turned[:3], found[order], atol=1e-6)
    still = patches(replace(series, values=np.ones_like(values)), 8).rows[:, 0, 2 * BINS :]
    assert (still[:3, 33:77] == 0).all() and np.isfinite(patches(series.part(0, 1), 8).rows).all()


def test_a_portrait_is_of_all_channels_by_their_names() -> None:
    seen = [patches(wave(400, n), 12) for n in (1, 2, 3)]
    numbers = encoder.fresh(Form(out=96, width=64, ffn=64, bridge=64, portrait=32), 0, seen=seen)
    mean, scale = numbers["portrait_mean.weight"], numbers["portrait_scale.weight"]
    told = (np.concatenate([one.whole for one in seen]) - mean) * scale
    assert np.abs(told.mean(axis=0)).max() < 1e-4 and told.std(axis=0).max() < 1.001
    one = seen[2]
    found = portrait(one, mean, scale).reshape(PLACES, WHOLE + 1)
    assert found[:, WHOLE].sum() == 6 and (one.places[:, 0] < PLACES // 2).all()  # three channels, each twice
    assert np.allclose(found[: PLACES // 2].sum(axis=0), found[PLACES // 2 :].sum(axis=0), atol=1e-4)
    far = replace(one, whole=one.whole + 1e6)
    assert np.abs(portrait(far, mean, scale)).max() <= 15  # what is far off counts as 5


def test_a_signal_has_no_more_slots_than_samples_need() -> None:
    counts = [patches(wave(n, 1), 48, 2).rows.shape[1] for n in (1, 16, 33, 160, 768, 100_000)]
    assert counts == [2, 2, 2, 6, 24, 48]


def test_records_become_a_series() -> None:
    series = as_series(rows())
    assert series.channels == ("time since the row before", "what", "size")
    assert series.values[0, 0] == 0 and np.nanmax(series.values[:, 1]) == pytest.approx(20 / 30)
    assert np.isnan(series.values[::3, 1]).all() and series.units[2] == "B"


def test_numbers_that_differ_a_little_differ_in_what_is_told() -> None:
    told = number(np.array([71.3, 71.9, -71.3, 0.0, 5e-7, 1e25, 999.9, 1000.0]))
    assert np.abs(told[0] - told[1]).max() > 0.1 and np.abs(told[0] - told[2]).max() == 2
    assert (told[3:5] == 0).all() and np.isfinite(told).all() and np.abs(told).max() < 6
    # The binary magnitude goes up without a step where the decimal one begins anew.
    assert abs(told[6, 1] - told[7, 1]) < 1e-3


def test_names_are_told_by_their_letters() -> None:
    assert np.array_equal(letters("Lead II", "mV"), letters("lead ii ", "mV"))
    alike = letters("temperature", "°C") @ letters("air temperature", "°C")
    assert alike > letters("temperature", "°C") @ letters("humidity", "%")
    assert not np.array_equal(letters("a", "b"), letters("b", "a"))


def test_what_cannot_be_encoded_is_told() -> None:
    empty = Series("void", np.zeros((0, 2), np.float32), 1.0, ("a", "b"), ("", ""))
    with pytest.raises(SignalError, match="void: is empty: it has no sample; give a recording with some"):
        patches(empty, 12)
    with pytest.raises(SignalError, match=f"has {MOST_CHANNELS + 1} channels, at most {MOST_CHANNELS} are read"):
        patches(wave(20, MOST_CHANNELS + 1), 12)
    frames = Frames("film", "grid", [np.zeros((2, 2, 1))], ("grey",), ("",))
    with pytest.raises(SignalError, match="film: holds frames; series and records are described so far"):
        patches(frames, 12)


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_usual_form_is_small() -> None:
    for width in (576, 960):
        assert Form(out=width).numbers < encoder.MOST_NUMBERS
        assert set(encoder.fresh(Form(out=width), 0)) == set(Form(out=width).shapes())
    assert Form(out=576).embeddings <= 48


def test_a_form_that_cannot_be_is_told() -> None:
    with pytest.raises(SpecError, match="width=100: use a multiple of 32, such as 192; slots=5, join=2"):
        encoder.fresh(Form(out=96, width=100, slots=5), 0)
    with pytest.raises(SpecError, match="an encoder of .* numbers: at most 3000000; use a smaller width"):
        encoder.fresh(Form(out=576, width=512), 0)
    assert list(Form(out=0, time=0).faults()) == [
        "time=0, across=1, after=1: use such as 2, 1 and 1",
        "out=0: wanted the language model's width",
    ]


def test_what_reads_features_is_not_rounded_to_8_bits(path: Path) -> None:
    types = {name: info.type for name, info in ModelFile.open(path).tensors.items()}
    assert types["input.weight"] == types["names.weight"] == "F16" and types["blk.0.attn_q.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"


def test_a_wrong_file_is_told(tmp_path: Path, path: Path) -> None:
    from genmote.models.gguf_write import write_gguf

    good = ModelFile.open(path)
    tensors = [(i.name, i.type, i.shape, good.raw(i.name)) for i in good.tensors.values()]

    def changed(**keys: object) -> ModelFile:
        metadata = good.typed_metadata() | {k.replace("__", "."): v for k, v in keys.items()}
        write_gguf(tmp_path / "bad.gguf", metadata, tensors)
        return ModelFile.open(tmp_path / "bad.gguf")

    ops = numpy_ops.create()
    with pytest.raises(
        ModelFileError, match="is no sensor encoder: it is of 'llama', wanted genmote-encoder; make one"
    ):
        Encoder.load(changed(general__architecture="llama"), ops)
    name = f"{encoder.ARCHITECTURE}.version"
    with pytest.raises(ModelFileError, match="is an encoder of version 9, this genmote reads 1; use a newer one"):
        Encoder.load(changed(**{name: np.uint32(9)}), ops)
    name = f"{encoder.ARCHITECTURE}.slots"
    with pytest.raises(ModelFileError, match="slots=7, join=2: use such as 48 and 2.*the file is damaged"):
        Encoder.load(changed(**{name: np.uint32(7)}), ops)
    name = f"{encoder.ARCHITECTURE}.embedding_length"
    with pytest.raises(ModelFileError, match="input.weight has shape"):
        Encoder.load(changed(**{name: np.uint32(96)}), ops)
    tensors.append(("extra.weight", "F32", (1, 1), np.ones(1, np.float32)))
    with pytest.raises(ModelFileError, match="has 1 tensors that a genmote-encoder model does not use"):
        Encoder.load(changed(), ops)
    with pytest.raises(ModelFileError, match="small gives embeddings of 96 numbers, large takes 576: use the language"):
        on(path, "numpy").check(576, "small", "large")
