"""A signal as what a sensor encoder reads: for each channel a row of numbers for each of a few stretches of time.

A series of any rate and length is cut into T slots of one length, each of them into `BINS` bins. A bin's number is the
mean of its samples, as a part of the channel's spread around its median. As that says nothing of how high a level is,
how long a slot lasts, or how the channel moves as a whole and with the others, a row also has `FEATURES` numbers that
do. A number among these is told by its sign, its binary and decimal magnitude, and where it lies within that; nothing
of it needs more than exact arithmetic.

A channel's name and unit are told by their letters: groups of three are counted in `NAMES` places.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.kinds import Frames, Series, Signal

BINS, FEATURES, NAMES = 32, 96, 1024
PLACES = 24  # of a portrait: a channel stands in two, by its name
INPUTS = 2 * BINS + FEATURES  # numbers of a row: bins, how much of each is there, features
PER_SLOT = 32  # samples of a slot, at least, where there are so many slots to choose from
OCTAVES = 10  # of pace: how much a channel moves from sample to sample, from pair to pair, from four to four, …
OTHERS = 27  # places for what a channel has in common with each of the others, by their names
MOST_CHANNELS = 32
KNEE = 8.0  # spreads from the median beyond which a number counts less and less
SUMMARY = "summary of all channels"
# Features of a row that are the same in all rows of a channel, and those of the slot, whose means and spreads over the
# slots a portrait has.
OF_CHANNEL = (*range(16), *range(32, 77))
OF_SLOT = slice(16, 29)
WHOLE = len(OF_CHANNEL) + 2 * (29 - 16)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Patches:
    """`rows` (C + 1, T, INPUTS): of each channel, and last of the one that sums them up, which has features alone;
    `names` (C + 1, NAMES): what they are called; `spans_s` (T, 2): when a slot begins and ends, from the beginning;
    `whole` (C, WHOLE): what is told of each channel as a whole, and `places` (C, 2): where its name puts it."""

    rows: Float32
    names: Float32
    spans_s: Float64
    whole: Float32
    places: NDArray[np.int64]


def patches(signal: Signal, slots: int, join: int = 1) -> Patches:
    """A signal in at most `slots` slots of time, of which there are a whole number of times `join`. SignalError for one
    that is empty (one of missing samples is not), has too many channels, or is of frames."""
    series = as_series(signal)
    count, channels = series.values.shape
    if channels > MOST_CHANNELS:
        raise SignalError(
            f"{series.name}: has {channels} channels, at most {MOST_CHANNELS} are read at once; choose some of them"
        )
    if not series.values.size:
        raise SignalError(f"{series.name}: is empty: it has no sample; give a recording with some")
    wanted = min(slots, -(-count // PER_SLOT))
    total = max(1, -(-wanted // join)) * join  # T
    starts, stops, duration_s = _bins(series, total * BINS)
    means = np.zeros((channels, total * BINS))
    there = np.zeros((channels, total * BINS))
    features = np.zeros((channels + 1, total, FEATURES))
    scaled = np.zeros((channels, count))
    for n in range(channels):
        column = np.where(np.isfinite(series.values[:, n]), series.values[:, n], np.nan).astype(np.float64)
        means[n], there[n] = _channel(column, starts, stops, total, features[n], scaled[n])
    features[:channels, :, 50 : 50 + OTHERS] = _correlations(scaled, series.channels)[:, None]
    at = np.arange(total)
    shared = np.concatenate(
        [
            np.broadcast_to(number(np.array(duration_s)), (total, 8)),
            np.broadcast_to(number(np.array(duration_s / total)), (total, 8)),
            np.stack([at / total, (at + 1) / total, np.full(total, channels / MOST_CHANNELS)], axis=1),
        ],
        axis=1,
    )  # (T, 19)
    features[:, :, -19:] = shared
    rows = np.zeros((channels + 1, total, INPUTS), np.float32)
    rows[:channels, :, :BINS] = means.reshape(channels, total, BINS)
    rows[:channels, :, BINS : 2 * BINS] = there.reshape(channels, total, BINS)
    rows[:, :, 2 * BINS :] = features
    names = np.stack([letters(*pair) for pair in zip(series.channels, series.units, strict=True)] + [letters(SUMMARY)])
    edges = np.arange(total + 1) * (duration_s / total)
    slots_ = features[:channels, :, OF_SLOT]
    whole = np.concatenate([features[:channels, 0, OF_CHANNEL], slots_.mean(axis=1), slots_.std(axis=1)], axis=1)
    places = np.array([_places(name) for name in series.channels], np.int64).reshape(-1, 2)
    return Patches(rows, names, np.stack([edges[:-1], edges[1:]], axis=1), whole.astype(np.float32), places)


def portrait(one: Patches, mean: Float32, scale: Float32) -> Float32:
    """(PLACES * (WHOLE + 1),) of a signal: what is told of each channel as a whole, less the mean of that and times its
    scale, (WHOLE,) each, and that it is there; at the two places that its name says. What falls in one place is added.
    """
    found = np.zeros((PLACES, WHOLE + 1), np.float32)
    told = np.clip((one.whole - mean) * scale, -5, 5)
    for row, places in zip(told, one.places, strict=True):
        found[places, :WHOLE] += row
        found[places, WHOLE] += 1
    return found.reshape(-1)


def _places(name: str) -> tuple[int, int]:
    half = PLACES // 2
    drawn = zlib.crc32(name.strip().lower().encode())
    return drawn % half, half + drawn // half % half


def as_series(signal: Signal) -> Series:
    """A series as it is; records as a series at their times, each field a channel: numbers as they are, of words how
    common each is among these rows, and how long after the row before each came. SignalError for frames."""
    if isinstance(signal, Series):
        return signal
    if isinstance(signal, Frames):
        raise SignalError(f"{signal.name}: holds frames; series and records are described so far")
    count = len(signal)
    times = np.arange(count, dtype=np.float64) if signal.times_s is None else signal.times_s.astype(np.float64)
    order = np.argsort(times, kind="stable")
    names, units, columns = ["time since the row before"], ["s"], [np.diff(times[order], prepend=times[order][:1])]
    for field, column in zip(signal.fields, signal.columns, strict=True):
        names.append(field.name)
        if field.type in ("number", "integer"):
            units.append(field.unit)
            columns.append(column.astype(np.float64)[order])
        else:
            units.append(f"{field.type}: part of the rows that say the same")
            columns.append(_commonness(column)[order])
    kept = slice(0, MOST_CHANNELS)
    values = np.stack(columns[kept], axis=1).astype(np.float32)
    return Series(signal.name, values, 0.0, tuple(names[kept]), tuple(units[kept]), times[order])


def number(x: Float64) -> Float64:
    """Numbers (…) as (…, 8): sign, binary magnitude, decimal magnitude, where it lies within that, and four waves of
    that, the last ones ten times as fast. What is nearer to 0 than 1e-6 is 0.

    >>> number(np.array(-250.0)).round(3).tolist()
    [-1.0, 0.497, 0.25, 0.25, 0.0, -1.0, -1.0, 0.0]
    """
    size = np.abs(x)
    small = size < 1e-6
    size = np.where(small, 1.0, np.minimum(size, 1e30))
    fraction, exponent = np.frexp(size)  # size = fraction * 2**exponent, exactly
    decade = np.searchsorted(_POWERS, size, side="right") - 1
    place = size / _POWERS[decade]  # 1 to 10
    parts = [np.sign(x), (exponent + 2 * fraction - 2) / 16, (decade + _LEAST) / 8, place / 10]
    parts += [_wave(place / 10), _wave(place / 10 + 0.25), _wave(place), _wave(place + 0.25)]
    return np.where(small[..., None], 0.0, np.stack(parts, axis=-1))


_LEAST = -7
_POWERS = np.array([float(f"1e{n}") for n in range(_LEAST, 32)])


def _wave(x: Float64) -> Float64:
    """A wave of straight lines from -1 to 1 and back, once in each whole number."""
    return np.asarray(4 * np.abs(x - np.floor(x) - 0.5) - 1)


def letters(*names: str) -> Float32:
    """(NAMES,) how often each group of three letters comes in the names, as parts of all; the first one's groups and
    the second one's have nothing to do with each other."""
    found = np.zeros(NAMES)
    for n, name in enumerate(names):
        word = f" {name.strip().lower()} "
        for at in range(max(1, len(word) - 2)):
            found[zlib.crc32(f"{n}{word[at : at + 3]}".encode()) % NAMES] += 1
    return np.asarray(found / found.sum(), np.float32)


