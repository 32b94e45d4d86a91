"""What facts are made of: measures of one channel `x` (T,), each with a stated rule, silent where it is not clear.

A measure that decides (rising or not, periodic or not) has two thresholds. What lies between them is None: it is not
asked, rather than decided by a hair. Missing samples are NaN; a measure that needs all of them bridges short gaps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmote.signals.kinds import Series

Floats = NDArray[np.float64]
BLOCKS = 16  # by which a trend is judged
MOST = 4096  # samples of which a period is looked for
GAPS = 0.2  # of the samples may be missing where they are bridged

RISING, FALLING, NO_TREND = "rising", "falling", "no clear trend"


def clock(series: Series) -> Floats:
    """Seconds since the first sample, (T,)."""
    if series.rate_hz > 0:
        return np.arange(len(series)) / series.rate_hz
    assert series.times_s is not None
    return np.asarray(series.times_s - series.times_s[0], np.float64) if len(series) else np.zeros(0)


def finite(values: NDArray[Any]) -> Floats:
    """As float64, with NaN for what is infinite, too."""
    x = np.asarray(values, np.float64)
    return x if np.isfinite(x).all() else np.where(np.isfinite(x), x, np.nan)


def steady_hz(series: Series) -> float:
    """The rate; of a series with times the one that nearly all its steps have, else 0."""
    if series.rate_hz > 0 or len(series) < 3:
        return series.rate_hz
    steps = np.diff(clock(series))
    usual = float(np.median(steps))
    return 1 / usual if usual > 0 and np.mean(np.abs(steps - usual) <= 0.05 * usual) >= 0.95 else 0.0


def spread(x: Floats) -> float:
    """Standard deviation by the median distance from the median: a few far samples do not move it.

    >>> float(round(spread(np.array([1.0, 2.0, 3.0, 4.0, 900.0])), 4))
    1.4826
    """
    known = x[np.isfinite(x)]
    return 1.4826 * float(np.median(np.abs(known - np.median(known)))) if len(known) else 0.0


def bridged(x: Floats) -> Floats | None:
    """Without NaN: gaps become straight lines. None where more than `GAPS` are missing."""
    known = np.isfinite(x)
    if not known.any() or known.mean() < 1 - GAPS:
        return None
    at = np.arange(len(x))
    return x if known.all() else np.interp(at, at[known], x[known])


def blocks(x: Floats, count: int = BLOCKS) -> Floats | None:
    """Means of `count` equal parts. None where one has no sample."""
    parts = [part[np.isfinite(part)] for part in np.array_split(x, count)]
    return None if any(len(part) == 0 for part in parts) else np.array([part.mean() for part in parts])


def trend(x: Floats) -> str | None:
    """Over the whole. Kendall's τ of the means of 16 blocks and the rise by the slope of Theil and Sen (the median of
    all slopes): it rises with τ of at least 0.6 and a rise of at least half the blocks' range; it has no trend with |τ|
    of at most 0.25 and a rise of at most a quarter of that range."""
    means = blocks(x)
    if means is None:
        return None
    reach = float(np.ptp(means))
    if reach <= 1e-9 * max(1.0, float(np.abs(means).max())):
        return NO_TREND
    i, j = np.triu_indices(BLOCKS, 1)
    steps = means[j] - means[i]
    tau, rise = float(np.sign(steps).mean()), float(np.median(steps / (j - i))) * (BLOCKS - 1)
    if abs(tau) >= 0.6 and abs(rise) >= 0.5 * reach:
        return RISING if tau > 0 else FALLING
    return NO_TREND if abs(tau) <= 0.25 and abs(rise) <= 0.25 * reach else None


def correlations(x: Floats) -> Floats:
    """Autocorrelation at lags 0 to T // 2, unbiased, 1 at lag 0; of a constant, zeros."""
    n = len(x)
    x = x - np.polyval(np.polyfit(np.arange(n), x, 1), np.arange(n))
    power = np.abs(np.fft.rfft(x, 2 * n)) ** 2
    sums = np.fft.irfft(power)[: n // 2 + 1]
    found = sums / (n - np.arange(n // 2 + 1))
    return np.asarray(found / found[0] if found[0] > 1e-20 else np.zeros(len(found)))


def period(x: Floats) -> float | None:
    """Samples after which it repeats; 0 where it does not; None where that is not clear.

    It repeats where the autocorrelation, once it has been below 0, has a peak of at least 0.6 at a lag that fits in at
    least four times, and of at least 0.5 at twice that lag. Of peaks nearly as high as the highest the first counts.
    It does not where nothing after the first fall below 0 reaches 0.3. Where a half has a period that is more than 15 %
    off, the pace changes, and there is not one period."""
    whole = bridged(x)
    if whole is None or len(whole) < 64:
        return None
    length = _period(whole)
    for half in (whole[: len(x) // 2], whole[len(x) // 2 :]) if length and len(x) >= 128 else ():
        own = _period(half)
        if own and length and abs(own / length - 1) > 0.15:
            return None
    return length


def repetitions(x: Floats) -> float | None:
    """How many periods there are; of a pace that changes those of both halves. None where that is not clear, or
    nothing repeats."""
    if length := period(x):
        return len(x) / length
    halves = x[: len(x) // 2], x[len(x) // 2 :]
    lengths = [period(half) for half in halves]
    counts = [len(half) / length for half, length in zip(halves, lengths, strict=True) if length]
    return sum(counts) if len(counts) == 2 else None


def _period(whole: Floats) -> float | None:
    by = -(-len(whole) // MOST)
    small = whole[: len(whole) // by * by].reshape(-1, by).mean(axis=1)
    r = correlations(small)
    below = np.flatnonzero(r < 0)
    if not len(below):
        return None
    after = r[below[0] :]
    if len(after) < 3 or after.max() < 0.3:
        return 0.0
    inner = np.flatnonzero((after[1:-1] >= after[:-2]) & (after[1:-1] > after[2:])) + 1
    high = [n for n in inner if after[n] >= 0.85 * after.max()]
    if not high:
        return None
    lag = int(high[0]) + int(below[0])
    lag += int(np.argmax(r[lag : lag + lag // 4 + 1]))  # with noise there are small peaks on the way up
    if r[lag] < 0.6 or 4 * lag > len(small) or r[2 * lag - lag // 8 : 2 * lag + lag // 8 + 1].max(initial=0) < 0.5:
        return None
    reach = max(1, lag // 10)
    if lag + reach >= len(r):
        return None
    a, b, _ = np.polyfit(np.arange(-reach, reach + 1), r[lag - reach : lag + reach + 1], 2)
    top = float(-b / (2 * a)) if a < 0 else 0.0  # of the parabola through the peak
    return by * (lag + min(reach, max(-reach, top)))


class Stretch(NamedTuple):
    """Samples [start, stop)."""

    start: int
    stop: int


def stretches(inside: NDArray[np.bool_]) -> list[Stretch]:
    """Where it is true.

    >>> stretches(np.array([True, False, True, True]))
    [Stretch(start=0, stop=1), Stretch(start=2, stop=4)]
    """
    edges = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return [Stretch(int(start), int(stop)) for start, stop in edges]


def bursts(x: Floats) -> list[Stretch] | None:
    """Short stretches far from the usual level: they reach 8 spreads from the median and end within 4; those closer
    together than a fiftieth of the whole are one. None where something reaches 5 but not 8, so that it is not clear
    whether it counts, or where the stretches make up more than a quarter, so that they are no exception."""
    whole = bridged(x)
    if whole is None or len(whole) < 64:
        return None
    away, usual = np.abs(whole - np.median(whole)), spread(whole)
    usual = max(usual, 1e-3 * float(np.ptp(whole)))
    if usual <= 0:
        return []
    far = away / usual
    found: list[Stretch] = []
    for start, stop in stretches(far > 4):
        peak = float(far[start:stop].max())
        if found and start - found[-1].stop < len(x) / 50:
            found[-1] = Stretch(found[-1].start, stop)
        elif peak >= 8:
            found.append(Stretch(start, stop))
        elif peak > 5:
            return None
    if sum(one.stop - one.start for one in found) > len(x) / 4:
        return None
    return found


def step(x: Floats) -> int | None:
    """The sample at which the level changes at once and stays; -1 where it does not; None where that is not clear.

    Of all splits the one is taken about whose two means the squares are least. It is a step where that leaves at most a
    quarter of the squares about one mean, and at most 0.4 of those about a straight line, and has at least a tenth of
    the samples on each side; it is none where more than half is left, or the line leaves less than half as much."""
    whole = bridged(x)
    n = len(x)
    if whole is None or n < 40:
        return None
    whole = whole - whole.mean()
    total = float(whole @ whole)
    if total <= 1e-18 * n:
        return -1
    at = np.arange(1, n)
    left = np.cumsum(whole)[:-1]
    between = left**2 / at + left**2 / (n - at)  # the squares that a split after `at` samples explains
    split = int(np.argmax(between)) + 1
    rest = (total - float(between.max())) / total
    line = np.arange(n) - (n - 1) / 2
    along = 1 - float(whole @ line) ** 2 / float(line @ line) / total
    if rest > 0.5 or along < 0.5 * rest:
        return -1
    return split if rest <= 0.25 and rest <= 0.4 * along and 0.1 * n <= split <= 0.9 * n else None


def flat(x: Floats) -> Stretch | None:
    """The longest stretch of one and the same value: of no length where it is under a fiftieth of the whole; None where
    it is under a fifth, or the rest stands still more often than it moves (a coarse sensor)."""
    n = len(x)
    if n < 64 or not np.isfinite(x).all():
        return None
    same = np.diff(x) == 0
    longest = max(stretches(same), key=lambda one: one.stop - one.start, default=Stretch(0, 0))
    length = longest.stop - longest.start + 1
    if length < max(3, n / 50):
        return Stretch(0, 0)
    others = np.delete(same, slice(longest.start, longest.stop))
    if length < n / 5 or (len(others) and others.mean() > 0.3):
        return None
    return Stretch(longest.start, longest.stop + 1)


def lag(x: Floats, y: Floats) -> int | None:
    """Samples by which `y` comes after `x`; None where that is not clear. It is clear where they correlate, at the best
    lag of at most a tenth of the whole, by at least 0.7, and at no lag further than a fiftieth from it by more than
    nine tenths of that."""
    a, b = bridged(x), bridged(y)
    n = len(x)
    if a is None or b is None or n < 64 or not a.std() > 0 or not b.std() > 0:
        return None
    most = n // 10
    lags = np.arange(-most, most + 1)
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    r = np.fft.irfft(np.fft.rfft(b, 2 * n) * np.conj(np.fft.rfft(a, 2 * n)))[lags] / (n - np.abs(lags))
    best = int(np.argmax(r))
    others = np.abs(lags - lags[best]) > n / 50
    if r[best] < 0.7 or r[others].max() > 0.9 * r[best] or abs(lags[best]) == most:
        return None
    return int(lags[best])
