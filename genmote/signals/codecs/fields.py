"""Records, row by row: words by a table, numbers by their size, whole numbers of a small range each by its own token.

A row is ROW, the time since the row before (where rows have times), and a code of each field, which is of that field
alone; or MISSING, or SPELT, the bytes of what is neither in a table nor in a range, and STOP. So rows are found again
behind a damaged one, which is left out. Steps of time are off by their own stated part; a row's time by their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.codecs import _columns
from genmote.signals.codecs._columns import SPELL, UNKNOWN_WORD, Column
from genmote.signals.coding import Bound, Codec, Codes
from genmote.signals.header import About, Header
from genmote.signals.kinds import Field, Records
from genmote.spec import setting

ROW, MISSING, UNKNOWN, SPELT, STOP, BYTES = range(6)
STEP = "time step"


@dataclass(frozen=True)
class Settings:
    """How records are coded."""

    relative: float = setting("part of a number that it may be off by", default=0.05)
    bins: int = setting("most sizes of numbers of one field, of either sign", default=512)
    integers: int = setting("whole numbers of a field have a token each if they span no more", default=1024)
    wide: Literal["log", "spelt"] = setting("whole numbers that span more: by size, or spelt out", default="log")
    words: int = setting("most words of a field that have a token each", default=64)
    spell: bool = setting("spell out what has no token; without it, it is cut or unknown", default=True)
    text: Literal["bytes", "drop"] = setting("fields of text: spelt out, or left out", default="bytes")
    labels: tuple[str, ...] = setting("labels that are written into the header", default=())

    def faults(self) -> Iterable[str]:
        if not 1e-6 <= self.relative <= 0.5:
            yield f"relative={self.relative}, wanted 0.000001 to 0.5"
        for name in ("bins", "integers", "words"):
            if not 1 <= getattr(self, name) <= 1 << 16:
                yield f"{name}={getattr(self, name)}, wanted 1 to 65536"


@dataclass(frozen=True, eq=False)
class Fields(Codec):
    """One of each for every field; the step of time is the first, where rows have times. `words` holds the tables one
    after another, `counts` how many words, whole numbers or sizes each has."""

    KIND = Records
    SETTINGS = Settings

    settings: Settings
    names: tuple[str, ...]
    units: tuple[str, ...]
    types: tuple[str, ...]
    ways: tuple[str, ...]
    words: tuple[str, ...]
    low: NDArray[np.int64]
    counts: NDArray[np.int64]
    least: NDArray[np.float64]
    signed: NDArray[np.bool_]

    def __post_init__(self) -> None:
        lists = (self.names, self.units, self.types, self.ways, self.low, self.counts, self.least, self.signed)
        words = sum(int(n) for n, way in zip(self.counts, self.ways, strict=False) if way == "words")
        if len({len(each) for each in lists}) > 1 or words != len(self.words) or not self.names:
            raise SignalError(
                f"a codec of {len(self.names)} fields and {len(self.words)} words that do not belong together: wanted "
                "one of each for every field; write the model file again"
            )
        known = ({"number", "integer", "category", "text", "step"}, {"words", "near", "log", "spelt"})
        fits = set(self.types) <= known[0] and set(self.ways) <= known[1] and "step" not in self.types[1:]
        fits &= bool(
            (
                (self.counts >= 0) & (self.counts <= 1 << 16) & (self.low <= 2**63 - 1 - np.maximum(self.counts - 1, 0))
            ).all()
        )
        if not fits or not (np.isfinite(self.least) & (self.least > 0)).all():
            raise SignalError(
                f"a codec with fields {' '.join(self.types)} coded as {' '.join(self.ways)}: wanted counts of 0 to "
                "65536, and ways and types of this version; write the model file again"
            )

    @classmethod
    def fitted(cls, signals: Sequence[Records], settings: Settings, head: Header) -> Fields:
        first = signals[0].fields
        for signal in signals:
            if signal.fields != first:
                raise SignalError(f"{signal.name}: other fields than {signals[0].name}; fit a codec on each")
        names = [field.name for field in first]
        if len(set(names)) < len(names) or not names:
            raise SignalError(f"{signals[0].name}: fields {', '.join(names) or 'none'}; wanted some, all named apart")
        timed = all(signal.times_s is not None for signal in signals)
        wanted = [(STEP, "s", "step")] if timed else []
        wanted += [(f.name, f.unit, f.type) for f in first if f.type != "text" or settings.text == "bytes"]
        columns = []
        for name, unit, type_ in wanted:
            kind = cast(_columns.Type, type_)
            parts = [_values(signal, name, kind)[0] for signal in signals]
            limits = (settings.words, settings.integers, cast(_columns.Way, settings.wide), settings.bins)
            columns.append(_columns.fit(name, unit, kind, parts, *limits, settings.relative))
        return cls(
            head,
            settings,
            tuple(column.name for column in columns),
            tuple(column.unit for column in columns),
            tuple(column.type for column in columns),
            tuple(column.way for column in columns),
            tuple(word for column in columns for word in column.words),
            np.array([column.low for column in columns], np.int64),
            np.array([len(column.words) or column.count for column in columns], np.int64),
            np.array([column.least for column in columns], np.float64),
            np.array([column.signed for column in columns], np.bool_),
        )

    @cached_property
    def columns(self) -> list[Column]:
        """How each field is coded."""
        found, at = [], 0
        for n, way in enumerate(self.ways):
            count = int(self.counts[n])
            words = self.words[at : at + count] if way == "words" else ()
            at += len(words)
            type_ = cast(_columns.Type, self.types[n])
            low, least, signed = int(self.low[n]), float(self.least[n]), bool(self.signed[n])
            relative = self.settings.relative
            kind = cast(_columns.Way, way)
            found.append(Column(self.names[n], self.units[n], type_, kind, words, low, count, least, signed, relative))
        return found

    @cached_property
    def _starts(self) -> list[int]:
        """The first code of each field, and one past the last."""
        spells = self.settings.spell or "spelt" in self.ways
        return [BYTES + 256 * spells + n for n in np.cumsum([0, *(column.size for column in self.columns)]).tolist()]

    @property
    def size(self) -> int:
        return self._starts[-1]

    def ordered(self) -> list[tuple[int, int]]:
        return [
            (start, stop)
            for (start, stop), way in zip(pairwise(self._starts), self.ways, strict=True)
            if way in ("near", "log")
        ]

    def follows(self, row: Sequence[int]) -> list[tuple[int, int]]:
        done, spelling = _columns.whole(row[1:], SPELT, STOP)
        if spelling:
            return [(BYTES + 32, BYTES + 127), (STOP, STOP + 1)]  # letters that are a text for certain
        if not row or done == len(self.columns):
            return [(ROW, ROW + 1)]
        # What has codes is not spelt when it is drawn.
        if self.ways[done] == "spelt" and self.types[done] in ("text", "category"):
            return [(SPELT, SPELT + 1), (MISSING, MISSING + 1)]
        return [(self._starts[done], self._starts[done + 1]), (MISSING, MISSING + 1)]

    def error(self) -> dict[str, Bound]:
        """By field; of `time step`, of each step."""
        return {column.name: column.bound(self.settings.spell) for column in self.columns}

    def codes(self, signal: Records, notes: list[str]) -> Codes:
        other = [field.name for field in signal.fields if field.name not in self.names]
        other += ["time"] if signal.times_s is not None and "step" not in self.types else []
        if other:
            notes.append(f"{signal.name}: {', '.join(other)}: not in the codec, left out")
        table = np.full((len(signal), 1 + len(self.columns)), ROW)
        spelt: dict[tuple[int, int], bytes] = {}
        for n, column in enumerate(self.columns):
            values, there = _values(signal, column.name, column.type)
            codes, wrong = column.code(values, self.settings.spell)
            rows = np.flatnonzero(there)
            for at in np.flatnonzero(codes == SPELL).tolist():
                spelt[int(rows[at]), n + 1] = column.text(values[at])
            table[:, n + 1] = MISSING
            table[rows, n + 1] = np.where(codes >= 0, codes + self._starts[n], np.where(codes == SPELL, SPELT, UNKNOWN))
            if wrong.any():
                what = "unknown words" if column.way == "words" else "outside of what was fitted, cut to that"
                notes.append(f"{signal.name}: {wrong.sum()} of {len(signal)} values of {column.name} are {what}")
        return _unfolded(table, spelt)

    def signal(self, codes: Codes, about: About, notes: list[str]) -> Records:
        rows: list[list[Any]] = []
        broken = 0
        starts = np.flatnonzero(codes == ROW)
        if len(codes) and (not len(starts) or starts[0] > 0):
            broken += 1
        for start, stop in pairwise([*starts.tolist(), len(codes)]):
            row = self._row(codes[start + 1 : stop].tolist())
            if row is None:
                broken += 1
            else:
                rows.append(row)
        if broken:
            notes.append(f"{about.name}: {broken} of {len(rows) + broken} rows are broken, left out")
        cells = list(zip(*rows, strict=True)) if rows else [() for _ in self.columns]
        fields, columns, times = [], [], None
        for column, cell in zip(self.columns, cells, strict=True):
            if column.type == "step":
                times = (about.start_s or 0.0) + np.cumsum([step or 0.0 for step in cell], dtype=np.float64)
            else:
                fields.append(Field(column.name, cast(Any, column.type), column.unit))
                columns.append(_array(cell, column.type))
        return Records(about.name, tuple(fields), tuple(columns), times, about.labels)

    def _row(self, codes: list[int]) -> list[Any] | None:
        """A value for each field; None where the codes are no row."""
        row: list[Any] = []
        at = 0
        for n, column in enumerate(self.columns):
            if at >= len(codes):
                return None
            code, at = codes[at], at + 1
            if code == SPELT:
                stop = at
                while stop < len(codes) and BYTES <= codes[stop] < BYTES + 256 and self._starts[0] > BYTES:
                    stop += 1
                if stop == len(codes) or codes[stop] != STOP:
                    return None
                try:
                    row.append(column.read(bytes(code - BYTES for code in codes[at:stop])))
                except ValueError:
                    return None
                at = stop + 1
            elif code == MISSING:
                row.append(None)
            elif code == UNKNOWN and column.way == "words":
                row.append(UNKNOWN_WORD)
            elif self._starts[n] <= code < self._starts[n + 1]:
                row.append(column.levels[code - self._starts[n]])
            else:
                return None
        return row if at == len(codes) else None


def _values(signal: Records, name: str, type_: _columns.Type) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    if type_ == "step":
        steps = _columns.steps(signal)
        return steps, np.ones(len(steps), bool)
    column = signal.column(name)
    found = next(field.type for field in signal.fields if field.name == name)
    if found != type_:
        raise SignalError(f"{signal.name}: field {name} is {found}, the codec was fitted on {type_}; fit it on these")
    return _columns.values_of(column, type_, f"{signal.name}, field {name}")


def _unfolded(table: Codes, spelt: dict[tuple[int, int], bytes]) -> Codes:
    """Codes in order, with the bytes of what is spelt out, and STOP, behind each SPELT."""
    if not spelt:
        return table.reshape(-1)
    parts, last = [], 0
    flat = table.reshape(-1)
    for (row, column), text in sorted(spelt.items()):
        at = row * table.shape[1] + column + 1
        parts += [flat[last:at], np.frombuffer(text, np.uint8).astype(np.int64) + BYTES, np.array([STOP])]
        last = at
    return np.concatenate([*parts, flat[last:]])


def _array(cells: Sequence[Any], type_: str) -> NDArray[np.generic]:
    if type_ in ("category", "text"):
        column = np.empty(len(cells), object)
        column[:] = cells
        return column
    if type_ == "integer" and None not in cells:
        return np.array(cells, np.int64)
    return np.array([np.nan if cell is None else cell for cell in cells], np.float64)
