"""Series as tokens: the stated error against the true one, whole numbers to the bit, and what lies outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from genmote.errors import SignalError, SpecError
from genmote.signals import coding
from genmote.signals.coding import about, fit
from genmote.signals.header import MODALITY
from genmote.signals.kinds import MISSING, Grid, Series


def series(values: Any, **more: Any) -> Series:
    table = np.asarray(values, np.float32)
    table = table[:, None] if table.ndim == 1 else table
    names = tuple("abcdefgh"[: table.shape[1]])
    return Series("s", table, 10.0, names, ("mV",) * len(names), **more)


def whole(integers: Any, step: float = 0.5) -> Series:
    table = np.asarray(integers, np.int64)
    width = table.shape[1]
    grid = Grid(table, np.full(width, step), np.arange(width, dtype=float))
    return series(grid.values(), grid=grid)


def off(signal: Series, codec: coding.Codec, bound: dict[str, coding.Bound]) -> float:
    """By how much the worst sample lies outside of its stated error."""
    again = codec.decode(codec.encode(signal), about(signal))
    assert isinstance(again, Series) and again.values.shape == signal.values.shape
    worst = -np.inf
    for n, name in enumerate(signal.channels):
        for value, got in zip(signal.values[:, n].tolist(), again.values[:, n].tolist(), strict=True):
            if np.isnan(value):
                assert np.isnan(got)
            else:
                worst = max(worst, abs(got - value) - bound[name].absolute - bound[name].relative * abs(value))
    return worst


FLOATS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 60), st.integers(1, 3)),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=False),
)
INTEGERS = arrays.arrays(
    np.int64,
    st.tuples(st.integers(0, 40), st.integers(1, 3)),
    elements=st.one_of(
        st.integers(-300, 300),
        st.integers(MISSING, -MISSING - 1),
        st.sampled_from([MISSING, MISSING + 1, -MISSING - 1]),
    ),
)


@settings(max_examples=200, deadline=None)
@given(FLOATS, st.sampled_from(["uniform", "quantile"]), st.sampled_from(["mean", "centre"]), st.integers(2, 40))
def test_every_sample_of_the_fit_is_within_the_stated_error(values: Any, spacing: str, within: str, bins: int) -> None:
    if np.isnan(values).all(axis=0).any():
        with pytest.raises(SignalError, match=r"channel . has no number in it: leave it out, or fit on other"):
            fit("bins", [series(values)])
        return
    signal, notes = series(values), []
    codec = fit("bins", [signal], bins=bins, spacing=spacing, within=within, tail=0.0)
    codec.encode(signal, notes)
    assert notes == [] and off(signal, codec, codec.error()) <= 0


@settings(max_examples=300, deadline=None)
@given(INTEGERS, INTEGERS, st.sampled_from([2, 3, 10, 256, 65536]), st.booleans())
def test_whole_numbers_come_back_to_the_bit(known: Any, new: Any, bins: int, difference: bool) -> None:
    """Any numbers of 64 bits, by a codec that was fitted on others."""
    width = min(known.shape[1], new.shape[1])
    codec = fit("bins", [whole(known[:, :width])], bins=bins, exact=True, difference=difference)
    signal, notes = whole(new[:, :width], step=2.0), []
    tokens = codec.encode(signal, notes)
    again = codec.decode(tokens, about(signal), notes)
    assert isinstance(again, Series) and again.grid is not None and notes == []
    assert np.array_equal(again.grid.integers, signal.grid.integers)  # type: ignore[union-attr]
    assert np.array_equal(again.values, signal.values, equal_nan=True)
    assert codec.error() == {name: coding.Bound() for name in signal.channels}


def test_steps_of_one_token_are_the_most_frequent() -> None:
    walk = np.cumsum(np.random.default_rng(0).integers(-100, 100, (2000, 1)), axis=0)
    codec = fit("bins", [whole(walk)], exact=True)
    assert len(codec.encode(whole(walk))) <= 2000 + 8  # the first sample is a step from 0


def test_uniform_bins_have_one_width_and_quantile_bins_hold_as_many() -> None:
    values = np.random.default_rng(0).exponential(size=8000)
    by_width = fit("bins", [series(values)], bins=4, tail=0.0)
    assert np.allclose(np.diff(by_width.scale.edges), np.ptp(values) / 4)  # type: ignore[attr-defined]
    by_count = fit("bins", [series(values)], bins=4, spacing="quantile", tail=0.0)
    counted = np.bincount(by_count.encode(series(values)) - by_count.head.size)
    assert counted.tolist() == [2000] * 4


def test_what_comes_again_and_again_has_a_quantile_bin_of_its_own() -> None:
    values = np.concatenate([np.zeros(600), np.random.default_rng(0).exponential(size=400)])
    codec = fit("bins", [series(values)], bins=16, spacing="quantile", tail=0.0)
    again = codec.decode(codec.encode(series(values)), about(series(values)))
    assert isinstance(again, Series)
    assert not again.values[:600].any() and again.values[600:].all()


def test_a_bin_comes_back_as_its_mean_or_its_centre() -> None:
    signal = series([0.0, 0.5, 1.0, 3.0, 4.0])
    mean = fit("bins", [signal], bins=2, tail=0.0).decode(np.array([6, 7]), about(signal))
    centre = fit("bins", [signal], bins=2, tail=0.0, within="centre").decode(np.array([6, 7]), about(signal))
    assert isinstance(mean, Series) and mean.values[:, 0].tolist() == [0.5, 3.5]
    assert isinstance(centre, Series) and centre.values[:, 0].tolist() == [1.0, 3.0]


def test_what_lies_outside_is_cut_and_counted() -> None:
    codec = fit("bins", [series(np.arange(101.0))], tail=0.0)
    wild, notes = series([-5.0, np.inf, -np.inf, 1e30, np.nan, 50.0]), []
    again = codec.decode(codec.encode(wild, notes), about(wild))
    assert notes == ["s: 4 of 6 samples of a lie outside of 0 to 100 mV, cut to that"]
    assert isinstance(again, Series)
    assert again.values[:4, 0].tolist() == [0, 100, 0, 100] and np.isnan(again.values[4, 0])
    assert abs(again.values[5, 0] - 50) <= codec.error()["a"].absolute


def test_a_tail_is_left_out_of_the_range() -> None:
    values = np.arange(1000.0)
    codec = fit("bins", [series(values)], tail=0.01)
    notes: list[str] = []
    codec.encode(series(values), notes)
    edges = codec.scale.edges[0]  # type: ignore[attr-defined]
    assert (edges[0], edges[-1]) == (9, 990)
    assert notes == ["s: 18 of 1000 samples of a lie outside of 9 to 990 mV, cut to that"]


def test_odd_series() -> None:
    constant, one = series(np.full(50, 7.25)), series([3.5])
    for signal in (constant, one):
        for spacing in ("uniform", "quantile"):
            codec = fit("bins", [signal], spacing=spacing)
            again = codec.decode(codec.encode(signal), about(signal))
            assert isinstance(again, Series) and np.array_equal(again.values, signal.values)
            assert codec.error()["a"].absolute == 0
    codec = fit("bins", [constant])
    nothing = codec.decode(codec.encode(constant.part(0, 0)), about(constant))
    assert isinstance(nothing, Series) and nothing.values.shape == (0, 1)
    gone = series(np.full(5, np.nan))
    again = codec.decode(codec.encode(gone), about(gone))
    assert isinstance(again, Series) and np.isnan(again.values).all()
    huge = series([-3.4e38, 3.4e38, 1e-45, 0.0])
    codec = fit("bins", [huge], bins=16)
    assert off(huge, codec, codec.error()) <= 0


def test_some_channels_in_any_order_of_some_of_the_series() -> None:
    draw = np.random.default_rng(1)
    both = Series("b", draw.normal(size=(100, 2)).astype(np.float32), 500.0, ("I", "II"), ("mV", "mV"))
    other = Series("o", 100 + draw.normal(size=(50, 1)).astype(np.float32), 0.5, ("temperature",), ("°C",))
    codec = fit("bins", [both, other], bins=64, tail=0.0)
    swapped = Series("w", both.values[:, ::-1], 500.0, ("II", "I"), ("mV", "mV"))
    for signal in (both, other, swapped):
        assert off(signal, codec, codec.error()) <= 0
        said = codec.head.about(codec.header(signal))
        assert (said.channels, said.units, said.rate_hz) == (signal.channels, signal.units, signal.rate_hz)
    straight, turned = (codec.encode(s).reshape(100, 2) for s in (both, swapped))
    assert np.array_equal(straight, turned[:, ::-1])  # a time's samples stand together
    with pytest.raises(
        SignalError, match=r"x: channel I \[V\] was not there when the codec was fitted, it knows I \[mV\], II"
    ):
        codec.encode(Series("x", both.values[:, :1], 500.0, ("I",), ("V",)))
    many = Series("m", np.zeros((9, 13), np.float32), 1.0, tuple("abcdefghijklm"), ("",) * 13)
    with pytest.raises(SignalError, match=r"it knows a \[\], b \[\], .*, j \[\] and 3 more; leave it out"):
        fit("bins", [many], bins=4).encode(other)


def test_a_header_says_what_was_fitted() -> None:
    draw = np.random.default_rng(1).normal(size=(9, 1)).astype(np.float32)
    said = {MODALITY: "ecg", "sex": "f", "patient": "Ann"}
    ecg = Series("e", draw, 100.0, ("II",), ("mV",), labels=said)
    pulse = Series("p", draw, 0.0, ("light",), ("",), np.arange(9.0), labels={"sex": "m"})
    codec = fit("bins", [ecg, pulse], labels=("sex",))
    assert codec.head.about(codec.header(ecg)).labels == {MODALITY: "ecg", "sex": "f"}
    assert codec.head.about(codec.header(pulse)).labels == {MODALITY: "series", "sex": "m"}
    assert codec.head.about(codec.header(pulse)).rate_hz == 0
    faster = Series("e", draw, 130.0, ("II",), ("mV",), labels={MODALITY: "eeg", "sex": "x"})
    about_it = codec.head.about(codec.header(faster))
    assert about_it.labels == {} and about_it.rate_hz == 100.0 and (codec.header(faster) == 2).sum() == 2
    with pytest.raises(SignalError, match=r"token 99 in a header: wanted one below \d+; cut the header off there"):
        codec.head.about(np.array([99]))
    irregular = codec.decode(codec.encode(pulse), about(pulse))
    assert isinstance(irregular, Series) and np.array_equal(irregular.times_s, pulse.times_s)  # type: ignore[arg-type]
    with pytest.raises(SignalError, match="signal: tokens of a series without a rate; give its rate_hz or times_s"):
        codec.decode(np.concatenate([codec.header(pulse), codec.encode(pulse)]))
    with pytest.raises(SignalError, match="p: 9 times for 10 samples; wanted one each"):
        codec.decode(np.append(codec.encode(pulse), codec.head.size), about(pulse))


def test_damaged_tokens_give_what_they_can() -> None:
    signal = whole(np.array([[5, 6], [70000, 8], [-9, 10], [11, 12]]))
    codec = fit("bins", [whole(np.zeros((9, 2)))], exact=True, difference=False)
    tokens = codec.encode(signal)
    at = int(np.flatnonzero(tokens >= codec.head.size + 256)[0])  # of 70000
    notes: list[str] = []
    again = codec.decode(np.delete(tokens, at + 1)[:-1], about(signal), notes)
    assert isinstance(again, Series) and again.grid is not None
    # A digit that is missing is taken from what follows: the end of a number is known by its length alone.
    assert again.grid.integers[0].tolist() == [5, 6]
    cut = codec.decode(tokens[: at + 2], about(signal), notes := [])
    assert isinstance(cut, Series) and cut.grid is not None and cut.grid.integers.tolist() == [[5, 6]]
    assert notes == ["s: 1 numbers are broken; it is lost", "s: 1 of 2 channels at the last time, left out"]
    torn = tokens.copy()
    torn[at + 1] = codec.vocabulary - 1  # missing, where a digit was wanted
    again = codec.decode(torn, about(signal), notes := [])
    assert isinstance(again, Series) and again.grid is not None and MISSING in again.grid.integers
    assert notes[0] == "s: 1 numbers are broken; it is lost"
    lossy = fit("bins", [signal])
    again = lossy.decode(np.array([lossy.vocabulary, 3, -7, lossy.head.size]), about(signal), notes := [])
    assert isinstance(again, Series) and np.isnan(again.values).tolist() == [[True, True], [True, False]]
    assert notes == ["s: 3 of 4 tokens have no place behind a header"]


def test_a_number_of_too_many_bits_is_broken() -> None:
    signal = whole(np.array([[5]]))
    codec = fit("bins", [signal], exact=True)
    tokens = codec.head.size + np.array([256 + 7, *[255] * 8, 256 + 7, *[255] * 7, 254])
    assert codec.decode(tokens, about(signal)).grid is not None  # type: ignore[union-attr]
    ten = fit("bins", [signal], exact=True, bins=10)
    notes: list[str] = []
    ten.decode(ten.head.size + np.array([10 + 19, *[9] * 20]), about(signal), notes)
    assert notes == ["s: 1 numbers are broken; it and the height of what follows are lost"]


def test_errors() -> None:
    with pytest.raises(
        SpecError, match="codec bins: bins=1, wanted 2 to 65536; tail=0.5, wanted 0 or more and less than"
    ):
        fit("bins", [series([1.0])], bins=1, tail=0.5)
    with pytest.raises(SignalError, match="s: its samples are no whole numbers; code it without --exact"):
        fit("bins", [series([1.0])], exact=True)
    codec = fit("bins", [series([1.0, 2.0])])
    with pytest.raises(SignalError, match="signal: tokens of a series without channels; give a header that names some"):
        codec.decode(codec.encode(series([1.0])))


def read_ptbxl(path: Path) -> Series:
    """By hand: 16 bits, 12 channels, 1000 a millivolt."""
    integers = np.fromfile(path, "<i2").reshape(-1, 12).astype(np.int64)
    names = ("I", "II", "III", "AVR", "AVL", "AVF", *(f"V{n}" for n in range(1, 7)))
    grid = Grid(integers, np.full(12, 1e-3), np.zeros(12))
    return Series(path.stem, grid.values(), 100.0, names, ("mV",) * 12, grid=grid)


def test_real_hearts(shared_data: Path) -> None:
    paths = sorted((shared_data / "ptbxl500/records100").rglob("*.dat"))[:12]
    records = [read_ptbxl(path) for path in paths]
    codec = fit("bins", records[:8], exact=True)
    for record in records[8:]:  # unseen
        again = codec.decode(codec.encode(record), about(record))
        assert isinstance(again, Series) and again.grid is not None
        assert np.array_equal(again.grid.integers, record.grid.integers)  # type: ignore[union-attr]
    for spacing in ("uniform", "quantile"):
        lossy = fit("bins", records, spacing=spacing, tail=0.0)
        worst = max(off(record.part(0, 300), lossy, lossy.error()) for record in records[:3])
        assert -0.2 < worst <= 0
    uniform = fit("bins", records[:8])
    heights = np.ptp(np.concatenate([r.values for r in records[:8]]), axis=0)
    for n, bound in enumerate(uniform.error().values()):
        assert bound.absolute <= heights[n] / 256


def test_a_real_room(shared_data: Path) -> None:
    path = shared_data / "occupancy_uci/datatest.txt"
    table = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=(1, 2, 3, 4, 5))
    names = ("temperature", "humidity", "light", "CO2", "humidity ratio")
    room = Series("room", table.astype(np.float32), 1 / 60, names, ("°C", "%", "lux", "ppm", ""))
    for settings_ in ({}, {"spacing": "quantile"}, {"within": "centre", "bins": 100}):
        codec = fit("bins", [room], tail=0.0, **settings_)
        assert -1 < off(room, codec, codec.error()) <= 0
