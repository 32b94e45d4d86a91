"""Movements that are known: made-up ones, and sets of which a study says that each has twenty repetitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals.kinds import Series
from genmote.signals.motion import dominant_hz, motion, turns

RATE_HZ = 50.0
G = ("g", "g", "g")


def series(values: np.ndarray, units: tuple[str, ...] = G) -> Series:
    return Series("made up", values.astype(np.float32), RATE_HZ, ("ax", "ay", "az"), units)


def swing(hz: float, seconds: float = 40, second: float = 0.0) -> np.ndarray:
    """Acceleration (T, 3): gravity along z, a swing along x, and `second` of it at twice the rate."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    x = 0.5 * np.sin(2 * np.pi * hz * t) + 0.5 * second * np.sin(4 * np.pi * hz * t + 1)
    return np.stack([x, np.zeros_like(t), np.ones_like(t)], axis=1)


@pytest.mark.parametrize("hz", [0.2, 0.47, 1.0, 2.3, 4.5])
def test_the_rate_of_a_swing(hz: float) -> None:
    assert dominant_hz(swing(hz), RATE_HZ) == pytest.approx(hz, abs=0.01)


def test_there_and_back_is_one_repetition() -> None:
    assert dominant_hz(swing(0.5, second=1.2), RATE_HZ) == pytest.approx(0.5, abs=0.01)


def test_an_arm_at_rest_has_no_rate() -> None:
    assert dominant_hz(np.ones((500, 3), np.float32), RATE_HZ) == 0.0


def test_measures_of_several_recordings_together() -> None:
    still, moving = np.zeros((100, 3)), np.zeros((300, 3))
    still[:, 2], moving[:, 2] = 1, 2
    found = motion([series(still), series(moving)])
    assert (found.recordings, found.duration_s) == (2, 8.0)
    assert found.mean_g == pytest.approx(1.75) and found.std_g == pytest.approx(np.sqrt(3) / 4)
    assert found.peak_g == pytest.approx(2)


@pytest.mark.parametrize(
    ("recordings", "message"),
    [
        ([], "no recording of a movement: wanted at least one"),
        ([series(np.zeros((9, 3)), ("m/s2",) * 3)], "made up: 9 samples in m/s2, m/s2, m/s2; wanted at least 2 finite"),
        ([series(np.zeros((1, 3)))], "made up: 1 samples in g, g, g"),
        ([series(np.full((9, 3), np.inf))], "wanted at least 2 finite samples of acceleration in g, three axes first"),
    ],
)
def test_what_cannot_be_measured_is_told(recordings: list[Series], message: str) -> None:
    with pytest.raises(SignalError, match=message):
        motion(recordings)


def test_the_real_sets_have_the_repetitions_that_the_study_asked_for(
    recording: Callable[[str], list[Series]],
) -> None:
    counted: dict[str, list[float]] = {}
    for one in recording("watch"):
        counted.setdefault(one.name, []).append(dominant_hz(one.values[:, :3], one.rate_hz) * one.duration_s)
    assert {name: len(sets) for name, sets in counted.items()} == dict.fromkeys(counted, 20) and len(counted) == 7
    sets = np.concatenate([sets for name, sets in counted.items() if name != "lower trapezius row"])
    # A row of the lower trapezius pulls and lets go alike, which looks like two repetitions; the others are counted.
    assert np.median(sets) == pytest.approx(20, abs=0.3) and np.mean(np.abs(sets - 20) < 2.5) > 0.98
    assert motion([one for one in recording("watch") if one.name == "pendulum"]).mean_g == pytest.approx(
        1.1213, abs=1e-3
    )


@pytest.mark.parametrize("count", [4, 20])
def test_a_movement_turns_once_in_each_repetition(count: int) -> None:
    seconds = np.arange(3000) / 50
    hz = count / 60
    noise = np.random.default_rng(0).normal(0, 0.3, 3000)
    steady = np.full(3000, 1.0)
    values = np.stack([steady, np.sin(2 * np.pi * hz * seconds) + noise, steady], axis=1).astype(np.float32)
    found = turns(values, 50, hz)
    assert len(found) == count and np.abs(np.diff(found) / (50 / hz) - 1).max() < 0.25
