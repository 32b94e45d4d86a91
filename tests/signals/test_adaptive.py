"""The coder of samples: without loss on everything, the same bytes from its two makings, and small."""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import adaptive, modality
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
        assert adaptive.exponential(float(x)) == pytest.approx(math.exp(x), rel=1e-12)
    for x in np.exp(DRAW.uniform(-300, 300, 500)):
        assert adaptive.logarithm(float(x)) == pytest.approx(math.log(x), rel=1e-12, abs=1e-12)


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
