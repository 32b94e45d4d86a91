"""The coder of samples: without loss on everything, the same bytes from its two makings, and small."""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import _twin, adaptive, modality
from genmote.signals.kinds import Series

DRAW = np.random.default_rng(5)
CASES = {
    "nothing": np.zeros((0, 3), np.int64),
    "one": np.array([[7]]),
    "constant": np.full((60, 2), -12345),
    "extremes": np.where(DRAW.random((25, 2)) < 0.5, adaptive.LIMIT - 1, 1 - adaptive.LIMIT),
    "noise": DRAW.integers(-(2**40), 2**40, (25, 3)),
    "walk": np.cumsum(DRAW.integers(-9, 10, (100, 4)), axis=0),
    "sparse": DRAW.choice([0, 0, 0, 0, 5000], (150, 1)),
    "sum": np.array([[a, b, a + b] for a, b in DRAW.integers(-500, 500, (90, 2)).tolist()]),
    "steps": np.repeat(DRAW.integers(0, 200, (20, 1)) * 256, 20, axis=0),
}


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Takes the kernels away."""
    return lambda: monkeypatch.setattr(adaptive, "_native", lambda: None)


@pytest.mark.parametrize("name", CASES)
def test_both_makings_agree_and_nothing_is_lost(name: str, twin: Callable[[], None]) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    samples = CASES[name].astype(np.int64)
    coded = adaptive.encode(samples)
    assert np.array_equal(adaptive.decode(coded, *samples.shape), samples)
    twin()
    assert adaptive.encode(samples) == coded
    assert np.array_equal(adaptive.decode(coded, *samples.shape), samples)


def helped(channels: int, bins: int) -> adaptive.Help:
    """Some channels are told of, some begin with what was learnt."""
    draw = np.random.default_rng(7)
    before = adaptive.coder(CASES["walk"][:, :channels].astype(np.int64).copy(), adaptive.Help.none(channels))
    before.go(adaptive.NO_LOGITS)
    states = np.zeros((channels, adaptive.STATE_SIZE))
    before.learnt(states)
    wide = adaptive.Help.none(channels).cross.shape[1]
    inputs = draw.standard_normal((channels, wide, 2 * wide))
    return adaptive.Help(
        [0, -1, 1, 1][:channels],
        np.sort(draw.normal(0, 30, (2, bins + 1)), axis=1),
        [1, 0, -1, 2][:channels],
        np.ascontiguousarray(inputs @ inputs.transpose(0, 2, 1)),
        draw.standard_normal((channels, wide)),
        states,
    )


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf, 3e38])
def test_both_makings_agree_with_a_model_s_help_told_at_once_or_one_by_one(
    bad: float | None, twin: Callable[[], None]
) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    samples, help_ = CASES["walk"].astype(np.int64), helped(4, 9)
    logits = np.random.default_rng(8).normal(0, 3, (3 * len(samples), 9)).astype(np.float32)
    if bad is not None:
        logits[5:90, ::2] = bad
        logits[20] = bad
    made = []
    for native in (True, False):
        if not native:
            twin()
        coder = adaptive.coder(samples.copy(), help_)
        assert coder.go(adaptive.NO_LOGITS)
        assert coder.go(logits[:100]) and not coder.go(logits[100:])
        states = np.zeros((4, adaptive.STATE_SIZE))
        coder.learnt(states)
        made.append((coder.finish(), states))
        found = np.zeros_like(samples)
        decoder = adaptive.coder(found, help_, made[-1][0])
        waits = decoder.go(adaptive.NO_LOGITS)
        for one in logits:
            assert waits
            waits = decoder.go(one[None])
        assert not waits and np.array_equal(found, samples)
    assert made[0][0] == made[1][0] and np.array_equal(made[0][1], made[1][1])


def test_a_model_that_is_right_makes_samples_small() -> None:
    draw = np.random.default_rng(9)
    samples = draw.integers(0, 8, (600, 1)) * 100
    logits = np.zeros((600, 16), np.float32)
    logits[np.arange(600), 2 * samples[:, 0] // 100] = 4.0
    help_ = replace(adaptive.Help.none(1), told=[0], cuts=np.arange(-25.0, 790, 50)[None, :17])
    coder = adaptive.coder(samples.copy(), help_)
    coder.go(logits)
    assert len(coder.finish()) < 0.7 * len(adaptive.encode(samples))


def test_the_native_coder_refuses_arrays_that_do_not_fit() -> None:
    native = pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    none = adaptive.Help.none(2)
    rest = (none.moments, none.cross, none.states)
    samples = np.zeros((5, 2), np.int64)
    for words, told in (
        ((samples, [-1], none.cuts, none.practised, *rest), "wanted one for each channel"),
        ((samples, [0, -1], none.cuts, none.practised, *rest), "cuts: fewer than told of"),
        ((samples, none.told, none.cuts, [0, 0], *rest), "moments: fewer than practised"),
        ((samples, none.told, none.cuts, none.practised, np.zeros((1, 3, 3)), *rest[1:]), "moments: of other channels"),
        ((samples, none.told, np.zeros((1, 1)), none.practised, *rest), "cuts: wanted two or more"),
        ((samples, none.told, none.cuts, none.practised, *rest[:2], np.zeros((1, 3))), "states: of another size"),
    ):
        with pytest.raises(ValueError, match=told):
            native.SeriesCoder(*words, None)
    coder = native.SeriesCoder(samples, [0, -1], np.zeros((1, 4)), none.practised, *rest, None)
    with pytest.raises(ValueError, match="logits: of another number of bins"):
        coder.go(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="states: of another size"):
        coder.learnt(np.zeros((1, 4)))


def test_damaged_bytes_give_something_and_never_a_crash() -> None:
    samples = CASES["walk"].astype(np.int64)
    coded = bytearray(adaptive.encode(samples))
    for number in range(60):
        broken = bytearray(coded)
        broken[int(DRAW.integers(len(broken)))] ^= 1 << int(DRAW.integers(8))
        assert adaptive.decode(bytes(broken[: len(broken) - number]), *samples.shape).shape == samples.shape
    assert adaptive.decode(b"", 5, 2).shape == (5, 2)
    assert adaptive.decode(DRAW.integers(0, 256, 500, dtype=np.uint8).tobytes(), 300, 3).shape == (300, 3)


def test_exponential_and_logarithm() -> None:
    for x in DRAW.uniform(-700, 700, 500):
        assert _twin.exponential(float(x)) == pytest.approx(math.exp(x), rel=1e-12)
    for x in np.exp(DRAW.uniform(-300, 300, 500)):
        assert _twin.logarithm(float(x)) == pytest.approx(math.log(x), rel=1e-12, abs=1e-12)


def test_it_is_smaller_than_a_general_compressor_makes_it() -> None:
    """On drawn signals with the rhythm of real ones; the benchmark measures real ones."""
    for name in ("blood-pressure", "control", "force-torque"):
        (found,) = modality.load(name).sample()
        assert isinstance(found, Series) and found.grid is not None
        samples = found.grid.integers[:3000]
        steps = np.diff(samples, axis=0, prepend=0)
        general = min(len(lzma.compress(x.astype("<i2").tobytes(), preset=9)) for x in (samples, steps))
        assert len(adaptive.encode(samples)) < 0.9 * general, name


def test_a_channel_that_is_the_sum_of_others_costs_next_to_nothing() -> None:
    two = np.random.default_rng(3).integers(-500, 500, (1000, 2))
    samples = np.column_stack([two, two.sum(axis=1)])
    assert len(adaptive.encode(samples)) < 1.15 * len(adaptive.encode(np.ascontiguousarray(samples[:, :2])))


def test_real_hearts(data: Callable[[str], Path]) -> None:
    """Twelve leads of 16 bits, against the best of xz on the samples or their differences."""
    found = sorted(data("ptbxl500/records100/00000").glob("*.dat"))[40:44]
    for path in found:
        samples = np.fromfile(path, "<i2").reshape(-1, 12).astype(np.int64)
        steps = np.diff(samples, axis=0, prepend=0)
        general = min(len(lzma.compress(x.astype("<i2").tobytes(), preset=9)) for x in (samples, steps))
        coded = adaptive.encode(samples)
        assert np.array_equal(adaptive.decode(coded, *samples.shape), samples)
        assert len(coded) < 0.75 * general


def test_what_it_refuses() -> None:
    with pytest.raises(SignalError, match=r"samples of shape \(4,\): wanted \(rows, channels\) with 1 to 64 channels"):
        adaptive.encode(np.zeros(4, np.int64))
    with pytest.raises(SignalError, match=r"samples of shape \(4, 65\)"):
        adaptive.encode(np.zeros((4, 65), np.int64))
    with pytest.raises(SignalError, match=r"samples up to 2\.81e\+14: wanted numbers of less than 48 bits"):
        adaptive.encode(np.array([[adaptive.LIMIT]]))
    with pytest.raises(SignalError, match=r"samples up to 9\.22e\+18"):
        adaptive.encode(np.array([[np.iinfo(np.int64).min]]))
