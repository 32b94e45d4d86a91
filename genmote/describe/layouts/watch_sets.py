"""A smartwatch's motion in whole sets of a shoulder exercise, 20 repetitions each: as `watch`, without windows.

How often a movement was made, and whether it became slower, is asked of these.
"""

from __future__ import annotations

from pathlib import Path

from genmote.describe.labelled import Labelled
from genmote.describe.layouts import watch
from genmote.fetch import Progress


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    return watch.sets(folder, progress)
