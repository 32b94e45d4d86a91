"""Series of the UCR and UEA archives in .ts files, as sktime and aeon have them: a series with its class a line.

A. Bagnall et al., "The UEA multivariate time series classification archive, 2018" (2018), and sktime's page "The ts
file format": lines `@name value`, then `@data`, then a line a series: its channels between colons, each of numbers
between commas, and last, where the head says so, its class or a target number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from genmote.errors import SignalError
from genmote.signals._numbers import numbers
from genmote.signals._tables import Tally
from genmote.signals.kinds import Grid, Series

SUFFIXES = (".ts",)
LONGEST = 1 << 24  # characters of a line, which is read whole
ODD = 0.1  # of the series may have another number of channels than the first
DATA, COMMENT = "@data", ("#", "%")
LABELS = {"classlabel": "class", "targetlabel": "target"}


def knows(path: Path, head: bytes) -> bool:
    lines = head.decode("utf-8-sig", errors="replace").lower().splitlines()
    said = next((line.strip() for line in lines if line.strip() and not line.startswith(COMMENT)), "")
    # A long comment may fill what is seen.
    return said.startswith("@problemname") or (not said and bool(lines) and path.suffix.lower() in SUFFIXES)


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series]:
    tally, label, without, channels, count, odd = Tally(notes), "", "", 0, 0, 0
    said: dict[str, str] | None = None
    head: dict[str, str] = {}
    for at, line in _lines(path):
        if said is None:
            if line.lower() == DATA:
                said, label = head, next((LABELS[key] for key in LABELS if head.get(key, "").startswith("true")), "")
                without = f", or without their {label}," if label else ""
                _check(path, at, head)
            elif not line.startswith("@"):
                raise SignalError(f"{path}, line {at}: got {line[:20]!r}: wanted @ and a name, or {DATA}")
            else:
                name, _, value = line[1:].partition(" ")
                head[name.lower()] = value.strip().lower()
            continue
        count += 1
        cells = line.split(":")
        told = cells.pop().strip() if label and len(cells) > 1 else ""
        channels = channels or len(cells)
        if len(cells) != channels or (label and not told):
            odd += 1
            text = f"{path.name}: {{n}} series of another number of channels than {channels}{without} are left out"
            tally.add(text, f"line {at}")
            if odd > max(10, ODD * count):
                break
            continue
        found = _series(f"{path.stem} {count}", path, at, cells, {label: told} if label else {}, tally)
        for start in range(0, len(found), rows):
            yield found.part(start, start + rows)
    if said is None:
        raise SignalError(f"{path}: has no line {DATA}: wanted a file of the UCR archive")
    if not count:
        raise SignalError(f"{path}: has no series after {DATA}: wanted one a line")
    if odd > ODD * count:
        raise SignalError(
            f"{path}: {odd} of {count} series have another number of channels than {channels}"
            f"{without.rstrip(',')}; wanted at most 1 in 10"
        )
    notes.append(f"{path.name}: tells no rate; taken as one sample a second")
    tally.tell()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    at = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            while line := file.readline(LONGEST):
                at += 1
                if len(line) == LONGEST:
                    raise SignalError(f"{path}, line {at}: is longer than {LONGEST} signs: wanted a series a line")
                if line.strip() and not line.startswith(COMMENT):
                    yield at, line.strip()
    except OSError as fault:
        raise SignalError(f"{path}: cannot be read ({fault.strerror}): wanted a file of the UCR archive") from None
    except UnicodeDecodeError:
        raise SignalError(f"{path}: is not in UTF-8: wanted a file of the UCR archive") from None


def _check(path: Path, at: int, head: dict[str, str]) -> None:
    if head.get("timestamps", "false") != "false":
        raise SignalError(
            f"{path}, line {at}: its samples have times (@timeStamps): wanted a file without; write a .csv"
        )


def _series(name: str, path: Path, at: int, cells: list[str], labels: dict[str, str], tally: Tally) -> Series:
    """A series of one line; channels that are shorter than others end in missing samples."""
    rows = [[cell.strip() for cell in channel.split(",")] for channel in cells]
    length = max(map(len, rows))
    if any(len(row) < length for row in rows):
        tally.add(f"{path.name}: {{n}} series have channels of other lengths; filled with NaN", f"line {at}")
    columns = [numbers(row + [""] * (length - len(row))) for row in rows]
    for n, column in enumerate(columns):
        for odd in column.odd[:1]:
            raise SignalError(f"{path}, line {at}: got {rows[n][odd][:20]!r} in channel {n + 1}: wanted a number or ?")
    decimals = [column.decimals() for column in columns]
    wholes = [column.whole(places) for column, places in zip(columns, decimals, strict=True)]
    kept = [whole for whole in wholes if whole is not None]
    step = np.array([10.0**-places for places in decimals])
    grid = Grid(np.stack(kept, axis=1), step, np.zeros(len(step))) if len(kept) == len(wholes) else None
    values = np.stack([column.values for column in columns], axis=1).astype(np.float32)
    channels = tuple(f"channel {n + 1}" for n in range(len(cells)))
    return Series(name, values, 1.0, channels, ("",) * len(cells), grid=grid, labels=labels)
