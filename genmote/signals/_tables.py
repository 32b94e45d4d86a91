"""Rows of cells as signals: which columns are numbers, which tell the time, and whether they make a series or records.

All is decided by a first window of rows and then holds; what later does not fit is missing, and told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.registry import listed
from genmote.signals import _units
from genmote.signals._numbers import ABSENT, numbers
from genmote.signals._steady import CUTS, Batch, Order, step_of, steps_between
from genmote.signals._times import Clock, clock_of
from genmote.signals.kinds import MISSING, Field, FieldType, Grid, Records, Series

WINDOW, CELLS, LEAST = 1 << 14, 1 << 18, 256  # rows; fewer, but for the least, of a wide table: so many cells
ODD = 0.02  # of the cells of a column of numbers may be none
WORDS = 256  # a category has at most so many, and each at least four times on the whole
SHOWN = 3  # places that a note names
Row = tuple[int, Sequence[str]]  # the line, its cells

COUNTERS = frozenset({"", "#", "index", "idx", "row", "rownames", "no", "no.", "nr", "unnamed: 0"})


@dataclass
class Tally:
    """Things that are counted while reading and told at the end: text -> how often, and where first."""

    notes: list[str]
    found: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def add(self, text: str, where: str = "", count: int = 1) -> None:
        """`text` has {n} where the number goes."""
        times, places = self.found.get(text, (0, []))
        told = not where or where in places or len(places) >= SHOWN
        self.found[text] = (times + count, places if told else [*places, where])

    def tell(self) -> None:
        for text, (times, places) in self.found.items():
            at = f": {', '.join(places)}" + (", …" if times > len(places) else "") if places else ""
            self.notes.append(text.replace("{n}", str(times)) + at)
        self.found.clear()


@dataclass(frozen=True)
class Column:
    """A column that is read: where its cells stand, and the most decimals in which its numbers are written."""

    at: int
    field: Field
    decimals: int = 0


@dataclass(frozen=True)
class Layout:
    """What the first rows of a table say of it. `group`: where the column stands that tells which recording a row is
    of, and its name."""

    path: Path
    name: str  # of the signal
    columns: tuple[Column, ...]
    clock: Clock | None
    absent: Set[str]
    comma: bool
    group: tuple[int, str] | None = None

    @property
    def numeric(self) -> bool:
        return all(column.field.type in ("number", "integer") for column in self.columns)


def pieces(
    path: Path,
    names: Sequence[str] | None,
    rows: Iterator[Row],
    most: int,
    notes: list[str],
    *,
    absent: Set[str] = frozenset(),
    words: Set[int] = frozenset(),
    comma: bool = False,
    group: str | None = None,
) -> Iterator[Series | Records]:
    """Signals of at most `most` rows out of rows of cells without spaces around them, each of as many cells.

    `names`: of the columns, "" for one without. `absent`: lower-case words for a missing value besides the usual ones.
    `words`: columns that are neither numbers nor times, whatever they look like. `comma`: numbers have a decimal comma.
    `group`: the column that tells which recording a row is of; then the whole table is in memory.
    """
    first = list(islice(rows, 1))
    if not first:
        raise SignalError(f"{path}: has no rows: wanted a table with at least one")
    window = min(WINDOW, max(LEAST, CELLS // len(first[0][1])))
    first += islice(rows, window - 1)
    layout = _layout(path, names, first, ABSENT | absent, words, comma, notes, group)
    tally = Tally(notes)
    batches = (_batch(layout, part, tally) for part in chain([first], _windows(rows, window)))
    filled = (batch for batch in batches if len(batch))
    for signal in _signals(layout, filled, tally) if group is None else _of_groups(layout, filled, tally):
        for start in range(0, len(signal), most):
            yield signal.part(start, start + most)
    tally.tell()


def keyed(
    path: Path,
    found: Iterator[tuple[int, dict[str, str]]],
    most: int,
    notes: list[str],
    tally: Tally,
    *,
    absent: Set[str] = frozenset(),
    group: str | None = None,
) -> Iterator[Series | Records]:
    """Signals of lines and cells by name, of which a row need not have all: the names are those of the first rows."""
    first = list(islice(found, WINDOW))
    names = list(dict.fromkeys(name for _, row in first for name in row))

    def cells(at: int, row: dict[str, str]) -> list[str]:
        for name in row.keys() - set(names):
            tally.add(
                f"{path.name}: {{n}} values of {name}, which the first rows do not have, are left out", f"row {at}"
            )
        return [row.get(name, "") for name in names]

    rows = ((at, cells(at, row)) for at, row in chain(first, found))
    yield from pieces(path, names, rows, most, notes, absent=absent, group=group)


def _windows(rows: Iterator[Row], window: int) -> Iterator[list[Row]]:
    while part := list(islice(rows, window)):
        yield part


def _layout(
    path: Path,
    names: Sequence[str] | None,
    rows: list[Row],
    absent: Set[str],
    words: Set[int],
    comma: bool,
    notes: list[str],
    group: str | None,
) -> Layout:
    columns = list(zip(*(cells for _, cells in rows), strict=True))
    split = [_units.split(name) for name in names or [""] * len(columns)]
    told: list[str] = []
    by = None if group is None else _group(path, group, names, [name for name, _ in split])
    seen = [() if n in words or n == by else cells for n, cells in enumerate(columns)]
    clock = clock_of([name for name, _ in split], [unit for _, unit in split], seen, comma, told)
    notes += [f"{path.name}: {line}" for line in told]
    kept: list[Column] = []
    for n, cells in enumerate(columns):
        if n == by or (clock is not None and n in clock.columns):
            continue
        name, unit = split[n]
        if clock is not None or len(columns) > 1:
            if name.lower() in COUNTERS and (name or names) and n == 0 and _counts(cells):
                notes.append(f"{path.name}: the first column counts the rows; left out")
                continue
            if not name and not any(cells):
                continue  # such as after a last delimiter
        kind, decimals, odd = (_words(cells, absent), 0, []) if n in words else _type(cells, absent, comma)
        name = _distinct(name or f"column {n + 1}", kept)
        if odd:
            notes.append(
                f"{path.name}: {name} is read as words: {len(odd)} of its first {len(cells)} cells are neither numbers "
                f"nor missing, first line {rows[odd[0]][0]} {cells[odd[0]][:20]!r}"
            )
        kept.append(Column(n, Field(name, kind, unit), decimals))
    if not kept:
        raise SignalError(f"{path}: has no column but times and empty ones: wanted one of values")
    told_by = None if by is None or group is None else (by, group)
    return Layout(path, path.stem, tuple(kept), clock, absent, comma, told_by)


def _group(path: Path, group: str, names: Sequence[str] | None, plain: Sequence[str]) -> int:
    """Where the column of that name stands, written with or without its unit."""
    shown = [name or f"column {n + 1}" for n, name in enumerate(plain)]
    for known in (names or [], shown):
        if group in known:
            return list(known).index(group)
    raise SignalError(f"{path}: has no column {group!r} to group its rows by: it has {listed(shown)}")


def _distinct(name: str, kept: list[Column]) -> str:
    taken, n, one = {column.field.name for column in kept}, 2, name
    while one in taken:
        one, n = f"{name} {n}", n + 1
    return one


def _counts(cells: Sequence[str]) -> bool:
    """Whether they are whole numbers that only rise."""
    if len(cells) < 2 or not all(cell.isdecimal() and len(cell) < 16 for cell in cells):
        return False
    return bool((np.diff([int(cell) for cell in cells]) > 0).all())


def _type(cells: Sequence[str], absent: Set[str], comma: bool) -> tuple[FieldType, int, Sequence[int]]:
    """The type of a column, the decimals of its numbers, and where the cells are that make it one of words, though most
    are numbers."""
    found = numbers(cells, absent, comma=comma)
    there = int(np.isfinite(found.values).sum()) + len(found.odd)
    if len(found.odd) <= max(ODD * there, 1 if there >= 10 else 0):
        # A column without a value may be of anything; numbers are what tables mostly hold.
        return ("integer" if there and found.plain() else "number"), found.decimals(), []
    return _words(cells, absent), 0, found.odd if 2 * len(found.odd) < there else []


def _words(cells: Sequence[str], absent: Set[str]) -> FieldType:
    there = [cell for cell in cells if cell.lower() not in absent]
    return "category" if len(set(there)) <= min(WORDS, max(2, len(there) // 4)) else "text"


def _batch(layout: Layout, rows: list[Row], tally: Tally) -> Batch:
    cells = list(zip(*(cells for _, cells in rows), strict=True))
    columns: list[NDArray[np.generic]] = []
    wholes: list[NDArray[np.int64]] | None = [] if layout.numeric else None
    for column in layout.columns:
        name = column.field.name
        if column.field.type in ("category", "text"):
            words = [None if cell.lower() in layout.absent else cell for cell in cells[column.at]]
            columns.append(np.array(words, object))
            continue
        found = numbers(cells[column.at], layout.absent, comma=layout.comma)
        for n in found.odd:
            text = f"{layout.path.name}: {{n}} cells of {name} that are no numbers are missing now"
            tally.add(text, f"line {rows[n][0]} {cells[column.at][n][:20]!r}")
        values = found.values
        whole = found.whole(column.decimals)
        if column.field.type == "integer" and not layout.numeric:
            columns.append(_integers(layout, name, values, whole, rows, tally))
            continue
        if wholes is not None and whole is None:
            text = f"{layout.path.name}: {name} has more digits than at first, or than 63 bits hold; no whole numbers"
            tally.add(text, f"from line {rows[0][0]}")
            wholes = None
        elif wholes is not None and whole is not None:
            wholes.append(whole)
        columns.append(values)
    wholes = wholes if wholes is not None and len(wholes) == len(layout.columns) else None
    times = None if layout.clock is None else layout.clock.seconds(cells)
    groups = None if layout.group is None else np.array(cells[layout.group[0]], np.str_)
    batch = Batch(tuple(columns), times, None if wholes is None else tuple(wholes), groups)
    return batch if times is None else _timed(layout, batch, rows, tally)


def _timed(layout: Layout, batch: Batch, rows: list[Row], tally: Tally) -> Batch:
    """Without the rows whose time cannot be read."""
    assert layout.clock is not None
    there = np.isfinite(batch.moments)
    gone = [(rows[n][0], " ".join(rows[n][1][at] for at in layout.clock.columns)) for n in np.flatnonzero(~there)]
    for line, cell in gone:
        tally.add(
            f"{layout.path.name}: {{n}} rows without a time that can be read are left out", f"line {line} {cell[:40]!r}"
        )
    if len(gone) > len(rows) / 10:
        line, cell = gone[0]
        raise SignalError(
            f"{layout.path}, line {line}: got the time {cell[:40]!r}, and {len(gone) - 1} more of {len(rows)} rows are "
            "not as the first rows' times; wanted at most 1 in 10"
        )
    return batch.take(there) if gone else batch


def _integers(
    layout: Layout,
    name: str,
    values: NDArray[np.float64],
    whole: NDArray[np.int64] | None,
    rows: list[Row],
    tally: Tally,
) -> NDArray[np.generic]:
    """The values of a field of whole numbers."""
    if whole is not None and not (whole == MISSING).any():
        return whole
    broken = np.flatnonzero(np.isfinite(values) & (values != np.rint(values)))
    for n in broken:
        text = f"{layout.path.name}: {{n}} numbers of {name} with decimals, whole in the first rows, are missing now"
        tally.add(text, f"line {rows[n][0]}")
    kept = values.copy()
    kept[broken] = np.nan
    return kept


def _of_groups(layout: Layout, batches: Iterator[Batch], tally: Tally) -> Iterator[Series | Records]:
    """Signals of each group, in the order in which they begin, with what the column says as a label."""
    assert layout.group is not None
    column, found = layout.group[1], dict[str, list[Batch]]()
    for batch in batches:
        assert batch.groups is not None
        keys, first, of, counts = np.unique(batch.groups, return_index=True, return_inverse=True, return_counts=True)
        parts = np.split(np.argsort(of, kind="stable"), np.cumsum(counts)[:-1])
        for n in np.argsort(first).tolist():
            found.setdefault(str(keys[n]), []).append(replace(batch.take(parts[n]), groups=None))
    for key in list(found):
        if key.lower() in layout.absent:
            count = sum(map(len, found[key]))
            tally.add(f"{layout.path.name}: {{n}} rows without a {column} are left out", count=count)
            continue
        begin, *others = found.pop(key)
        whole = begin.then(*others)
        windows = (whole.take(slice(at, at + WINDOW)) for at in range(0, len(whole), WINDOW))
        for signal in _signals(replace(layout, name=f"{layout.name} {key}"), windows, tally):
            yield replace(signal, labels={column: key})


def _signals(layout: Layout, batches: Iterator[Batch], tally: Tally) -> Iterator[Series | Records]:
    name, file = layout.name, layout.path.name
    if layout.clock is None:
        if layout.numeric:
            tally.add(f"{file}: no time was found; taken as one sample a second, but for --sample-rate")
        for batch in batches:
            yield _series(layout, name, batch, 1.0) if layout.numeric else _records(layout, name, batch)
        return
    # Records may have their times in any order.
    order, recordings = Order(CUTS if layout.numeric else 0), 0
    for fresh, batch, step, counts in _paced(order, batches, layout.numeric):
        recordings += fresh
        if fresh and recordings > 1:
            name = f"{layout.name} ({recordings})"
            tally.add(f"{file}: the times do not go on as they began; {{n}} more recordings begin")
        if order.loose or not layout.numeric:
            yield _records(layout, name, batch)
        elif step is None or counts is None:
            yield _series(layout, name, batch, 0.0)
        else:
            if missing := int(counts.sum()) - len(batch):
                tally.add(f"{file}: {{n}} samples that are missing in gaps are NaN now", count=missing)
            start_s = float(batch.moments[0]) - float(counts[0] - 1) * step
            yield replace(_series(layout, name, _filled(batch, counts), 1 / step), start_s=start_s)
    if order.loose:
        tally.add(f"{file}: times go back again and again; the rows stay as they come")
    if order.late:
        tally.add(f"{file}: {{n}} rows came late; brought into the order of time", count=order.late)
    if order.same:
        tally.add(f"{file}: {{n}} rows have the time of the row before", count=order.same)


def _paced(
    order: Order, batches: Iterator[Batch], numeric: bool
) -> Iterator[tuple[bool, Batch, float | None, NDArray[np.int64] | None]]:
    """Rows in order of time: whether another recording begins, the rows, and if they are steady, seconds of a step and
    how many steps each row lies after the one before."""
    step: float | None = None
    before = 0.0
    for fresh, batch in order.sorted(batches):
        parts = [(fresh, batch)]
        if step is not None and not fresh and steps_between(batch.moments, step, before) is None:
            # Another recording begins after the longest gap, if all fit until there.
            cut = int(np.argmax(np.diff(batch.moments, prepend=before)))
            head = batch.take(slice(cut))
            fits = cut > 0 and steps_between(head.moments, step, before) is not None
            parts = [(False, head), (True, batch.take(slice(cut, None)))] if fits else [(True, batch)]
        for begins, part in parts:
            if begins:
                step = step_of(part.moments) if numeric and not order.loose else None
            counts = None if step is None else steps_between(part.moments, step, None if begins else before)
            before = float(part.moments[-1])
            yield begins, part, step, counts


def _filled(batch: Batch, counts: NDArray[np.int64]) -> Batch:
    """With a row for each step, NaN and `MISSING` where there was none; without times."""
    at, total = np.cumsum(counts) - 1, int(counts.sum())
    columns = []
    for column in batch.columns:
        filled = np.full(total, np.nan)
        filled[at] = column
        columns.append(filled)
    wholes = []
    for whole in batch.wholes or ():
        gaps = np.full(total, MISSING)
        gaps[at] = whole
        wholes.append(gaps)
    return Batch(tuple(columns), None, None if batch.wholes is None else tuple(wholes))


def _series(layout: Layout, name: str, batch: Batch, rate_hz: float) -> Series:
    grid = None
    if batch.wholes is not None:
        step = np.array([10.0**-column.decimals for column in layout.columns])
        grid = Grid(np.stack(batch.wholes, axis=1), step, np.zeros(len(step)))
    fields = [column.field for column in layout.columns]
    return Series(
        name,
        np.stack([column.astype(np.float32) for column in batch.columns], axis=1),
        rate_hz,
        tuple(field.name for field in fields),
        tuple(field.unit for field in fields),
        times_s=batch.times,
        grid=grid,
    )


def _records(layout: Layout, name: str, batch: Batch) -> Records:
    columns = list(batch.columns)
    for n, (column, whole) in enumerate(zip(layout.columns, batch.wholes or (), strict=False)):
        if column.field.type == "integer" and not (whole == MISSING).any():
            columns[n] = whole
    return Records(name, tuple(column.field for column in layout.columns), tuple(columns), batch.times)
