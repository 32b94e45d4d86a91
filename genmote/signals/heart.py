"""Beats and heart rate of a pulse sensor's recording.

Beats by the moving-average threshold of van Gent, Farah, van Nes, van Arem, "HeartPy: A novel heart rate algorithm for
the analysis of noisy signals", Transportation Research Part F 66 (2019) 368-378: a beat is the highest sample of each
stretch above a raised moving average, and of several heights the one whose beats are the most regular is taken.
Variability by the definitions of the Task Force of ESC and NASPE, "Heart rate variability", Circulation 93 (1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError

WINDOW_S = 0.75
SLOWEST_BPM, FASTEST_BPM = 40.0, 180.0
SPREAD = 0.3  # an interval further from the median than this part of it is noise, not a beat
RUN = 4  # fewer good intervals in a row are chance: noise has some of the right length
HEIGHTS = np.arange(0.1, 0.95, 0.05)  # of the signal's height above its moving average


@dataclass(frozen=True)
class HeartRate:
    """What was measured. `peaks` are all candidates, `kept` the beats: those at either end of an interval that counts;
    both are positions in the signal."""

    beats: int
    mean_bpm: float
    slowest_bpm: float
    fastest_bpm: float
    sdnn_ms: float  # standard deviation of the intervals between beats
    rmssd_ms: float  # root mean square of the differences between successive intervals
    usable_s: float  # the sum of the intervals that count
    duration_s: float
    peaks: NDArray[np.intp]
    kept: NDArray[np.intp]


def heart_rate(signal: NDArray[np.float32], rate_hz: float) -> HeartRate:
    """Heart rate of `signal` (T,), whose beats point upwards. Raises SignalError where no steady beat is found."""
    x = np.asarray(signal, np.float64)
    duration_s = len(x) / rate_hz
    if duration_s < 5 or not np.isfinite(x).all():
        raise SignalError(
            f"a pulse recording of {duration_s:.1f} s{'' if np.isfinite(x).all() else ' with gaps'}: "
            "wanted at least 5 s of finite values"
        )
    peaks, good = _beats(x, rate_hz)
    intervals_ms = np.diff(peaks) * (1e3 / rate_hz)
    counted = intervals_ms[good]
    if len(counted) < RUN:
        raise SignalError(
            f"no steady beat from {SLOWEST_BPM:.0f} to {FASTEST_BPM:.0f} a minute in {duration_s:.0f} s of signal: "
            "check that it is a pulse, that beats point upwards, and its rate in Hz"
        )
    steps = np.diff(intervals_ms)[good[1:] & good[:-1]]
    kept = peaks[np.append(good, False) | np.insert(good, 0, False)]
    minute_ms = 60e3
    return HeartRate(
        beats=len(kept),
        mean_bpm=float(minute_ms / counted.mean()),
        slowest_bpm=float(minute_ms / counted.max()),
        fastest_bpm=float(minute_ms / counted.min()),
        sdnn_ms=float(counted.std()),
        rmssd_ms=float(np.sqrt(np.mean(steps**2))),
        usable_s=float(counted.sum() / 1e3),
        duration_s=duration_s,
        peaks=peaks,
        kept=kept,
    )


def _beats(x: NDArray[np.float64], rate_hz: float) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Positions of the beats, and which intervals between them count: at the height that explains the most time."""
    above = x - _moving_average(x, max(1, round(WINDOW_S * rate_hz)))
    top = float(np.percentile(above, 98))
    best: tuple[NDArray[np.intp], NDArray[np.bool_]] = np.zeros(0, np.intp), np.zeros(0, np.bool_)
    most = 0
    for height in HEIGHTS if top > 0 else ():
        peaks = _highest(x, above > height * top)
        good = _steady(np.diff(peaks) / rate_hz)
        explained = int(np.diff(peaks)[good].sum())
        if explained > most:
            best, most = (peaks, good), explained
    return best


def _moving_average(x: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Mean of the `width` samples (made odd) around each; the ends are repeated outwards."""
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(np.pad(x, half, mode="edge"))])
    return np.asarray((sums[2 * half + 1 :] - sums[: -2 * half - 1]) / (2 * half + 1))


def _highest(x: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Position of the highest sample in each stretch of `inside`."""
    edges = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return np.array([start + int(np.argmax(x[start:stop])) for start, stop in edges], np.intp)


def _steady(intervals_s: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which intervals count: of a plausible length, close to the median of those, and several in a row."""
    plausible = (intervals_s >= 60 / FASTEST_BPM) & (intervals_s <= 60 / SLOWEST_BPM)
    if not plausible.any():
        return plausible
    middle = float(np.median(intervals_s[plausible]))
    good = plausible & (np.abs(intervals_s - middle) <= SPREAD * middle)
    edges = np.flatnonzero(np.diff(good.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    for start, stop in edges:
        good[start:stop] = stop - start >= RUN
    return good
