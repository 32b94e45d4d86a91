"""What a generator is trained and judged on: files and folders as whole signals, with a column of theirs as labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.registry import listed
from genmote.signals import reading
from genmote.signals.header import MODALITY
from genmote.signals.kinds import MISSING, Grid, Mark, Records, Series, Signal
from genmote.signals.said import Said

NONE = ""  # the label of what nothing is said of


def inside(folder: Path) -> list[Path]:
    """The files in a folder and its folders, hidden ones and those that a PhysioNet header names left out."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    named = {path.with_suffix("") for path in found if path.suffix == ".hea"}
    return [path for path in found if path.suffix == ".hea" or path.with_suffix("") not in named]


def files(paths: Sequence[Path]) -> list[Path]:
    """The files in these, folders with all that is in them. SignalError for one that is not there."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += inside(path)
        elif path.exists():
            found.append(path)
        else:
            raise SignalError(f"{path}: is not there: wanted a recording or a folder of them")
    if not found:
        raise SignalError(f"{', '.join(map(str, paths))}: no file in it; wanted recordings")
    return found


def read(
    paths: Sequence[Path],
    *,
    reader: str | None = None,
    labels: Sequence[str] = (),
    channels: Sequence[str] = (),
    modality: str | None = None,
    missing: Sequence[float] = (),
    notes: list[str] | None = None,
    progress: Progress = quiet,
    said: Said | None = None,
) -> list[Signal]:
    """All signals in files and folders. `labels`: what is said of them, or channels that are taken out and said of the
    samples instead, so that each stretch of which one thing is said is a series of its own; where some have none, that
    is told. `channels`: only these, of records fields, which are a series where all are numbers; `modality`: what they
    are of; `missing`: numbers that stand for none. In a folder, files that no reader knows are left out and told."""
    told: list[str] = [] if notes is None else notes
    if modality is not None:
        from genmote.signals.modality import named  # here: it takes `numpy.random`, 6 MB that a forecast has no use for

        modality = named(modality)
    all_files = files(paths)
    whole: list[Signal] = []
    for n, path in enumerate(all_files):
        progress("reading", n, len(all_files))
        try:
            whole += reading.read(path, reader=reader, notes=told, said=said)
        except SignalError as fault:
            if path in paths:
                raise
            told.append(f"{fault}; left out")
    progress("reading", len(all_files), len(all_files))
    if not whole:
        raise SignalError(f"{', '.join(map(str, paths))}: holds no recording that a reader knows")
    found = [prepared(signal, missing=missing) for signal in whole]
    for label in labels:
        found = by_label(found, label, told)
    return [prepared(signal, channels, modality, missing) for signal in found]


def prepared(
    signal: Signal,
    channels: Sequence[str] = (),
    modality: str | None = None,
    missing: Sequence[float] = (),
) -> Signal:
    """The signal with what else `read` is asked for."""
    if channels and isinstance(signal, Records):
        signal = fields(signal, channels)
    elif channels and isinstance(signal, Series):
        signal = chosen(signal, channels)
    if missing and isinstance(signal, Series):
        gone = np.isin(signal.values, np.array(missing, np.float32))
        grid = signal.grid
        if grid is not None:
            grid = replace(grid, integers=np.where(gone, MISSING, grid.integers))
        signal = replace(signal, values=np.where(gone, np.float32(np.nan), signal.values), grid=grid)
    if modality is not None:
        from genmote.signals.modality import fits

        fits(modality, signal)
        signal = replace(signal, labels={**signal.labels, MODALITY: modality})
    return signal


def by_label(signals: Sequence[Signal], label: str, notes: list[str]) -> list[Signal]:
    """Signals as `read` has them with a label: whole, or in stretches. SignalError where none has it."""
    having = [label in signal.labels or label in _columns(signal) for signal in signals]
    if not any(having):
        labelled(signals[0], label)  # which raises
    found: list[Signal] = []
    for signal, has in zip(signals, having, strict=True):
        if not has:
            notes.append(f"{signal.name}: has no label {label}")
            found.append(signal)
            continue
        parts = cut(labelled(signal, label), label)
        if isinstance(signal, Records) and label not in parts[0].labels:
            notes.append(f"{signal.name}: {label} differs from row to row: it stays a field, and is no label")
        found += parts
    if not found:
        raise SignalError(
            f"label {label!r}: says the same of no two samples one after another; wanted stretches of one label"
        )
    return found


def _columns(signal: Signal) -> Sequence[str]:
    return [field.name for field in signal.fields] if isinstance(signal, Records) else signal.channels


def labelled(signal: Signal, column: str) -> Signal:
    """The signal without a channel or field, whose values are said of it instead: as a label where they are all one,
    and of series as marks of its stretches, in place of others; of records the field stays, in each row."""
    if column in signal.labels:
        return signal
    if isinstance(signal, Records):
        values = [word(value) for value in signal.column(column).tolist()]
        labels = {**signal.labels, column: values[0]} if len(set(values)) == 1 else signal.labels
        return replace(signal, labels=labels)
    if not isinstance(signal, Series) or column not in signal.channels:
        names = listed(getattr(signal, "channels", ()))
        raise SignalError(f"{signal.name}: no channel {column!r} to take labels from; it has {names}")
    words = [word(value) for value in signal.values[:, signal.channels.index(column)].tolist()]
    rest = placed(signal, [n for n, name in enumerate(signal.channels) if name != column])
    if len(set(words)) == 1 and words[0] != NONE:
        return replace(rest, labels={**rest.labels, column: words[0]})
    return replace(rest, marks=tuple(Mark(start, stop, one) for start, stop, one in runs(words) if one != NONE))


def runs(words: Sequence[str]) -> list[tuple[int, int, str]]:
    """Stretches [start, stop) of one word.

    >>> runs(["a", "a", "b"])
    [(0, 2, 'a'), (2, 3, 'b')]
    """
    edges = [n for n in range(1, len(words)) if words[n] != words[n - 1]]
    bounds = [0, *edges, len(words)]
    return [(a, b, words[a]) for a, b in pairwise(bounds) if b > a]


def fields(records: Records, names: Sequence[str]) -> Signal:
    """The records with these fields alone: a series, where all are numbers and rows have times that go up. SignalError
    for one that there is not."""
    columns = tuple(records.column(name) for name in names)
    known = {field.name: field for field in records.fields}
    kept, times = tuple(known[name] for name in names), records.times_s
    numbers = all(field.type in ("number", "integer") for field in kept)
    if not numbers or times is None or not (np.diff(times) > 0).all():
        return replace(records, fields=kept, columns=columns)
    values = np.stack([column.astype(np.float32) for column in columns], axis=1)
    units = tuple(field.unit for field in kept)
    return Series(records.name, values, 0.0, tuple(names), units, times, labels=records.labels)


def chosen(series: Series, channels: Sequence[str]) -> Series:
    """The series with these channels alone."""
    missing = [name for name in channels if name not in series.channels]
    if missing:
        raise SignalError(
            f"{series.name}: no channel {missing[0]!r}; it has {listed(series.channels)}: choose among them"
        )
    return placed(series, [series.channels.index(name) for name in channels])


def placed(series: Series, at: Sequence[int]) -> Series:
    """The series with the channels at these places alone: leads of one name are told apart by nothing else."""
    at, grid = list(at), series.grid
    return replace(
        series,
        values=series.values[:, at],
        channels=tuple(series.channels[n] for n in at),
        units=tuple(series.units[n] for n in at),
        grid=None if grid is None else Grid(grid.integers[:, at], grid.step[at], grid.zero[at]),
    )


def cut(signal: Signal, label: str) -> list[Signal]:
    """A series cut where its marks say so: each marked stretch is a series of its own, with the mark as its `label`."""
    if not isinstance(signal, Series) or label in signal.labels:
        return [signal]
    found: list[Signal] = []
    for mark in signal.marks:
        if mark.stop - mark.start > 1:
            part = signal.part(mark.start, mark.stop)
            found.append(replace(part, marks=(), labels={**part.labels, label: mark.label}, continues=False))
    return found


def word(item: object) -> str:
    """A cell as a label.

    >>> word(1.0), word(np.float32(0.1).item()), word(1234567.0), word("attack"), word(None), word(float("nan"))
    ('1', '0.1', '1234567', 'attack', '', '')
    """
    if item is None or item != item:
        return NONE
    if isinstance(item, float):
        return str(int(item)) if item.is_integer() else f"{item:.7g}"
    return str(item)
