"""Log lines, to the letter: a template and what stands in its places, each a frequent word or spelt out.

The templates are mined when the codec is fitted (`templates.py`). A row is ROW, the time since the row before (where
rows have times), the template with the most letters of its own that the line fits, and a token or SPELT, bytes and STOP
for each of its places. One template is nothing but a place, and fits every line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from genmote.errors import SignalError
from genmote.signals.codecs import _columns
from genmote.signals.codecs._columns import SPELL, Column
from genmote.signals.coding import Bound, Codec, Codes
from genmote.signals.header import About, Header
from genmote.signals.kinds import Field, Records
from genmote.signals.templates import Miner
from genmote.spec import setting

ROW, MISSING, SPELT, STOP, BYTES = range(5)
TEMPLATES = BYTES + 256  # the first template's code
PLACE = "<*>"
STEP = "time step"


@dataclass(frozen=True)
class Settings:
    """How log lines are coded."""

    field: str = setting("the field that holds the lines", default="message")
    templates: int = setting("most templates", default=500)
    words: int = setting("most words in the templates' places that have a token each", default=500)
    relative: float = setting("part of a step of time that it may be off by", default=0.05)
    bins: int = setting("most sizes of steps of time", default=256)
    labels: tuple[str, ...] = setting("labels that are written into the header", default=())

    def faults(self) -> Iterable[str]:
        if not 1e-6 <= self.relative <= 0.5:
            yield f"relative={self.relative}, wanted 0.000001 to 0.5"
        for name in ("templates", "words", "bins"):
            if not 1 <= getattr(self, name) <= 1 << 16:
                yield f"{name}={getattr(self, name)}, wanted 1 to 65536"


@dataclass(frozen=True, eq=False)
class Template(Codec):
    """`templates` from the one with the most letters of its own on; `step_count` 0: rows without times."""

    KIND = Records
    SETTINGS = Settings

    settings: Settings
    templates: tuple[str, ...]
    words: tuple[str, ...]
    step_count: int
    step_least: float
    step_signed: bool

    def __post_init__(self) -> None:
        if PLACE not in self.templates or not 0 <= self.step_count <= 1 << 16 or not 0 < self.step_least < np.inf:
            raise SignalError(
                f"a codec of {len(self.templates)} templates, {self.step_count} steps from {self.step_least}: wanted "
                f"{PLACE} among the templates and a step above 0; write the model file again"
            )

    @classmethod
    def fitted(cls, signals: Sequence[Records], settings: Settings, head: Header) -> Template:
        lines = [line for signal in signals for line in _lines(signal, settings.field) if line is not None]
        timed = all(signal.times_s is not None for signal in signals)
        parts = [_columns.steps(signal) for signal in signals] if timed else []
        step = _columns.fit(STEP, "s", "step", parts, 1, 1, "log", settings.bins, settings.relative) if timed else None
        made = cls(
            head,
            settings,
            tuple(_mined(lines, settings.templates)),
            (),
            step.count if step else 0,
            step.least if step else 1.0,
            step.signed if step else False,
        )
        said = Counter(word for line in lines for word in made._match(line)[1] if _columns.is_utf8(word))
        frequent = sorted((item for item in said.items() if item[1] > 1), key=lambda item: (-item[1], item[0]))
        words = tuple(word for word, _ in frequent[: settings.words])
        return cls(head, settings, made.templates, words, made.step_count, made.step_least, made.step_signed)

    @cached_property
    def _step(self) -> Column | None:
        if not self.step_count:
            return None
        relative = self.settings.relative
        return Column(STEP, "s", "step", "log", (), 0, self.step_count, self.step_least, self.step_signed, relative)

    @cached_property
    def _pieces(self) -> list[list[str]]:
        """What each template says between its places."""
        return [template.split(PLACE) for template in self.templates]

    @property
    def _words(self) -> int:
        """The first word's code."""
        return TEMPLATES + len(self.templates)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {word: self._words + n for n, word in enumerate(self.words)}

    @property
    def _steps(self) -> int:
        """The first code of a step of time."""
        return self._words + len(self.words)

    @property
    def size(self) -> int:
        return self._steps + (self._step.size if self._step else 0)

    def follows(self, row: Sequence[int]) -> list[tuple[int, int]]:
        done, spelling = _columns.whole(row[1:], SPELT, STOP)
        if spelling:
            return [(BYTES, BYTES + 256), (STOP, STOP + 1)]
        first = 1 if self._step else 0
        spell = (SPELT, SPELT + 1)
        if row and done < first:
            return [(self._steps, self.size), spell]
        if row and done == first:
            return [(TEMPLATES, self._words), (MISSING, MISSING + 1)]
        at = next((n for n, code in enumerate(row) if TEMPLATES <= code < self._words), None)
        if at is not None and done - first - 1 < len(self._pieces[row[at] - TEMPLATES]) - 1:
            return [(self._words, self._steps), spell]
        return [(ROW, ROW + 1)]

    def error(self) -> dict[str, Bound]:
        """None of a line; of each step of time, a part of it."""
        lines = {self.settings.field: Bound()}
        return {STEP: self._step.bound(True), **lines} if self._step else lines

    def _match(self, line: str) -> tuple[int, list[str]]:
        """The first template that the line fits, and what stands in its places: in each the shortest, from the left."""
        for n, pieces in enumerate(self._pieces):
            found = _between(line, pieces)
            if found is not None:
                return n, found
        raise AssertionError("a place alone fits every line")

    def codes(self, signal: Records, notes: list[str]) -> Codes:
        lines = _lines(signal, self.settings.field)
        other = [field.name for field in signal.fields if field.name != self.settings.field]
        other += ["time"] if signal.times_s is not None and not self._step else []
        if other:
            notes.append(f"{signal.name}: {', '.join(other)}: not in the codec, left out")
        step = self._step
        times = _columns.steps(signal) if step else np.zeros(len(lines))
        places = step.code(times, True)[0].tolist() if step else []
        found: list[int] = []
        for n, line in enumerate(lines):
            found.append(ROW)
            if step and places[n] == SPELL:
                found += _spelt(step.text(times[n]))
            elif step:
                found.append(self._steps + places[n])
            if line is None:
                found.append(MISSING)
                continue
            number, words = self._match(line)
            found.append(TEMPLATES + number)
            for word in words:
                known = self._places.get(word)
                found += [known] if known is not None else _spelt(word.encode("utf-8", "surrogatepass"))
        return np.array(found, np.int64)

    def signal(self, codes: Codes, about: About, notes: list[str]) -> Records:
        starts = np.flatnonzero(codes == ROW)
        broken = int(len(codes) > 0 and (not len(starts) or starts[0] > 0))
        lines: list[str | None] = []
        steps: list[float] = []
        for start, stop in pairwise([*starts.tolist(), len(codes)]):
            try:
                step, line = self._row(_Reader(codes[start + 1 : stop].tolist()))
            except ValueError:
                broken += 1
                continue
            steps.append(step)
            lines.append(line)
        if broken:
            notes.append(f"{about.name}: {broken} of {len(lines) + broken} rows are broken, left out")
        column = np.empty(len(lines), object)
        column[:] = lines
        times = (about.start_s or 0.0) + np.cumsum(steps, dtype=np.float64) if self._step else None
        return Records(about.name, (Field(self.settings.field, "text"),), (column,), times, about.labels)

    def _row(self, codes: _Reader) -> tuple[float, str | None]:
        """The step of time and the line of a row; ValueError where the codes are no row."""
        step = 0.0
        if self._step:
            code = codes.next()
            step = self._step.read(codes.spelt()) if code == SPELT else self._step.levels[_within(code, self._steps)]
        code = codes.next()
        if code == MISSING:
            codes.end()
            return step, None
        number = _within(code, TEMPLATES)
        if number >= len(self.templates):
            raise ValueError
        pieces = self._pieces[number]
        line = [pieces[0]]
        for piece in pieces[1:]:
            code = codes.next()
            if code == SPELT:
                line.append(codes.spelt().decode("utf-8", "surrogatepass"))
            elif self._words <= code < self._steps:
                line.append(self.words[code - self._words])
            else:
                raise ValueError
            line.append(piece)
        codes.end()
        return step, "".join(line)


