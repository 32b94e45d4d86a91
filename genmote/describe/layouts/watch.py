"""A smartwatch's motion in seven shoulder exercises: the recording `watch` (SPAR), or seglearn's `watch_dataset.npy`.

Windows of 10 s, one each 5 s, by the ten people who wore it; `watch_sets` has whole sets of 20 repetitions. `folder`:
the file, or the folder that holds it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from genmote.describe.labelled import Labelled
from genmote.describe.layouts._windows import windows
from genmote.errors import ExamplesError, SignalError
from genmote.fetch import Progress
from genmote.signals import recordings
from genmote.signals.kinds import Series
from genmote.signals.numpy_pickle import load as unpickled

FILES = ("watch.pickle", "watch_dataset.npy")
WINDOW_S, STEP_S = 10.0, 5.0


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    return [
        replace(whole, signal=part)
        for whole in sets(folder, progress)
        if isinstance(whole.signal, Series)
        for part in windows(whole.signal, WINDOW_S, STEP_S)
    ]


def sets(folder: Path, progress: Progress) -> list[Labelled]:
    """Whole sets."""
    path = folder if folder.is_file() else next((folder / n for n in FILES if (folder / n).is_file()), None)
    if path is None:
        raise ExamplesError(
            f"{folder}: holds neither {' nor '.join(FILES)}: genmote signal show watch fetches the first"
        )
    try:
        held: Any = unpickled(path)
        every = list(zip(held["X"], held["y"], held["subject"], strict=True))
    except (SignalError, KeyError, TypeError, ValueError):
        raise ExamplesError(f"{path}: is not seglearn's watch data set: wanted X, y and subject of each set") from None
    about = recordings.sample("watch")
    found = []
    for number, (values, kind, subject) in enumerate(every):
        exercise = about.names[int(kind)]
        whole = Series(
            f"set {number}", np.asarray(values, np.float32), about.rate_hz, tuple(about.channels), tuple(about.units)
        )
        found.append(Labelled(whole, f"person {subject}", "exercise", (exercise,), tuple(about.names)))
        progress("reading", number + 1, len(every))
    return found
