"""Rows with times: brought into order, and found to be steady or not.

The first window decides; where later rows do not go on as it says, another recording begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LATE, PART = 64, 8  # rows that one may lie behind its place in time, and less where there are few: 1 part of so many
CUTS = 3  # times in a window that a clock may be set back
JITTER, JITTERY = 0.25, 0.05  # of a step that times may lie off it, and how many may lie farther
FILLED = 0.2  # of the samples may be missing in gaps that are filled


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows: `times` (N,) or None, a column of N for each field, and those that are whole numbers as int64 too, where
    `wholes` is not None."""

    columns: tuple[NDArray[np.generic], ...]
    times: NDArray[np.float64] | None = None
    wholes: tuple[NDArray[np.int64], ...] | None = None
    groups: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def moments(self) -> NDArray[np.float64]:
        """The times of rows that have them."""
        assert self.times is not None
        return self.times

    def take(self, at: NDArray[np.bool_] | NDArray[np.intp] | slice) -> Batch:
        return Batch(
            tuple(column[at] for column in self.columns),
            None if self.times is None else self.times[at],
            None if self.wholes is None else tuple(whole[at] for whole in self.wholes),
            None if self.groups is None else self.groups[at],
        )

    def then(self, *others: Batch) -> Batch:
        """These rows and those of others; what one lacks, all lack."""
        every = (self, *others)
        times = [one.times for one in every if one.times is not None]
        wholes = [one.wholes for one in every if one.wholes is not None]
        groups = [one.groups for one in every if one.groups is not None]
        return Batch(
            tuple(map(np.concatenate, zip(*(one.columns for one in every), strict=True))),
            np.concatenate(times) if len(times) == len(every) else None,
            tuple(map(np.concatenate, zip(*wholes, strict=True))) if len(wholes) == len(every) else None,
            np.concatenate(groups) if len(groups) == len(every) else None,
        )


@dataclass
class Order:
    """Brings batches with times into order. `late`: how many rows came late; `same`: how many have the time above them.

    A row that lies `most` or more behind its place begins another recording. Where more than `cuts` in a window do, as
    in a table of many clocks, all rows stay as they come from there on: `loose`.
    """

    cuts: int = CUTS
    late: int = 0
    same: int = 0
    loose: bool = False
    most: int = 0

    def sorted(self, batches: Iterator[Batch]) -> Iterator[tuple[bool, Batch]]:
        """Pairs: whether another recording begins here, and rows."""
        held: Batch | None = None
        last, fresh = -np.inf, True
        for batch, following in with_end(batches):
            rows, held = batch if held is None else held.then(batch), None
            self.most = self.most or min(LATE, 1 + len(rows) // PART)
            was_loose, parts = self.loose, self._parts(rows)
            for n, part in enumerate(parts):
                if not self.loose:
                    times = part.moments
                    self.late += int((times < np.maximum.accumulate(times)).sum())
                    part = part.take(np.argsort(times, kind="stable"))
                if n or self.loose != was_loose or (not self.loose and part.moments[0] < last):
                    fresh, last = True, -np.inf
                if following and not self.loose and n == len(parts) - 1:
                    # The last rows wait for those that come late.
                    keep = max(0, len(part) - self.most)
                    part, held = part.take(slice(keep)), part.take(slice(keep, None))
                if len(part):
                    times = part.moments
                    self.same += int((np.diff(times, prepend=last) == 0).sum())
                    last = float(times[-1])
                    yield fresh, part
                    fresh = False

    def _parts(self, rows: Batch) -> list[Batch]:
        """Rows between the few places where a clock was set back; all, `loose`, where there are many."""
        times, at = rows.moments, np.arange(len(rows))
        rank = np.empty(len(rows), np.intp)
        rank[np.argsort(times, kind="stable")] = at
        cuts = np.flatnonzero((np.diff(times, prepend=times[0]) < 0) & (at - rank >= self.most))
        self.loose |= len(cuts) > self.cuts
        if self.loose or not len(cuts):
            return [rows]
        return [rows.take(part) for part in np.split(at, cuts)]


def with_end(batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch, and whether another follows."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield before, True
        before = batch
    if before is not None:
        yield before, False


def step_of(times: NDArray[np.float64]) -> float | None:
    """Seconds from a sample to the next, where rising times are steady but for jitter and gaps of whole steps.

    >>> step_of(np.array([0.0, 1.01, 2.0, 4.0, 5.0, 6.0, 6.99, 8.0]))
    1.0
    """
    if len(times) < 3:
        return None
    middle = float(np.median(np.diff(times)))
    if middle <= 0:
        return None
    counts = np.rint(np.diff(times) / middle).sum()
    span = float(times[-1] - times[0])
    # Stamps are rounded: the middle step is right where it explains the whole span, else their mean is.
    step = middle if abs(counts * middle - span) <= middle / 2 else span / counts
    return step if steps_between(times, step) is not None else None


def steps_between(times: NDArray[np.float64], step: float, before: float | None = None) -> NDArray[np.int64] | None:
    """How many steps (N,) each time lies after the one before it (1 for the first of all), or None where times are not
    steady or more than `FILLED` of the samples are missing."""
    gaps = np.diff(times, prepend=times[0] - step if before is None else before) / step
    counts = np.rint(gaps)
    off = np.abs(gaps - counts) > JITTER
    if counts.min() < 1 or off.mean() > JITTERY or len(counts) < (1 - FILLED) * counts.sum():
        return None
    return counts.astype(np.int64)
