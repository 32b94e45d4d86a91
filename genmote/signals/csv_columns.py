"""Series out of a CSV file: one column of values, and perhaps one of times."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError


def read_column(path: Path, column: str | None = None) -> NDArray[np.float64]:
    """The numbers (T,) of the column that the first line calls `column`; None: of a file of numbers alone.

    Raises SignalError for what is no such file.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = csv.reader(lines)
            at = 0
            if column is not None:
                head = [name.strip() for name in next(rows, [])]
                if column not in head:
                    raise SignalError(f"{path} has no column {column!r}: it has {', '.join(head) or 'no line at all'}")
                at = head.index(column)
            values = [_number(row, at, path, rows.line_num) for row in rows if row]
    except OSError as fault:
        raise SignalError(f"{path} cannot be read ({fault.strerror}): wanted a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as fault:
        raise SignalError(f"{path} is no CSV file: {fault}") from None
    if not values:
        raise SignalError(f"{path} has no values: wanted a number a line")
    return np.array(values)


def _number(row: list[str], at: int, path: Path, line: int) -> float:
    try:
        return float(row[at])
    except (IndexError, ValueError):
        got = repr(row[at]) if at < len(row) else f"{len(row)} columns"
        raise SignalError(f"{path}, line {line}: got {got}, wanted a number in column {at + 1}") from None


def rate_of(times_s: NDArray[np.float64], path: Path) -> float:
    """Samples a second of steadily rising times (T,). Raises SignalError where they do not rise steadily."""
    steps = np.diff(times_s)
    if len(steps) == 0 or not (np.abs(steps - steps.mean()) < 0.5 * steps.mean()).all():
        raise SignalError(f"{path} has times that do not rise in equal steps: wanted a recording at a steady rate")
    return float(len(steps) / (times_s[-1] - times_s[0]))
