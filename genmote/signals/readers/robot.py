"""Labelled blocks of numbers: a line with a word, then a sample a line; such as the UCI robot execution failures.

L. Seabra Lopes and L. M. Camarinha-Matos, "Feature transformation strategies for a robot learning problem" (1998): 15
samples in 315 ms of three forces and three torques at a robot's wrist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np

from genmote.errors import SignalError
from genmote.signals._numbers import is_number, numbers
from genmote.signals._tables import Tally
from genmote.signals.kinds import Grid, Series

SUFFIXES = (".data",)
WRIST = ("Fx", "Fy", "Fz", "Tx", "Ty", "Tz")
WRIST_HZ = 15 / 0.315
LABEL = re.compile(r"[A-Za-z][\w .-]*")
LONGEST = 1 << 16  # characters of a line
MOST = 1 << 20  # samples of a block, which is read whole
ODD = 0.1  # of the samples may have another number of values than most


def knows(path: Path, head: bytes) -> bool:
    text = head.decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()][: -1 if len(head) >= 4096 else None]
    return len(lines) > 2 and bool(LABEL.fullmatch(lines[0])) and all(map(_sample, lines[1:3]))


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series]:
    tally, numbered, width, total, odd = Tally(notes), count(1), 0, 0, 0
    for label, lines in _blocks(path):
        if not lines:
            tally.add(f"{path.name}: {{n}} labels without a sample are left out", label)
            continue
        width = width or len(lines[0][1])
        whole = [cells for _, cells in lines if len(cells) == width]
        total, odd = total + len(lines), odd + len(lines) - len(whole)
        for at, cells in lines:
            if len(cells) != width:
                text = f"{path.name}: {{n}} samples of another number of values than {width} are left out"
                tally.add(text, f"line {at} has {len(cells)}")
        if odd > max(10, ODD * total):
            break
        if whole:
            found = _series(f"{path.stem} {next(numbered)}", label, whole)
            for start in range(0, len(found), rows):
                yield found.part(start, start + rows)
    if odd > ODD * total:
        raise SignalError(
            f"{path}: {odd} of {total} samples have another number of values than {width}; wanted at most 1 in 10"
        )
    if width and width != len(WRIST):
        notes.append(f"{path.name}: has {width} values a sample and no rate; taken as one sample a second")
    tally.tell()


def _sample(line: str) -> list[str]:
    """The numbers of a line, none where something else stands in it."""
    cells = line.replace(",", " ").split()
    return cells if all(map(is_number, cells)) else []


def _blocks(path: Path) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """Labels, and the lines under each: their numbers and values."""
    label, lines, at = "", list[tuple[int, list[str]]](), 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            while line := file.readline(LONGEST):
                at += 1
                line = line.strip()
                if not line:
                    continue
                if cells := _sample(line):
                    if not label:
                        raise SignalError(f"{path}, line {at}: got {line[:20]!r}: wanted a label above the samples")
                    if len(lines) == MOST:
                        raise SignalError(f"{path}, line {at}: got a block of more than {MOST} samples: wanted a label")
                    lines.append((at, cells))
                elif LABEL.fullmatch(line):
                    if label:
                        yield label, lines
                    label, lines = line, []
                else:
                    raise SignalError(f"{path}, line {at}: got {line[:20]!r}: wanted a label, or numbers")
    except OSError as fault:
        raise SignalError(f"{path}: cannot be read ({fault.strerror}): wanted blocks of samples") from None
    except UnicodeDecodeError:
        raise SignalError(f"{path}: is not in UTF-8: wanted a label, or numbers, in each line") from None
    if not label:
        raise SignalError(f"{path}: is empty: wanted a label, then samples")
    yield label, lines


def _series(name: str, label: str, rows: list[list[str]]) -> Series:
    columns = [numbers(cells) for cells in zip(*rows, strict=True)]
    decimals = [column.decimals() for column in columns]
    wholes = [column.whole(places) for column, places in zip(columns, decimals, strict=True)]
    kept = [whole for whole in wholes if whole is not None]
    step = np.array([10.0**-places for places in decimals])
    grid = Grid(np.stack(kept, axis=1), step, np.zeros(len(step))) if len(kept) == len(wholes) else None
    wrist = len(columns) == len(WRIST)
    channels = WRIST if wrist else tuple(f"column {n + 1}" for n in range(len(columns)))
    return Series(
        name,
        np.stack([column.values for column in columns], axis=1).astype(np.float32),
        WRIST_HZ if wrist else 1.0,
        channels,
        ("",) * len(channels),
        grid=grid,
        labels={"failure" if wrist else "label": label},
    )
