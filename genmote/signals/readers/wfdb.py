"""Records of PhysioNet: a text header (.hea), files of whole samples beside it, and the marks of an .atr or .qrs file.

PhysioNet, WFDB Applications Guide: header(5), signal(5) and annot(5); WFDB Programmer's Guide, 4.1 for the codes of
beats and rhythms. Signals of a record that are sampled at different rates come as one series for each rate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals import wfdb_marks
from genmote.signals._marks import windows
from genmote.signals.kinds import MISSING, Grid, Mark, Series

SUFFIXES = (".hea", ".dat", ".mat")
BITS = {"16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12}  # of a sample in each format
DTYPES = {"16": "<i2", "32": "<i4", "61": ">i2", "80": "u1", "160": "<u2"}
RATE_HZ, GAIN, UNIT = 250.0, 200.0, "mV"  # what header(5) takes where a header does not say
LONGEST = 1 << 20  # bytes of a header, samples of a frame; nothing real comes near
SIGNAL = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")  # format, samples a frame, skew, byte offset
GAIN_FIELD = re.compile(r"([-+.\deE]+)(?:\(([-+]?\d+)\))?(?:/(\S+))?")
COMMENT = re.compile(r"<([^<>]+)>:\s*([^<]*)")


def knows(path: Path, head: bytes) -> bool:
    if path.suffix.lower() == ".hea":
        lines = [line for line in head.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
        return bool(lines) and re.fullmatch(rb"\S+\s+\d+(\s.*)?", lines[0].strip()) is not None
    try:
        with open(path.with_suffix(".hea"), "rb") as file:
            if os.fsencode(path.name) in file.read(LONGEST):
                return True
    except (OSError, ValueError):
        pass  # a file without a header may still be known, so that what is absent is told
    binary = b"\0" in head
    return binary and (path.suffix.lower() == ".dat" or (path.suffix.lower() == ".mat" and head[20:24] == b"val\0"))


@dataclass
class _File:
    """Samples of `width` a frame; `held` is the window that was read last, for the next of its channels."""

    path: Path
    format: str
    offset: int
    width: int = 0
    held: tuple[int, int, NDArray[np.int64]] | None = None

    def stored(self) -> int:
        """Whole frames in the file."""
        return max(0, self.path.stat().st_size - self.offset) * 8 // BITS[self.format] // self.width

    def frames(self, first: int, stop: int) -> NDArray[np.int64]:
        """Frames [first, stop), (n, width)."""
        if self.held is None or self.held[:2] != (first, stop):
            bits, start, count = BITS[self.format], first * self.width, (stop - first) * self.width
            odd = start % 2 if bits == 12 else 0  # two samples of 12 bits share three bytes
            size = -(-(odd + count) * bits // 8)
            try:
                with open(self.path, "rb") as file:
                    file.seek(self.offset + (start - odd) * bits // 8)
                    raw = file.read(size)
            except OSError as fault:
                raise SignalError(f"{self.path}: cannot be read ({fault.strerror}): wanted samples") from None
            if len(raw) < size:
                raise SignalError(f"{self.path}: became shorter while it was read")
            self.held = first, stop, _decoded(self.format, raw)[odd : odd + count].reshape(-1, self.width)
        return self.held[2]


@dataclass
class _Channel:
    name: str
    unit: str
    gain: float
    baseline: int
    initial: int | None
    checksum: int | None
    file: _File
    column: int  # of its first sample in a frame of its file
    per_frame: int
    skew: int  # frames by which it lies too late in the file

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """Samples [start, stop) as they are stored."""
        first, end = start // self.per_frame, -(-stop // self.per_frame)
        mine = self.file.frames(first, end)[:, self.column : self.column + self.per_frame]
        return mine.reshape(-1)[start - first * self.per_frame : stop - first * self.per_frame]


@dataclass
class _Record:
    path: Path  # of the header
    name: str
    rate_hz: float  # frames a second
    frames: int  # in all files
    channels: list[_Channel] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    whole: bool = True  # no file is cut short


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series]:
    record = _header(path, notes)
    counts = sorted({channel.per_frame for channel in record.channels})
    if len(counts) > 1:
        rates = " and ".join(f"{record.rate_hz * count:g}" for count in counts)
        notes.append(f"{record.path.name}: has signals at {rates} Hz; they are read as a series for each rate")
    for count in counts:
        name = record.name if len(counts) == 1 else f"{record.name} {record.rate_hz * count:g} Hz"
        # The marks are the same for each rate: what is wrong with them is told once.
        marks = wfdb_marks.beside(
            record.path, record.rate_hz, count, record.frames * count, notes if count == counts[0] else []
        )
        yield from _series(record, [c for c in record.channels if c.per_frame == count], name, marks, rows, notes)


def _series(
    record: _Record, channels: list[_Channel], name: str, marks: list[Mark], rows: int, notes: list[str]
) -> Iterator[Series]:
    count = channels[0].per_frame
    total, sums = record.frames * count, [0] * len(channels)
    gains = np.array([channel.gain for channel in channels])
    step, zero = 1 / gains, -np.array([channel.baseline for channel in channels]) / gains
    for n, channel in enumerate(channels):
        first = int(channel.samples(0, 1)[0])
        if channel.initial is not None and channel.initial != first:
            notes.append(f"{record.path.name}: {channel.name} begins with {first}, not with {channel.initial}")
        lead = min(total, channel.skew * count)  # stored before the first sample of the record
        sums[n] += sum(int(channel.samples(at, min(at + rows, lead)).sum()) for at in range(0, lead, rows))
    for start, stop, here in windows(marks, total, rows):
        whole = np.full((stop - start, len(channels)), MISSING)
        for n, channel in enumerate(channels):
            skew = channel.skew * count
            if start + skew < total:
                stored = channel.samples(start + skew, min(stop + skew, total))
                sums[n] += int(stored.sum())
                none = -1 << BITS[channel.file.format] - 1
                whole[: len(stored), n] = np.where(stored == none, MISSING, stored)
        grid = Grid(whole, step, zero)
        names, units = tuple(c.name for c in channels), tuple(c.unit for c in channels)
        rate_hz = record.rate_hz * count
        yield Series(name, grid.values(), rate_hz, names, units, grid=grid, labels=record.labels, marks=here)
    for found, channel in zip(sums, channels, strict=True):
        if record.whole and channel.checksum is not None and (found - channel.checksum) % 65536:
            notes.append(
                f"{record.path.name}: the samples of {channel.name} add up to {found % 65536}, not to the header's "
                f"checksum {channel.checksum % 65536}; the file or the header was changed"
            )


def _decoded(format: str, raw: bytes) -> NDArray[np.int64]:
    if format in DTYPES:
        offset = 1 << BITS[format] - 1 if format in ("80", "160") else 0  # offset binary
        return np.frombuffer(raw, DTYPES[format]).astype(np.int64) - offset
    bytes_ = np.frombuffer(raw + bytes(-len(raw) % 3), np.uint8).reshape(-1, 3).astype(np.int64)
    if format == "24":
        return ((bytes_[:, 0] | bytes_[:, 1] << 8 | bytes_[:, 2] << 16) ^ 1 << 23) - (1 << 23)
    first, second = bytes_[:, 0] | (bytes_[:, 1] & 15) << 8, bytes_[:, 2] | (bytes_[:, 1] >> 4) << 8
    return (np.stack([first, second], 1).reshape(-1) ^ 1 << 11) - (1 << 11)


def _header(path: Path, notes: list[str]) -> _Record:
    header = path if path.suffix.lower() == ".hea" else path.with_suffix(".hea")
    try:
        with open(header, "rb") as file:
            raw = file.read(LONGEST + 1)
    except OSError as fault:
        raise SignalError(
            f"{path}: its header {header.name} cannot be read ({fault.strerror}): wanted it beside the samples"
        ) from None
    if len(raw) > LONGEST:
        raise SignalError(f"{header}: is longer than {LONGEST} bytes: wanted a WFDB header")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    plain = [(n, line) for n, line in lines if not line.startswith("#")]
    if not plain:
        raise SignalError(f"{header}: has no record line: wanted name, number of signals, rate, number of samples")
    record, signals, declared = _record_line(header, *plain[0], notes)
    if len(plain) - 1 < signals:
        raise SignalError(f"{header}: describes {len(plain) - 1} signals: wanted {signals}, as its first line says")
    if len(plain) - 1 > signals:
        notes.append(f"{header.name}: line {plain[signals + 1][0]} and those after it belong to no signal; left out")
    files: dict[str, _File] = {}
    for number, line in plain[1 : signals + 1]:
        _signal_line(record, files, number, line, notes)
    if not record.channels:
        raise SignalError(f"{header}: none of its signals has samples: wanted at least one")
    if path != header and path.name not in files:
        raise SignalError(f"{path}: its header {header.name} names {', '.join(files)} instead: open that header")
    last = plain[signals][0]
    record.labels.update(_labels([line[1:].strip() for n, line in lines if n > last and line.startswith("#")]))
    _count_frames(record, list(files.values()), declared, notes)
    return record


def _record_line(header: Path, number: int, line: str, notes: list[str]) -> tuple[_Record, int, int | None]:
    """The record without its signals, how many those are, and how many frames it has, where that is said."""
    name, *rest = line.split()
    name, _, segments = name.partition("/")
    rate = re.split(r"[/(]", rest[1])[0] if len(rest) > 1 else str(RATE_HZ)
    try:
        signals, rate_hz, declared = int(rest[0]), float(rate), int(rest[2]) if len(rest) > 2 else 0
    except (ValueError, IndexError):
        signals, rate_hz, declared = 0, 0.0, -1
    if segments and declared >= 0:
        raise SignalError(f"{header}: is a record of {segments} segments: open the header of each segment instead")
    if not (signals > 0 and 1e-6 < rate_hz < 1e9 and declared >= 0):
        raise SignalError(
            f"{header}: line {number}, {line[:80]!r}: wanted name, number of signals (1 or more), rate in Hz, samples"
        )
    if len(rest) < 2:
        notes.append(f"{header.name}: gives no rate; {RATE_HZ:g} Hz is taken, as WFDB does")
    labels = {"start": " ".join(rest[3:5])} if len(rest) > 3 else {}
    return _Record(header, name, rate_hz, 0, labels=labels), signals, declared or None


def _signal_line(record: _Record, files: dict[str, _File], number: int, line: str, notes: list[str]) -> None:
    """Adds the channel of a line to the record, and its file to `files`."""
    where = f"{record.path}: line {number}"
    name, form, *rest = [*line.split(None, 8), ""][:9]
    fits = SIGNAL.fullmatch(form)
    gain = GAIN_FIELD.fullmatch(rest[0]) if rest and rest[0] else None
    try:
        if fits is None or (rest and rest[0] and gain is None):
            raise ValueError
        factor = float(gain[1]) if gain else 0.0
        format, per_frame, skew, offset = fits[1], int(fits[2] or 1), int(fits[3] or 0), int(fits[4] or 0)
        zero = int(rest[2]) if len(rest) > 2 and rest[2] else 0
        initial = int(rest[3]) if len(rest) > 3 and rest[3] else None
        checksum = int(rest[4]) if len(rest) > 4 and rest[4] else None
        baseline = int(gain[2]) if gain and gain[2] else zero
    except ValueError:
        raise SignalError(
            f"{where}, {line[:80]!r}: wanted file, format, gain, bits, zero, first value, checksum, block and name"
        ) from None
    channel = rest[6].strip() if len(rest) > 6 else ""
    channel = channel or f"signal {len(record.channels) + 1}"
    if format == "0":
        notes.append(f"{record.path.name}: {channel} has no samples; left out")
        return
    if format not in BITS:
        raise SignalError(
            f"{where}: samples of format {format}: wanted one of {', '.join(BITS)}; convert it with xform of WFDB"
        )
    if Path(name).name != name or name == "-" or not name.isprintable():
        raise SignalError(f"{where}: samples in {name!r}: wanted the name of a file beside the header")
    file = files.setdefault(name, _File(record.path.parent / name, format, offset))
    if (file.format, file.offset) != (format, offset):
        raise SignalError(
            f"{where}: {name} in format {form}, but {file.format}+{file.offset} before: wanted one format"
        )
    if not 0 < per_frame <= LONGEST - file.width:
        raise SignalError(f"{where}: {per_frame} samples of {channel} in a frame: wanted 1 to {LONGEST - file.width}")
    if factor and not 1e-20 < abs(factor) < 1e20:
        raise SignalError(f"{where}: a gain of {rest[0]}: wanted a number of steps in a unit, such as 200")
    if not factor:
        notes.append(f"{record.path.name}: {channel} has no gain; {GAIN:g} steps in a unit are taken, as WFDB does")
        factor = GAIN
    if abs(baseline) >= 1 << 32:
        raise SignalError(f"{where}: a baseline of {baseline}: wanted a sample of the file's")
    unit = gain[3] if gain and gain[3] else UNIT
    record.channels.append(
        _Channel(channel, unit, factor, baseline, initial, checksum, file, file.width, per_frame, skew)
    )
    file.width += per_frame


def _count_frames(record: _Record, files: list[_File], declared: int | None, notes: list[str]) -> None:
    stored = []
    for file in files:
        if not file.path.is_file():
            raise SignalError(f"{record.path}: its samples {file.path.name} are absent: wanted them beside it")
        stored.append(file.stored())
        spare = 1 if file.format == "212" else 0  # the other half of the last three bytes
        if declared and not declared <= stored[-1] <= declared + spare:
            told = "what is there is read" if stored[-1] < declared else "the rest is left out"
            notes.append(f"{file.path.name}: holds {stored[-1]} samples of a signal, not {declared}; {told}")
    if len(set(stored)) > 1 and not declared:
        notes.append(f"{record.path.name}: its files hold {min(stored)} to {max(stored)} samples; the first are read")
    record.frames = min([*stored, declared or stored[0]])
    record.whole = not declared or record.frames == declared
    if not record.frames:
        raise SignalError(f"{record.path}: its files hold no whole frame of samples: wanted at least one")


def _labels(comments: list[str]) -> dict[str, str]:
    """What comments say: 'key: value', '<key>: value', MIT-BIH's age and sex; the rest under "comment"."""
    labels: dict[str, str] = {}

    def add(key: str, value: str) -> None:
        if value := value.strip():
            labels[key] = f"{labels[key]}; {value}" if key in labels else value

    for comment in comments:
        if tagged := COMMENT.findall(comment):
            for key, value in tagged:
                add(key.strip().lower(), value)
            continue
        key, colon, value = comment.partition(":")
        if colon and (not value or value[0].isspace()) and len(key) <= 60 and "," not in key:
            add(key.strip().lower(), value)
            continue
        if told := re.match(r"(\d{1,3})\s+([MF])\b", comment):
            add("age", told[1])
            add("sex", told[2])
        add("comment", comment)
    return labels
