"""What a model must beat, without one of ours: the majority's report, the nearest neighbour's, and the numbers as text
for a language model (Xu et al., "Penetrative AI: making LLMs comprehend the physical world", HotMobile 2024)."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genmote.describe import beats, measure
from genmote.describe.labelled import Labelled
from genmote.errors import ExamplesError
from genmote.signals.kinds import Records, Series, Signal

Floats = NDArray[np.float64]
BANDS, LOWEST = 10, 0.01  # of frequency, in equal steps of its logarithm; cycles a sample
BEAT_S = (-0.25, 0.45)  # about a heart beat
BEAT_POINTS = 35
CATEGORIES = 32  # places that words of records are dealt to
NUMBERS = 600  # in all


def majority(train: Sequence[Labelled]) -> Labelled:
    """A recording with the most frequent report, or, where there are none, the most frequent labels."""
    if not train:
        raise ExamplesError("there is no recording to learn from: wanted at least one")
    counts = Counter((one.report, one.labels if not one.report else ()) for one in train)
    return max(train, key=lambda one: counts[one.report, one.labels if not one.report else ()])


def most_frequent_labels(train: Sequence[Labelled]) -> tuple[str, ...]:
    """The labels that most recordings have."""
    return Counter(one.labels for one in train).most_common(1)[0][0] if train else ()


class Nearest:
    """Finds the recording that is most like another: the smallest distance of features, each brought to one spread over
    the recordings to learn from, and each group of features to one weight."""

    def __init__(self, train: Sequence[Labelled]) -> None:
        if not train:
            raise ExamplesError("there is no recording to learn from: wanted at least one")
        self.train = list(train)
        groups = [features(one.signal) for one in train]
        self._sizes = [len(part) for part in groups[0]]
        whole = np.stack([np.concatenate(_fitted(parts, self._sizes)) for parts in groups])
        self._middle, self._spread = whole.mean(axis=0), whole.std(axis=0)
        self._known = self._scaled(whole)

    def _scaled(self, whole: Floats) -> Floats:
        weight = np.concatenate([np.full(size, 1 / np.sqrt(max(1, size))) for size in self._sizes])
        scaled = (whole - self._middle) / np.where(self._spread > 1e-12, self._spread, 1.0)
        return np.asarray(np.clip(scaled, -5, 5) * weight)

    def distances(self, signal: Series | Records) -> Floats:
        """From each recording to learn from, (N,)."""
        own = self._scaled(np.concatenate(_fitted(features(signal), self._sizes)))
        return np.asarray(((self._known - own) ** 2).sum(axis=1))

    def to(self, signal: Series | Records) -> Labelled:
        """The recording to learn from that is nearest."""
        return self.train[int(np.argmin(self.distances(signal)))]


def _fitted(parts: Sequence[Floats], sizes: Sequence[int]) -> list[Floats]:
    """Of the sizes of the first recording: signals with other channels are cut or end in zeros."""
    found = []
    for part, size in zip(parts, sizes, strict=True):
        fitted = np.zeros(size)
        fitted[: min(size, len(part))] = part[:size]
        found.append(fitted)
    return found


def features(signal: Series | Records) -> tuple[Floats, ...]:
    """Groups of features: of a series levels and spreads of each channel, power in bands, how channels go together, and
    where there are heart beats their usual shape and how regular they are; of records means and spreads of numbers, and
    shares of words."""
    return _of_records(signal) if isinstance(signal, Records) else _of_series(signal)


def _of_series(series: Series) -> tuple[Floats, ...]:
    columns = [_whole(series.values[:, n]) for n in range(len(series.channels))]
    x = np.stack(columns, axis=1)
    levels = np.concatenate([np.percentile(x, (5, 25, 50, 75, 95), axis=0), [x.mean(axis=0), x.std(axis=0)]])
    moves = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else np.zeros(x.shape[1])
    power = np.abs(np.fft.rfft(x - x.mean(axis=0), axis=0)) ** 2 / max(1, len(x)) ** 2
    at = np.fft.rfftfreq(len(x))  # cycles a sample
    edges = itertools.pairwise(np.geomspace(LOWEST, 0.5, BANDS + 1))
    # Of a short signal no step may lie within a band: then the nearest one counts.
    within = [((at > low) & (at <= high)) | (at == at[np.argmin(np.abs(at - high))]) for low, high in edges]
    bands = [np.log10(power[own].sum(axis=0) + 1e-12) for own in within]
    width = x.std(axis=0)
    safe = np.where(width > 0, width, 1.0)
    alike = ((x - x.mean(axis=0)) / safe).T @ ((x - x.mean(axis=0)) / safe) / len(x)
    upper = np.triu_indices(x.shape[1], 1)
    return (
        np.concatenate([levels.reshape(-1), moves]),
        np.stack(bands).reshape(-1),
        alike[upper],
        *_of_heart(series, x),
    )


def _whole(column: NDArray[np.float32]) -> Floats:
    """Without NaN: what is missing lies on a line between what is not."""
    known = np.isfinite(column)
    if not known.any():
        return np.zeros(len(column))
    at = np.arange(len(column))
    return np.asarray(np.interp(at, at[known], column[known].astype(np.float64)))


def _of_heart(series: Series, x: Floats) -> tuple[Floats, Floats]:
    """The median beat of each channel, less its own level, and rate and spread of the intervals; zeros without."""
    found = beats.beats_s(series)
    offsets = np.linspace(*BEAT_S, BEAT_POINTS)
    shape = np.zeros((BEAT_POINTS, x.shape[1]))
    if found is None:
        return shape.reshape(-1), np.zeros(3)
    inside = found[(found + BEAT_S[0] > 0) & (found + BEAT_S[1] < series.duration_s)]
    if len(inside):
        at = np.rint((inside[:, None] + offsets) * series.rate_hz).astype(int).clip(0, len(x) - 1)
        shape = np.median(x[at], axis=0)
        shape = shape - np.median(shape, axis=0)
    intervals = np.diff(found)
    return shape.reshape(-1), np.array([60 / intervals.mean(), intervals.std(), np.abs(np.diff(intervals)).mean()])


def _of_records(records: Records) -> tuple[Floats, ...]:
    numbers: list[float] = []
    shares: list[Floats] = []
    for field, column in zip(records.fields, records.columns, strict=True):
        if field.type in ("number", "integer"):
            x = np.arcsinh(column.astype(np.float64))  # bytes and counts go over many orders of size
            known = x[np.isfinite(x)]
            numbers += [float(known.mean()), float(known.std()), float(known.max())] if len(known) else [0.0] * 3
        elif field.type == "category":
            share = np.zeros(CATEGORIES)
            for cell in column:
                share[sum(str(cell).encode()) % CATEGORIES] += 1 / len(column)
            shares.append(share)
    return np.array(numbers), np.concatenate(shares) if shares else np.zeros(0)


def as_numbers(signal: Signal, most: int = NUMBERS) -> str:
    """A signal as a language model may read it: what it is, and its numbers, at most `most` in all; means where there
    are more samples. Three digits are told of each.

    >>> print(as_numbers(Series("a", np.array([[1.0], [2.5]], np.float32), 2.0, ("x",), ("V",))))
    2 samples at 2 Hz (1 s).
    x (V): 1 2.5
    """
    if isinstance(signal, Series):
        per_channel = max(2, most // max(1, len(signal.channels)))
        count = len(signal)
        by = max(1, -(-count // per_channel))
        every = f", each number the mean of {by}" if by > 1 else ""
        rate = measure.steady_hz(signal)
        lines = [f"{count} samples at {rate:.4g} Hz ({signal.duration_s:.4g} s){every}."]
        for n, (name, unit) in enumerate(zip(signal.channels, signal.units, strict=True)):
            parts = [part[np.isfinite(part)] for part in np.split(signal.values[:, n], range(by, count, by))]
            told = " ".join(_short(part.mean()) if len(part) else "missing" for part in parts)
            lines.append(f"{name} ({unit}): {told}" if unit else f"{name}: {told}")
        return "\n".join(lines)
    assert isinstance(signal, Records)
    rows = min(len(signal), max(1, most // max(1, len(signal.fields))))
    lines = [f"{len(signal)} rows" + (f", the first {rows}:" if rows < len(signal) else ":")]
    lines.append(",".join(f"{field.name} ({field.unit})" if field.unit else field.name for field in signal.fields))
    for n in range(rows):
        cells = [column[n].item() if column.dtype != object else column[n] for column in signal.columns]
        lines.append(",".join(_cell(cell) for cell in cells))
    return "\n".join(lines)


def _short(value: float) -> str:
    """Three digits, and no power of ten where none is needed."""
    return f"{float(f'{value:.3g}'):g}"


def _cell(cell: object) -> str:
    return "" if cell is None else _short(cell) if isinstance(cell, float) else str(cell)
