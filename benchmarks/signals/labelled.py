"""What generated windows are measured on: labelled recordings, split by patient, user, trace, time or place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.signals.sets import DAY, folder, heartbeats, pulses, series_of, slower, steps, traces
from genmote.generator.evaluate.data import Recording
from genmote.signals import reading
from genmote.signals.kinds import Series


@dataclass(frozen=True)
class GenerateSet:
    """`load` gives labelled recordings to learn from and others; `steps`: rows of a window that is generated;
    `windows`: how many are learnt from at most."""

    title: str
    load: Callable[[], tuple[list[Recording], list[Recording]]]
    steps: int
    training: dict[str, Any] = field(default_factory=dict)
    windows: int = 600


def _labelled(series: Series, key: str, label: str, path: Path) -> Recording:
    return Recording(path, series, key, np.full(len(series), label, object))


def diagnoses() -> tuple[list[Recording], list[Recording]]:
    """Of :func:`heartbeats`, those with a diagnosis: whether it is that all is normal."""
    sides: tuple[list[Recording], list[Recording]] = ([], [])
    for one, learnt, label in heartbeats():
        if label:
            word = "normal" if label == "NORM" else "abnormal"
            sides[not learnt].append(_labelled(one, "diagnosis", word, Path(one.name)))
    return sides


ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing")


@functools.cache
def activities() -> tuple[list[Recording], list[Recording]]:
    """A phone's three axes at 12.5 Hz while its user does something, by user: the third is judged."""
    place = folder("hyperimu_har")
    sides: tuple[list[Recording], list[Recording]] = ([], [])
    for line in (place / "labels.txt").read_text().splitlines():
        if not line.strip():
            continue
        number, user, activity, start, stop = map(int, line.split())
        (path, *_), stop = [*place.glob(f"acc_exp{number:02}_user{user:02}.txt"), None], min(stop, start + 2900)
        if path is None:  # only eight of the experiments are here
            continue
        three = series_of(path).values[start:stop]
        values = np.stack([slower(three[:, n], 4) for n in range(3)], axis=1).astype(np.float32)
        one = Series(f"{path.stem} {start}", values, 12.5, tuple("xyz"), ("m/s²",) * 3)
        sides[user == 3].append(_labelled(one, "activity", ACTIVITIES[activity - 1], path))
    return sides


@functools.cache
def executions() -> tuple[list[Recording], list[Recording]]:
    """A robot's forces and torques in four tasks: whether what it did was normal. The last 30 % of each file are
    judged."""
    sides: tuple[list[Recording], list[Recording]] = ([], [])
    for task in (1, 2, 4, 5):
        path = folder("robot_failures") / f"lp{task}.data"
        found = reading.read(path)
        for n, one in enumerate(found):
            word = "normal" if one.labels["failure"] == "normal" else "failure"
            assert isinstance(one, Series)
            bare = replace(one, labels={}, grid=None)
            sides[n >= 0.7 * len(found)].append(_labelled(bare, "state", word, path))
    return sides


def days() -> tuple[list[Recording], list[Recording]]:
    """Days of :func:`steps`: working day or weekend."""
    sides: tuple[list[Recording], list[Recording]] = ([], [])
    learnt, judged = steps()
    for side, found in zip(sides, (learnt, [one for one, _ in judged]), strict=True):
        for user in found:
            assert user.start_s is not None
            first = -int(user.start_s // 3600) % DAY
            for start in range(first, len(user) - DAY + 1, DAY):
                one = user.part(start, start + DAY)
                assert one.start_s is not None
                weekday = (int(one.start_s // 86400) + 3) % 7  # 1970 began on a Thursday
                bare = replace(one, start_s=None)
                side.append(_labelled(bare, "day", "weekend" if weekday >= 5 else "work", Path(user.name)))
    return sides


def traffic() -> tuple[list[Recording], list[Recording]]:
    """Of :func:`traces`: whether a video is streamed or a file downloaded."""
    sides: tuple[list[Recording], list[Recording]] = ([], [])
    for one, learnt, app in traces():
        sides[not learnt].append(_labelled(one, "use", "file" if app == "Download" else "video", Path(one.name)))
    return sides


def waves() -> tuple[list[Recording], list[Recording]]:
    """Of :func:`pulses`: of which recording, in channels of one name."""
    learnt, judged = pulses()
    sides: tuple[list[Recording], list[Recording]] = ([], [])
    for side, found in zip(sides, (learnt, [one.part(at, len(one)) for one, at in judged]), strict=True):
        for one in found:
            # Pressure and light have no unit in common: each recording in its own spreads.
            own = learnt[[each.name for each in learnt].index(one.name)].values
            values = ((one.values - own.mean()) / own.std()).astype(np.float32)
            bare = replace(one, values=values, channels=("pulse",), units=("",))
            side.append(_labelled(bare, "recording", one.name, Path(one.name)))
    return sides


GENERATIONS = {
    "days": GenerateSet(
        "steps of a day (by user)",
        days,
        24,
        {"size": "tiny", "context": 64, "steps": 300, "bins": 128, "spacing": "quantile"},
    ),
    "waves": GenerateSet(
        "pulse waves, 2 s (by time)",
        waves,
        50,
        {"size": "tiny", "context": 64, "steps": 300, "bins": 128},
    ),
    "traffic": GenerateSet(
        "5G download, 32 s (by trace)",
        traffic,
        32,
        {"size": "tiny", "context": 64, "steps": 300, "bins": 128, "spacing": "quantile"},
    ),
    "diagnoses": GenerateSet(
        "ECG, 1.3 s of lead II (PTB-XL, by patient)",
        diagnoses,
        128,
        {"size": "tiny", "context": 192, "steps": 900, "bins": 128},
        windows=2400,
    ),
    "executions": GenerateSet(
        "forces and torques of a robot (by place in the file)",
        executions,
        15,
        {"size": "tiny", "context": 128, "steps": 300, "bins": 128, "spacing": "quantile"},
    ),
    "activities": GenerateSet(
        "acceleration, 5.1 s of three axes (by user)",
        activities,
        64,
        {"size": "tiny", "context": 256, "steps": 300, "bins": 128},
    ),
}
