"""A phone's acceleration and what its user does: "x4555… y1323… z4546…" → walking. Out of HyperIMU recordings (MIT;
`SOURCE.txt` beside the data) of four people: the third is to test with, the fourth to choose settings with, the first
two are learnt from.

A window is 2.56 s. Of each quarter of it and each axis the lowest and the highest sample are told, a digit each: tenths
of the range from -20 to 20 m/s². So the tilt is in it, and how much each axis shakes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.signals.labelled import ACTIVITIES
from benchmarks.signals.sets import folder, series_of
from benchmarks.tune import answers
from benchmarks.tune.answers import Pair

SEED = 0
ROWS, QUARTER = 128, 32  # samples at 50 Hz
RANGE = 20.0  # m/s², to either side
USERS = {1: "learn", 2: "learn", 3: "test", 4: "development"}


def write(into: Path) -> dict[str, Path]:
    """The files of examples. ContestantError where the data are not here."""
    parts: dict[str, list[Pair]] = {part: [] for part in answers.PARTS}
    place = folder("hyperimu_har")
    for line in (place / "labels.txt").read_text().splitlines():
        if not line.strip():
            continue
        number, user, activity, start, stop = map(int, line.split())
        path = place / f"acc_exp{number:02}_user{user:02}.txt"
        if path.exists():  # only eight of the experiments are here
            rows = series_of(path).values[start : min(stop, start + 2900)]  # one end is mistyped
            for at in range(0, len(rows) - ROWS + 1, ROWS):
                parts[USERS[user]].append((told(rows[at : at + ROWS]), ACTIVITIES[activity - 1]))
    for pairs in parts.values():
        random.Random(SEED).shuffle(pairs)
    return answers.write(into, **parts)


def told(window: NDArray[np.floating]) -> str:
    """A window (ROWS, 3) in digits."""
    quarters = window.reshape(-1, QUARTER, 3)
    both = np.stack([quarters.min(axis=1), quarters.max(axis=1)], axis=1)  # (4, 2, 3)
    digits = np.clip((both + RANGE) * (10 / (2 * RANGE)), 0, 9).astype(int).reshape(-1, 3)
    return " ".join(axis + "".join(map(str, digits[:, n])) for n, axis in enumerate("xyz"))
