"""Recordings to learn from and to be judged on: read, without the columns that are left out, each row with its label.

A label is, where `label` names one, the channel or field of that name (which the model is not shown) or a label of the
whole recording; else a series' marks, or the only label that recordings have. A mark of one sample (a beat) is said of
the rows up to half-way to the marks beside it.
"""

from __future__ import annotations

import filecmp
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator import material
from genmote.generator.material import NONE as NONE
from genmote.generator.material import inside, word
from genmote.generator.scores.forecast import forward_filled
from genmote.registry import listed
from genmote.signals import reading
from genmote.signals.header import MODALITY
from genmote.signals.kinds import Records, Series, Signal
from genmote.signals.said import Said

Floats = NDArray[np.float32]
MARKS = "marks"  # what the label is called that is taken from marks
WORDS = 10  # of a category that have a column of their own


@dataclass(frozen=True, eq=False)
class Recording:
    """`signal`: what a model is shown. `rows` (T,): a label for each row, where there are labels, which are called
    `key`. `points`: where marks of one sample lie."""

    path: Path
    signal: Series | Records
    key: str = ""
    rows: NDArray[np.object_] | None = None
    points: tuple[int, ...] = ()

    @property
    def whole(self) -> str | None:
        """The label of all rows, where it is one."""
        if self.rows is None or not len(self.rows) or (self.rows != self.rows[0]).any():
            return None
        return str(self.rows[0])

    @property
    def name(self) -> str:
        return self.path.name if self.signal.name == self.path.stem else f"{self.path.name}: {self.signal.name}"


def load(
    paths: Sequence[Path],
    *,
    label: str | None = None,
    drop: Sequence[str] = (),
    missing: Sequence[float] = (),
    notes: list[str] | None = None,
    progress: Progress = quiet,
    said: Said | None = None,
) -> list[Recording]:
    """All recordings in files, and in the files of folders, of which those that cannot be read are left out.
    SignalError for a file that cannot be read, and for frames."""
    told: list[str] = [] if notes is None else notes
    files = [(file, path.is_dir()) for path in paths for file in _files(path, told)]
    found = []
    for number, (file, in_folder) in enumerate(files):
        try:
            signals = reading.read(file, notes=told, said=said)
        except SignalError as fault:
            if not in_folder:
                raise
            told.append(f"left out: {fault}")  # nobody named this one
            continue
        if said is not None and said.group != label:  # a group is no class, but where it is asked for
            signals = [replace(s, labels={k: v for k, v in s.labels.items() if k != said.group}) for s in signals]
        signals = [material.prepared(signal, missing=missing) for signal in signals if len(signal)]
        found += [prepared(signal, file, label, drop) for signal in signals]
        progress("reading", number + 1, len(files))
    if not found:
        raise SignalError(f"{', '.join(map(str, paths))}: holds no signal; name files of recordings, or their folders")
    first = shape_of(found[0].signal)
    for one in found:
        if shape_of(one.signal) != first:
            raise SignalError(
                f"{one.name}: has {_told(one.signal)}, {found[0].name} has {_told(found[0].signal)}; wanted recordings "
                "of one kind, leave channels out with --drop"
            )
    return found


def together(train: Sequence[Recording], test: Sequence[Recording]) -> None:
    """SignalError where recordings to learn from are of another kind than those to be judged on, or are the same."""
    if shape_of(train[0].signal) != shape_of(test[0].signal):
        raise SignalError(
            f"{test[0].name}: has {_told(test[0].signal)}, {train[0].name} of --train has {_told(train[0].signal)}; "
            "wanted recordings of one kind"
        )
    if same := {one.path.resolve() for one in train} & {one.path.resolve() for one in test}:
        raise SignalError(f"{min(same).name}: is in --train and in --test; wanted recordings that were not learnt from")
    by_size: dict[int, list[Path]] = {}
    for path in dict.fromkeys(one.path for one in train):
        by_size.setdefault(path.stat().st_size, []).append(path)
    for path in dict.fromkeys(one.path for one in test):
        for other in by_size.get(path.stat().st_size, []):
            # Headers of PhysioNet may be the same, and their samples not.
            if path.suffix != ".hea" and filecmp.cmp(path, other, shallow=False):
                raise SignalError(
                    f"{path.name}: is {other.name} of --train once more; wanted recordings that were not learnt from"
                )


def shape_of(signal: Series | Records) -> tuple[object, ...]:
    if isinstance(signal, Series):
        return ("series", *zip(signal.channels, signal.units, strict=True))
    return ("records", *(field.name for field in signal.fields))


def _told(signal: Series | Records) -> str:
    names = signal.channels if isinstance(signal, Series) else [field.name for field in signal.fields]
    return f"{'channels' if isinstance(signal, Series) else 'fields'} {', '.join(names)}"


