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
from genmote.generator.evaluate.forecast import Window
from genmote.generator.material import chosen
from genmote.generator.scores.forecast import forward_filled, seasonal_scale
from genmote.signals import reading
from genmote.signals.kinds import Records, Series

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
    """A phone's accelerometer at 25 Hz, each axis by itself, by user: the third is judged. The files tell no rate: at
    50 Hz people take 1.5 to 2 steps a second in them, at 100 Hz twice as many. Here two samples are one."""
    learnt, judged = [], []
    for path in sorted(folder("hyperimu_har").glob("acc_*.txt")):
        three = series_of(path)
        for n, axis in enumerate("xyz"):
            one = replace(chosen(three, [three.channels[n]]), channels=(axis,), units=("m/s²",), name=path.stem)
            one = plain(one, slower(one.values[:, 0], 2), 25.0)
            (judged if "user03" in path.stem else learnt).append(one)
    return learnt, [(one, 0) for one in judged]


@functools.cache
def traces() -> list[tuple[Series, bool, str]]:
    """What a phone downloads in a 5G network, kbit/s each second; whether it is learnt from, by trace: each fifth is
    not; and by which app."""
    found = []
    for n, path in enumerate(sorted(folder("5g_production_ucc").rglob("*.csv"))):
        rows = reading.read(path)[0]
        assert isinstance(rows, Records) and rows.times_s is not None
        seconds = np.rint(rows.times_s - rows.times_s[0]).astype(int)
        values = np.full(seconds.max() + 1, np.nan)
        values[seconds] = np.asarray(rows.column("DL_bitrate"), np.float64)
        values = forward_filled(values[:, None])
        one = Series(path.stem, values.astype(np.float32), 1.0, ("download",), ("kbit/s",))
        app = path.relative_to(folder("5g_production_ucc")).parts[1]
        found.append((one, n % 5 != 4, app))
    return found


def throughput() -> tuple[list[Series], list[tuple[Series, int]]]:
    """Of :func:`traces`."""
    found = traces()
    return [one for one, learnt, _ in found if learnt], [(one, 0) for one, learnt, _ in found if not learnt]


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
        "acceleration at 25 Hz (by user), 2.6 s",
        motion,
        256,
        64,
        beats=(10, 100),
        training={**SLOW, "steps": 500, "scale": "level", "shift": 0.05},
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
