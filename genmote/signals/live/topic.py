"""Rows that arrive under one name as pieces of a series or of records.

The first rows decide: which fields there are, which of them tells the device's own time, and whether it is steady; then
it holds. What later does not fit is left out or missing, and counted. A piece has what came since the one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.signals import _units
from genmote.signals._numbers import ABSENT, Numbers, numbers
from genmote.signals._steady import step_of
from genmote.signals._tables import Tally
from genmote.signals._times import Clock, clock_of
from genmote.signals.kinds import MISSING, Field, FieldType, Grid, Records, Series
from genmote.signals.live.payload import CELLS, Row

FIRST_ROWS, FIRST_S = 8, 5.0  # what decides: so many rows, or those of so many seconds
DIGITS = 9  # decimals that are kept as whole numbers
LARGEST = 2.0**62  # of a whole number
FILLED = 64  # samples that a gap of a steady series is filled with; after a longer one another recording begins
LATE = 8  # rows one after another that lie before the last: a clock was set back
FAR_S = 86400.0  # that a clock which stands still may lie off the time of arrival; else it is none
WORD = 32  # signs of a category's word


@dataclass
class Layout:
    """What the first rows say. `keys`: of the cells of a row, one for each field; `decimals` grow as digits come."""

    keys: tuple[str, ...]
    fields: tuple[Field, ...]
    decimals: NDArray[np.int64]
    clock: Clock | None
    clock_keys: tuple[str, ...]
    step_s: float | None  # of a steady series

    @property
    def numeric(self) -> bool:
        return all(field.type in ("number", "integer") for field in self.fields)


class Topic:
    """Takes rows of `name`, gives pieces. `rate_hz` above 0: rows are samples of that rate, whatever their times."""

    def __init__(self, name: str, tally: Tally, rate_hz: float = 0.0) -> None:
        self.name, self.tally, self.rate_hz = name, tally, rate_hz
        self.rows: list[tuple[float, Row]] = []  # when it arrived, in seconds since 1970, and its cells
        self.layout: Layout | None = None
        self._known: frozenset[str] = frozenset()
        self._last = -np.inf  # the time of the last sample
        self._late = 0  # samples in a row before it
        self._recordings = 1
        self._start_s: float | None = None  # of the samples of a given rate
        self._count = 0

    def push(self, arrived_s: float, row: Row) -> None:
        if self.layout is not None and not self._known >= row.keys():
            new = row.keys() - self._known
            if len(new) == len(row):
                return self.tally.add("{n} rows without any of the fields of their topic's first rows are left out",
                                      self.name)  # fmt: skip
            self.tally.add("{n} values under names that their topic's first rows do not have are left out", self.name,
                           len(new))  # fmt: skip
        self.rows.append((arrived_s, row))

    def ready(self, now_s: float) -> bool:
        """Whether a piece can be made of the rows that came."""
        if not self.rows:
            return False
        return self.layout is not None or len(self.rows) >= FIRST_ROWS or now_s - self.rows[0][0] >= FIRST_S

    def pieces(self) -> list[Series | Records]:
        """All rows that came, as pieces, mostly one."""
        if not self.rows:
            return []
        if self.layout is None:
            self._decide()
        layout = self.layout
        assert layout is not None
        if layout.clock is None:
            times = np.array([arrived for arrived, _ in self.rows])
        else:
            times = self._times(layout.clock, layout.clock_keys)
        rows, self.rows = self.rows, []
        there = np.isfinite(times)
        if not there.all():
            self.tally.add("{n} rows without a time that can be read are left out", self.name, int((~there).sum()))
        at = np.flatnonzero(there)
        fresh = [at]
        if layout.numeric and not self.rate_hz:
            fresh = self._in_order(layout, times, at)
        made: list[Series | Records] = []
        for part in fresh:
            cells = [[rows[n][1].get(key, "") for n in part] for key in layout.keys]
            if len(part):
                made.append(self._piece(layout, cells, times[part]))
        return made

    # -- what the first rows decide ----------------------------------------------------------------------------------

    def _decide(self) -> None:
        keys = list(dict.fromkeys(key for _, row in self.rows for key in row))
        if len(keys) > CELLS:
            self.tally.add(f"{{n}} fields of topics with more than {CELLS} are left out", self.name, len(keys) - CELLS)
            del keys[CELLS:]
        split = [_units.split(key) for key in keys]
        columns = [[row.get(key, "") for _, row in self.rows] for key in keys]
        notes: list[str] = []
        clock = clock_of([name for name, _ in split], [unit for _, unit in split], columns, False, notes)
        timed = clock.columns if clock is not None else ()
        if clock is not None and (len(timed) == len(keys) or not self._runs(clock, [keys[n] for n in timed])):
            clock, timed = None, ()  # a field like any other, such as a version that is written like a date
        for line in notes if clock is not None else ():
            self.tally.add(f"{self.name}: {line}")
        kept = [n for n in range(len(keys)) if n not in timed]
        found = [numbers(columns[n]) for n in kept]
        fields = tuple(
            Field(split[n][0], _type(one, columns[n]), split[n][1]) for n, one in zip(kept, found, strict=True)
        )
        decimals = np.array([min(DIGITS, one.decimals()) for one in found], np.int64)
        chosen, clock_keys = tuple(keys[n] for n in kept), tuple(keys[n] for n in timed)
        layout = Layout(chosen, fields, decimals, clock, clock_keys, None)
        if clock is not None and layout.numeric and len(self.rows) >= FIRST_ROWS:
            times = np.sort(self._times(clock, layout.clock_keys))
            layout.step_s = step_of(times) if np.isfinite(times).all() and (np.diff(times) > 0).all() else None
        if clock is not None:
            clock.days, clock.last = 0.0, np.nan  # these rows are read once more
        self.layout, self._known = layout, frozenset(keys)

    # -- times -------------------------------------------------------------------------------------------------------

    def _times(self, clock: Clock, keys: Sequence[str]) -> NDArray[np.float64]:
        """The device's times (N,) of the rows that came, in seconds, NaN where a row has none."""
        columns = {at: [row.get(key, "") for _, row in self.rows] for at, key in zip(clock.columns, keys, strict=True)}
        return np.asarray(clock.seconds([columns.get(n, []) for n in range(max(columns) + 1)]), np.float64)

    def _runs(self, clock: Clock, keys: Sequence[str]) -> bool:
        """Whether these are times: they go on, or it is today."""
        times = self._times(clock, keys)
        there = times[np.isfinite(times)]
        return len(there) > 0 and bool(np.ptp(there) > 0 or abs(times[-1] - self.rows[-1][0]) < FAR_S)

    def _in_order(self, layout: Layout, times: NDArray[np.float64], at: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """Rows by rising time, in the parts between which another recording begins; those that came late are left
        out."""
        if layout.clock is None or not len(at):
            return [at]  # they arrived in order
        at = at[np.argsort(times[at], kind="stable")]
        self._late = self._late + len(at) if times[at[-1]] < self._last else 0
        if self._late >= LATE:
            self._begin("a clock was set back")
        least = layout.step_s / 2 if layout.step_s else 0.0
        kept = at[np.diff(times[at], prepend=self._last) >= least]
        if late := len(at) - len(kept):
            self.tally.add("{n} rows that came late, or again, are left out", self.name, late)
        if layout.step_s is None or not len(kept):
            self._last = float(times[kept[-1]]) if len(kept) else self._last
            return [kept]
        gaps = np.diff(times[kept], prepend=self._last if np.isfinite(self._last) else times[kept[0]]) / layout.step_s
        return np.split(kept, np.flatnonzero(gaps > FILLED + 1.5))

    def _begin(self, why: str) -> None:
        self._recordings, self._last, self._late = self._recordings + 1, -np.inf, 0
        self.tally.add(f"{why}; {{n}} more recordings begin", self.name)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _piece(self, layout: Layout, cells: list[list[str]], times: NDArray[np.float64]) -> Series | Records:
        found = [
            numbers(column) if field.type in ("number", "integer") else None
            for field, column in zip(layout.fields, cells, strict=True)
        ]
        for one in found:
            if one is not None and len(one.odd):
                self.tally.add("{n} values that are no numbers are missing now", self.name, len(one.odd))
        if not layout.numeric:
            columns = [
                _column(field, one, column) for field, one, column in zip(layout.fields, found, cells, strict=True)
            ]
            return Records(self._title(), layout.fields, tuple(columns), times)
        known = [one for one in found if one is not None]
        values = np.stack([one.values for one in known], axis=1)
        whole = np.stack([self._whole(layout, n, one) for n, one in enumerate(known)], axis=1)
        rate_hz, start_s, own = 0.0, None, times
        if self.rate_hz:
            rate_hz = self.rate_hz
            self._start_s = float(times[0]) if self._start_s is None else self._start_s
            start_s, self._count = self._start_s + self._count / rate_hz, self._count + len(times)
        elif layout.step_s is not None:
            rate_hz = 1 / layout.step_s
            values, whole, start_s = self._steady(layout.step_s, values, whole, times)
        return Series(
            self._title(),
            values.astype(np.float32),
            rate_hz,
            tuple(field.name for field in layout.fields),
            tuple(field.unit for field in layout.fields),
            times_s=None if rate_hz else own,
            grid=Grid(whole, np.power(10.0, -layout.decimals, dtype=np.float64), np.zeros(len(layout.fields))),
            start_s=start_s,
        )

    def _title(self) -> str:
        return self.name if self._recordings == 1 else f"{self.name} ({self._recordings})"

    def _steady(
        self, step: float, values: NDArray[np.float64], whole: NDArray[np.int64], times: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], float]:
        """With a row for each step since the last sample, missing where there was none, and when the first was."""
        if times[0] - self._last > (FILLED + 1.5) * step and np.isfinite(self._last):
            self._begin("after a long gap")
        before = self._last if np.isfinite(self._last) else times[0] - step
        counts = np.maximum(1, np.rint(np.diff(times, prepend=before) / step)).astype(np.int64)
        at, total = np.cumsum(counts) - 1, int(counts.sum())
        if missing := total - len(times):
            self.tally.add("{n} samples that are missing in gaps are NaN now", self.name, missing)
        filled, wholes = np.full((total, values.shape[1]), np.nan), np.full((total, values.shape[1]), MISSING)
        filled[at], wholes[at] = values, whole
        self._last = float(times[-1])
        return filled, wholes, float(times[0] - (counts[0] - 1) * step)

    def _whole(self, layout: Layout, n: int, found: Numbers) -> NDArray[np.int64]:
        """A channel's samples as whole numbers (N,)."""
        layout.decimals[n] = decimals = max(int(layout.decimals[n]), min(DIGITS, found.decimals()))
        exact = found.whole(decimals)
        if exact is not None and (np.abs(exact[exact != MISSING]) < LARGEST).all():
            return exact
        gone = np.isnan(found.values)
        scaled = np.where(gone, 0.0, found.values) * 10.0**decimals
        far = np.abs(scaled) >= LARGEST
        self.tally.add(
            f"{{n}} numbers of more than {DIGITS} decimals, or too large, are rounded or missing as whole numbers",
            self.name,
            max(1, int((far | (np.abs(scaled - np.rint(scaled)) > 1e-6)).sum())),
        )
        return np.where(gone | far, MISSING, np.rint(np.where(far, 0.0, scaled)).astype(np.int64))


def _type(found: Numbers, cells: Sequence[str]) -> FieldType:
    if not found.odd:
        return "integer" if np.isfinite(found.values).any() and found.plain() else "number"
    return "category" if all(len(cell) <= WORD for cell in cells) else "text"


def _column(field: Field, found: Numbers | None, cells: Sequence[str]) -> NDArray[np.generic]:
    if found is None:
        return np.array([None if cell.lower() in ABSENT else cell for cell in cells], object)
    whole = found.whole(0) if field.type == "integer" else None
    return found.values if whole is None or (whole == MISSING).any() else whole
