"""Series, sample by sample: each channel's range in bins, or whole numbers without loss.

Codes are in the order of time, and at one time in that of the channels, so that a code is a sample of one channel.
With ``exact``, it is a whole number's step from the one before it, if that is among the most frequent; see `_digits.py`
for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.codecs import _digits
from genmote.signals.codecs._quantiser import Quantiser, Spacing, Within
from genmote.signals.coding import Bound, Codec, Codes
from genmote.signals.header import About, Header
from genmote.signals.kinds import MISSING, Grid, Series
from genmote.spec import setting

MOST = 1 << 16
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class Settings:
    """How series are coded."""

    bins: int = setting("bins of a channel's range; with --exact, whole numbers that take one token", default=256)
    spacing: Spacing = setting("bins of one width, or that hold as many samples each", default="uniform")
    within: Within = setting("what a bin comes back as: the mean of its samples, or its centre", default="mean")
    tail: float = setting("part of the samples, at either end, that lies outside of the range", default=0.0005)
    exact: bool = setting("whole numbers without loss", default=False)
    difference: bool = setting("with --exact: steps from one sample to the next instead of samples", default=True)
    labels: tuple[str, ...] = setting("labels that are written into the header", default=())

    def faults(self) -> Iterable[str]:
        if not 2 <= self.bins <= MOST:
            yield f"bins={self.bins}, wanted 2 to {MOST}"
        if not 0 <= self.tail < 0.5:
            yield f"tail={self.tail}, wanted 0 or more and less than half"


@dataclass(frozen=True, eq=False)
class Bins(Codec):
    """`low` (C,) is of whole numbers; `step` and `zero` (C,) theirs, unless `About` knows better."""

    KIND = Series
    SETTINGS = Settings

    settings: Settings
    scale: Quantiser
    low: NDArray[np.int64]
    step: NDArray[np.float64]
    zero: NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.head.channels)
        wanted = {(count,), self.low.shape, self.step.shape, self.zero.shape}
        if len(wanted) > 1 or len(self.scale.edges) != count:
            raise SignalError(
                f"a codec of {count} channels with ranges of {len(self.scale.edges)} and whole numbers of "
                f"{len(self.low)}: wanted one each; write the model file again"
            )

    @classmethod
    def fitted(cls, signals: Sequence[Series], settings: Settings, head: Header) -> Bins:
        titles = head.titles()
        columns: list[list[NDArray[np.float32]]] = [[] for _ in titles]
        steps: list[list[NDArray[np.int64]]] = [[] for _ in titles]
        step, zero = np.ones(len(titles)), np.zeros(len(titles))
        for signal in signals:
            integers = _integers(signal) if settings.exact else None
            far, gone = _far(integers, settings.difference) if integers is not None else (None, None)
            for n, at in enumerate(head.positions(signal)):
                columns[at].append(signal.values[:, n])
                if far is not None and gone is not None and signal.grid is not None:
                    steps[at].append(far[~gone[:, n], n].view(np.int64))
                    step[at], zero[at] = signal.grid.step[n], signal.grid.zero[n]
        values = [np.concatenate(parts) for parts in columns]
        if settings.exact:
            scale = Quantiser(np.zeros((len(titles), 2), np.float32), np.zeros((len(titles), 1), np.float32))
            low = [_digits.lows(np.concatenate(parts), settings.bins) for parts in steps]
        else:
            scale = Quantiser.fit(values, titles, settings.bins, settings.spacing, settings.within, settings.tail)
            low = [0] * len(titles)
        return cls(head, settings, scale, _int64(low), step, zero)

    @property
    def size(self) -> int:
        return _digits.size(self.settings.bins) if self.settings.exact else self.scale.bins + 1

    def ordered(self) -> list[tuple[int, int]]:
        return [(0, self.settings.bins)]

    def error(self) -> dict[str, Bound]:
        """None of whole numbers; else by the channel's name."""
        titles = self.head.titles()
        return {title: Bound() if self.settings.exact else self.scale.bound(n) for n, title in enumerate(titles)}

    def codes(self, signal: Series, notes: list[str]) -> Codes:
        positions = self.head.positions(signal)
        if self.settings.exact:
            far, gone = _far(_integers(signal), self.settings.difference)
            low = np.broadcast_to(self._lows(positions), far.shape)
            return _digits.code(far.reshape(-1).view(np.int64), gone.reshape(-1), low.reshape(-1), self.settings.bins)
        codes = np.zeros(signal.values.shape, np.int64)  # (T, C)
        for n, at in enumerate(positions):
            codes[:, n], outside = self.scale.code(signal.values[:, n], at)
            if outside:
                low, high = self.scale.edges[at, 0], self.scale.edges[at, -1]
                notes.append(
                    f"{signal.name}: {outside} of {len(signal)} samples of {signal.channels[n]} lie outside of {low:g} "
                    f"to {high:g} {signal.units[n]}, cut to that"
                )
        return codes.reshape(-1)

    def signal(self, codes: Codes, about: About, notes: list[str]) -> Series:
        if not about.channels:
            raise SignalError(f"{about.name}: tokens of a series without channels; give a header that names some")
        empty = Series(about.name, np.zeros((0, len(about.channels)), np.float32), 1.0, about.channels, about.units)
        positions = self.head.positions(empty)
        width = len(positions)
        if self.settings.exact:
            read = _digits.read(codes, self.settings.bins)
            if read.broken:
                lost = "it and the height of what follows are" if self.settings.difference else "it is"
                notes.append(f"{about.name}: {read.broken} numbers are broken; {lost} lost")
            far, gone = _whole(read.far, width, about, notes), _whole(read.gone, width, about, notes)
            grid = self._grid(far + self._lows(positions), gone, positions, about)
            return series_of(grid.values(), grid, about)
        table = _whole(codes, width, about, notes)
        values = np.stack([self.scale.value(table[:, n], at) for n, at in enumerate(positions)], axis=1)
        return series_of(values, None, about)

    def _lows(self, positions: list[int]) -> NDArray[np.uint64]:
        return self.low[positions].view(np.uint64)

    def _grid(self, numbers: NDArray[np.uint64], gone: NDArray[np.bool_], positions: list[int], about: About) -> Grid:
        if self.settings.difference:
            numbers = np.cumsum(np.where(gone, np.uint64(0), numbers), axis=0, dtype=np.uint64)
        step = self.step[positions] if about.step is None else about.step
        zero = self.zero[positions] if about.zero is None else about.zero
        return Grid(np.where(gone, np.int64(MISSING), numbers.view(np.int64)), step, zero)


