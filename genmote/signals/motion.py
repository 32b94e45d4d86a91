"""What an accelerometer's recording tells of a movement: how strong, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.kinds import Series

LOWEST_HZ, HIGHEST_HZ = 0.1, 5.0  # people repeat a movement no slower and no faster
PEAK_PART = 0.5


@dataclass(frozen=True)
class Motion:
    """Magnitude of the acceleration, gravity included, and the rate at which the movement repeats; of `recordings`
    recordings taken together, the rate being their median."""

    recordings: int
    duration_s: float
    mean_g: float
    std_g: float
    peak_g: float
    dominant_hz: float


def motion(recordings: Sequence[Series]) -> Motion:
    """Measures recordings whose first three channels are acceleration in g. Raises SignalError for none or other
    ones."""
    for series in recordings:
        if series.units[:3] != ("g", "g", "g") or len(series.values) < 2 or not np.isfinite(series.values).all():
            raise SignalError(
                f"{series.name}: {len(series.values)} samples in {', '.join(series.units)}; wanted at least 2 finite "
                "samples of acceleration in g, three axes first"
            )
    if not recordings:
        raise SignalError("no recording of a movement: wanted at least one")
    magnitudes = [np.linalg.norm(series.values[:, :3].astype(np.float64), axis=1) for series in recordings]
    joined = np.concatenate(magnitudes)
    return Motion(
        recordings=len(recordings),
        duration_s=sum(series.duration_s for series in recordings),
        mean_g=float(joined.mean()),
        std_g=float(joined.std()),
        peak_g=float(joined.max()),
        dominant_hz=float(np.median([dominant_hz(s.values[:, :3], s.rate_hz) for s in recordings])),
    )


def dominant_hz(values: NDArray[np.float32], rate_hz: float) -> float:
    """The rate in Hz at which `values` (T, C) repeat: the lowest strong peak of the channels' summed power spectrum.

    A Hann window keeps the slow drift out. A movement there and back is strong at twice its rate too, so of the peaks
    from 0.1 to 5 Hz the lowest that has half of the strongest one's power is taken. 0 where nothing moves.
    """
    x = np.asarray(values, np.float64)
    x = (x - x.mean(axis=0)) * np.hanning(len(x))[:, None]  # (T, C)
    length = max(len(x), 1 << int(np.ceil(np.log2(4 * len(x)))))  # padded: finer steps of frequency
    power = (np.abs(np.fft.rfft(x, length, axis=0)) ** 2).sum(axis=1)
    hz = np.fft.rfftfreq(length, 1 / rate_hz)
    inside = (hz >= LOWEST_HZ) & (hz <= HIGHEST_HZ)
    power, hz = power[inside], hz[inside]
    if len(power) < 3 or power.max() <= 0:
        return 0.0
    peaks = np.flatnonzero((power[1:-1] >= power[:-2]) & (power[1:-1] > power[2:])) + 1
    strong = peaks[power[peaks] >= PEAK_PART * power.max()]
    return float(hz[strong[0]] if len(strong) else hz[np.argmax(power)])


def turns(values: NDArray[np.float32], rate_hz: float, hz: float) -> NDArray[np.intp]:
    """Samples at which a movement of about `hz` repetitions a second turns: one in each, the peaks of the channel of
    `values` (T, C) that is strongest in the band from half to one and a half times that rate."""
    x = np.asarray(values, np.float64)
    spectrum = np.fft.rfft(x - x.mean(axis=0), axis=0)
    at = np.fft.rfftfreq(len(x), 1 / rate_hz)
    spectrum[(at < 0.5 * hz) | (at > 1.5 * hz)] = 0
    band = np.fft.irfft(spectrum, len(x), axis=0)
    strongest = band[:, np.argmax((band**2).sum(axis=0))]
    inner = (strongest[1:-1] > strongest[:-2]) & (strongest[1:-1] >= strongest[2:]) & (strongest[1:-1] > 0)
    return np.flatnonzero(inner) + 1
