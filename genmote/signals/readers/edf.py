"""Recordings of the sleeping and the ill in EDF and EDF+, and BioSemi's BDF with 24 bits: whole numbers, exact.

B. Kemp and others, "A simple format for exchange of digitized polygraphic recordings" (1992); B. Kemp and J. Olivan,
"European data format 'plus' (EDF+)" (2003), whose annotations become marks. Signals that are sampled at different rates
come as a series for each rate; where an interrupted recording (EDF+D) has a gap, another begins.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from calendar import month_abbr, timegm
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals._marks import windows
from genmote.signals._tables import Tally
from genmote.signals._units import KNOWN
from genmote.signals.kinds import Field, Grid, Mark, Records, Series

SUFFIXES = (".edf", ".bdf", ".rec")
VERSIONS = {b"0       ": 2, b"\xffBIOSEMI": 3}  # bytes of a sample
BLOCK = 256  # bytes of a header, and of each signal's part of it
TEXTS = ("EDF Annotations", "BDF Annotations")
WIDTHS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)  # of what is told of each signal
LARGEST = 1 << 26  # bytes of a data record, and that are read at once; the format asks for at most 61440
MOST = 1 << 20  # annotations
NOTE = re.compile(rb"([+-]?\d{1,12}(?:\.\d*)?)(?:\x15(\d{1,12}(?:\.\d*)?)?)?\x14(.*)\x14", re.DOTALL)
STARTED = re.compile(r"Startdate (?:(\d\d)-([A-Z]{3})-(\d{4})|X)\b")


@dataclass(frozen=True)
class _Channel:
    """Of `count` samples in a data record, at its byte `offset`; value = zero + step * sign * sample."""

    name: str
    unit: str
    step: float
    zero: float
    sign: int
    offset: int
    count: int


@dataclass
class _Head:
    path: Path
    width: int  # bytes of a sample
    start_s: float | None
    duration_s: float  # of a data record
    begin: int  # byte of the first data record
    size: int = 0  # bytes of a data record
    records: int = 0
    broken: bool = False  # data records do not follow each other at once
    channels: list[_Channel] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)  # offsets and bytes of the annotations
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """Data records [first, stop) that follow each other, from `onset_s` after the start on."""

    first: int
    stop: int
    onset_s: float


Note = tuple[float, float, str]  # onset and duration in seconds, and what is said


def knows(path: Path, head: bytes) -> bool:
    return head[:8] in VERSIONS


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series | Records]:
    with open(path, "rb") as file:
        head, tally = _header(path, file, notes), Tally(notes)
        onsets, said = _annotations(file, head, tally)
        parts = _parts(head, onsets)
        if len(parts) > 1:
            notes.append(f"{path.name}: has {len(parts) - 1} gaps; another recording begins after each")
        if not head.channels:
            yield from _records(head, said, rows)
        counts = sorted({channel.count for channel in head.channels})
        if len(counts) > 1:
            rates = " and ".join(f"{count / head.duration_s:.9g}" for count in counts)
            notes.append(f"{path.name}: has signals at {rates} Hz; they are read as a series for each rate")
        inside = 0
        for count in counts:
            for number, part in enumerate(parts):
                name = path.stem + (f" {count / head.duration_s:.9g} Hz" if len(counts) > 1 else "")
                marks = _marks(head, part, said, count)
                inside += len(marks) if count == counts[0] else 0
                yield from _series(file, head, part, count, name + (f" ({number + 1})" if number else ""), marks, rows)
        if inside < len(said) and head.channels:
            text = f"{path.name}: {{n}} annotations begin where there is no sample; left out"
            tally.add(text, count=len(said) - inside)
        tally.tell()


def _series(
    file: BinaryIO, head: _Head, part: _Part, count: int, name: str, marks: list[Mark], rows: int
) -> Iterator[Series]:
    channels, rate_hz = [c for c in head.channels if c.count == count], count / head.duration_s
    step, zero = np.array([c.step for c in channels]), np.array([c.zero for c in channels])
    names, units = tuple(c.name for c in channels), tuple(c.unit for c in channels)
    total, most = (part.stop - part.first) * count, min(rows, max(1, LARGEST // head.size) * count)
    start_s = None if head.start_s is None else head.start_s + part.onset_s
    if start_s is None and part.first:
        start_s = part.onset_s
    for start, stop, here in windows(marks, total, most):
        first, last = start // count, -(-stop // count)
        file.seek(head.begin + (part.first + first) * head.size)
        raw = file.read((last - first) * head.size)
        if len(raw) < (last - first) * head.size:
            raise SignalError(f"{head.path}: became shorter while it was read")
        records = np.frombuffer(raw, np.uint8).reshape(-1, head.size)
        whole = np.empty((stop - start, len(channels)), np.int64)
        for n, channel in enumerate(channels):
            mine = records[:, channel.offset : channel.offset + count * head.width]
            whole[:, n] = channel.sign * _decoded(mine, head.width)[start - first * count : stop - first * count]
        grid, begun = Grid(whole, step, zero), None if start_s is None else start_s + start / rate_hz
        yield Series(
            name, grid.values(), rate_hz, names, units, grid=grid, labels=head.labels, marks=here, start_s=begun
        )


def _decoded(bytes_: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """Little-endian samples of `width` bytes."""
    if width == 2:
        return np.ascontiguousarray(bytes_).view("<i2").reshape(-1).astype(np.int64)
    wide = np.zeros((bytes_.size // 3, 4), np.uint8)
    wide[:, 1:] = bytes_.reshape(-1, 3)
    return (wide.view("<i4").reshape(-1) >> 8).astype(np.int64)


def _records(head: _Head, said: list[Note], rows: int) -> Iterator[Records]:
    """Annotations without signals, such as the stages of a sleep."""
    if not said:
        raise SignalError(f"{head.path}: has neither signals nor annotations: wanted some")
    fields = (Field("annotation", "category"), Field("duration", "number", "s"))
    for at in range(0, len(said), rows):
        onsets, durations, words = zip(*said[at : at + rows], strict=True)
        columns = (np.array(words, object), np.array(durations, np.float64))
        yield Records(head.path.stem, fields, columns, np.array(onsets) + (head.start_s or 0.0), head.labels)


def _marks(head: _Head, part: _Part, said: list[Note], count: int) -> list[Mark]:
    """The annotations that begin in a part, as of its samples."""
    records = part.stop - part.first
    total, rate_hz = records * count, count / head.duration_s
    first, stop = (bisect_left(said, (at,)) for at in (part.onset_s, part.onset_s + records * head.duration_s))
    found = []
    for at, duration, label in said[first:stop]:
        start = min(round((at - part.onset_s) * rate_hz), total - 1)
        found.append(Mark(start, max(start + 1, min(total, round((at + duration - part.onset_s) * rate_hz))), label))
    return found


def _parts(head: _Head, onsets: list[float]) -> list[_Part]:
    firsts = [0]
    if head.broken:
        fastest = max((channel.count for channel in head.channels), default=1)
        for n in range(1, head.records):
            if abs(onsets[n] - onsets[n - 1] - head.duration_s) * fastest > head.duration_s / 2:
                firsts.append(n)
    stops = [*firsts[1:], head.records]
    return [_Part(first, stop, onsets[first]) for first, stop in zip(firsts, stops, strict=True)]


def _annotations(file: BinaryIO, head: _Head, tally: Tally) -> tuple[list[float], list[Note]]:
    """When each data record begins, in seconds from the start, and what is said, in order of time."""
    onsets, said = [n * head.duration_s for n in range(head.records)], list[Note]()
    for n in range(head.records if head.texts else 0):
        timed = False
        for offset, size in head.texts:
            file.seek(head.begin + n * head.size + offset)
            for chunk in filter(None, file.read(size).split(b"\0")):
                found = NOTE.fullmatch(chunk)
                if found is None:
                    tally.add(
                        f"{head.path.name}: {{n}} annotations that cannot be read are left out", f"data record {n + 1}"
                    )
                    continue
                at, duration = float(found[1]), float(found[2] or 0)
                texts = found[3].decode("utf-8", "replace").split("\x14")
                if texts[0] == "" and not timed:
                    timed, onsets[n] = True, at
                said += [(at, duration, text.strip()) for text in texts if text.strip()]
        if not timed and head.broken:
            onsets[n] = onsets[n - 1] + head.duration_s if n else 0.0
            tally.add(
                f"{head.path.name}: {{n}} data records without a time; taken as following", f"data record {n + 1}"
            )
        if len(said) > MOST:
            raise SignalError(f"{head.path}: has more than {MOST} annotations: wanted a recording")
    return onsets, sorted(said)


def _header(path: Path, file: BinaryIO, notes: list[str]) -> _Head:
    raw = file.read(BLOCK)
    if len(raw) < BLOCK or raw[:8] not in VERSIONS:
        raise SignalError(
            f"{path}: begins with {raw[:8]!r} in {len(raw)} bytes: wanted an EDF or BDF header of {BLOCK}"
        )
    signals = int(_number(path, raw, 252, 4, "signals", least=1, most=9999, whole=True))
    more = file.read(BLOCK * signals)
    if len(more) < BLOCK * signals:
        raise SignalError(f"{path}: ends in its header: wanted {BLOCK * (signals + 1)} bytes for {signals} signals")
    raw += more
    begin = int(_number(path, raw, 184, 8, "bytes of the header", least=0, most=1e9, whole=True))
    if begin != len(raw):
        raise SignalError(f"{path}: has a header of {begin} bytes for {signals} signals: wanted {len(raw)}")
    declared = int(_number(path, raw, 236, 8, "data records", least=-1, most=1e8, whole=True))
    duration_s = _number(path, raw, 244, 8, "seconds of a data record", least=0, most=1e8)
    head = _Head(path, VERSIONS[raw[:8]], _start(path, raw, notes), duration_s, begin)
    head.broken = _text(raw, 192, 44).startswith(("EDF+D", "BDF+D"))
    told = {"patient": _text(raw, 8, 80), "recording": STARTED.sub("", _text(raw, 88, 80)).strip()}
    head.labels = {name: text for name, text in told.items() if text.strip("X ")}
    _signals(head, raw, signals, notes)
    if not 0 < head.size <= LARGEST:
        raise SignalError(f"{path}: has data records of {head.size} bytes: wanted 1 to {LARGEST}")
    if head.channels and duration_s <= 0:
        raise SignalError(f"{path}: has data records of 0 s: wanted more, as there are signals")
    file.seek(0, 2)
    stored, rest = divmod(file.tell() - begin, head.size)
    if not stored:
        raise SignalError(f"{path}: has {rest} bytes of samples: wanted at least a data record of {head.size}")
    head.records = stored if declared < 0 else min(declared, stored)
    if declared > stored:
        notes.append(f"{path.name} ends early, after {stored} of {declared} data records; what is there is read")
    elif declared < 0:
        notes.append(f"{path.name}: does not say how many data records it has; {stored} are there")
    elif stored > declared or rest:
        extra = (stored - declared) * head.size + rest
        notes.append(f"{path.name}: goes on for {extra} bytes after its {declared} data records; left out")
    if not head.records:
        raise SignalError(f"{path}: says that it has no data records: wanted some")
    return head


def _signals(head: _Head, raw: bytes, signals: int, notes: list[str]) -> None:
    """What the header tells of each signal."""
    starts = [BLOCK + signals * sum(WIDTHS[:n]) for n in range(len(WIDTHS))]
    for n in range(signals):
        at = [start + n * width for start, width in zip(starts, WIDTHS, strict=True)]
        label, unit = _text(raw, at[0], 16), _text(raw, at[2], 8)
        count = int(_number(head.path, raw, at[8], 8, f"samples of {label}", least=0, most=1e8, whole=True))
        if label in TEXTS:
            head.texts.append((head.size, count * head.width))
        elif not count:
            notes.append(f"{head.path.name}: {label} has no samples; left out")
        else:
            low, high = (_number(head.path, raw, a, 8, f"physical range of {label}") for a in at[3:5])
            least, most = (_number(head.path, raw, a, 8, f"digital range of {label}", whole=True) for a in at[5:7])
            step, zero = 1.0, 0.0
            if low != high and least != most:
                step = (high - low) / (most - least)
                zero = low - least * step
            else:
                notes.append(f"{head.path.name}: {label} has no range; its whole numbers are read as they are")
            taken = {channel.name for channel in head.channels}
            name, again = label or f"signal {n + 1}", 2
            while name in taken:
                name, again = f"{label or f'signal {n + 1}'} {again}", again + 1
            sign = -1 if step < 0 else 1
            unit = KNOWN.get(unit.lower(), unit)
            head.channels.append(_Channel(name, unit, abs(step), zero, sign, head.size, count))
        head.size += count * head.width


def _start(path: Path, raw: bytes, notes: list[str]) -> float | None:
    """Seconds since 1970, or None where it is not known; a time without a zone, taken as UTC."""
    told = STARTED.search(_text(raw, 88, 80))
    if told and not told[1]:
        return None
    date, clock = (re.findall(r"\d+", _text(raw, at, 8)) for at in (168, 176))
    try:
        day, month, year, hour, minute, second = (int(one) for one in (*date, *clock))
        year += 1900 if year > 84 else 2000  # as the format has it
        if told:
            months = [name.upper() for name in month_abbr]
            day, month, year = int(told[1]), months.index(told[2]), int(told[3])
        return float(timegm(datetime(year, month, day, hour, minute, second).timetuple()))
    except ValueError:
        notes.append(f"{path.name}: began at {_text(raw, 168, 16)!r}, which is no time; unknown")
        return None


def _text(raw: bytes, at: int, size: int) -> str:
    return raw[at : at + size].decode("latin-1").strip(" \0")


def _number(
    path: Path,
    raw: bytes,
    at: int,
    size: int,
    what: str,
    *,
    least: float = -1e30,
    most: float = 1e30,
    whole: bool = False,
) -> float:
    text = _text(raw, at, size)
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not (isfinite(value) and least <= value <= most and (not whole or value == int(value))):
        kind = "a whole number" if whole else "a number"
        limits = f" from {least:g} to {most:g}" if least > -1e30 else ""
        raise SignalError(f"{path}, byte {at}: got {text!r} for {what}: wanted {kind}{limits}")
    return value
