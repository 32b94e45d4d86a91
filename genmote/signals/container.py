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
from genmote.signals import _told, adaptive
from genmote.signals._planes import MOST_BYTES, unpacked, varint
from genmote.signals.kinds import MISSING, Grid, Series, Signal
from genmote.signals.telling import Teller

MAGIC, PLAIN, TOLD = b"GMSC", 1, 2  # versions: without a model, and with one
DAMAGE = (
    *(ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RecursionError, MemoryError),
    *(struct.error, zlib.error, SignalError),
)  # what reading a chunk that is none may end in
MODEL, SERIES, BLOCK, TOLD_BLOCK, END = b"M", b"S", b"B", b"P", b"E"
BLOCK_SAMPLES = 1 << 17  # of all channels together
LANES, WIDE = 16, 192  # blocks that a model is run on at once, and channels of all of them: each takes memory


@dataclass(frozen=True)
class Written:
    """What `write` did."""

    series: int
    samples: int
    bytes: int


def write(
    path: Path,
    signals: Iterable[Signal],
    *,
    max_error: float = 0.0,
    threads: int | None = None,
    source: str = "",
    teller: Teller | None = None,
    notes: list[str] | None = None,
) -> Written:
    """Write series, which may come in pieces, to a new file, whole or not at all.

    `max_error` 0: exact, for series with a grid. Above 0: no value is off by more, in its own unit. `teller`: a model
    that helps, and that reading then needs. Raises SignalError for what is no series or cannot be coded.
    """
    if not 0 <= max_error < 1e300:
        raise SignalError(f"max_error={max_error}: use 0 (exact) or more, such as 0.01")
    count = threads or os.cpu_count() or 1
    series, samples, begun = 0, 0, 0
    told: list[str] = [] if notes is None else notes
    with atomic_write(path) as out, ThreadPoolExecutor(count) as pool:
        out.write(MAGIC + bytes([PLAIN if teller is None else TOLD]))
        if teller is not None:
            _chunk(out, MODEL, bytes.fromhex(teller.sha256) + teller.name.encode(errors="replace"))
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
                series, begun = series + begins, 0
            rows = max(1, BLOCK_SAMPLES // len(piece.channels))
            for start in range(0, len(piece), rows):
                part = replace(replace(piece, grid=grid).part(start, start + rows), start_s=_start(before, begun))
                if teller is None:
                    waiting.append(pool.submit(_block, part))
                else:  # the model is run here, the coder beside it
                    helped = _told.block(teller, part, pool, told)
                    waiting.append(pool.submit(_smaller, part, helped))
                begun += len(part)
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
            new.write(MAGIC + bytes([PLAIN]))
        if self._before is None or not _same(self._before, about):
            _chunk(new, SERIES, zlib.compress(_head(about, "").encode(errors="replace"), 9))
        rows = max(1, BLOCK_SAMPLES // len(piece.channels))
        for start in range(0, len(piece), rows):
            _chunk(new, *_block(about.part(start, start + rows)))
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


def read(path: Path, teller: Teller | None = None, *, notes: list[str] | None = None) -> Iterator[Series]:
    """The series of a file, in pieces of a block, each of which `continues` the one before or begins another.

    `teller`: the model that the file was compressed with, if any. SignalError where it is another, or the file is
    damaged, cut short, or of a later version; with `notes`, one that is cut short is read as far as it is whole, and
    that is told there.
    """
    try:
        with open(path, "rb") as file:
            yield from _pieces(path, file, teller, notes)
    except OSError as fault:
        raise SignalError(f"{path}: cannot be read ({fault.strerror}): wanted a compressed signal") from None


def _pieces(path: Path, file: IO[bytes], teller: Teller | None, notes: list[str] | None) -> Iterator[Series]:
    head = file.read(5)
    if head[:4] != MAGIC or len(head) < 5:
        raise SignalError(f"{path}: is no compressed signal: wanted a file that genmote signal compress wrote")
    if head[4] not in (PLAIN, TOLD):
        raise SignalError(f"{path}: has version {head[4]}, this genmote reads {PLAIN} and {TOLD}: update it")
    if head[4] == TOLD:
        teller = _same_model(path, *_next(path, file, None), teller)
    about: Series | None = None
    start = number = 0
    held: list[tuple[int, _told.Body]] = []  # blocks that the model will be run on together
    while True:
        try:
            kind, body = _next(path, file, notes)
        except SignalError:
            yield from _run(path, held, teller)
            raise
        wide = sum(len(one.about.channels) for _, one in held)
        if kind not in (TOLD_BLOCK, SERIES) or len(held) == LANES or wide >= WIDE:
            yield from _run(path, held, teller)
            held = []
        if kind == END:
            return
        try:
            if kind == SERIES:
                about, start = _series(json.loads(unpacked(body))), 0
                continue
            if kind not in (BLOCK, TOLD_BLOCK) or about is None:
                raise ValueError(f"a chunk {kind!r} is not known")
            number += 1
            made = _told.Body(body, _at(about, start), BLOCK_SAMPLES)
            start += made.rows
            if kind == TOLD_BLOCK:
                held.append((number, made))
                continue
            made.plain()
        except DAMAGE as fault:
            raise _damaged(path, number, fault) from None
        yield from _run(path, [(number, made)], None)


def _run(path: Path, held: list[tuple[int, _told.Body]], teller: Teller | None) -> Iterator[Series]:
    """Blocks' series; with `teller` it tells of all of them at once."""
    number = held[0][0] if held else 0
    try:
        if held and teller is not None:
            _told.walk(teller, [body for _, body in held])
        for at, body in held:
            number = at
            yield body.series()
    except DAMAGE as fault:
        raise _damaged(path, number, fault) from None


def _damaged(path: Path, number: int, fault: BaseException) -> SignalError:
    return SignalError(f"{path}: block {number} is damaged ({fault}): get the file again")


def _same_model(path: Path, kind: bytes, body: bytes, teller: Teller | None) -> Teller:
    """`teller`, where it is the model that the file was compressed with."""
    if kind != MODEL or len(body) < 32:
        raise SignalError(f"{path}: does not say which model it was compressed with: get the file again")
    wanted, name = body[:32].hex(), body[32:].decode(errors="replace")
    if teller is None:
        raise SignalError(
            f"{path}: was compressed with a model: give the file {name!r} with --model (SHA-256 {wanted})"
        )
    if teller.sha256 != wanted:
        raise SignalError(
            f"{path}: was compressed with the model {name!r} of SHA-256 {wanted}, {teller.name!r} has {teller.sha256}: "
            "give the same file with --model"
        )
    return teller


def _at(about: Series, rows: int) -> Series:
    """A series where a block of it begins."""
    return replace(about, start_s=_start(about, rows), continues=about.continues or rows > 0)


def _start(about: Series, rows: int) -> float | None:
    """When a block begins that comes after so many rows of its series."""
    if about.start_s is None or about.rate_hz <= 0:
        return about.start_s
    return about.start_s + rows / about.rate_hz


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
        _chunk(out, *waiting.pop(0).result())


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


def _block(piece: Series) -> tuple[bytes, bytes]:
    """Without a model: all planes, as many at once as are coded together."""
    head, planes = _told.head(piece)
    return BLOCK, b"".join([head, *_told.coded(planes)])


def _smaller(piece: Series, helped: bytes | None) -> tuple[bytes, bytes]:
    """With the model's help, where that helped."""
    plain = _block(piece)
    return plain if helped is None or len(plain[1]) <= len(helped) else (TOLD_BLOCK, helped)
