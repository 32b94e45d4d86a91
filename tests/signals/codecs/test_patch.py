"""Learned patches: the stated error against the true one, what is missing, what is spelt, and no PyTorch to decode."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from genmote.errors import SignalError, SpecError
from genmote.signals import coding, reading
from genmote.signals.codecs._fsq import GRID, MOST, WEIGHTS, Layers
from genmote.signals.codecs.patch import Patch
from genmote.signals.coding import about
from genmote.signals.kinds import Series

P = 8
FAST: dict[str, Any] = {"patch": P, "steps": 150, "tail": 0.0}


def series(values: Any, name: str = "s", **more: Any) -> Series:
    table = np.asarray(values, np.float32)
    table = table[:, None] if table.ndim == 1 else table
    names = tuple("abcdefgh"[: table.shape[1]])
    return Series(name, table, 10.0, names, ("mV",) * len(names), **more)


def swings(seed: int, count: int = 2000) -> Series:
    """Two channels of slow waves of changing size; the second is larger and far from zero."""
    draw, t = np.random.default_rng(seed), np.arange(count)
    first = np.sin(t / 7 + draw.uniform(0, 6)) * (1.2 + np.sin(t / 90))
    second = 500 + 80 * np.cos(t / 11 + draw.uniform(0, 6)) + draw.normal(0, 1, count)
    return series(np.stack([first, second], axis=1))


@lru_cache
def codec() -> Patch:
    made = coding.fit("patch", [swings(0), swings(1)], **FAST)
    assert isinstance(made, Patch)
    return made


def again(signal: Series, with_: Patch, notes: list[str] | None = None) -> Series:
    found = with_.decode(with_.encode(signal, notes), about(signal))
    assert isinstance(found, Series)
    return found


def off(signal: Series, with_: Patch) -> float:
    """By how much the worst sample lies outside of its stated error; missing samples must be the same."""
    found, worst = again(signal, with_), -np.inf
    assert found.values.shape == signal.values.shape
    for n, name in enumerate(signal.channels):
        bound = with_.error()[name]
        for value, got in zip(signal.values[:, n].tolist(), found.values[:, n].tolist(), strict=True):
            assert np.isnan(value) == np.isnan(got)
            if not np.isnan(value):
                worst = max(worst, abs(got - value) - bound.absolute - bound.relative * abs(value))
    return worst


INSIDE = st.integers(1, 60).flatmap(
    lambda count: st.tuples(
        arrays.arrays(np.float32, count, elements=st.floats(-1.5, 1.5, width=32)),
        arrays.arrays(np.float32, count, elements=st.floats(425, 575, width=32)),
        arrays.arrays(bool, (count, 2), elements=st.sampled_from([False] * 6 + [True])),
    )
)


@settings(max_examples=60, deadline=None)
@given(INSIDE)
def test_whatever_lies_within_the_range_is_within_the_stated_error(drawn: Any) -> None:
    """Also what looks like nothing that was learned."""
    first, second, gone = drawn
    values = np.where(gone, np.nan, np.stack([first, second], axis=1))
    edges = codec().scale.edges
    assert edges[0, 0] < -1.5 and edges[0, -1] > 1.5 and edges[1, 0] < 425 and edges[1, -1] > 575
    assert off(series(values), codec()) <= 0


@settings(max_examples=15, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(1, 2)),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=False),
    ),
    st.integers(2, 9),
)
def test_every_sample_of_the_fit_is_within_the_stated_error(values: Any, patch: int) -> None:
    if np.isnan(values).all(axis=0).any():
        with pytest.raises(SignalError, match=r"channel . has no number in it: leave it out, or fit on other"):
            coding.fit("patch", [series(values)], patch=patch, steps=1)
        return
    made = coding.fit("patch", [series(values)], patch=patch, steps=2, tail=0.0, bins=4)
    assert isinstance(made, Patch) and off(series(values), made) <= 0


def test_it_learns() -> None:
    """Unseen swings in a quarter of the tokens, closer than what their mean would be by far; bins take one a sample."""
    signal = swings(7)
    found, tokens = again(signal, codec()), codec().encode(signal)
    rms = np.sqrt(((found.values - signal.values) ** 2).mean(axis=0)) / signal.values.std(axis=0)
    assert len(tokens) < signal.values.size / 3 and (rms < 0.15).all()
    untrained = coding.fit("patch", [swings(0), swings(1)], **{**FAST, "steps": 1})
    assert all(untrained.error()[name].absolute > 2 * bound.absolute for name, bound in codec().error().items())


def test_the_part_that_is_spelt_states_the_error() -> None:
    signals, bounds = [swings(0), swings(1)], []
    for part in (0.0, 0.02, 0.2):
        made = coding.fit("patch", signals, **{**FAST, "steps": 50}, spelt=part)
        assert isinstance(made, Patch)
        for signal in signals:
            tokens = made.encode(signal, notes := [])
            spelt = int((tokens == made.vocabulary - 1).sum())
            told = f"s: {spelt} of 500 patches are spelt, sample by sample"
            assert notes == ([told] if spelt else []) and bool(spelt) == (part > 0)
            assert abs(spelt / 500 - part) <= part  # of each, where the part is of both together
            assert len(tokens) == 2 * (500 - spelt) + (P + 1) * spelt
        bounds.append([bound.absolute for bound in made.error().values()])
    assert (np.diff(bounds, axis=0) < 0).all()


def test_what_is_missing_comes_back_missing_and_costs_little() -> None:
    signal = swings(3, 64)
    values = signal.values.copy()
    values[3, 0] = values[P + 1, 1] = values[P + 2, 1] = np.nan
    values[2 * P : 4 * P, 0] = np.nan  # two whole patches
    values[5 * P + 1 : 6 * P, 1] = np.nan  # all but one sample: as long spelt as with holes
    gappy = series(values)
    assert off(gappy, codec()) <= 0
    made = codec()
    tokens, whole = made.encode(gappy), made.encode(signal)
    holes = (tokens >= made.head.size + made._holes) & (tokens < made.head.size + made._cuts)
    assert (tokens == made.head.size + made._gone).sum() == 2
    assert holes.sum() in (3, 3 + P - 1) and len(tokens) <= len(whole) + 3 - 2 + P - 1
    # What stands in the other patches does not depend on it.
    assert np.array_equal(tokens[-4:], whole[-4:])
    nothing = series(np.full((20, 2), np.nan))
    assert np.array_equal(made.encode(nothing)[:-1], np.full(6, made.head.size + made._gone)) and off(nothing, made) < 0
    assert made.encode(nothing.part(0, 0)).size == 0 and len(again(nothing.part(0, 0), made)) == 0


def test_what_lies_outside_is_spelt_cut_and_counted() -> None:
    values = swings(3, 20).values.copy()
    values[5, 1], values[6, 0], values[7, 0] = 1e30, np.inf, -np.inf
    notes: list[str] = []
    found = again(series(values), codec(), notes)
    edges = codec().scale.edges
    levels = codec().scale.levels
    assert found.values[5, 1] == levels[1, -1] and found.values[6:8, 0].tolist() == [levels[0, -1], levels[0, 0]]
    assert notes == [
        f"s: 2 spelt samples of a lie outside of {edges[0, 0]:g} to {edges[0, -1]:g} mV, cut to that",
        f"s: 1 spelt samples of b lie outside of {edges[1, 0]:g} to {edges[1, -1]:g} mV, cut to that",
        "s: 2 of 6 patches are spelt, sample by sample",
    ]
    assert np.abs(found.values[8:] - values[8:]).max() < max(bound.absolute for bound in codec().error().values())


@pytest.mark.parametrize("count", [1, P - 1, P, P + 1, 3 * P - 1])
def test_any_length_comes_back(count: int) -> None:
    signal = swings(5, count)
    tokens = codec().encode(signal)
    assert off(signal, codec()) <= 0
    assert (tokens[-1] >= codec().head.size + codec()._cuts) == bool(count % P)


def test_some_channels_in_any_order() -> None:
    signal = swings(4, 40)
    swapped = Series("w", signal.values[:, ::-1], 10.0, ("b", "a"), ("mV", "mV"))
    alone = Series("o", signal.values[:, 1:], 10.0, ("b",), ("mV",))
    straight = again(signal, codec()).values
    assert np.array_equal(again(swapped, codec()).values, straight[:, ::-1])
    assert np.array_equal(again(alone, codec()).values, straight[:, 1:])


def test_a_constant_comes_back_to_the_bit() -> None:
    signal = series(np.full(50, 7.3))
    made = coding.fit("patch", [signal], **{**FAST, "steps": 1})
    assert isinstance(made, Patch)
    assert np.array_equal(again(signal, made).values, signal.values) and made.error()["a"].absolute == 0
    assert off(series([7.3, 7.3]), made) <= 0


@pytest.mark.parametrize("infinite", [1, 50])
def test_infinity_in_the_fit_says_nothing_of_the_error(infinite: int) -> None:
    values = np.sin(np.arange(50.0))
    values[:: 50 // infinite] = np.inf
    values[-1] = 0.5
    made = coding.fit("patch", [series(values)], **{**FAST, "steps": 1})
    assert np.isfinite(made.error()["a"].absolute)
    assert isinstance(made, Patch) and again(series(values), made).values[0, 0] == made.scale.levels[0, -1]


def test_damaged_tokens_give_what_they_can() -> None:
    made, signal = codec(), swings(4, 4 * P)
    shape, bins = made.head.size, made.head.size + made._bins
    spelt, gone, hole = (made.head.size + code for code in (made._spelt, made._gone, made._holes))
    whole = again(signal, made).values
    tokens = made.encode(signal)
    assert len(tokens) == 16
    for damaged, lost, told in (
        (np.append(tokens[:6], [-5, *tokens[7:]]), [(8, 1)], "s: 1 of 8 patches are broken, what they lack is missing"),
        (np.append(tokens[:-1], []), [(24, 1)], "s: 1 of 8 patches are broken, what they lack is missing"),
        (np.append([bins, hole], tokens), [], "s: 2 tokens belong to no patch, left out"),
        (np.append([gone], tokens[2:]), [(0, 0)], None),
        (
            np.append(tokens[:14], [spelt, *[bins] * (P - 1), hole]),
            [(24, 1)],
            "s: 1 of 8 patches are broken, what they lack is missing",
        ),
    ):
        notes: list[str] = []
        found = made.decode(damaged.astype(np.int32), about(signal), notes)
        assert isinstance(found, Series) and found.values.shape == whole.shape
        wanted = whole.copy()
        for row, column in lost:
            wanted[row : row + P, column] = np.nan
        if spelt in damaged:
            wanted[25:31, 1] = made.scale.levels[1, 0]  # and a hole where the first of them was
        assert np.array_equal(found.values, wanted, equal_nan=True)
        assert any(note.startswith(told) for note in notes) if told else notes == []
    found = made.decode(tokens[:-2], about(signal), notes := [])
    assert len(found) == 3 * P and notes == ["s: 1 of 2 channels at the last patch, left out"]
    assert len(made.decode(np.array([shape + made._cuts]), about(signal))) == 0
    assert len(made.decode(np.append(tokens, shape + made._cuts), about(signal))) == 3 * P + 1


def test_sums_are_exact_in_any_order() -> None:
    """The greatest weights and inputs, against whole numbers of any size."""
    draw = np.random.default_rng(0)
    weights = [draw.integers(-32767, 32768, shape).astype(np.int16) for shape in ((9, 6), (2, 6), (7, 6), (16, 3))]
    x = draw.integers(-int(MOST * GRID), int(MOST * GRID) + 1, (40, 9))
    channels = draw.integers(0, 2, 40)

    def layer(inputs: list[int], table: list[list[int]], added: list[int]) -> list[int]:
        """In units of 1 / (WEIGHTS * GRID)."""
        return [
            sum(a * row[n] for a, row in zip(inputs, table, strict=True)) + GRID * added[n] for n in range(len(added))
        ]

    def bent(sums: list[int]) -> list[int]:
        """Onto the grid, halves to even."""
        return [min(max(round(s / WEIGHTS), 0), int(MOST * GRID)) for s in sums]

    found = Layers(*weights)(x / GRID, channels)
    first, channel, second, last = (w.astype(object).tolist() for w in weights)
    for inputs, at, got in zip(x.tolist(), channels.tolist(), found.tolist(), strict=True):
        hidden = bent(layer(inputs, first, channel[at]))
        hidden = bent(layer(hidden, second[:-1], second[-1]))
        assert [value * WEIGHTS * GRID for value in got] == layer(hidden + inputs, last[:-1], last[-1])
    turned = np.ascontiguousarray(x[::-1]) / GRID
    assert np.array_equal(Layers(*weights)(turned, channels[::-1].copy())[::-1], found)


def test_the_same_seed_gives_the_same_codec() -> None:
    one, two, other = (coding.fit("patch", [swings(0)], **{**FAST, "steps": 20}, seed=seed) for seed in (1, 1, 2))
    assert pickle.dumps(one.state()) == pickle.dumps(two.state())
    assert one.error() != other.error()


def test_pytorch_is_wanted_to_fit_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signal, found = swings(2, 100), importlib.util.find_spec
    wanted = again(signal, codec()).values
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else found(name, *a))
    with pytest.raises(
        SignalError,
        match=r"codec patch: is fitted with PyTorch, which is not installed: run pip install 'genmote\[workbench\]'",
    ):
        coding.fit("patch", [signal])
    (tmp_path / "it").write_bytes(pickle.dumps((codec().state(), codec().encode(signal), signal.values)))
    code = (
        "import sys, pickle; sys.modules['torch'] = None; import numpy as np\n"
        "from genmote.signals import coding; from genmote.signals.kinds import Series\n"
        f"state, tokens, values = pickle.load(open({str(tmp_path / 'it')!r}, 'rb'))\n"
        "signal = Series('s', values, 10.0, ('a', 'b'), ('mV', 'mV')); codec = coding.from_state(state)\n"
        "assert np.array_equal(codec.encode(signal), tokens)\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, codec.decode(tokens, coding.about(signal)).values)"
    )
    # Also where sums go in another order: with the kernels of an older processor.
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OPENBLAS_CORETYPE": "Prescott"})
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)


def test_errors() -> None:
    signal = swings(0, 20)
    with pytest.raises(
        SpecError,
        match=r"codec patch: patch=1, wanted 2 to 256; codes=0, wanted 1 to 16; hidden=0, wanted 1 to 256; steps=0, "
        r"wanted 1 to 1000000; levels=\(1,\), wanted each 2 or more and their product 65536 at most; bins=1, wanted 2 "
        r"to 65536; tail=0.5, wanted 0 or more and less than half; spelt=-1.0, wanted 0 or more and less than half; "
        r"seed=-1, wanted 0 or more",
    ):
        coding.fit(
            "patch",
            [signal],
            patch=1,
            codes=0,
            hidden=0,
            steps=0,
            levels=[1],
            bins=1,
            tail=0.5,
            spelt=-1.0,
            seed=-1,
        )
    for levels in ([], [256, 257]):
        with pytest.raises(SpecError, match="levels=.*, wanted each 2 or more and their product 65536 at most"):
            coding.fit("patch", [signal], levels=levels)
    with pytest.raises(SignalError, match="signal: tokens of a series without channels; give a header that names some"):
        codec().decode(codec().encode(signal))
    with pytest.raises(SignalError, match=r"s: channel c \[mV\] was not there when the codec was fitted"):
        codec().encode(series(np.zeros((9, 3))))
    with pytest.raises(SignalError, match="signal: tokens of a series without a rate; give its rate_hz or times_s"):
        codec().decode(codec().encode(signal), coding.About(channels=("a", "b"), units=("mV", "mV")))


def test_a_state_that_is_none() -> None:
    state = codec().state()
    for key, value in (
        ("spread", np.array([1.0, 0.0])),
        ("bound", np.array([1.0, np.nan])),
        ("bound", np.array([1.0, -1.0])),
        ("centre", np.array([1.0])),
        ("settings.bins", 255),
    ):
        with pytest.raises(SignalError, match="a codec of 2 channels whose ranges, centres, spreads and errors do not"):
            coding.from_state({**state, key: value})
    with pytest.raises(SignalError, match=r"a codec with net.levels=\(8, 5, 5, 5\): wanted its settings'; write the"):
        coding.from_state({**state, "net.levels": [8, 5, 5, 5]})
    with pytest.raises(
        SignalError, match="a codec with networks that are not between patches of 9 samples of 2 channels and 8 numbers"
    ):
        coding.from_state({**state, "settings.patch": 9})


def test_a_real_room(data: Callable[[str], Path]) -> None:
    """The stated error on days that were not seen."""
    (known,) = reading.read(data("occupancy_uci/datatraining.txt"))
    (unseen,) = reading.read(data("occupancy_uci/datatest.txt"))
    assert isinstance(known, Series) and isinstance(unseen, Series)
    made = coding.fit("patch", [known], steps=200, tail=0.0)
    assert isinstance(made, Patch) and len(made.encode(unseen)) < unseen.values.size / 3
    edges = made.scale.edges
    inside = np.clip(unseen.values, edges[:, 0], edges[:, -1])
    assert off(Series("r", inside, unseen.rate_hz, unseen.channels, unseen.units, unseen.times_s), made) <= 0
