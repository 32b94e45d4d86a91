"""Series in few bytes: a file of blocks, each coded by `adaptive.py`, exact for whole numbers. docs/formats.md tells
how it lies on disk.

What is coded is a series' `grid`; other samples are first made whole numbers of a step that is stated (`max_error`).
Each block stands for itself and has a checksum: blocks are coded in parallel, a damaged one is found and named, and a
part of a long recording is read without the rest.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.home import atomic_write
from genmote.signals import adaptive
from genmote.signals._planes import MOST_BYTES, Integers, Reader, how, planed, unpacked, varint
from genmote.signals.kinds import MISSING, Grid, Mark, Series, Signal

MAGIC, VERSION = b"GMSC", 1
DAMAGE = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError, MemoryError),
    *(struct.error, zlib.error, SignalError),
)  # what reading a chunk that is none may end in
SERIES, BLOCK, END = b"S", b"B", b"E"
BLOCK_SAMPLES = 1 << 17  # of all channels together


@dataclass(frozen=True)
class Written:
    """What `write` did."""

    series: int
    samples: int
    bytes: int


def write(
    path: Path, signals: Iterable[Signal], *, max_error: float = 0.0, threads: int | None = None, source: str = ""
) -> Written:
    """Write series, which may come in pieces, to a new file, whole or not at all.

    `max_error` 0: exact, for series with a grid. Above 0: no value is off by more, in its own unit. Raises SignalError
    for what is no series or cannot be coded.
    """
    if not 0 <= max_error < 1e300:
        raise SignalError(f"max_error={max_error}: use 0 (exact) or more, such as 0.01")
    count = threads or os.cpu_count() or 1
    series, samples = 0, 0
    with atomic_write(path) as out, ThreadPoolExecutor(count) as pool:
        out.write(MAGIC + bytes([VERSION]))
        waiting: list[Any] = []
        before: Series | None = None
        for piece in signals:
            if not isinstance(piece, Series):
                raise SignalError(f"{piece.name}: is {type(piece).__name__.lower()}, only series are compressed so far")
            if not piece.channels:
                raise SignalError(f"{piece.name}: has no channel")
            grid = _grid(piece, max_error)
            begins = before is None or not piece.continues
            about = replace(piece, grid=grid, continues=not begins)
            if before is None or begins or not _same(before, about):
                _drain(out, waiting, 0)
                before = about
                _chunk(out, SERIES, zlib.compress(_head(before, source).encode(errors="replace"), 9))
                series += begins
            rows = max(1, BLOCK_SAMPLES // len(piece.channels))
            for start in range(0, len(piece), rows):
                part = replace(piece, grid=grid).part(start, start + rows)
                waiting.append(pool.submit(_block, part))
                _drain(out, waiting, 2 * count)
            samples += piece.values.size
        _drain(out, waiting, 0)
        if not series:
            raise SignalError("there is no series to compress")
        _chunk(out, END, b"")
    return Written(series, samples, path.stat().st_size)


class Growing:
    """A file that is written while the recording goes on, and can be read, and lost, at any time: `add` puts a piece
    after what is there, as a block. The first one makes the file; FileExistsError where it is there already."""

    def __init__(self, path: Path, *, max_error: float = 0.0) -> None:
        self.path, self.max_error = path, max_error
        self._before: Series | None = None
        self._end = 0  # where the end's chunk lies, which the next block takes the place of

    def add(self, piece: Series) -> None:
        """SignalError for what `write` refuses; then the file stays as it was."""
        about = replace(piece, grid=_grid(piece, self.max_error), continues=self._before is not None)
        new = io.BytesIO()
        if self._before is None:
            new.write(MAGIC + bytes([VERSION]))
        if self._before is None or not _same(self._before, about):
            _chunk(new, SERIES, zlib.compress(_head(about, "").encode(errors="replace"), 9))
        rows = max(1, BLOCK_SAMPLES // len(piece.channels))
        for start in range(0, len(piece), rows):
            _chunk(new, BLOCK, _block(about.part(start, start + rows)))
        end = self._end + new.tell()
        _chunk(new, END, b"")
        with open(self.path, "r+b" if self._before is not None else "xb") as out:
            out.seek(self._end)
            try:
                out.write(new.getvalue())
                out.flush()
            except OSError:  # such as a full disk: the end is where it was
                if self._before is not None:
                    _repair(self.path, self._end)
                else:
                    self.path.unlink(missing_ok=True)
                raise
        self._before, self._end = about, end


def _repair(path: Path, end: int) -> None:
    """Let the file end there."""
    last = io.BytesIO()
    _chunk(last, END, b"")
    with open(path, "r+b") as out:
        out.truncate(end)
        out.seek(end)
        out.write(last.getvalue())


def read(path: Path, *, notes: list[str] | None = None) -> Iterator[Series]:
    """The series of a file, in pieces of a block, each of which `continues` the one before or begins another.

    SignalError where the file is damaged, cut short, or of a later version; with `notes`, one that is cut short is read
    as far as it is whole, and that is told there.
    """
    try:
        with open(path, "rb") as file:
            yield from _pieces(path, file, notes)
    except OSError as fault:
        raise SignalError(f"{path}: cannot be read ({fault.strerror}): wanted a compressed signal") from None


def _pieces(path: Path, file: IO[bytes], notes: list[str] | None) -> Iterator[Series]:
    head = file.read(5)
    if head[:4] != MAGIC or len(head) < 5:
        raise SignalError(f"{path}: is no compressed signal: wanted a file that genmote signal compress wrote")
    if head[4] != VERSION:
        raise SignalError(f"{path}: has version {head[4]}, this genmote reads {VERSION}: update it")
    about: Series | None = None
    start = number = 0
    while True:
        kind, body = _next(path, file, notes)
        if kind == END:
            return
        try:
            if kind == SERIES:
                about, start = _series(json.loads(unpacked(body))), 0
            elif kind == BLOCK and about is not None:
                number += 1
                piece = _unblock(body, about, start)
                start += len(piece)
                yield piece
            else:
                raise ValueError(f"a chunk {kind!r} is not known")
        except DAMAGE as fault:
            raise SignalError(f"{path}: block {number} is damaged ({fault}): get the file again") from None


# -- chunks -----------------------------------------------------------------------------------------------------------


def _chunk(out: IO[bytes], kind: bytes, body: bytes) -> None:
    out.write(kind + varint(len(body)) + body + struct.pack("<I", zlib.crc32(kind + body)))


def _next(path: Path, file: IO[bytes], notes: list[str] | None) -> tuple[bytes, bytes]:
    at = file.tell()
    kind, size, shift = file.read(1), 0, 0
    while kind:
        byte = file.read(1)
        if not byte or shift > 35:
            kind = b""
            break
        size |= (byte[0] & 127) << shift
        shift += 7
        if byte[0] < 128:
            break
    if kind and size <= min(MOST_BYTES, os.fstat(file.fileno()).st_size):
        body, check = file.read(size), file.read(4)
        if len(check) == 4:
            if struct.unpack("<I", check)[0] != zlib.crc32(kind + body):
                raise SignalError(f"{path}: is damaged after byte {at} (checksum): get the file again")
            return kind, body
    if notes is not None:
        notes.append(f"{path}: ends in the middle, after byte {at}; what is whole before is read")
        return END, b""
    raise SignalError(
        f"{path}: ends in the middle, after byte {at}: get the file again, or what is whole of it with --cut"
    )


def _drain(out: IO[bytes], waiting: list[Any], left: int) -> None:
    """Write blocks that are done, in their order, until `left` wait."""
    while len(waiting) > left:
        _chunk(out, BLOCK, waiting.pop(0).result())


# -- series -----------------------------------------------------------------------------------------------------------


def _grid(series: Series, max_error: float) -> Grid:
    """The samples as whole numbers."""
    if max_error <= 0:
        if series.grid is None:
            raise SignalError(
                f"{series.name}: its samples are no whole numbers of a step, so that nothing can be exact; say how far "
                "off they may be (--max-error, in their unit)"
            )
        return series.grid
    exact = series.values.astype(np.float64)
    channels = len(series.channels)
    step, zero = np.full(channels, 2 * max_error), np.zeros(channels)
    if series.grid is not None:  # in whole multiples of its own steps, which one of less than a step leaves as they are
        own = series.grid
        many = 1 + 2 * np.minimum(np.floor(max_error / own.step * (1 + 1e-12)), 1 << 50).astype(np.int64)
        gone = own.integers == MISSING
        whole = np.floor_divide(np.where(gone, 0, own.integers) + many // 2, many)
        return Grid(np.where(gone, MISSING, whole), own.step * many, own.zero)
    there = np.isfinite(exact)
    if np.isinf(exact).any():
        raise SignalError(f"{series.name}: has infinite samples, which no step reaches; take them out")
    if there.any() and np.abs(exact[there]).max() / (2 * max_error) >= adaptive.LIMIT / 2:
        raise SignalError(f"{series.name}: max-error {max_error:g} is too little for samples of that size; raise it")
    rounded = np.rint(np.where(there, exact, 0.0) / step).astype(np.int64)
    grid = Grid(np.where(there, rounded, MISSING), step, zero)
    off = np.abs(grid.values().astype(np.float64) - exact)[there]
    if off.size and off.max() > max_error * (1 + 1e-6):
        raise SignalError(
            f"{series.name}: samples of that size come back off by {off.max():g}, for want of bits (max-error "
            f"{max_error:g}); raise it"
        )
    return grid


def _same(a: Series, b: Series) -> bool:
    """Whether blocks of `b` may follow those of `a`."""
    assert a.grid is not None and b.grid is not None
    return (
        (a.name, a.rate_hz, a.channels, a.units, a.labels) == (b.name, b.rate_hz, b.channels, b.units, b.labels)
        and np.array_equal(a.grid.step, b.grid.step)
        and np.array_equal(a.grid.zero, b.grid.zero)
        and (a.times_s is None) == (b.times_s is None)
    )


def _head(series: Series, source: str) -> str:
    assert series.grid is not None
    told: dict[str, Any] = {
        "name": series.name,
        "rate": series.rate_hz,
        "channels": series.channels,
        "units": series.units if len(set(series.units)) > 1 else series.units[0],
        "step": _one(series.grid.step),
        "zero": _one(series.grid.zero),
        "times": series.times_s is not None,
        "start": series.start_s,
        "labels": series.labels,
        "continues": series.continues,
        "source": source,
    }
    kept = {key: value for key, value in told.items() if key == "start" or value not in (None, "", False, {}, 0.0)}
    if series.start_s is None:
        del kept["start"]
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False)


def _one(values: NDArray[np.float64]) -> list[float] | float:
    """One number where all are the same."""
    return float(values[0]) if (values == values[0]).all() else [float(x) for x in values]


def _series(told: dict[str, Any]) -> Series:
    """Without samples."""
    channels = tuple(map(str, told["channels"]))
    count, said = len(channels), told.get("units", "")
    step, zero = (np.array(told.get(key, 0.0), np.float64) for key in ("step", "zero"))
    if count == 0 or not {step.shape, zero.shape} <= {(), (count,)}:
        raise ValueError("its channels and steps do not fit")
    step, zero = (np.ascontiguousarray(np.broadcast_to(x, (count,))) for x in (step, zero))
    units = (said,) * count if isinstance(said, str) else tuple(map(str, said))
    rate = float(told.get("rate", 0.0))
    return Series(
        str(told.get("name", "")),
        np.zeros((0, len(channels)), np.float32),
        rate,
        channels,
        units,
        np.zeros(0) if told.get("times") else None,
        Grid(np.zeros((0, len(channels)), np.int64), step, zero),
        {str(key): str(value) for key, value in told.get("labels", {}).items()},
        start_s=None if told.get("start") is None else float(told["start"]),
        continues=told.get("continues") is True,
    )


# -- blocks -----------------------------------------------------------------------------------------------------------


def _block(piece: Series) -> bytes:
    """Rows, a checksum of the integers, how each channel was made small, its marks, and the coded numbers."""
    assert piece.grid is not None
    integers = np.ascontiguousarray(piece.grid.integers, "<i8")
    head = [varint(len(piece)), struct.pack("<I", zlib.crc32(integers.tobytes()))]
    planes: list[Integers] = []
    for number in range(integers.shape[1]):
        said, plane = planed(integers[:, number])
        head.append(said)
        planes += plane
    if piece.times_s is not None:  # their bits, as whole numbers: rising times give rising numbers
        bits = np.ascontiguousarray(piece.times_s, np.float64).view(np.int64)
        said, plane = planed(bits >> 32)
        head.append(said)
        planes += plane
        said, plane = planed(bits & 0xFFFFFFFF)
        head.append(said)
        planes += plane
    marks = (
        json.dumps([[m.start, m.stop, m.label, *[1] * m.goes_on] for m in piece.marks], ensure_ascii=False)
        if piece.marks
        else ""
    )
    packed = zlib.compress(marks.encode(errors="replace"), 9) if marks else b""
    head += [varint(len(packed)), packed]
    width = adaptive.CHANNELS
    for first in range(0, len(planes), width):
        coded = adaptive.encode(np.stack(planes[first : first + width], axis=1))
        head += [varint(len(coded)), coded]
    return b"".join(head)


def _unblock(body: bytes, about: Series, start: int) -> Series:
    data = Reader(body)
    rows = data.varint()
    if rows * len(about.channels) > max(BLOCK_SAMPLES, len(about.channels)):
        raise ValueError(f"{rows} rows are more than a block has")
    (check,) = struct.unpack("<I", data.take(4))
    channels = len(about.channels)
    said = [how(data) for _ in range(channels + (0 if about.times_s is None else 2))]
    marks = data.take(data.varint())
    count = sum(planes for planes, _ in said)
    found: list[Integers] = []
    for first in range(0, count, adaptive.CHANNELS):
        width = min(adaptive.CHANNELS, count - first)
        coded = adaptive.decode(data.take(data.varint()), rows, width)
        found += [coded[:, n] for n in range(width)]
    columns, at = [], 0
    for planes, made in said:
        columns.append(made(found[at : at + planes], rows))
        at += planes
    integers = np.stack(columns[:channels], axis=1)
    if zlib.crc32(integers.astype("<i8").tobytes()) != check:
        raise ValueError("its samples do not have their checksum")
    times = None
    if about.times_s is not None:
        times = ((columns[channels] << 32) | columns[channels + 1]).view(np.float64)
    assert about.grid is not None
    grid = replace(about.grid, integers=integers)
    listed = [(int(m[0]), int(m[1]), str(m[2]), len(m) > 3) for m in json.loads(unpacked(marks))] if marks else []
    if any(not 0 <= first <= stop <= rows for first, stop, *_ in listed):
        raise ValueError("a mark lies outside its block")
    return replace(
        about,
        values=grid.values(),
        times_s=times,
        grid=grid,
        start_s=about.start_s if about.start_s is None or about.rate_hz <= 0 else about.start_s + start / about.rate_hz,
        marks=tuple(Mark(*mark) for mark in listed),
        continues=about.continues or start > 0,
    )
