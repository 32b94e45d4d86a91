"""Series as files that other programs read: a table (.csv) or sound (.wav), a piece in memory at a time."""

from __future__ import annotations

import csv
import io
import re
import struct
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.home import atomic_write
from genmote.signals.kinds import DATED, MISSING, Records, Series

LAST = 2.5e11  # seconds since 1970, near the end of the calendar that Python has
MOST_DIGITS = 16  # decimals that a table's numbers are written with; else as floats
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # what is no text
TIME_DIGITS = 9  # of a steady series' times, seconds
MOST_BYTES = (1 << 32) - 64  # of a sound


def write(
    path: Path, pieces: Iterable[Series], *, dates: bool = False, progress: Progress = quiet
) -> list[tuple[Path, int]]:
    """Write series, which come in pieces, to `path`, the second one to `path` with -2 in its name, and so on. Gives
    the files, each with its rows. `dates`: times since 1970 are written as dates of a microsecond, not as the seconds
    that they are. SignalError for what such a file cannot hold; then none is left half."""
    made: list[tuple[Path, int]] = []
    one = partial(_csv, dates=dates) if path.suffix.lower() == ".csv" else _wav
    for number, group in groupby(_numbered(pieces), key=itemgetter(0)):
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        with atomic_write(target) as out:
            rows = 0
            for count in one(out, (piece for _, piece in group)):
                rows += count
                progress(f"writing {target.name}", rows, 0)
        made.append((target, rows))
    if not made:
        raise SignalError("there is no series to write")
    return made


def _numbered(pieces: Iterable[Series]) -> Iterator[tuple[int, Series]]:
    """Pieces with the number of the series that each is of, from 1."""
    number, before = 0, None
    for piece in pieces:
        form = (piece.name, piece.rate_hz, piece.channels, piece.units)
        number += form != before or not piece.continues
        before = form
        yield number, piece


def _csv(out: IO[bytes], pieces: Iterable[Series], dates: bool) -> Iterator[int]:
    """Times in seconds, then the channels, as many decimals as their steps have."""
    done, began = 0, 0.0
    for piece in pieces:
        began = began if done else piece.start_s or 0.0
        out.write(table(piece, began, done, heads=not done, dates=dates))
        done += len(piece)
        yield len(piece)