class _Reader:
    """The codes of a row, one after another; ValueError where what is wanted is not there."""

    def __init__(self, codes: list[int]) -> None:
        self._codes, self._at = codes, 0

    def next(self) -> int:
        if self._at == len(self._codes):
            raise ValueError
        self._at += 1
        return self._codes[self._at - 1]

    def spelt(self) -> bytes:
        """The bytes up to STOP."""
        found = bytearray()
        while (code := self.next()) != STOP:
            found.append(_within(code, BYTES))
        return bytes(found)

    def end(self) -> None:
        if self._at < len(self._codes):
            raise ValueError


def _within(code: int, first: int) -> int:
    if code < first:
        raise ValueError
    return code - first


def _spelt(text: bytes) -> list[int]:
    return [SPELT, *(BYTES + byte for byte in text), STOP]


def _between(line: str, pieces: list[str]) -> list[str] | None:
    """What stands between the pieces of a template in a line; None where the line is not of it."""
    if len(pieces) == 1:
        return [] if line == pieces[0] else None
    if not line.startswith(pieces[0]):
        return None
    end = len(line) - len(pieces[-1])
    found, at = [], len(pieces[0])
    for piece in pieces[1:-1]:
        start = line.find(piece, at, max(at, end))
        if start < 0:
            return None
        found.append(line[at:start])
        at = start + len(piece)
    if at > end or not line.endswith(pieces[-1]):
        return None
    return [*found, line[at:end]]


def _mined(lines: Sequence[str], most: int) -> list[str]:
    """The templates of lines, from that with the most letters of its own on; the last is a place alone."""
    miner = Miner(most=most)
    for line in lines:
        miner.add(line)
    texts = {miner.template(n) for n in range(len(miner))} | {PLACE}
    return sorted((text for text in texts if _columns.is_utf8(text)), key=lambda text: (-_own(text), text))


def _own(template: str) -> int:
    return len(template) - template.count(PLACE) * len(PLACE)


def _lines(signal: Records, field: str) -> list[str | None]:
    column = signal.column(field)
    type_ = next(known.type for known in signal.fields if known.name == field)
    if type_ not in ("text", "category"):
        raise SignalError(f"{signal.name}: field {field} is {type_}; name the field of the lines with --field")
    return [None if value is None else str(value) for value in column.tolist()]
