"""A phone's acceleration in everyday life: `labels.txt` and `acc_expNN_userNN.txt`, as in the raw data of UCI HAR.

Each line of `labels.txt` is experiment, user, activity, first and last sample, at 50 Hz. Windows of 5.12 s by the
people who carried it; a stretch that lasts longer than 58 s is cut there, as one end is mistyped in a set of these.
"""

from __future__ import annotations

from pathlib import Path

from genmote.describe.labelled import Labelled
from genmote.describe.layouts._windows import windows
from genmote.errors import ExamplesError
from genmote.fetch import Progress
from genmote.signals import reading
from genmote.signals.kinds import Series

LABELS = "labels.txt"
ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")
RATE_HZ, WINDOW_S, MOST = 50.0, 5.12, 2900


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    path = folder / LABELS
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except OSError as fault:
        raise ExamplesError(f"{path}: cannot be read ({fault.strerror}): wanted a line for each stretch") from None
    except UnicodeDecodeError:
        raise ExamplesError(f"{path}: is not UTF-8: save it as UTF-8") from None
    stretches = []
    for number, cells in enumerate(lines, 1):
        if len(cells) != 5 or not all(cell.isdigit() for cell in cells):
            raise ExamplesError(f"{path}: line {number}: wanted experiment, user, activity, first and last sample")
        stretches.append(tuple(map(int, cells)))
    activities = ACTIVITIES if any(one[2] == 6 for one in stretches) else ACTIVITIES[:5]
    found, read, absent = [], dict[Path, Series | None](), set[Path]()
    for number, (experiment, user, activity, start, stop) in enumerate(stretches, 1):
        file = folder / f"acc_exp{experiment:02}_user{user:02}.txt"
        progress("reading", number, len(stretches))
        if not 1 <= activity <= len(activities):
            continue  # postures between two activities, in the larger set
        if file not in read:
            read[file] = _acceleration(file, notes) if file.is_file() else None
        whole = read[file]
        if whole is None:
            absent.add(file)
            continue
        own = whole.part(start, min(stop, start + MOST))
        found += [
            Labelled(part, f"person {user}", "activity", (activities[activity - 1],), activities)
            for part in windows(own, WINDOW_S)
        ]
    if absent:
        notes.append(f"{LABELS}: {len(absent)} of the files that it names are not here; left out")
    return found


def _acceleration(file: Path, notes: list[str]) -> Series:
    signal = reading.read(file, notes=notes)[0]
    if not isinstance(signal, Series) or len(signal.channels) != 3:
        raise ExamplesError(f"{file}: wanted three columns of numbers, one for each axis")
    axes = ("acceleration x", "acceleration y", "acceleration z")
    return Series(file.stem, signal.values, RATE_HZ, axes, ("m/s²",) * 3)
