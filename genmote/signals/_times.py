"""The times of a table: which columns tell them, and in which of the many ways that people write dates.

Times without a zone are taken as UTC. The order of days and months is decided by all rows that are seen at first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genmote.signals._numbers import ABSENT, numbers

DATED = re.compile(
    r"(?P<date>(?P<a>\d{1,4})(?P<sep>[-/.])(?P<b>\d{1,2})(?P=sep)(?P<c>\d{4}|\d{1,2})"
    r"|\d{1,2}[-/. ]?[A-Za-z]{3,9}\.?[-/ ,.]{0,2}(?:\d{4}|\d{2})"
    r"|[A-Za-z]{3,9}\.? {1,2}\d{1,2},? \d{4}"
    r"|\d{8})"
    r"(?:(?:T|[ _]{1,2}|-)(?P<clock>\d.{3,30}))?",
    re.ASCII,
)
CLOCK = re.compile(
    r"(?:(?P<hour>\d{1,2})(?P<by>[:.])(?P<minute>\d{2})(?:(?P=by)(?P<second>\d{2})(?:[.,](?P<part>\d{1,9}))?)?"
    r"|(?P<run>\d{6}))(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?(?: ?(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}))?",
    re.ASCII,
)
PLAIN = re.compile(r"(?:(?!0000)\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?\n)*", re.ASCII)
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
DAY_S = 86400.0
FITS = 0.98  # of the cells of a column of times are times
# Of what size numbers are that count from 1970, for the years 1979 to 2128.
EPOCHS = tuple((3e8 * scale, 5e9 * scale, 1 / scale) for scale in (1, 1e3, 1e6, 1e9))
UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
SAYS_TIME = frozenset("time timer timestamp stamp ts epoch datetime elapsed unixtime unix".split())


def seconds_of(cell: str, order: str) -> float:
    """Seconds since 1970, or of the day for a time of day alone; NaN for what is no time in the order dmy or mdy.

    >>> seconds_of("1970-01-02T00:00:00.5+01:00", "dmy"), seconds_of("2/1/1970", "mdy"), seconds_of("1:00 PM", "dmy")
    (82800.5, 2678400.0, 46800.0)
    """
    dated = DATED.fullmatch(cell)
    days = np.nan if dated is None else _days(dated["date"], order)
    if np.isnan(days):
        return _of_day(cell) if ":" in cell or cell.count(".") == 2 else np.nan
    return days * DAY_S + (_of_day(dated["clock"]) if dated and dated["clock"] else 0.0)


@lru_cache(4096)
def _days(text: str, order: str) -> float:
    dated = DATED.fullmatch(text)
    assert dated is not None
    if dated["sep"]:
        a, b, c = dated["a"], dated["b"], dated["c"]
        if len(a) == 4:
            year, month, day = int(a), int(b), int(c)
        elif len(a) < 3:
            year, day, month = _year(c), *((int(a), int(b)) if order == "dmy" else (int(b), int(a)))
        else:
            return np.nan
    elif text.isdigit():
        year, month, day = int(text[:4]), int(text[4:6]), int(text[6:])
    else:
        word = re.findall("[A-Za-z]+", text)[0].lower()
        if word[:3] not in MONTHS:
            return np.nan
        one, other = re.findall(r"\d+", text)
        year, month, day = _year(other), MONTHS.index(word[:3]) + 1, int(one)
    try:
        return float(date(year, month, day).toordinal() - date(1970, 1, 1).toordinal())
    except ValueError:
        return np.nan


def _year(text: str) -> int:
    return int(text) + (0 if len(text) == 4 else 1900 if int(text) > 68 else 2000)  # as POSIX has it


def _of_day(text: str) -> float:
    """Seconds of the day; with a zone, what they are in UTC."""
    clock = CLOCK.fullmatch(text)
    if clock is None:
        return np.nan
    run = clock["run"]
    hour, minute, second = (int(n or 0) for n in ((run[:2], run[2:4], run[4:]) if run else clock.group(1, 3, 4)))
    if clock["half"]:
        if not 1 <= hour <= 12:
            return np.nan
        hour = hour % 12 + (12 if clock["half"] in "pP" else 0)
    if hour > 23 or minute > 59 or second > 60:
        return np.nan
    zone = clock["zone"] or ""
    away = int(zone[0] + "1") * (int(zone[1:3]) * 60 + int(zone[-2:])) if zone[:1] in ("+", "-") else 0
    return hour * 3600 + (minute - away) * 60 + second + (float("0." + clock["part"]) if clock["part"] else 0.0)


def _plain(cells: Sequence[str]) -> NDArray[np.float64] | None:
    """Seconds since 1970 of times that are all written as 2024-05-06 07:08:09.5, ten times as fast as one by one."""
    if not PLAIN.fullmatch("\n".join([*cells, ""])):
        return None
    try:
        return np.array(cells, "datetime64[us]").astype(np.int64) / 1e6
    except ValueError:  # a day that there is not, or a leap second
        return None


@dataclass
class Clock:
    """How a table tells its times: `columns`, one, or a date's and a time of day's; `unit_s` of numbers, 0 for text."""

    columns: tuple[int, ...]
    order: str = "dmy"
    unit_s: float = 0.0
    comma: bool = False
    of_day: bool = False
    days: float = field(default=0.0, init=False)  # that have gone by, of times of day alone
    last: float = field(default=np.nan, init=False)

    def seconds(self, columns: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """Times (N,) of the next rows, NaN where a row has none."""
        cells = columns[self.columns[0]]
        if self.unit_s:
            return numbers(cells, comma=self.comma).values * self.unit_s
        if self.of_day:
            return self._unrolled(np.array([_of_day(cell) for cell in cells]))
        plain = _plain(cells)
        found = np.array([seconds_of(cell, self.order) for cell in cells]) if plain is None else plain
        for other in self.columns[1:]:
            found = found + np.array([_of_day(cell) for cell in columns[other]])
        return found

    def _unrolled(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """Midnight begins a day: a time more than half a day before the one above it is the next day's."""
        for n, at in enumerate(found):
            if np.isnan(at):
                continue
            if self.last - at > DAY_S / 2:
                self.days += 1
            elif at - self.last > DAY_S / 2 and self.days:  # a late row of the day before
                self.days -= 1
            self.last = at
            found[n] = at + self.days * DAY_S
        return found