def _bins(series: Series, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """The samples [start, stop) of each of `count` bins, and how long the series is, in seconds. Steady samples that
    are fewer than bins are in several; a bin may have none of those at times of their own."""
    total = len(series)
    if series.rate_hz > 0:
        at = np.arange(count + 1, dtype=np.int64) * total // count
        return at[:-1], np.maximum(at[1:], at[:-1] + 1), series.duration_s
    assert series.times_s is not None
    times = series.times_s - series.times_s[0]
    duration_s = float(times[-1]) * total / max(1, total - 1)  # the last sample lasts, too
    if duration_s <= 0:
        at = np.arange(count + 1, dtype=np.int64) * total // count
        return at[:-1], np.maximum(at[1:], at[:-1] + 1), 0.0
    edges = np.searchsorted(times, np.arange(count + 1) * (duration_s / count), side="left")
    edges[-1] = total
    return edges[:-1], edges[1:], duration_s


def _channel(
    column: Float64, starts: NDArray[np.int64], stops: NDArray[np.int64], total: int, features: Float64, scaled: Float64
) -> tuple[Float64, Float64]:
    """A channel's bins and how much of each is there (T * BINS,); its features (T, FEATURES) are filled in, and the
    channel as parts of its spread (N,), 0 where it is missing."""
    there = np.isfinite(column)
    some = column[there]
    centre = spread = 0.0
    if len(some):
        centre = float(np.median(some))
        low, high = np.quantile(some, (0.1, 0.9))
        spread = float(high - low) / 2 or float(some.std())
    scaled[:] = np.where(there, column - centre, 0.0) / (spread or 1.0)
    held = np.concatenate([[0], np.cumsum(there)])
    sums = np.concatenate([[0.0], np.cumsum(scaled)])
    squares = np.concatenate([[0.0], np.cumsum(scaled * scaled)])
    count = held[stops] - held[starts]
    bins = np.divide(sums[stops] - sums[starts], count, out=np.zeros(len(count)), where=count > 0)
    part = count / np.maximum(1, stops - starts)

    first, last = starts.reshape(total, BINS)[:, 0], stops.reshape(total, BINS)[:, -1]
    own = np.maximum(1, held[last] - held[first])  # samples of a slot
    mean = (sums[last] - sums[first]) / own
    level = np.where(held[last] > held[first], centre + mean * (spread or 1.0), 0.0)
    within = np.maximum(0.0, squares[last] - squares[first]) / own  # mean square, bins' own and what bins smooth away
    smooth = (bins * bins * count).reshape(total, BINS).sum(axis=1) / own
    lows = [scaled[a:b][there[a:b]].min(initial=np.inf) for a, b in zip(first, last, strict=True)]
    highs = [scaled[a:b][there[a:b]].max(initial=-np.inf) for a, b in zip(first, last, strict=True)]
    features[:, 0:8] = number(np.array(centre))
    features[:, 8:16] = number(np.array(spread))
    features[:, 16:24] = number(level)
    features[:, 24] = _bent(np.where(np.isfinite(lows), lows, 0.0))
    features[:, 25] = _bent(np.where(np.isfinite(highs), highs, 0.0))
    features[:, 26] = _bent(mean)
    features[:, 27] = _bent(np.sqrt(within))
    features[:, 28] = _bent(np.sqrt(np.maximum(0.0, within - smooth)))  # what bins smooth away
    features[:, 29] = (held[last] - held[first]) / np.maximum(1, last - first)
    features[:, 30] = len(some) / len(column)
    features[:, 31] = float(spread == 0)
    features[:, 32] = centre / (abs(centre) + spread) if spread else np.sign(centre)
    if spread:
        features[:, 33 : 33 + OCTAVES] = _pace(scaled)
        features[:, 43:47] = _bent(np.quantile(scaled[there], (0.02, 0.25, 0.75, 0.98)))
        features[:, 47] = _bent(scaled[there].mean())
        features[:, 48] = np.mean(np.sign(scaled[1:]) != np.sign(scaled[:-1])) if len(scaled) > 1 else 0.0
        moves = np.sign(np.diff(scaled))
        features[:, 49] = np.mean(moves[1:] != moves[:-1]) if len(moves) > 1 else 0.0
    return _bent(bins), part


def _pace(x: Float64) -> Float64:
    """(OCTAVES,) of a channel (N,): the mean square of the differences between neighbours, between neighbouring means
    of two, of four, … (the energies of a Haar wavelet), as binary magnitudes; the least there is where x is too
    short."""
    found = np.full(OCTAVES, -4.0)
    for n in range(OCTAVES):
        x = x[: len(x) // 2 * 2].reshape(-1, 2)
        if not len(x):
            break
        energy = max(2.0**-16, float(np.mean((x[:, 1] - x[:, 0]) ** 2)))
        fraction, exponent = np.frexp(energy)
        found[n] = min(1.0, float(exponent + 2 * fraction - 2) / 4)
        x = x.mean(axis=1)
    return found


def _correlations(scaled: Float64, names: tuple[str, ...]) -> Float64:
    """(C, OTHERS) of each of some channels (C, N) with each of the others, at the place that the other's name says;
    what falls in one place is added. 0 where one does not move."""
    found = np.zeros((len(scaled), OTHERS))
    apart = scaled - scaled.mean(axis=1, keepdims=True)
    sizes = np.sqrt((apart * apart).sum(axis=1))
    for n, name in enumerate(names):
        both = sizes * sizes[n]
        own = np.divide((apart * apart[n]).sum(axis=1), both, out=np.zeros(len(both)), where=both > 0)
        own[n] = 0.0
        found[:, zlib.crc32(name.strip().lower().encode()) % OTHERS] += own
    return found


def _bent(x: Float64) -> Float64:
    """Small numbers as they are, large ones ever less, none beyond KNEE."""
    return np.asarray(x / (1 + np.abs(x) / KNEE))


def _commonness(column: NDArray[np.generic]) -> Float64:
    """(N,) which part of the rows says what a row says; NaN where it says nothing."""
    words = [None if cell is None else str(cell) for cell in column]
    counts: dict[str | None, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return np.array([np.nan if word is None else counts[word] / len(words) for word in words])
