"""What the readers of point clouds share: rows of text, and columns as one cloud."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.kinds import Frames

MOST = 1 << 26  # numbers in a cloud
LONGEST = 1 << 16  # bytes of a line
WINDOW = 1 << 14  # lines that are read at once

Column = tuple[str, NDArray[np.generic]]  # its name, and a number of each point


def checked(path: Path, count: int, width: int) -> int:
    """The number of points, where it is one that a cloud of `width` numbers a point may have."""
    if not 1 <= count * width <= MOST:
        raise SignalError(f"{path}: says that it has {count} points of {width} numbers: wanted 1 to {MOST} numbers")
    return count


def texts(path: Path, file: BinaryIO, line: int, count: int, width: int, notes: list[str]) -> NDArray[np.float64]:
    """(count, width) numbers out of the next lines, the first of which is number `line`; fewer where the file ends."""
    parts, done = [np.zeros((0, width))], 0
    while done < count:
        lines = list(islice(iter(lambda: file.readline(LONGEST), b""), min(WINDOW, count - done)))
        rows = [one.split() for one in lines]
        while rows and not rows[-1]:  # empty lines at the end
            rows.pop()
        for n, row in enumerate(rows):
            if len(row) != width and not (n == len(rows) - 1 and not lines[n].endswith(b"\n")):
                raise SignalError(f"{path}, line {line + done + n}: has {len(row)} numbers: wanted {width} of a point")
        if rows and len(rows[-1]) != width:  # that was cut
            rows.pop()
        if not rows:
            notes.append(f"{path.name} ends early, after {done} of {count} points; what is there is read")
            break
        cells = [cell for row in rows for cell in row]
        try:
            parts.append(np.array([float(cell) for cell in cells]).reshape(-1, width))
        except ValueError:
            n = next(n for n, cell in enumerate(cells) if not _is_number(cell))
            got = cells[n][:20].decode("latin-1")
            raise SignalError(f"{path}, line {line + done + n // width}: got {got!r}: wanted a number") from None
        done += len(rows)
    return np.concatenate(parts)


def _is_number(cell: bytes) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def typed(path: Path, name: str, numbers: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """The numbers (N,) as of `dtype`, in one piece of memory; SignalError where one is not whole, and ought to be."""
    if numbers.dtype != dtype and dtype.kind in "iu":
        limits = np.iinfo(dtype.name)
        values = numbers.astype(np.float64)
        odd = ~((values >= limits.min) & (values <= limits.max) & (values == np.rint(values)))
        if odd.any():
            raise SignalError(f"{path}: got {values[odd][0]:g} for {name}: wanted whole numbers of {dtype.name}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(numbers.astype(dtype))


def records(path: Path, file: BinaryIO, dtype: np.dtype[np.void], count: int, notes: list[str]) -> NDArray[np.void]:
    """`count` structures out of the next bytes; fewer where the file ends."""
    raw = file.read(count * dtype.itemsize)
    there = len(raw) // dtype.itemsize
    if there < count:
        notes.append(f"{path.name} ends early, after {there} of {count} points; what is there is read")
    return np.frombuffer(raw, dtype, there)


def cloud(path: Path, columns: Sequence[Column], unit: str, labels: dict[str, str], notes: list[str]) -> Frames:
    """One frame of points, those without a place left out; `unit`: of x, y and z. Its numbers are floats of 32 bits,
    or of 64 where one would not be exact."""
    names = [name for name, _ in columns]
    if absent := [axis for axis in "xyz" if axis not in names]:
        raise SignalError(f"{path}: its points have no {', '.join(absent)}: wanted x, y and z among {', '.join(names)}")
    if len(set(names)) < len(names):
        raise SignalError(f"{path}: its points have a number twice: {', '.join(names)}: wanted each once")
    fine = all(np.can_cast(column.dtype, np.float32) for _, column in columns)
    points = np.stack([column.astype(np.float32 if fine else np.float64) for _, column in columns], axis=1)
    there = np.isfinite(points[:, [names.index(axis) for axis in "xyz"]]).all(axis=1)
    if not there.all():
        notes.append(f"{path.name}: {int((~there).sum())} points have no place (x, y or z is no number); left out")
    if not there.any():
        raise SignalError(f"{path}: none of its {len(points)} points has a place: wanted some")
    units = tuple(unit if name in ("x", "y", "z") else "" for name in names)
    return Frames(path.stem, "points", [points[there]], tuple(names), units, labels=labels)
