"""Tell what is in a file of signals, and draw it.

    genmote signal show recording.wav
    genmote signal show recording.wav --svg recording.svg
    genmote signal show ecg --svg ecg.svg

Where no such file is there, the name of a modality (genmote signal modalities) shows a sample of it. What a reader
repaired is told. Files of any length are read a piece at a time; the picture is of the first 65,536 samples or rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genmote.cli._output import Bar, Output, check_place, columns, note, save, shown
from genmote.errors import SpecError
from genmote.signals.said import Said
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.signals.kinds import Signal


@dataclass(frozen=True)
class Settings(Said):
    file: str = setting("a file of signals, or the name of a modality", positional=True)
    reader: str | None = setting("the reader of the file (default: found by its name and first bytes)", default=None)
    number: int = setting("which of the file's signals is drawn, from 1", default=1)
    svg: Path | None = setting("a picture of it", default=None)


def run(settings: Settings, out: Output) -> None:
    from genmote.signals import picture

    if settings.svg is not None:
        check_place(settings.svg, "--svg")
    if settings.number < 1:
        raise SpecError(f"number={settings.number}: use 1 or more")
    notes: list[str] = []
    with Bar(unit_bytes=False, late=True) as bar:
        found: list[Summary] = []
        for piece in _pieces(settings, notes, bar):
            if not found or not found[-1].goes_on(piece):
                found.append(Summary(piece))
            else:
                found[-1].add(piece)
            bar("reading", sum(one.count for one in found), 0)
    for line in notes:
        note(line)
    if settings.number > len(found):
        raise SpecError(f"number={settings.number}: {settings.file} has {len(found)} signals")
    values: dict[str, Any] = {"file": settings.file, "signals": [one.values() for one in found], "notes": notes}
    text = "\n\n".join(one.text() for one in found[:MOST])
    if len(found) > MOST:
        text += f"\n\n… and {len(found) - MOST} more; --json tells of all"
    if settings.svg is not None:
        drawn = found[settings.number - 1]
        save(settings.svg, picture.svg(drawn.first, drawn.head()), "--svg")
        values["svg"] = settings.svg
        text += f"\n\n{settings.svg}"
    out.result(values, "\n".join(map(shown, text.split("\n"))))


MOST = 12  # signals of a file that are told of in words


def _pieces(settings: Settings, notes: list[str], bar: Bar) -> Iterator[Signal]:
    from genmote.signals import modality, reading, recordings

    path = Path(settings.file)
    if not path.exists() and settings.reader is None and settings.file.lower() in modality.names():
        if settings.group is not None or settings.names or settings.sample_rate:
            raise SpecError(
                f"{settings.file} is a modality: leave out --group, --names, --sample-rate: they are for files"
            )
        about = modality.load(settings.file)
        if about.synthetic is not None:
            notes.append("a synthetic sample: drawn, not measured")
        if about.recording is not None:
            real = recordings.sample(about.recording)
            carrier = f"{real.parts[0].package} {real.parts[0].version}"
            notes.append(f"a real recording, {real.licence}, out of the package {carrier}: {real.title}")
        yield from about.sample(progress=bar)
        return
    yield from reading.pieces(path, reader=settings.reader, said=settings, notes=notes)


class Summary:
    """What is told of one signal, gathered piece by piece."""

    def __init__(self, piece: Signal) -> None:
        from genmote.signals.kinds import Records

        self.first, self.count = piece, 0
        self.names = [f.name for f in piece.fields] if isinstance(piece, Records) else list(piece.channels)
        self.low, self.high = np.full(len(self.names), np.inf), np.full(len(self.names), -np.inf)
        self.sum, self.there = np.zeros(len(self.names)), np.zeros(len(self.names), np.int64)
        self.words: list[set[str]] = [set() for _ in self.names]
        self.times: tuple[float, float] | None = None
        self.add(piece)

    def goes_on(self, piece: Signal) -> bool:
        return piece.continues and type(piece) is type(self.first) and piece.name == self.first.name

    def add(self, piece: Signal) -> None:
        from genmote.signals.kinds import Frames, Records, Series

        self.count += len(piece)
        if piece.times_s is not None and len(piece):
            low, high = float(piece.times_s.min()), float(piece.times_s.max())
            self.times = (low, high) if self.times is None else (min(low, self.times[0]), max(high, self.times[1]))
        if isinstance(piece, Series):
            self._numbers(piece.values)
        elif isinstance(piece, Frames):
            for frame in piece.frames:
                self._numbers(frame.reshape(-1, len(self.names)))
        elif isinstance(piece, Records):
            for n, (field, column) in enumerate(zip(piece.fields, piece.columns, strict=True)):
                if field.type in ("number", "integer"):
                    self._numbers(column.astype(np.float64)[:, None], n)
                else:
                    known = [str(word) for word in column if word is not None]
                    self.there[n] += len(known)
                    self.words[n] |= set(known[: 10 * WORDS]) if len(self.words[n]) < WORDS else set()

    def _numbers(self, values: np.ndarray[Any, Any], at: int = 0) -> None:
        for n in range(values.shape[1]):
            some = values[:, n].astype(np.float64)
            some = some[np.isfinite(some)]
            if len(some):
                self.low[at + n], self.high[at + n] = (
                    min(self.low[at + n], some.min()),
                    max(self.high[at + n], some.max()),
                )
                self.sum[at + n] += some.sum()
                self.there[at + n] += len(some)

    def head(self) -> str:
        """The signal in a line."""
        from genmote.signals.kinds import Frames, Series

        first = self.first
        if isinstance(first, Series):
            rate = f"{first.rate_hz:g} Hz" if first.rate_hz > 0 else "at times of its own"
            exact = ", whole numbers of a step" if first.grid is not None else ""
            return f"series of {self.count} samples, {rate}, {_span(self.duration_s())}{exact}"
        if isinstance(first, Frames):
            of = "pictures" if first.shape == "grid" else "clouds of points"
            size = " x ".join(map(str, first.frames[0].shape[:-1])) if len(first.frames) else "none"
            return f"{self.count} {of}, the first {size}"
        return f"{self.count} rows" + (f" in {_span(self.duration_s())}" if self.times else "")

    def duration_s(self) -> float:
        from genmote.signals.kinds import Series

        if isinstance(self.first, Series) and self.first.rate_hz > 0:
            return self.count / self.first.rate_hz
        return self.times[1] - self.times[0] if self.times else 0.0

    def text(self) -> str:
        from genmote.signals.kinds import Records

        labels = "".join(f", {key}: {value}" for key, value in self.first.labels.items())
        rows = [
            ["field" if isinstance(self.first, Records) else "channel", "unit", "there", "lowest", "mean", "highest"]
        ]
        for one in self.values()["channels"]:
            numbers = ["" if one[key] is None else f"{one[key]:.6g}" for key in ("lowest", "mean", "highest")]
            if one["words"]:
                numbers = [f"{len(one['words'])}{'+' * (len(one['words']) >= WORDS)} words", "", ""]
            rows.append([one["name"], one["unit"] or "-", str(one["there"]), *numbers])
        return f"{self.first.name}: {self.head()}{labels}\n{columns(rows)}"

    def values(self) -> dict[str, Any]:
        """For JSON."""
        from genmote.signals.kinds import Records, Series

        first = self.first
        units = [f.unit for f in first.fields] if isinstance(first, Records) else list(first.units)
        some = [n > 0 and np.isfinite(low) for n, low in zip(self.there, self.low, strict=True)]
        channels = [
            {
                "name": name,
                "unit": units[n],
                "there": int(self.there[n]),
                "lowest": float(self.low[n]) if some[n] else None,
                "mean": float(self.sum[n] / self.there[n]) if some[n] else None,
                "highest": float(self.high[n]) if some[n] else None,
                "words": sorted(self.words[n])[:WORDS],
            }
            for n, name in enumerate(self.names)
        ]
        return {
            "name": first.name,
            "kind": type(first).__name__.lower(),
            "count": self.count,
            "rate_hz": first.rate_hz if isinstance(first, Series) else None,
            "duration_s": self.duration_s(),
            "from_s": self.times[0] if self.times else first.start_s if isinstance(first, Series) else None,
            "to_s": self.times[1] if self.times else None,
            "exact": isinstance(first, Series) and first.grid is not None,
            "labels": dict(first.labels),
            "channels": channels,
        }


WORDS = 30  # different words of a field that are told


def _span(seconds: float) -> str:
    """A length of time for people.

    >>> _span(1.28), _span(7200.0), _span(86400 * 3.5)
    ('1.28 s', '2 h', '3.5 days')
    """
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size or (unit != "min" and seconds >= size):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