def _integers(signal: Series) -> NDArray[np.int64]:
    if signal.grid is None:
        raise SignalError(f"{signal.name}: its samples are no whole numbers; code it without --exact")
    return np.ascontiguousarray(signal.grid.integers, np.int64)


def _far(integers: NDArray[np.int64], difference: bool) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Numbers (T, C), or their steps from the last before them that is there, modulo 2**64; which are missing."""
    gone = integers == MISSING
    whole = integers.view(np.uint64)
    if not difference:
        return whole, gone
    last = np.maximum.accumulate(np.where(gone, -1, np.arange(len(integers))[:, None]), axis=0)
    filled = np.where(last < 0, np.uint64(0), np.take_along_axis(whole, np.maximum(last, 0), axis=0))
    return np.diff(filled, axis=0, prepend=np.zeros((1, integers.shape[1]), np.uint64)), gone


def _int64(numbers: list[int]) -> NDArray[np.int64]:
    return np.array([_digits.wrapped(number) for number in numbers], np.uint64).view(np.int64)


def _whole(flat: NDArray[Number], width: int, about: About, notes: list[str]) -> NDArray[Number]:
    """(T, C) of what is in the order of time; samples of the last time are left out where some are missing."""
    over = len(flat) % width
    note = f"{about.name}: {over} of {width} channels at the last time, left out"
    if over and note not in notes:
        notes.append(note)
    return flat[: len(flat) - over].reshape(-1, width)


def series_of(values: NDArray[np.float32], grid: Grid | None, about: About) -> Series:
    """Values (T, C) with what `about` says of them; SignalError where it names neither a rate nor times enough."""
    times = about.times_s
    if about.rate_hz <= 0 and times is None:
        raise SignalError(f"{about.name}: tokens of a series without a rate; give its rate_hz or times_s")
    if times is not None:
        times = times[: len(values)]
        if len(times) < len(values):
            raise SignalError(f"{about.name}: {len(times)} times for {len(values)} samples; wanted one each")
    return Series(about.name, values, about.rate_hz, about.channels, about.units, times, grid, about.labels)
