"""Heart beats of an ECG, or of a pulse: rate, count, and whether they are regular; silent where that is not clear.

Beats of an ECG are where the band of the QRS complex is strong in all leads together, after Pan and Tompkins, "A
real-time QRS detection algorithm", IEEE Transactions on Biomedical Engineering 32 (1985) 230-236: that band, squared,
summed over a short window. Beats of a pulse are those of `signals/heart.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from genmote.describe import measure
from genmote.errors import SignalError
from genmote.signals.heart import heart_rate
from genmote.signals.kinds import Series

ECG = re.compile(r"^(lead )?(I|II|III|aV[RLF]|V[1-6]|MLI{1,3}|MCL1)$|\b(ecg|ekg)\b", re.IGNORECASE)
PULSE = re.compile(r"\b(pulse|pleth|ppg|abp|arterial pressure|blood pressure)\b", re.IGNORECASE)
SLOWEST_HZ = 60  # of sampling, below which a QRS complex is lost
SHORTEST_S = 4.0
BAND_HZ = (8.0, 25.0)  # of a QRS complex; P and T waves are slower
WINDOW_S, APART_S = 0.1, 0.25
CLEAR, FAINT = 0.25, 0.12  # of a usual beat's strength: above it is one, below it is none, between it is not clear
CONTRAST = 12.0  # a beat is so much stronger than what lies between beats: in noise nothing is
LEAST_BEATS = 4
SLOWEST_BPM, FASTEST_BPM = 25.0, 220.0
TOLERANCE_BPM, AGREE_BPM = 5.0, 3.0
REGULAR, IRREGULAR = 0.08, 0.15  # the furthest interval from the median, as a part of it


def kind(series: Series) -> str:
    """ "ecg" or "pulse" by the names of its channels, else nothing."""
    names = (*series.channels, series.name)
    return "ecg" if any(map(ECG.search, names)) else "pulse" if any(map(PULSE.search, series.channels)) else ""


def beats_s(series: Series) -> NDArray[np.float64] | None:
    """When the heart beats, in seconds from the start. None where the series is of no heart, too short or too coarse,
    or where it is not clear which peaks are beats."""
    what = kind(series)
    if not what or series.rate_hz < (SLOWEST_HZ if what == "ecg" else 15) or series.duration_s < SHORTEST_S:
        return None
    if what == "pulse":
        (at, *_) = (n for n, name in enumerate(series.channels) if PULSE.search(name))
        return _of_pulse(series.values[:, at], series.rate_hz)
    leads = [n for n, name in enumerate(series.channels) if ECG.search(name)] or list(range(len(series.channels)))
    columns = [measure.bridged(series.values[:, n].astype(np.float64)) for n in leads]
    known = [x for x in columns if x is not None and measure.spread(np.diff(x)) > 0]
    if not known:
        return None
    found = _qrs(np.stack(known, axis=1), series.rate_hz)
    for half in (known[::2], known[1::2]) if found is not None and len(known) >= 4 else ():
        other = _qrs(np.stack(half, axis=1), series.rate_hz)
        if other is not None and found is not None and abs(rate_bpm(other) - rate_bpm(found)) > AGREE_BPM:
            return None  # half of the leads tell something else
    return found


def _of_pulse(x: NDArray[np.float32], rate_hz: float) -> NDArray[np.float64] | None:
    try:
        found = heart_rate(x, rate_hz)
    except SignalError:
        return None
    # What the intervals that count do not cover was no steady beat.
    return found.peaks / rate_hz if found.usable_s >= 0.85 * found.duration_s - 2 else None


def _qrs(x: NDArray[np.float64], rate_hz: float) -> NDArray[np.float64] | None:
    """Of leads (T, C)."""
    spectrum = np.fft.rfft(x - x.mean(axis=0), 2 * len(x), axis=0)
    hz = np.fft.rfftfreq(2 * len(x), 1 / rate_hz)
    spectrum[(hz < BAND_HZ[0]) | (hz > BAND_HZ[1])] = 0
    band = np.fft.irfft(spectrum, axis=0)[: len(x)] ** 2
    strength = _smoothed((band / np.maximum(1e-12, band.mean(axis=0))).sum(axis=1), round(WINDOW_S * rate_hz))
    window = max(1, round(1.5 * rate_hz))
    usual = float(np.median([part.max() for part in np.array_split(strength, max(1, round(len(x) / window)))]))
    if usual < CONTRAST * float(np.percentile(strength, 35)):
        return None  # noise
    apart = round(APART_S * rate_hz)
    peaks = np.flatnonzero((strength[1:-1] >= strength[:-2]) & (strength[1:-1] > strength[2:])) + 1
    beats: list[int] = []
    for at in peaks[np.argsort(-strength[peaks], kind="stable")]:
        if strength[at] < FAINT * usual:
            break
        if all(abs(at - other) >= apart for other in beats):
            if strength[at] < CLEAR * usual:
                return None
            beats.append(int(at))
    return np.sort(np.array(beats)) / rate_hz if len(beats) >= LEAST_BEATS else None


def _smoothed(x: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Means of `width` samples (made odd) around each; the ends are repeated outwards."""
    half = width // 2
    sums = np.cumsum(np.pad(x, (half + 1, half), mode="edge"))
    return np.asarray((sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1))


def rate_bpm(beats: NDArray[np.float64]) -> float:
    """Beats a minute, by the mean interval."""
    return 60.0 * (len(beats) - 1) / float(beats[-1] - beats[0])


def regular(beats: NDArray[np.float64]) -> bool | None:
    """Whether intervals are of one length: none further than 8 % from their median. Irregular with one further than
    15 % and a fifth of all further than 5 %, as a single early beat makes; None between."""
    away = np.abs(np.diff(beats) / np.median(np.diff(beats)) - 1)
    if away.max() <= REGULAR:
        return True
    return False if away.max() >= IRREGULAR and np.mean(away > 0.05) >= 0.2 else None


def told(series: Series) -> Iterator[tuple[str, float | bool]]:
    """What is known of the heart, by the kinds of questions: `heart_rate`, `beats`, `regular`."""
    found = beats_s(series)
    if found is None or len(found) < LEAST_BEATS:
        return
    rate = rate_bpm(found)
    if not SLOWEST_BPM <= rate <= FASTEST_BPM:
        return
    yield "heart_rate", rate
    yield "beats", float(len(found))
    if (even := regular(found)) is not None:
        yield "regular", even
