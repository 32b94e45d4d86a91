"""The three kinds of signals: series of samples, records (rows with typed fields), and frames (grids or points).

Everything a reader gives and a codec takes is one of these. Samples that came as whole numbers keep them (`Grid`), so
that what is compressed can be given back to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.registry import listed

MISSING = int(np.iinfo(np.int64).min)  # in a grid, where a sample is missing; the value is NaN
DATED = 1e8  # times below this are seconds since a recording's start, not since 1970


@dataclass(frozen=True, eq=False)
class Grid:
    """Samples as whole numbers: value = zero + step * integer, `step` and `zero` (C,) for `integers` (T, C) int64.

    >>> Grid(np.array([[1], [MISSING]]), np.array([0.5]), np.array([10.0])).values().tolist()
    [[10.5], [nan]]
    """

    integers: NDArray[np.int64]
    step: NDArray[np.float64]
    zero: NDArray[np.float64]

    def values(self) -> NDArray[np.float32]:
        """(T, C)"""
        gone = self.integers == MISSING
        exact = self.zero + self.step * np.where(gone, 0, self.integers)
        return np.where(gone, np.nan, exact).astype(np.float32)


@dataclass(frozen=True)
class Mark:
    """Something that is said of samples [start, stop) of a series: a beat's kind, an activity, an artefact.

    With `start` and `stop` the same it is said of the place before that sample. `goes_on`: it was cut at the end of a
    piece, and the next piece has the rest, from its first sample on.
    """

    start: int
    stop: int
    label: str
    goes_on: bool = False

    def part(self, start: int, stop: int) -> Mark:
        """What it says of samples [start, stop), counted from there."""
        goes_on = self.stop > stop or (self.goes_on and self.stop == stop)
        return Mark(max(0, self.start - start), min(stop, self.stop) - start, self.label, goes_on)


@dataclass(frozen=True, eq=False)
class Series:
    """`values` (T, C) float32, NaN where a sample is missing, with a name and a unit for each of the C channels.

    Taken `rate_hz` times a second, or, with `rate_hz` 0, at `times_s` (T,), seconds since 1970 or since the start.
    `grid`: the same samples as whole numbers, where that is what they are. `labels`: what is known of the whole, such
    as a diagnosis or a speaker. `marks`: in the order of their starts. `start_s`: when the first sample of a steady
    series was taken, in seconds since 1970 or since the start, where that is known. `continues`: it is a piece that
    goes on with the one before it.

    >>> Series("pulse", np.zeros((300, 1), np.float32), 100.0, ("light",), ("counts",)).duration_s
    3.0
    """

    name: str
    values: NDArray[np.float32]
    rate_hz: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    times_s: NDArray[np.float64] | None = None
    grid: Grid | None = None
    labels: dict[str, str] = field(default_factory=dict)
    marks: tuple[Mark, ...] = ()
    start_s: float | None = None
    continues: bool = False

    def __post_init__(self) -> None:
        shape = self.values.shape
        if len(shape) != 2 or shape[1] != len(self.channels) or len(self.units) != len(self.channels):
            raise SignalError(
                f"{self.name}: values of shape {shape} with {len(self.channels)} channels and {len(self.units)} units; "
                "wanted (samples, channels) and a unit for each"
            )
        if self.times_s is not None and self.times_s.shape != shape[:1]:
            raise SignalError(f"{self.name}: {len(self.times_s)} times for {shape[0]} samples; wanted one each")
        if self.rate_hz <= 0 and self.times_s is None:
            raise SignalError(f"{self.name}: neither a rate above 0 nor times; wanted one of them")
        if self.grid is not None and self.grid.integers.shape != shape:
            raise SignalError(f"{self.name}: a grid of shape {self.grid.integers.shape} for values of {shape}")

    @cached_property
    def duration_s(self) -> float:
        if self.rate_hz > 0:
            return len(self.values) / self.rate_hz
        assert self.times_s is not None
        return float(self.times_s[-1] - self.times_s[0]) if len(self.times_s) else 0.0

    def __len__(self) -> int:
        return len(self.values)

    def part(self, start: int, stop: int) -> Series:
        """Samples [start, stop), with the marks that touch them moved along and cut to them. One of no length is of
        the part that its place lies in, at the very end of the last one."""
        stop = min(stop, len(self))
        grid = self.grid
        return replace(
            self,
            values=self.values[start:stop],
            times_s=None if self.times_s is None else self.times_s[start:stop],
            grid=None if grid is None else replace(grid, integers=grid.integers[start:stop]),
            marks=tuple(
                mark.part(start, stop)
                for mark in self.marks
                if (mark.start < stop and mark.stop > start)
                or (mark.start == mark.stop and (start <= mark.start < stop or mark.start == stop == len(self)))
            ),
            continues=self.continues or start > 0,
            start_s=self.start_s if self.start_s is None or self.rate_hz <= 0 else self.start_s + start / self.rate_hz,
        )


FieldType = Literal["number", "integer", "category", "text"]


@dataclass(frozen=True)
class Field:
    """A column of records. `category`: few words that come again and again; `text`: anything."""

    name: str
    type: FieldType
    unit: str = ""


@dataclass(frozen=True, eq=False)
class Records:
    """Rows with typed fields: `columns` has an array (N,) for each field, float64 with NaN for numbers and for integers
    that are missing somewhere, int64 for other integers, else objects (str, None where missing). `times_s` (N,):
    seconds since 1970 or since the start, where rows have a time. `continues`: as of a series."""

    name: str
    fields: tuple[Field, ...]
    columns: tuple[NDArray[np.generic], ...]
    times_s: NDArray[np.float64] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    continues: bool = False

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self.columns}
        if len(self.fields) != len(self.columns) or len(lengths) > 1:
            raise SignalError(
                f"{self.name}: {len(self.fields)} fields with columns of {sorted(lengths)} rows; wanted a column for "
                "each field, all of one length"
            )
        if self.times_s is not None and self.times_s.shape != (len(self),):
            raise SignalError(f"{self.name}: {len(self.times_s)} times for {len(self)} rows; wanted one each")

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def column(self, name: str) -> NDArray[np.generic]:
        """The column of the field `name`; SignalError where there is none."""
        for known, column in zip(self.fields, self.columns, strict=True):
            if known.name == name:
                return column
        raise SignalError(f"{self.name} has no field {name!r}: it has {listed(f.name for f in self.fields)}")

    def part(self, start: int, stop: int) -> Records:
        """Rows [start, stop)."""
        return replace(
            self,
            columns=tuple(column[start:stop] for column in self.columns),
            times_s=None if self.times_s is None else self.times_s[start:stop],
            continues=self.continues or start > 0,
        )


@dataclass(frozen=True, eq=False)
class Frames:
    """Pictures one after another, each (H, W, C), or clouds of points, each (P, C); `channels` names the C numbers of a
    pixel or point, `units` what they are counted in. `times_s` (N,): when each was taken, where that is known.
    `continues`: as of a series."""

    name: str
    shape: Literal["grid", "points"]
    frames: Sequence[NDArray[np.generic]]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    times_s: NDArray[np.float64] | None = None
    labels: dict[str, str] = field(default_factory=dict)
    continues: bool = False

    def __post_init__(self) -> None:
        axes = 3 if self.shape == "grid" else 2
        for frame in self.frames:
            if frame.ndim != axes or frame.shape[-1] != len(self.channels):
                raise SignalError(
                    f"{self.name}: a frame of shape {frame.shape}; wanted {axes} axes, the last of "
                    f"{len(self.channels)} channels"
                )
        if len(self.units) != len(self.channels):
            raise SignalError(f"{self.name}: {len(self.units)} units for {len(self.channels)} channels")

    def __len__(self) -> int:
        return len(self.frames)

    def part(self, start: int, stop: int) -> Frames:
        """Frames [start, stop)."""
        times = None if self.times_s is None else self.times_s[start:stop]
        return replace(self, frames=self.frames[start:stop], times_s=times, continues=self.continues or start > 0)


Signal = Series | Records | Frames
