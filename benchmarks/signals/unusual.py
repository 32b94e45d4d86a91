"""What detectors are measured on: what is normal, split by time, task or trace from what is judged."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.signals.sets import folder, plain, series_of, slower
from genmote.generator.evaluate.data import MARKS, Recording, prepared
from genmote.generator.evaluate.detect import clean
from genmote.generator.material import chosen
from genmote.generator.scores.forecast import forward_filled
from genmote.signals import reading
from genmote.signals.kinds import Mark, Records, Series


@dataclass(frozen=True)
class DetectSet:
    """`load` gives recordings to learn what is normal from, and those that are judged. For the peers an item is `back`
    rows before it and its own, or, for a mark, `back` rows on either side; for a recording all its rows. `smooth`:
    rows over which every side's scores are averaged."""

    load: Callable[[], tuple[list[Recording], list[Recording]]]
    normal: tuple[str, ...]
    back: int = 0
    whole: bool = False
    smooth: int = 1
    training: dict[str, Any] = field(default_factory=dict)


BEAT_BY = 8


@functools.cache
def beats() -> tuple[list[Recording], list[Recording]]:
    """Record 100 of MIT-BIH, MLII at 45 Hz: the stretches of normal beats in its first ten minutes, then the others."""
    path = folder("wfdb_samples") / "100.hea"
    whole = series_of(path)
    one = chosen(whole, ["MLII"])
    marks = [(m.start // BEAT_BY, m.label) for m in whole.marks if m.stop - m.start == 1]
    one = plain(one, slower(one.values[:, 0], BEAT_BY), 360 / BEAT_BY)
    one = replace(one, marks=tuple(Mark(at, at + 1, label) for at, label in marks))
    cut = 10 * 60 * 360 // BEAT_BY
    learnt, judged = (prepared(part, path, MARKS, ()) for part in (one.part(0, cut), one.part(cut, len(one))))
    return clean([learnt], ["N"]), [judged]


DEVICES = ("Fridge", "GPS_Tracker", "Thermostat")


@functools.cache
def telemetry(device: str) -> tuple[list[Recording], list[Recording]]:
    """What a home's devices told, of TON-IoT: the first 60 % of a device's normal rows, then the others, and the first
    2000 rows of each attack."""
    path = folder("ton_iot_telemetry") / f"Train_Test_IoT_{device}.csv"
    rows = reading.read(path)[0]
    assert isinstance(rows, Records) and rows.times_s is not None
    kinds = np.asarray(rows.column("type")).astype(str)
    of = {kind: np.flatnonzero(kinds == kind) for kind in sorted(set(kinds.tolist()))}
    of = {kind: own[np.argsort(rows.times_s[own], kind="stable")] for kind, own in of.items()}
    cut = int(0.6 * len(of["normal"]))
    learnt, rest = of["normal"][:cut], of["normal"][cut:]
    judged = np.concatenate([rest, *(own[:2000] for kind, own in of.items() if kind != "normal")])
    return [_rows(path, rows, learnt, "type", ("label",))], [_rows(path, rows, judged, "type", ("label",))]


def _rows(path: Path, rows: Records, own: NDArray[np.integer], label: str, drop: tuple[str, ...]) -> Recording:
    times = None if rows.times_s is None else rows.times_s[own]
    some = replace(rows, columns=tuple(column[own] for column in rows.columns), times_s=times)
    return prepared(some, path, label, drop)


@functools.cache
def connections() -> tuple[list[Recording], list[Recording]]:
    """NSL-KDD's test rows, which have no order: the normal ones of the first 40 % of the file, then all others."""
    path = folder("nsl_kdd_test") / "rows.csv"
    rows = reading.read(path)[0]
    assert isinstance(rows, Records)
    cut = int(0.4 * len(rows))
    first, rest = np.arange(cut), np.arange(cut, len(rows))
    drop = ("#correctly_predicted",)
    return clean([_rows(path, rows, first, "label", drop)], ["normal"]), [_rows(path, rows, rest, "label", drop)]


@functools.cache
def failures() -> tuple[list[Recording], list[Recording]]:
    """Forces and torques of a robot's arm: what is normal in three tasks (LP1, LP2, LP4), then a fourth (LP5)."""

    def task(n: int) -> list[Recording]:
        path = folder("robot_failures") / f"lp{n}.data"
        return [prepared(one, path, "failure", ()) for one in reading.read(path)]

    return clean([one for n in (1, 2, 4) for one in task(n)], ["normal"]), task(5)


@functools.cache
def network() -> tuple[list[Recording], list[Recording]]:
    """A phone in a 5G network that falls back to 3G, as its column NetworkMode says; what is seen is the traffic and
    the speed alone, each second, as the radio's own figures give the network away. By trace: each fifth is judged."""
    learnt, judged = [], []
    for n, path in enumerate(sorted(folder("5g_production_ucc").rglob("*.csv"))):
        rows = reading.read(path)[0]
        assert isinstance(rows, Records) and rows.times_s is not None
        seconds = np.rint(rows.times_s - rows.times_s[0]).astype(int)
        values = np.full((seconds.max() + 1, 3), np.nan)
        for at, name in enumerate(("DL_bitrate", "UL_bitrate", "Speed")):
            values[seconds, at] = np.asarray(rows.column(name), np.float64)
        last = np.zeros(len(values), int)
        last[seconds] = np.arange(len(seconds))
        modes = np.asarray(rows.column("NetworkMode"), object)[np.maximum.accumulate(last)]
        one = Series(
            path.stem, forward_filled(values).astype(np.float32), 1.0, ("download", "upload", "speed"),
            ("kbit/s", "kbit/s", "km/h"),
        )  # fmt: skip
        (judged if n % 5 == 4 else learnt).append(Recording(path, one, "network", modes))
    return clean(learnt, ["5G", "LTE"]), judged


ROWS = {"size": "tiny", "context": 256, "steps": 250}
DETECTIONS: dict[str, dict[str, DetectSet]] = {  # each set in parts, whose mean is taken
    "ECG beats (MIT-BIH record 100, by time)": {
        "beats": DetectSet(beats, ("N",), back=24, training={"size": "tiny", "context": 256, "steps": 250, "bins": 96})
    },
    "connections (NSL-KDD, by place in the file)": {"connections": DetectSet(connections, ("normal",), training=ROWS)},
    "robot failures (by task)": {
        "failures": DetectSet(
            failures,
            ("normal",),
            whole=True,
            training={"size": "tiny", "context": 128, "steps": 200, "bins": 64, "dropout": 0.2},
        )
    },
    "5G that falls back to 3G (by trace)": {
        "network": DetectSet(
            network,
            ("5G", "LTE"),
            back=8,
            smooth=8,
            training={"size": "tiny", "context": 256, "steps": 250, "bins": 64, "spacing": "quantile"},
        )
    },
    "telemetry of three devices (TON-IoT, by time)": {
        device: DetectSet(
            functools.partial(telemetry, device), ("normal",), back=4, smooth=8, training={**ROWS, "steps": 100}
        )
        for device in DEVICES
    },
}