def _files(path: Path, notes: list[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    found, left = [], 0
    for file in inside(path):
        try:
            reading.reader_of(file)
        except SignalError:
            left += 1
        else:
            found.append(file)
    if left:
        notes.append(f"{path}: {left} files that no reader knows are left out")
    return found


def prepared(signal: Signal, path: Path, label: str | None, drop: Sequence[str]) -> Recording:
    """A signal without its label and what is left out, and the label of each row. SignalError for an unknown name."""
    if not isinstance(signal, (Series, Records)):
        raise SignalError(f"{path}: holds frames; series and records are judged so far")
    key, rows = _labels(signal, path, label)
    points = tuple(m.start for m in signal.marks if m.stop - m.start == 1) if isinstance(signal, Series) else ()
    names = list(signal.channels) if isinstance(signal, Series) else [field.name for field in signal.fields]
    for name in drop:
        if name not in names:
            raise SignalError(f"{path}: has no {name!r} to leave out with --drop: it has {listed(names)}")
    kept = [n for n, name in enumerate(names) if name not in drop and (rows is None or name != key)]
    if not kept:
        raise SignalError(f"{path}: nothing is left without {', '.join(names)}; leave out less")
    bare = {name: value for name, value in signal.labels.items() if name != key}
    if isinstance(signal, Records):
        shown: Series | Records = replace(
            signal,
            fields=tuple(signal.fields[n] for n in kept),
            columns=tuple(signal.columns[n] for n in kept),
            labels=bare,
        )
    else:
        grid = signal.grid
        if grid is not None and len(kept) < len(names):
            grid = replace(grid, integers=grid.integers[:, kept], step=grid.step[kept], zero=grid.zero[kept])
        shown = replace(
            signal,
            values=signal.values[:, kept],
            channels=tuple(signal.channels[n] for n in kept),
            units=tuple(signal.units[n] for n in kept),
            grid=grid,
            labels=bare,
            marks=(),
        )
    return Recording(path, shown, key, rows, points if key == MARKS else ())


def _labels(signal: Series | Records, path: Path, label: str | None) -> tuple[str, NDArray[np.object_] | None]:
    """What the label is called, and that of each row."""
    own = {name: value for name, value in signal.labels.items() if name != MODALITY}
    marks = signal.marks if isinstance(signal, Series) else ()
    if label is None:
        label = MARKS if marks else next(iter(own)) if len(own) == 1 else None
        if label is None:
            return "", None
    names = list(signal.channels) if isinstance(signal, Series) else [field.name for field in signal.fields]
    if label in names:
        column = signal.values[:, names.index(label)] if isinstance(signal, Series) else signal.column(label)
        return label, np.array([word(item) for item in column.tolist()], object)
    if label in own:
        return label, np.full(len(signal), own[label], object)
    if label == MARKS and isinstance(signal, Series):
        return MARKS, _of_marks(signal)
    known = [*names, *own, *([MARKS] if marks else [])]
    raise SignalError(f"{path}: has no label {label!r}: it has {listed(known)}")


def _of_marks(series: Series) -> NDArray[np.object_]:
    rows = np.full(len(series), NONE, object)
    points = sorted((mark for mark in series.marks if mark.stop - mark.start == 1), key=lambda mark: mark.start)
    if not points:
        for mark in series.marks:
            rows[mark.start : mark.stop] = mark.label
        return rows
    for mark, (start, stop) in zip(points, stretches([p.start for p in points], len(series)), strict=True):
        rows[start:stop] = mark.label
    return rows


def stretches(points: Sequence[int], length: int) -> list[tuple[int, int]]:
    """Of each point the rows that are nearest to it.

    >>> stretches([2, 6], 10)
    [(0, 4), (4, 10)]
    """
    middles = [(a + b) // 2 for a, b in itertools.pairwise(points)]
    return list(zip([0, *middles], [*middles, length], strict=True))


@dataclass(frozen=True, eq=False)
class Columns:
    """Rows as numbers (T, C) of about one size each, by what recordings to learn from are like: a series' channels and
    a records' numbers less their mean, over their spread; a category's words in columns of 0 and 1; no text."""

    names: tuple[str, ...]
    middle: NDArray[np.float64]
    spread: NDArray[np.float64]
    words: tuple[tuple[str, ...], ...]  # of each field of records, if it is a category

    @classmethod
    def fit(cls, recordings: Sequence[Recording]) -> Columns:
        first = recordings[0].signal
        words: tuple[tuple[str, ...], ...] = ()
        if isinstance(first, Records):
            for n, field in enumerate(first.fields):
                known: tuple[str, ...] = ()
                if field.type == "category":
                    cells = np.concatenate([r.signal.columns[n] for r in recordings if isinstance(r.signal, Records)])
                    said, counts = np.unique([word(cell) for cell in cells], return_counts=True)
                    known = tuple(said[np.argsort(-counts, kind="stable")][:WORDS].tolist())
                words = (*words, known)
        raw = np.concatenate([_numbers(one.signal, words) for one in recordings])
        there = np.isfinite(raw)
        count = np.maximum(1, there.sum(axis=0))
        middle = np.where(there, raw, 0).sum(axis=0) / count
        spread = (np.where(there, raw - middle, 0) ** 2).sum(axis=0) / count
        names = _column_names(first, words)
        return cls(names, middle, np.where(spread > 0, spread, 1.0) ** 0.5, words)

    def __call__(self, signal: Series | Records) -> Floats:
        """(T, C); a missing number is the one before it."""
        return forward_filled((_numbers(signal, self.words) - self.middle) / self.spread).astype(np.float32)


def _column_names(signal: Series | Records, words: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    if isinstance(signal, Series):
        return signal.channels
    found: list[str] = []
    for field, known in zip(signal.fields, words, strict=True):
        found += [field.name] if field.type in ("number", "integer") else [f"{field.name} {one}" for one in known]
    return tuple(found)


def _numbers(signal: Series | Records, words: tuple[tuple[str, ...], ...]) -> NDArray[np.float64]:
    if isinstance(signal, Series):
        return signal.values.astype(np.float64)
    found = [np.zeros((len(signal), 0))]
    for field, column, known in zip(signal.fields, signal.columns, words, strict=True):
        if field.type in ("number", "integer"):
            # Bytes and counts go over many orders of size.
            found.append(np.arcsinh(column.astype(np.float64))[:, None])
        elif field.type == "category":
            cells = np.array([word(cell) for cell in column], object)
            found += [(cells == one).astype(np.float64)[:, None] for one in known]
    return np.concatenate(found, axis=1)
