"""What generators and their peers are measured on: recordings of `shared/data`, split by patient, user, trace or time.

Forecasts are of one channel at a time, as the classical peers know no other. All sides get the same histories; missing
samples of a history are filled with the one before for the peers, which take none.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.process import REPOSITORY, ContestantError
from genmote.generator.evaluate.data import MARKS, Recording, prepared
from genmote.generator.evaluate.detect import clean
from genmote.generator.evaluate.forecast import Window
from genmote.generator.material import chosen
from genmote.generator.scores.forecast import forward_filled, seasonal_scale
from genmote.signals import reading
from genmote.signals.kinds import Mark, Records, Series

NAMED = "GENMOTE_BENCH_SIGNALS"
DAY, WEEK = 24, 168


def folder(name: str) -> Path:
    """One of the folders of data. `ContestantError` with the reason where it is not here."""
    found = Path(os.environ.get(NAMED) or REPOSITORY.parent / "shared" / "data") / name
    if not found.is_dir():
        raise ContestantError(f"no recordings at {found.parent.name}/{name}; name the folder of data sets in {NAMED}")
    return found


@dataclass(frozen=True)
class ForecastSet:
    """`load` gives the series to learn from, and those to be judged on, each with the first row that may be forecast.
    `season`: rows, or 0 where the peers have to find it (the highest autocorrelation of the history within
    `beats`)."""

    title: str
    load: Callable[[], tuple[list[Series], list[tuple[Series, int]]]]
    history: int
    horizon: int
    season: int = 0
    beats: tuple[int, int] = (0, 0)
    training: dict[str, Any] = field(default_factory=dict)

    def windows(self, most: int) -> list[Window]:
        """At most so many, evenly over all that there is."""
        found = []
        for series, first in self.load()[1]:
            for origin in range(max(first, self.history), len(series) - self.horizon + 1, self.horizon):
                actual = series.values[origin : origin + self.horizon]
                scale = seasonal_scale(series.values[:origin], self.season or 1)
                history = series.part(origin - self.history, origin)
                if np.isfinite(history.values).mean() > 0.5 and np.isfinite(actual).any() and np.isfinite(scale).all():
                    found.append(Window(f"{series.name} {series.channels[0]}", origin, history, actual, scale))
        kept = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
        return [found[n] for n in kept]

    def season_of(self, history: NDArray[np.float32]) -> int:
        """Of a history (T, 1)."""
        if self.season:
            return self.season
        low, high = self.beats
        x = forward_filled(history)[:, 0].astype(np.float64)
        x = x - x.mean()
        lags = np.arange(low, min(high, len(x) // 2) + 1)
        likeness = [
            float(x[lag:] @ x[:-lag]) / float(np.sqrt((x[lag:] ** 2).sum() * (x[:-lag] ** 2).sum()) or 1)
            for lag in lags
        ]
        return int(lags[int(np.argmax(likeness))])


def series_of(path: Path) -> Series:
    (signal,) = reading.read(path)[:1]
    if not isinstance(signal, Series):
        raise ContestantError(f"{path.name}: is no series")
    return signal


def plain(series: Series, values: NDArray[np.floating], rate_hz: float, **more: Any) -> Series:
    """The series with other values of its one channel, as floats alone."""
    return replace(
        series, values=values.astype(np.float32).reshape(-1, 1), rate_hz=rate_hz, grid=None, marks=(), labels={}, **more
    )


def slower(values: NDArray[np.floating], by: int) -> NDArray[np.floating]:
    """(T // by,): means."""
    whole: NDArray[np.floating] = values[: len(values) // by * by].reshape(-1, by).mean(axis=1)
    return whole


def by_time(series: Sequence[Series], share: float) -> tuple[list[Series], list[tuple[Series, int]]]:
    """The first part to learn from; what comes after it is judged, with all before it as history."""
    cut = [int(len(one) * share) for one in series]
    return [one.part(0, at) for one, at in zip(series, cut, strict=True)], list(zip(series, cut, strict=True))


# -- forecasts -------------------------------------------------------------------------------------------------------
@functools.cache
def heartbeats() -> list[tuple[Series, bool, str]]:
    """Lead II of PTB-XL at 100 Hz; whether it is learnt from, by patient: those of folds 7 and 8, of the eight that are
    here, are not; and the class of its likeliest diagnosis, empty where there is none."""
    table = reading.read(folder("ptbxl500") / "ptbxl_database.csv")[0]
    codes = reading.read(folder("ptbxl500") / "scp_codes.csv")[0]
    assert isinstance(table, Records) and isinstance(codes, Records)
    classes = dict(zip(codes.column("code").tolist(), codes.column("diagnostic_class").tolist(), strict=True))
    columns = [table.column(key).tolist() for key in ("filename_lr", "strat_fold", "patient_id", "scp_codes")]
    judged = {patient for _, fold, patient, _ in zip(*columns, strict=True) if fold >= 7}
    found = []
    for name, _, patient, said in zip(*columns, strict=True):
        path = folder("ptbxl500") / f"{name}.hea"
        if path.exists():
            likely = sorted(((-share, code) for code, share in ast.literal_eval(said).items() if classes.get(code)))
            one = chosen(series_of(path), ["II"])
            label = str(classes[likely[0][1]]) if likely else ""
            found.append((plain(one, one.values[:, 0], 100.0), patient not in judged, label))
    return found


def ecg() -> tuple[list[Series], list[tuple[Series, int]]]:
    """Of :func:`heartbeats`."""
    found = heartbeats()
    return [one for one, learnt, _ in found if learnt], [(one, 0) for one, learnt, _ in found if not learnt]


@functools.cache
def motion() -> tuple[list[Series], list[tuple[Series, int]]]:
    """A phone's accelerometer at 50 Hz, each axis by itself, by user: the third is judged."""
    learnt, judged = [], []
    for path in sorted(folder("hyperimu_har").glob("acc_*.txt")):
        three = series_of(path)
        for n, axis in enumerate("xyz"):
            one = replace(chosen(three, [three.channels[n]]), channels=(axis,), units=("m/s²",), name=path.stem)
            one = plain(one, slower(one.values[:, 0], 2), 50.0)
            (judged if "user03" in path.stem else learnt).append(one)
    return learnt, [(one, 0) for one in judged]


@functools.cache
def throughput() -> tuple[list[Series], list[tuple[Series, int]]]:
    """What a phone downloads in a 5G network, kbit/s each second, by trace: each fifth is judged."""
    learnt, judged = [], []
    for n, path in enumerate(sorted(folder("5g_production_ucc").rglob("*.csv"))):
        rows = reading.read(path)[0]
        assert isinstance(rows, Records) and rows.times_s is not None
        seconds = np.rint(rows.times_s - rows.times_s[0]).astype(int)
        values = np.full(seconds.max() + 1, np.nan)
        values[seconds] = np.asarray(rows.column("DL_bitrate"), np.float64)
        values = forward_filled(values[:, None])
        one = Series(path.stem, values.astype(np.float32), 1.0, ("download",), ("kbit/s",))
        (judged if n % 5 == 4 else learnt).append(one)
    return learnt, [(one, 0) for one in judged]


SENSORS = ("PT08_S1_CO", "PT08_S2_NMHC", "PT08_S3_NOx", "PT08_S4_NO2", "PT08_S5_O3")
AIR = ("CO_GT", "C6H6_GT", "NOx_GT", "NO2_GT", *SENSORS, "T", "RH", "AH")


@functools.cache
def air() -> tuple[list[Series], list[tuple[Series, int]]]:
    """A street's air by the hour, each channel by itself, by time: the last quarter is judged. -200 is missing."""
    whole = series_of(folder("air_quality_uci") / "AirQualityUCI.csv")
    found = []
    for name in AIR:
        one = chosen(whole, [name])
        found.append(plain(one, np.where(one.values[:, 0] == -200, np.nan, one.values[:, 0]), one.rate_hz))
    return by_time(found, 0.75)


@functools.cache
def steps() -> tuple[list[Series], list[tuple[Series, int]]]:
    """Steps of an hour by Fitbit trackers, by user: each fourth is judged."""
    rows = reading.read(folder("fitbit") / "hourlySteps_merged.csv")[0]
    assert isinstance(rows, Records) and rows.times_s is not None
    users = np.asarray(rows.column("Id"))
    learnt, judged = [], []
    for n, user in enumerate(sorted(set(users.tolist()))):
        own = np.flatnonzero(users == user)
        own = own[np.argsort(rows.times_s[own], kind="stable")]
        values = np.asarray(rows.column("StepTotal"), np.float32)[own].reshape(-1, 1)
        one = Series(f"user {n}", values, 1 / 3600, ("steps",), ("1/h",), start_s=float(rows.times_s[own[0]]))
        (judged if n % 4 == 3 else learnt).append(one)
    return learnt, [(one, 0) for one in judged]


PULSES = (("03700181", "ABP", 5), ("a103l", "PLETH", 10), ("v102s", "PLETH", 10))


@functools.cache
def pulses() -> tuple[list[Series], list[tuple[Series, int]]]:
    """Arterial pressure and the light of a finger at 25 Hz, by time: the last 30 % are judged."""
    found = []
    for record, channel, by in PULSES:
        one = chosen(series_of(folder("wfdb_samples") / f"{record}.hea"), [channel])
        one = replace(one, channels=(f"{channel} {record}",))
        found.append(plain(one, slower(forward_filled(one.values)[:, 0], by), 25.0))
    return by_time(found, 0.7)


SLOW = {"size": "tiny", "context": 256, "bins": 128}
FORECASTS = {
    "steps": ForecastSet(
        "steps by the hour (by user), 24 h",
        steps,
        2 * WEEK,
        24,
        season=DAY,
        training={**SLOW, "steps": 500, "spacing": "quantile"},
    ),
    "throughput": ForecastSet(
        "5G download each second (by trace), 30 s",
        throughput,
        256,
        30,
        beats=(2, 100),
        training={**SLOW, "steps": 700, "spacing": "quantile"},
    ),
    "pulses": ForecastSet(
        "pulse waves at 25 Hz (by time), 2 s",
        pulses,
        256,
        50,
        beats=(8, 60),
        training={"size": "tiny", "context": 320, "bins": 128, "steps": 700},
    ),
    "motion": ForecastSet(
        "acceleration at 50 Hz (by user), 1.3 s",
        motion,
        256,
        64,
        beats=(10, 100),
        training={**SLOW, "steps": 300, "scale": "level"},
    ),
    "ecg": ForecastSet(
        "ECG, lead II at 100 Hz (PTB-XL, by patient), 1 s",
        ecg,
        400,
        100,
        beats=(30, 200),
        training={"size": "tiny", "context": 320, "bins": 128, "steps": 450, "scale": "level"},
    ),
    "air": ForecastSet(
        "air quality by the hour (by time), 48 h",
        air,
        3 * WEEK,
        48,
        season=DAY,
        training={**SLOW, "steps": 300, "shift": 0.05},
    ),
}


# -- what is unusual -------------------------------------------------------------------------------------------------
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
    "telemetry of three devices (TON-IoT, by time)": {
        device: DetectSet(
            functools.partial(telemetry, device), ("normal",), back=4, smooth=8, training={**ROWS, "steps": 100}
        )
        for device in DEVICES
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
}


# -- generated -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GenerateSet:
    """`load` gives labelled recordings to learn from and others; `steps`: rows of a window that is generated."""

    title: str
    load: Callable[[], tuple[list[Recording], list[Recording]]]
    steps: int
    training: dict[str, Any] = field(default_factory=dict)


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
    """A phone's three axes at 25 Hz while its user does something, by user: the third is judged."""
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
        one = Series(f"{path.stem} {start}", values, 25.0, tuple("xyz"), ("m/s²",) * 3)
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


GENERATIONS = {
    "diagnoses": GenerateSet(
        "ECG, 1.3 s of lead II (PTB-XL, by patient)",
        diagnoses,
        128,
        {"size": "tiny", "context": 192, "steps": 350, "bins": 128},
    ),
    "activities": GenerateSet(
        "acceleration, 2.6 s of three axes (by user)",
        activities,
        64,
        {"size": "tiny", "context": 256, "steps": 300, "bins": 128},
    ),
    "executions": GenerateSet(
        "forces and torques of a robot (by place in the file)",
        executions,
        15,
        {"size": "tiny", "context": 128, "steps": 300, "bins": 128, "spacing": "quantile"},
    ),
    "days": GenerateSet(
        "steps of a day (by user)",
        days,
        24,
        {"size": "tiny", "context": 64, "steps": 300, "bins": 128, "spacing": "quantile"},
    ),
}
