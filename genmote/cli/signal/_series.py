"""What the jobs of a generator share on the command line: one series out of a file, and files of what was made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.errors import SpecError

if TYPE_CHECKING:
    from genmote.generator.model import Generator
    from genmote.signals.kinds import Grid, Series, Signal
    from genmote.signals.said import Said

COUNTS = re.compile(r"(\d+)(?: of (\d+))?(?= )")  # not the year of a date, nor a number with decimals
MOST_STEPS = 1 << 53  # from zero, that a number with a point tells apart
NEAR = 1e-4  # of the range, that what is written as .gmsc may be off
ENDINGS = (".csv", ".wav", ".gmsc", ".jsonl")


def ending(path: Path | None) -> list[str]:
    """Faults of an output's name."""
    if path is not None and path.suffix.lower() not in ENDINGS:
        return [f"output={path}: wanted a name that ends in {', '.join(ENDINGS)}"]
    return []


def pairs(words: Sequence[str]) -> dict[str, str]:
    """Labels such as ``class=normal``."""
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise SpecError(f"label {word!r}: wanted NAME=VALUE, such as class=normal")
        found[key] = value
    return found


def fitting(model: Generator, signal: Signal, notes: list[str] | None = None) -> Signal:
    """The signal as the model knows it: its channels alone, and of a modality that it was trained on. `notes`: which
    channels are left out."""
    from genmote.generator.material import fields, placed, prepared
    from genmote.registry import listed
    from genmote.signals.kinds import Records, Series

    head = model.codec.head
    if isinstance(signal, Records) and model.codec.KIND is Series:
        names = [field.name for field in signal.fields if field.name in head.channels]
        signal = fields(signal, names) if names else signal
    if isinstance(signal, Series) and model.codec.KIND is Series:
        known = [n for n, name in enumerate(signal.channels) if name in head.channels]
        if known and len(known) < len(signal.channels):
            left = listed(name for name in signal.channels if name not in head.channels)
            line = f"{signal.name}: the model does not know {left}: left out"
            if notes is not None and line not in notes:
                notes.append(line)
            signal = placed(signal, known)
        signal = prepared(signal, missing=[float(x) for x in model.card.get("missing", [])])
    return model.fitted(signal)


def series(model: Generator, path: Path, reader: str | None, number: int, notes: list[str], said: Said) -> Series:
    """The series of that number (from 1) in a file. SpecError where it has none such."""
    from genmote.signals import reading
    from genmote.signals.kinds import Series

    found = reading.read(path, reader=reader, notes=notes, said=said)
    if not 1 <= number <= len(found):
        raise SpecError(f"number={number}: {path} has {len(found)} signals")
    one = fitting(model, found[number - 1], notes)
    if not isinstance(one, Series):
        raise SpecError(
            f"{path}: holds {type(one).__name__.lower()}; forecast and impute are for "
            "series: of a table with words train on numbers alone, with signal train --channels NAME"
        )
    return one


def steps(model: Generator, series: Series, grid: Grid | None = None) -> tuple[Any, Any] | None:
    """(C,) steps of a series' sensor, and from where they count: those of `grid`, or those that training found.
    None where none are known."""
    import numpy as np

    if grid is not None:
        return grid.step, grid.zero
    known = model.card.get("sensor_steps", {})
    if not all(name in known for name in series.channels):
        return None
    step, zero = np.array([known[name] for name in series.channels], np.float64).T
    return step, zero


def stepped(model: Generator, made: Signal, grid: Grid | None = None) -> Signal:
    """What was made, in whole steps of its sensor; those of `grid`, which it begins with, stay as they are
    where they are not missing."""
    import numpy as np

    from genmote.signals.kinds import MISSING, Grid, Series

    if not isinstance(made, Series) or made.grid is not None or (found := steps(model, made, grid)) is None:
        return made
    counts = np.rint((made.values - found[1]) / found[0])
    if (np.abs(counts) > MOST_STEPS).any():
        return made
    integers = np.where(np.isnan(counts), MISSING, np.nan_to_num(counts).astype(np.int64))
    if grid is not None:
        own = grid.integers[: len(integers)]
        integers[: len(own)] = np.where(own == MISSING, integers[: len(own)], own)
    whole = Grid(integers, *found)
    return replace(made, values=whole.values(), grid=whole)


def merged(notes: Sequence[str]) -> list[str]:
    """Notes that say the same of several recordings as one, with their counts added.

    >>> merged(["a: 3 of 40 samples are cut", "b: 2 of 50 samples are cut", "a: no time was found", "c: 1 is cut"])
    ['a and 1 more: 5 of 90 samples are cut', 'a: no time was found', 'c: 1 is cut']
    >>> merged(["a: 2024-01-02 is a day", "b: 2025-01-02 is a day", "a: 1.5 s are cut", "b: 2.5 s are cut"])
    ['a: 2024-01-02 is a day', 'b: 2025-01-02 is a day', 'a: 1.5 s are cut', 'b: 2.5 s are cut']
    """
    found: dict[tuple[int, str], tuple[list[str], list[int]]] = {}
    for line in notes:
        name, sign, rest = line.partition(": ")
        name, rest = (name, rest) if sign else ("", line)
        counted = COUNTS.match(rest)
        counts = [int(n) for n in counted.groups() if n is not None] if counted else []
        names, sums = found.setdefault((len(counts), rest[counted.end() if counted else 0 :]), ([], [0] * len(counts)))
        names += [] if name in names else [name]
        sums[:] = [a + b for a, b in zip(sums, counts, strict=True)]
    lines = []
    for (_, rest), (names, sums) in found.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{names[0]}{more}: " * bool(names[0]) + " of ".join(map(str, sums)) + rest)
    return lines


def save(path: Path, signals: Sequence[Signal]) -> list[Path]:
    """Write signals to a file by its ending: .csv and .wav, and .gmsc for series, .jsonl for records too."""
    from genmote.signals import container, writing
    from genmote.signals.kinds import Records, Series

    if path.suffix.lower() == ".jsonl":
        from genmote.generator.rows import write

        write(path, signals)
        return [path]
    wrong = [signal.name for signal in signals if not isinstance(signal, Series)]
    if wrong:
        kind = "records" if all(isinstance(signal, Records) for signal in signals) else "frames"
        raise SpecError(f"{path}: {kind} are written as .jsonl; name such a file")
    all_series = [signal for signal in signals if isinstance(signal, Series)]
    if path.suffix.lower() == ".gmsc":
        import numpy as np

        # What is generated is no whole numbers: a ten thousandth of its range is near enough.
        whole = all(series.grid is not None for series in all_series)
        spans = [float(np.nanmax(s.values) - np.nanmin(s.values)) for s in all_series if np.isfinite(s.values).any()]
        container.write(path, all_series, max_error=0.0 if whole else max(min(spans, default=1.0), 1e-9) * NEAR)
        return [path]
    return [made for made, _ in writing.write(path, all_series, dates=True)]
