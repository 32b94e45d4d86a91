"""Files of signals: which reader a file is for, and what every reader does.

A reader is a module of `readers/`, found by its name, with

- a docstring whose first line says what it reads;
- ``SUFFIXES``: how such files' names end, such as ``(".hea", ".dat")``;
- ``knows(path, head)``: whether a file is one, by its name and first bytes (at most `HEAD`);
- ``pieces(path, rows, notes)``: the signals in the file, one after another, each of at most `rows` samples, rows or
  frames. Pieces of one recording follow each other and have one name, which the next recording has not; `pieces`
  below says by it of each whether it `continues` the one before. What is repaired on the way (a row left out, a
  gap filled with NaN, times brought into order) is told in `notes`, a line each time once; what cannot be read is a
  `SignalError` that tells the file, where in it, what came and what was wanted. A mark that `goes_on` in the next
  piece is cut between the two, and becomes one again with them.

One with ``GROUPS`` also takes a `group`, the column of a table that tells which recording a row is of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from genmote import registry
from genmote.errors import SignalError
from genmote.registry import listed
from genmote.signals.kinds import Frames, Grid, Mark, Records, Series, Signal
from genmote.signals.said import Said

READERS = "genmote.signals.readers"
HEAD = 4096  # bytes of a file that are looked at to find its reader
ROWS = 1 << 16
TURNED = re.compile(r"[.-]\d+$")  # the number or the day of an old log


def suffix(path: Path) -> str:
    """The end of a file's name by which readers know it.

    >>> suffix(Path("auth.LOG")), suffix(Path("auth.log.1")), suffix(Path("auth.log-20260102"))
    ('.log', '.log', '.log')
    """
    return Path(TURNED.sub("", path.name)).suffix.lower()


def reader_of(path: Path, name: str | None = None) -> ModuleType:
    """The reader that is called `name`, or the one for this file. SignalError where none is."""
    if name is not None:
        return registry.load(READERS, name, what="reader", error=SignalError)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as fault:
        raise SignalError(f"{path}: cannot be read ({fault.strerror}): wanted a recording") from None
    if not head:
        raise SignalError(f"{path}: is empty: wanted a recording")
    readers = [registry.load(READERS, known) for known in registry.names(READERS)]
    # Those whose files are called so first: a CSV reader knows many a text.
    ordered = sorted(readers, key=lambda reader: suffix(path) not in reader.SUFFIXES)
    for reader in ordered:
        if reader.knows(path, head):
            return reader
    raise SignalError(
        f"{path}: no reader knows such a file; name one of {', '.join(registry.names(READERS))} with --reader"
    )


def pieces(
    path: Path,
    *,
    reader: str | None = None,
    rows: int = ROWS,
    notes: list[str] | None = None,
    said: Said | None = None,
) -> Iterator[Signal]:
    """What is in a file, in pieces of at most `rows` samples, rows or frames: for files larger than memory (but a table
    that is to be read by its groups)."""
    told: list[str] = [] if notes is None else notes
    before: tuple[type, str] | None = None
    module, group = reader_of(path, reader), {}
    if said is not None and said.group is not None:
        if not hasattr(module, "GROUPS"):
            raise SignalError(f"{path}: is no table with columns: leave out --group, or name a reader of such a table")
        group = {"group": said.group}
    for piece in module.pieces(path, rows, told, **group):
        piece = piece if said is None else _as_said(path, piece, said, told)
        continues, before = before == _named(piece), _named(piece)
        yield piece if piece.continues == continues else replace(piece, continues=continues)


def _as_said(path: Path, signal: Signal, said: Said, notes: list[str]) -> Signal:
    if said.names:
        known = [field.name for field in signal.fields] if isinstance(signal, Records) else signal.channels
        if len(said.names) != len(known):
            raise SignalError(
                f"{path}: has {len(known)} channels ({listed(known)}), and {len(said.names)} names are given: wanted "
                "one for each, in their order"
            )
        if isinstance(signal, Records):
            fields = (replace(field, name=name) for field, name in zip(signal.fields, said.names, strict=True))
            signal = replace(signal, fields=tuple(fields))
        else:
            signal = replace(signal, channels=said.names)
    if said.sample_rate > 0 and isinstance(signal, Series):
        signal = replace(signal, rate_hz=said.sample_rate, times_s=None)
    elif said.sample_rate > 0:
        line = f"{path.name}: is of {type(signal).__name__.lower()}, which have no --sample-rate: it changes nothing"
        notes += [] if line in notes else [line]
    return signal


def _named(piece: Signal) -> tuple[type, str]:
    return type(piece), piece.name


def read(
    path: Path, *, reader: str | None = None, notes: list[str] | None = None, said: Said | None = None
) -> list[Signal]:
    """All signals in a file, whole. SignalError where it holds none, or cannot be read."""
    found = joined_all(pieces(path, reader=reader, notes=notes, said=said))
    if not found:
        raise SignalError(f"{path}: holds no signal")
    return found


def joined_all(parts: Iterable[Signal]) -> list[Signal]:
    """Pieces that follow each other as whole signals: one begins where a piece does not continue the one before."""
    found: list[list[Signal]] = []
    for piece in parts:
        if found and piece.continues and _named(found[-1][0]) == _named(piece):
            found[-1].append(piece)
        else:
            found.append([piece])
    return [joined(each) for each in found]


def joined(parts: list[Signal]) -> Signal:
    """Pieces of one recording as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Series):
        return _joined_series([part for part in parts if isinstance(part, Series)])
    times = None if first.times_s is None else np.concatenate([part.times_s for part in parts])
    if isinstance(first, Records):
        rows = [part for part in parts if isinstance(part, Records)]
        columns = tuple(np.concatenate([part.columns[n] for part in rows]) for n in range(len(first.columns)))
        return replace(first, columns=columns, times_s=times)
    frames = [frame for part in parts if isinstance(part, Frames) for frame in part.frames]
    return replace(first, frames=frames, times_s=times)


def _joined_series(parts: list[Series]) -> Series:
    first, marks, at = parts[0], list[Mark](), 0
    cut: dict[str, list[int]] = {}  # by label, which marks go on from the piece before this one
    for part in parts:
        going_on: dict[str, list[int]] = {}
        for mark in part.marks:
            waiting = cut.get(mark.label) if mark.start == 0 else None
            here = waiting.pop(0) if waiting else len(marks)
            start = marks[here].start if here < len(marks) else mark.start + at
            marks[here : here + 1] = [Mark(start, mark.stop + at, mark.label, mark.goes_on)]
            if mark.goes_on:
                going_on.setdefault(mark.label, []).append(here)
        cut, at = going_on, at + len(part)
    grids = [part.grid for part in parts if part.grid is not None]
    grid: Grid | None = None
    if len(grids) == len(parts) and all(
        np.array_equal(g.step, grids[0].step) and np.array_equal(g.zero, grids[0].zero) for g in grids
    ):
        grid = replace(grids[0], integers=np.concatenate([g.integers for g in grids]))
    times = None if first.times_s is None else np.concatenate([part.times_s for part in parts])
    return replace(
        first, values=np.concatenate([part.values for part in parts]), times_s=times, grid=grid, marks=tuple(marks)
    )