def clock_of(
    names: Sequence[str], units: Sequence[str], columns: Sequence[Sequence[str]], comma: bool, notes: list[str]
) -> Clock | None:
    """The clock of a table by the names, units and first cells of its columns; None where no column tells times."""
    kinds = [_kind(cells, says_date="date" in name.lower()) for name, cells in zip(names, columns, strict=True)]
    full, dates, of_day = ([n for n, kind in enumerate(kinds) if kind == wanted] for wanted in ("full", "date", "day"))
    if full:
        return Clock((full[0],), _order(names[full[0]], columns[full[0]], notes))
    if dates and of_day:
        return Clock((dates[0], of_day[0]), _order(names[dates[0]], columns[dates[0]], notes))
    counted = _counted(names, units, columns, comma, notes)
    if counted is not None:
        return counted
    if dates:
        return Clock((dates[0],), _order(names[dates[0]], columns[dates[0]], notes))
    return Clock((of_day[0],), of_day=True) if of_day else None


def _kind(cells: Sequence[str], says_date: bool) -> str | None:
    """Whether a column's cells are full times, dates, or times of the day."""
    there = [cell for cell in cells[:: 1 + len(cells) // 1000] if cell.lower() not in ABSENT]
    if not there or (not says_date and all(cell.isdigit() for cell in there)):
        return None
    if _share(there[:50]) < 0.9 or _share(there) < FITS:  # most columns end at the first
        return None
    # 18.00.00 is a time of the day where not all in its column can be dates.
    dates = [_days(found["date"], "dmy") for found in map(DATED.fullmatch, there) if found]
    others = [_days(found["date"], "mdy") for found in map(DATED.fullmatch, there) if found]
    if max(np.isfinite(dates).sum(), np.isfinite(others).sum()) < FITS * len(there):
        return "day"
    return "full" if any(found["clock"] for found in map(DATED.fullmatch, there) if found) else "date"


def _share(cells: Sequence[str]) -> float:
    """How many of the cells are times, in the better of both orders."""
    return max(float(np.mean([np.isfinite(seconds_of(cell, order)) for cell in cells])) for order in ("dmy", "mdy"))


def _order(name: str, cells: Sequence[str], notes: list[str]) -> str:
    """dmy or mdy, by which more cells are dates; where both fit, by which they lie closer together."""
    dates = dict.fromkeys(found["date"] for found in map(DATED.fullmatch, cells) if found)
    read = {order: np.array([_days(text, order) for text in dates]) for order in ("mdy", "dmy")}
    fit = {order: int(np.isfinite(times).sum()) for order, times in read.items()}
    if fit["dmy"] != fit["mdy"]:
        return max(fit, key=lambda order: fit[order])
    if np.array_equal(read["dmy"], read["mdy"], equal_nan=True):
        return "dmy"
    spread = {order: float(np.nansum(np.abs(np.diff(times)))) for order, times in read.items()}
    if spread["dmy"] == spread["mdy"]:  # as they are written where such signs are used
        order, why = ("mdy", "as is usual with /") if any("/" in cell for cell in cells) else ("dmy", "as is usual")
    else:
        order = min(spread, key=lambda order: spread[order])
        why = "so they lie closer together"
    written = {"mdy": "month, day", "dmy": "day, month"}[order]
    notes.append(f"{name}: days and months cannot be told apart; read as {written}, {why}")
    return order


def _counted(
    names: Sequence[str], units: Sequence[str], columns: Sequence[Sequence[str]], comma: bool, notes: list[str]
) -> Clock | None:
    """A column of numbers that count seconds, or parts of them, from 1970 or from the start."""
    for n, cells in enumerate(columns):
        says = _says_time(names[n]) or (n == 0 and names[n] == "t")
        dated = not says and ("date" in names[n].lower() or (n == 0 and not names[n]))
        if not (says or dated) or units[n] not in ("", *UNITS):
            continue
        found = numbers(cells, comma=comma)
        values = found.values[np.isfinite(found.values)]
        if not len(values) or len(values) < FITS * len(cells):
            continue
        middle = float(np.median(values))
        epoch = next((unit_s for low, high, unit_s in EPOCHS if low <= middle < high), None)
        rises = len(values) > 1 and values[0] < values[-1] and (np.diff(values) >= 0).mean() > 0.9
        if (not rises or dated) and epoch is None:
            continue
        if units[n] in UNITS:
            return Clock((n,), unit_s=UNITS[units[n]], comma=comma)
        if epoch is None:
            notes.append(f"{names[n]} is a time without a unit; taken as seconds")
        return Clock((n,), unit_s=epoch or 1.0, comma=comma)
    return None


def _says_time(name: str) -> bool:
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    return bool(words) and (words[-1] in SAYS_TIME or "".join(words) in SAYS_TIME)