def table(
    piece: Series | Records, began_s: float = 0.0, done: int = 0, *, heads: bool = True, dates: bool = False
) -> bytes:
    """Lines of a table, after its heads: times, and the channels or fields. A steady series began at `began_s`, and
    `done` samples of it came before. `dates`: as of `write`."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    times = timed(piece, began_s, done)
    if isinstance(piece, Records):
        named = [(field.name, field.unit) for field in piece.fields]
        cells = [[_word(x) for x in column] for column in piece.columns]
    else:
        named = list(zip(piece.channels, piece.units, strict=True))
        cells = [_cells(piece, n) for n in range(len(piece.channels))]
    dates = dates and times is not None and len(times) > 0 and is_date(float(times[0]))
    if heads:
        names = [_word(f"{name} ({unit})" if unit else name) for name, unit in named]
        rows.writerow([*(["time" if dates else "time (s)"] if times is not None else []), *names])
    rows.writerows(
        zip(
            *([[(moment if dates else _plain)(float(t)) for t in times]] if times is not None else []),
            *cells,
            strict=True,
        )
    )
    return text.getvalue().encode(errors="replace")


def timed(piece: Series | Records, began_s: float = 0.0, done: int = 0) -> NDArray[np.float64] | None:
    """(n,) when each sample or row was taken, as of `table`; None for rows of which nobody knows."""
    if piece.times_s is not None or isinstance(piece, Records):
        return piece.times_s
    return np.round(began_s + (done + np.arange(len(piece))) / piece.rate_hz, TIME_DIGITS)


def _word(x: object) -> str:
    """A cell, without the signs that no table has (`readers/csv.py`).

    >>> _word(None), _word(np.float64("nan")), _word(np.int64(3)), _word("on\\0"), _word(np.float64(0.1))
    ('', '', '3', 'on?', '0.1')
    """
    if x is None or x != x:
        return ""
    return _plain(float(x)) if isinstance(x, np.floating) else CONTROL.sub("?", str(x))


def _cells(piece: Series, number: int) -> list[str]:
    if piece.grid is None:
        return ["" if np.isnan(x) else str(x) for x in piece.values[:, number].astype(np.float32)]
    step, zero = float(piece.grid.step[number]), float(piece.grid.zero[number])
    digits = decimals(step, zero)
    whole = piece.grid.integers[:, number].tolist()
    if digits is None:
        return ["" if x == MISSING else repr(zero + step * x) for x in whole]
    scale, start = round(step * 10**digits), round(zero * 10**digits)
    return ["" if x == MISSING else _decimal(start + scale * x, digits) for x in whole]


def decimals(step: float, zero: float = 0.0) -> int | None:
    """In how many decimals zero and all steps from it can be written; None where that takes more than 15.

    >>> decimals(0.005), decimals(1.0), decimals(0.1, 0.25), decimals(1 / 3)
    (3, 0, 2, None)
    """
    return next((d for d in range(MOST_DIGITS) if _whole(step * 10**d) and _whole(zero * 10**d)), None)


def is_date(seconds: float) -> bool:
    """Whether a time counts from 1970."""
    return DATED < seconds < LAST


def moment(seconds: float) -> str:
    """A time since the start in seconds, or since 1970 as a date (UTC).

    >>> moment(0.1 + 0.2), moment(1.6e9 + 0.05), moment(12.0), moment(1.6e9)
    ('0.3', '2020-09-13T12:26:40.050000', '12', '2020-09-13T12:26:40')
    """
    if is_date(seconds):
        return datetime.fromtimestamp(round(seconds, 6), UTC).replace(tzinfo=None).isoformat()
    return repr(round(seconds, TIME_DIGITS)).removesuffix(".0")


def _plain(x: float) -> str:
    """
    >>> _plain(0.0), _plain(0.5), _plain(1.25e9)
    ('0', '0.5', '1250000000')
    """
    return str(int(x)) if x == int(x) else repr(x)


def _whole(x: float) -> bool:
    return abs(x - round(x)) <= 4e-16 * abs(x) and abs(x) < 2**53


def _decimal(number: int, digits: int) -> str:
    """
    >>> _decimal(-1205, 2), _decimal(7, 3), _decimal(12, 0)
    ('-12.05', '0.007', '12')
    """
    if not digits:
        return str(number)
    text = f"{abs(number):0{digits + 1}d}"
    return f"{'-' * (number < 0)}{text[:-digits]}.{text[-digits:]}"


def _wav(out: IO[bytes], pieces: Iterable[Series]) -> Iterator[int]:
    """Whole numbers of the fewest bytes that hold a full scale of the series' step."""
    out.write(bytes(44))
    size, form = 0, b""
    for piece in pieces:
        width = _width(piece)
        assert piece.grid is not None
        whole = piece.grid.integers
        if width == 1:
            raw = (whole + 128).astype(np.uint8).tobytes()
        else:
            raw = np.ascontiguousarray(whole.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
        rate, channels = round(piece.rate_hz), len(piece.channels)
        form = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * width, channels * width, 8 * width)
        size += len(raw)
        if size > MOST_BYTES:
            raise SignalError(f"{piece.name}: is longer than a .wav file may be; write it as .csv")
        out.write(raw)
        yield len(piece)
    if size % 2:
        out.write(b"\0")
    out.seek(0)
    out.write(
        b"RIFF" + struct.pack("<I", 36 + size + size % 2) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)
    )


def _width(piece: Series) -> int:
    """Bytes of a sample."""
    grid = piece.grid
    step = None if grid is None else float(grid.step[0])
    width = next((w for w in (1, 2, 3, 4) if step == 2.0 ** (1 - 8 * w)), None)
    if (
        grid is None
        or width is None
        or (grid.step != step).any()
        or grid.zero.any()
        or piece.rate_hz != round(piece.rate_hz)
        or piece.rate_hz <= 0
    ):
        raise SignalError(f"{piece.name}: is no sound of 8, 16, 24 or 32 bits at a whole rate; write it as .csv")
    if (grid.integers == MISSING).any():
        raise SignalError(f"{piece.name}: has missing samples, which a .wav file cannot tell; write it as .csv")
    most = 1 << (8 * width - 1)
    if grid.integers.size and not -most <= grid.integers.min() <= grid.integers.max() < most:
        raise SignalError(f"{piece.name}: has samples beyond full scale, which no .wav holds; write it as .csv")
    return width
