"""A room's climate and whether somebody is there: `datatraining.txt`, `datatest.txt`, `datatest2.txt` of UCI Occupancy.

Windows of two hours, one each half hour, in which it is the same all the time; groups are days.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genmote.describe.labelled import Labelled
from genmote.describe.layouts._windows import runs, windows
from genmote.errors import ExamplesError
from genmote.fetch import Progress
from genmote.signals import reading, recordings
from genmote.signals.kinds import Series

FILES = ("datatraining.txt", "datatest.txt", "datatest2.txt")
CHANNELS = ("Temperature", "Humidity", "Light", "CO2")
NAMES, UNITS = ("temperature", "humidity", "light", "CO2"), ("°C", "%", "lx", "ppm")
CLASSES = ("empty", "occupied")
WINDOW_S, STEP_S, DAY_S = 7200.0, 1800.0, 86400.0


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    here = [folder / name for name in FILES if (folder / name).is_file()]
    if not here:
        raise ExamplesError(f"{folder}: holds none of {', '.join(FILES)}")
    found = []
    for number, path in enumerate(here, 1):
        for whole in reading.read(path, notes=notes):
            names = whole.channels if isinstance(whole, Series) else ()
            if not isinstance(whole, Series) or not {*CHANNELS, "Occupancy"} <= set(names):
                raise ExamplesError(f"{path}: wanted columns {', '.join(CHANNELS)} and Occupancy, and a time")
            found += _of(whole)
        progress("reading", number, len(here))
    return found


def _of(whole: Series) -> list[Labelled]:
    there = whole.values[:, whole.channels.index("Occupancy")]
    room = recordings.picked(whole, CHANNELS)
    assert isinstance(room, Series)
    found = []
    for start, stop, word in runs([CLASSES[int(one > 0)] for one in np.nan_to_num(there)]):
        stretch = room.part(start, stop)
        times = stretch.times_s
        # The clock is off by a second now and then: a sample a minute.
        begin = stretch.start_s if times is None else float(times[0]) if len(times) else None
        steady = Series(whole.name, stretch.values, 1 / 60, NAMES, UNITS, start_s=begin)
        for part in windows(steady, WINDOW_S, STEP_S):
            day = f"day {int((part.start_s or 0) // DAY_S)}"
            found.append(Labelled(part, day, "state of the room", (word,), CLASSES))
    return found
