"""Measures against series whose truth is known; what lies between two thresholds is None."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.describe import measure
from genmote.describe.measure import FALLING, NO_TREND, RISING, Stretch
from genmote.signals.kinds import Series

SEEDS = range(20)


def noise(seed: int, count: int = 600) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


def wave(cycles: float, count: int = 600) -> np.ndarray:
    return np.sin(2 * np.pi * cycles * np.arange(count) / count)


@pytest.mark.parametrize("seed", SEEDS)
def test_trend(seed: int) -> None:
    x = noise(seed)
    ramp = np.linspace(0, 6, len(x))
    assert measure.trend(x + ramp) == RISING
    assert measure.trend(x - ramp) == FALLING
    assert measure.trend(x) in (NO_TREND, None), "noise never rises"
    assert measure.trend(0.3 * x + wave(8.0)) in (NO_TREND, None)


def test_trend_of_a_constant_and_of_what_is_missing() -> None:
    x = np.full(100, 3.0)
    assert measure.trend(x) == NO_TREND
    x[:20] = np.nan
    assert measure.trend(x) is None, "a sixteenth without a sample"
    x = np.linspace(0, 1, 100)
    x[::3] = np.nan
    assert measure.trend(x) == RISING, "gaps within the sixteenths do no harm"


def test_a_trend_is_silent_between_its_thresholds() -> None:
    grades = [measure.trend(noise(4) + k * np.linspace(0, 1, 600)) for k in np.linspace(0, 4, 60)]
    first = grades.index(RISING)
    assert None in grades[:first] and NO_TREND not in grades[first:] and set(grades[-20:]) == {RISING}


def test_one_far_sample_does_not_make_a_trend() -> None:
    x = noise(1)
    x[-1] = 1e4
    assert measure.trend(x) in (NO_TREND, None)


@pytest.mark.parametrize("cycles", [4.5, 8.0, 23.7, 60.0])
@pytest.mark.parametrize("seed", SEEDS[:5])
def test_period(cycles: float, seed: int) -> None:
    found = measure.period(3 + wave(cycles, 1200) + 0.3 * noise(seed, 1200))
    assert found is not None and found == pytest.approx(1200 / cycles, rel=0.04)


def test_period_of_spikes_is_the_time_between_them() -> None:
    x = np.zeros(1000)
    x[20::50] = 1
    assert measure.period(np.convolve(x, np.hanning(7), "same") + 0.05 * noise(0, 1000)) == pytest.approx(50, rel=0.02)


def test_period_of_a_long_series() -> None:
    assert measure.period(wave(40, 30_000)) == pytest.approx(750, rel=0.02)


def test_what_does_not_repeat_has_no_period() -> None:
    found = [measure.period(noise(seed)) for seed in SEEDS]
    assert set(found) <= {0.0, None} and found.count(0.0) >= 15
    walks = [measure.period(np.cumsum(noise(seed))) for seed in range(60)]
    assert sum(one is not None and one > 0 for one in walks) <= 1, "a random walk does not repeat"


def test_a_period_that_does_not_fit_four_times_is_not_told() -> None:
    assert not measure.period(wave(2.0)) and not measure.period(wave(3.5))
    assert measure.period(wave(9.0)[:50]) is None, "too short"


def test_bursts() -> None:
    x = noise(2, 1000)
    assert measure.bursts(x) == []
    x[100:105] += 20
    x[400:410] -= 30
    assert measure.bursts(x) is not None and len(measure.bursts(x) or []) == 2
    first = (measure.bursts(x) or [])[0]
    assert abs(first.start - 100) <= 1 and abs(first.stop - 105) <= 1
    x[700] = 6.5
    assert measure.bursts(x) is None, "6.5 spreads: neither usual nor far"


def test_bursts_of_an_oscillation_are_none() -> None:
    assert measure.bursts(wave(10.0) + 0.1 * noise(0)) == []


def test_two_peaks_close_together_are_one_burst() -> None:
    x = noise(2, 1000)
    x[100:103] += 20
    x[110:113] += 20
    assert len(measure.bursts(x) or []) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_step(seed: int) -> None:
    x = noise(seed)
    assert measure.step(x) == -1
    assert measure.step(x + np.linspace(0, 20, 600)) == -1, "a ramp is no step"
    assert measure.step(0.2 * x + wave(5.0)) == -1
    x[350:] += 6
    assert measure.step(x) == pytest.approx(350, abs=3)


def test_a_small_step_is_not_told() -> None:
    x = noise(3)
    x[300:] += 2.5
    assert measure.step(x) is None


def test_flat() -> None:
    x = noise(0)
    assert measure.flat(x) == Stretch(0, 0)
    x[100:300] = x[100]
    assert measure.flat(x) == Stretch(100, 300)
    assert measure.flat(np.full(100, 2.0)) == Stretch(0, 100)
    x[100:300] = noise(1)[100:300]
    x[100:140] = 0
    assert measure.flat(x) is None, "6 %: neither short nor long"
    assert measure.flat(np.repeat(np.arange(20.0), 30)) is None, "a coarse sensor"


@pytest.mark.parametrize("late", [-40, -15, 0, 15, 40])
def test_lag(late: int) -> None:
    whole = np.convolve(noise(5, 800), np.hanning(31), "same")
    x, y = whole[100:700], whole[100 - late : 700 - late]
    assert measure.lag(x, y + 0.2 * noise(6)) == pytest.approx(late, abs=1)


def test_lag_of_strangers_and_of_fast_waves_is_not_told() -> None:
    assert measure.lag(noise(1), noise(2)) is None
    assert measure.lag(wave(40.0), wave(40.0)) is None, "each period later it fits as well"


def test_bridged() -> None:
    x = np.array([1.0, np.nan, 3.0, 4.0, 5.0, 6.0])
    whole = measure.bridged(x)
    assert whole is not None and whole.tolist() == [1, 2, 3, 4, 5, 6]
    assert measure.bridged(np.array([1.0, np.nan, np.nan, 4.0])) is None


def test_steady_hz() -> None:
    times = np.arange(50) * 0.5
    timed = Series("a", np.zeros((50, 1), np.float32), 0.0, ("x",), ("",), times)
    assert measure.steady_hz(timed) == pytest.approx(2.0)
    times[20:] += 100 * np.arange(30)
    assert measure.steady_hz(timed) == 0.0
