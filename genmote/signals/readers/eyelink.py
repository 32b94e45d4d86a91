"""Gaze and pupils in EyeLink .asc files: a series for each recording, with fixations, saccades, blinks and messages.

SR Research, "EyeLink 1000 Plus User Manual 1.0.12" (2017), 4.8: what edf2asc writes. Times are milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from genmote.errors import SignalError
from genmote.signals.kinds import MISSING, Grid, Mark, Series

SUFFIXES = (".asc",)
LONGEST = 1 << 16  # bytes of a line
GAP_S = 60.0  # a longer one begins a new series, a shorter one is filled
LARGEST = 1e9
STEP = 0.1  # positions and pupils are written to a tenth
EVENTS = {"FIX": "fixation", "SACC": "saccade", "BLINK": "blink"}
EYES = {"L": "left", "R": "right", "LEFT": "left", "RIGHT": "right"}
UNITS = {"GAZE": "px", "HREF": "href", "PUPIL": "camera"}  # of positions, by what they are of
GONE = (-32768.0, 1e8)  # how EyeLink's own files write a missing value; in text it is a full stop
MOST = 1 << 20  # marks that wait for their samples
DESCRIBE = ("PRESCALER", "PUPIL", "SAMPLES")  # lines that say what the samples are
SILENT = ("VPRESCALER", "EVENTS", "**", ">>>>>>>")  # lines that say nothing of the samples
OUTSIDE = "marks lie outside the samples, or in those that were already given; left out"
START = re.compile(rb"^(START\s+\d|SAMPLES\s+(GAZE|HREF|PUPIL)\s)", re.M)
CALIBRATION = re.compile(r"!CAL CALIBRATION (\S+) \S+ (LEFT|RIGHT)\s+(\S+)")
VALIDATION = re.compile(r"!CAL VALIDATION \S+ \S+ (LEFT|RIGHT)\s+(\S+)\s+ERROR ([\d.]+) avg\. ([\d.]+) max")


def knows(path: Path, head: bytes) -> bool:
    return (head.startswith(b"**") and b"EYELINK" in head) or START.search(head) is not None


class _Reader:
    """What the lines so far have said."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows, self.number = path, rows, 0
        self.told: dict[str, int] = {}
        self.labels: dict[str, str] = {}
        self.count = 0  # of series
        self.inside = False  # between START and END
        self.rate_hz, self.kind, self.pupil, self.scale = 0.0, "GAZE", "", 1.0
        self.eyes: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self.table: list[list[float]] = []  # the samples that were not given yet
        self.base = 0  # how many of this series were given
        self.first_ms = self.last_ms = 0.0
        self.last = -1  # index of the last sample
        self.marks: list[tuple[float, float, str]] = []  # first and last ms: not before what was given
        self.open: dict[str, float] = {}  # events that began, and when

    def tell(self, text: str, count: int = 1) -> None:
        if count:
            self.told[text] = self.told.get(text, 0) + count

    def line(self, text: str) -> Iterator[Series]:
        fields = text.split()
        word = fields[0]
        if word in DESCRIBE and self.last >= 0:  # what follows is another kind of samples
            yield from self._finish()
        if word[0].isdigit():
            if self.inside:
                yield from self._sample(fields)
        elif word == "START":
            if self.inside:
                self.tell("recordings have no END line; read as far as they go")
                yield from self.end()
            self.inside = True
        elif word == "END":
            yield from self.end()
        elif word == "MSG":
            self._message(text)
        elif not self._said(word, fields) and self.inside and word not in SILENT and text[0] not in "#/;":
            self.tell("lines say nothing known; left out")

    def _said(self, word: str, fields: list[str]) -> bool:
        """Takes a line of headers or an event; whether it was one."""
        try:
            if word in DESCRIBE:
                self._header(word, fields)
            elif word[1:] in EVENTS and word[0] in "SE" and fields[1] in EYES:
                label = f"{EVENTS[word[1:]]} {EYES[fields[1]]}"
                if word[0] == "S":
                    self.open[label] = _ms(fields[2])
                else:
                    self._mark(_ms(fields[2]), _ms(fields[3]), label)
                    self.open.pop(label, None)
            elif word in ("INPUT", "BUTTON"):
                self._mark(_ms(fields[1]), _ms(fields[1]), " ".join([word.lower(), *fields[2:4]]))
            elif word == "**":
                if fields[1] == "DATE:":
                    self.labels["date"] = " ".join(fields[2:])
            else:
                return False
        except (ValueError, IndexError):
            return False
        return True

    def _mark(self, first_ms: float, last_ms: float, label: str) -> None:
        if self.inside and len(self.marks) < MOST:
            self.marks.append((first_ms, last_ms, label))
        elif self.inside:
            self.tell(f"marks are more than {MOST} that wait for samples; left out")

    def _header(self, word: str, fields: list[str]) -> None:
        if word == "PRESCALER":
            if not 1 <= float(fields[1]) <= 1e4:
                raise ValueError
            self.scale = float(fields[1])
        elif word == "PUPIL":
            self.pupil = fields[1].lower()
        else:
            self.kind = fields[1]
            self.eyes = [EYES[field] for field in fields if field in EYES]
            self.rate_hz = _ms(fields[fields.index("RATE") + 1])
            more = [field for field in fields if field in ("VEL", "RES", "INPUT", "BUTTONS", "HTARGET")]
            if more:
                self.told.setdefault(f"columns {', '.join(more)} of the samples are left out", 0)

    def _message(self, text: str) -> None:
        fields = text.split(None, 2)
        try:
            at, said = _ms(fields[1]), fields[2].strip()
        except (ValueError, IndexError):
            self.tell("lines say nothing known; left out")
            return
        self._mark(at, at, said)
        if not self.inside and not said.startswith("!CAL"):
            self.tell("messages lie between recordings; left out, but for trial, screen and calibration")
        if said.startswith("TRIALID"):
            self.labels.setdefault("trial", said[7:].strip())  # the first since the recording before
        elif said.startswith("GAZE_COORDS"):
            self.labels["screen"] = said[11:].strip()
        elif calibration := CALIBRATION.match(said):
            self.labels[f"calibration {EYES[calibration[2]]}"] = f"{calibration[1]} {calibration[3]}"
        elif validation := VALIDATION.match(said):
            of = f"{validation[2]}, {validation[3]} deg on average, {validation[4]} deg at most"
            self.labels[f"validation {EYES[validation[1]]}"] = of

    def _sample(self, fields: list[str]) -> Iterator[Series]:
        if not (0 < self.rate_hz <= 1e5 and self.eyes and self.kind in UNITS):
            raise SignalError(
                f"{self.path}: line {self.number}: a sample, but no line SAMPLES before it with GAZE, HREF or PUPIL, "
                "LEFT or RIGHT, and RATE: wanted what edf2asc writes"
            )
        try:
            at, values = _ms(fields[0]), [_value(field) for field in fields[1 : 1 + 3 * len(self.eyes)]]
            if len(values) < 3 * len(self.eyes):
                raise ValueError
        except ValueError:
            self.tell("samples cannot be understood; left out")
            return
        if self.last < 0:
            self.first_ms, index = at, 0
        elif at == self.last_ms and self.rate_hz > 1000:
            index = self.last + 1  # two samples in a millisecond, where times are whole
        else:
            index = round((at - self.first_ms) * self.rate_hz / 1000)
        if index <= self.last:
            self.tell("samples are not later than the one before; left out")
            return
        gap = index - self.last - 1
        if gap > GAP_S * self.rate_hz:
            self.tell(f"gaps are longer than {GAP_S:g} s; a new series begins after each")
            later = [mark for mark in self.marks if mark[0] > self.last_ms]
            begun = {label: since for label, since in self.open.items() if since > self.last_ms}
            self.marks = [mark for mark in self.marks if mark[0] <= self.last_ms]
            yield from self._finish()
            self.marks, self.open = later, begun
            yield from self._sample(fields)
            return
        self.tell("samples are missing; they are NaN", gap)
        for row in [[np.nan] * len(values)] * gap + [values]:
            if len(self.table) == self.rows:  # not sooner: what is said of the last sample follows it
                yield self._piece()
            self.table.append(row)
        self.last, self.last_ms = index, at

    def end(self) -> Iterator[Series]:
        self.inside = False
        yield from self._finish()

    def _finish(self) -> Iterator[Series]:
        if self.table:
            yield self._piece(final=True)
        self.tell(OUTSIDE, len(self.marks) if self.last >= 0 else 0)
        if self.last >= 0:
            self.count += 1
            self.labels.pop("trial", None)
        self._begin()

    def _piece(self, *, final: bool = False) -> Series:
        start, stop = self.base, self.base + len(self.table)
        found, later = [], []
        for first, last, label in self.marks + [(at, np.inf, label) for label, at in self.open.items()]:
            begin, end = self._index(first), self._index(last) + 1 if np.isfinite(last) else stop
            if not start and begin < 0 and first == last:
                begin, end = 0, 1  # said as the recording began, before its first sample
            if begin < stop and end > start:
                inside = (max(begin, start) - start, min(end, stop) - start)
                found.append(Mark(*inside, label, goes_on=not final and (end > stop or np.isinf(last))))
            elif end <= start:
                self.tell(OUTSIDE)
            if end > stop and np.isfinite(last):
                later.append((first, last, label))
        table = np.array(self.table)
        self.marks, self.table, self.base = later, [], stop
        channels, units = [], []
        for eye in self.eyes:
            channels += [f"{eye} x", f"{eye} y", f"{eye} pupil {self.pupil}".strip()]
            units += [UNITS[self.kind], UNITS[self.kind], "a.u."]
        tenths = np.round(table / STEP)
        step = np.array([STEP / self.scale, STEP / self.scale, STEP] * len(self.eyes))
        whole = np.where(np.isnan(tenths), MISSING, np.nan_to_num(tenths)).astype(np.int64)
        grid = Grid(whole, step, np.zeros(len(channels)))
        exact = not (np.abs(table / STEP - tenths) > 1e-4).any()
        values = grid.values() if exact else (table / STEP * step).astype(np.float32)
        labels = {**self.labels, "first sample": f"{self.first_ms:.10g} ms"}
        name = f"{self.path.stem} {self.count + 1}"
        marks = tuple(sorted(found, key=lambda mark: mark.start))
        return Series(
            name,
            values,
            self.rate_hz,
            tuple(channels),
            tuple(units),
            grid=grid if exact else None,
            labels=labels,
            marks=marks,
        )

    def _index(self, at: float) -> int:
        return round((at - self.first_ms) * self.rate_hz / 1000)


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series]:
    reader = _Reader(path, rows)
    with open(path, "rb") as file:
        while raw := file.readline(LONGEST):
            reader.number += 1
            if len(raw) == LONGEST:
                raise SignalError(f"{path}: line {reader.number}: is longer than {LONGEST} bytes: wanted an .asc file")
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
            if not text.isspace():
                yield from reader.line(text)
    if reader.inside:
        reader.tell("recordings have no END line; read as far as they go")
    yield from reader.end()
    if not reader.count:
        raise SignalError(
            f"{path}: has no samples between START and END: wanted some; convert the recording by edf2asc without -e"
        )
    notes += [
        f"{path.name}: {count} {text}" if count else f"{path.name}: {text}" for text, count in reader.told.items()
    ]


def _ms(text: str) -> float:
    number = float(text)
    if not abs(number) < 1e15:
        raise ValueError(text)
    return number


def _value(text: str) -> float:
    """NaN where it is missing."""
    number = np.nan if text == "." else float(text)
    if abs(number) > LARGEST:
        raise ValueError(text)
    return np.nan if number in GONE else number
