"""Beats of drawn hearts whose rate is known; noise has none."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.describe import beats
from genmote.signals.kinds import Series


def ecg(intervals: np.ndarray, rate: float = 100.0, leads: int = 2, seed: int = 0) -> Series:
    """P, QRS and T waves at the beats, a little noise and a drifting base."""
    at = 0.5 + np.concatenate([[0.0], np.cumsum(intervals)])
    t = np.arange(int((at[-1] + 0.5) * rate)) / rate
    x = 0.02 * np.random.default_rng(seed).normal(size=(len(t), leads)) + 0.1 * np.sin(2 * np.pi * 0.3 * t)[:, None]
    for place, height, width in ((-0.16, 0.12, 0.025), (0.0, 1.0, 0.012), (0.25, 0.3, 0.05)):
        x += height * np.exp(-0.5 * ((t[:, None] - at - place) / width) ** 2).sum(axis=1)[:, None]
    return Series("r", x.astype(np.float32), rate, ("II", "V2", "V5", "I")[:leads], ("mV",) * leads)


@pytest.mark.parametrize("bpm", [40, 60, 75, 120, 180])
@pytest.mark.parametrize("leads", [1, 4])
def test_rate_and_count(bpm: float, leads: int) -> None:
    count = int(10 * bpm / 60)
    told = dict(beats.told(ecg(np.full(count - 1, 60 / bpm), leads=leads)))
    assert told["heart_rate"] == pytest.approx(bpm, abs=2) and told["beats"] == count and told["regular"] is True


def test_irregular_and_in_between() -> None:
    random = np.random.default_rng(1)
    assert dict(beats.told(ecg(random.uniform(0.5, 1.2, 14))))["regular"] is False
    early = np.full(12, 0.8)
    early[5], early[6] = 0.5, 1.1
    found = beats.beats_s(ecg(early))
    assert found is not None and beats.regular(found) is None, "one early beat of thirteen"
    assert beats.regular(np.cumsum([0, 0.8, 0.8, 0.5, 1.1, 0.8, 0.8])) is False


@pytest.mark.parametrize("seed", range(10))
def test_noise_and_flat_lines_have_no_beats(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(1000, 1 + seed % 3)).astype(np.float32)
    names = ("I", "II", "V1")[: x.shape[1]]
    for values in (x, np.cumsum(x, axis=0), np.zeros_like(x)):
        assert beats.beats_s(Series("r", values, 100.0, names, ("mV",) * len(names))) is None


def test_a_pulse() -> None:
    t = np.arange(2000) / 100
    x = np.exp(-((t % 0.75) / 0.15)) + 0.01 * np.random.default_rng(0).normal(size=len(t))
    told = dict(beats.told(Series("p", x[:, None].astype(np.float32), 100.0, ("pulse",), ("counts",))))
    assert told["heart_rate"] == pytest.approx(80, abs=2) and told["regular"] is True


def test_what_is_no_heart_or_too_coarse_has_no_beats() -> None:
    heart = ecg(np.full(12, 0.8))
    assert beats.kind(heart) == "ecg"
    assert beats.beats_s(Series("r", heart.values, 100.0, ("x", "y"), ("g", "g"))) is None
    assert beats.beats_s(Series("r", heart.values[::4], 25.0, heart.channels, heart.units)) is None
    assert beats.beats_s(heart.part(0, 300)) is None


def test_leads_that_disagree_are_not_believed() -> None:
    heart, other = ecg(np.full(12, 0.8), leads=4), ecg(np.full(19, 0.5), leads=4)
    count = min(len(heart), len(other))
    mixed = heart.values[:count].copy()
    mixed[:, 1::2] = other.values[:count, 1::2]
    assert beats.beats_s(Series("r", mixed, 100.0, heart.channels, heart.units)) is None
