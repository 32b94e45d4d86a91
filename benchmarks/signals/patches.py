"""Learned patches beside bins: how many samples a token says, and how far off they come back, on unseen recordings."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.bench import Bench, missing
from benchmarks.process import REPOSITORY, ContestantError
from benchmarks.record import Row
from benchmarks.signals.lossless import NAMED
from genmote.errors import GenmoteError
from genmote.signals import coding, reading
from genmote.signals.kinds import Series

FIT = 100  # ECG recordings that the codecs are fitted on
PEER = "bins"
AIR_MISSING, AIR_FIT = -200.0, 7000  # how the file says that a sample is missing; rows before the others
MOSTLY_GONE = "NMHC_GT"
Sides = tuple[list[Series], list[Series]]


def measure(bench: Bench) -> Iterator[Row]:
    """For each set and shape of patch: samples a token, and the error of both codecs in parts of a channel's spread."""
    folder = Path(os.environ.get(NAMED) or REPOSITORY.parent / "shared" / "data")
    shapes: list[dict[str, int]] = [{}] if bench.quick else [{"patch": 8}, {}, {"codes": 3}]
    for title, sides in (
        ("ECG of 12 leads (PTB-XL, 100 Hz)", hearts),
        ("acceleration and turning of a telephone (6 channels)", motion),
        ("air quality (UCI, hourly, 12 channels)", air),
    ):
        try:
            known, unseen = sides(folder)
            plain = measured(known, unseen, PEER, {})
            for settings in shapes:
                bench.say(f"patches of {title}, {settings or 'as they come'}")
                ours = measured(known, unseen, "patch", settings)
                yield row(title, settings, ours, plain)
        except (ContestantError, GenmoteError, OSError) as why:
            yield missing(f"patches, {title}: samples a token", "signals_patches", why, unit="samples a token")


class Measured(NamedTuple):
    """`off`: root mean square error over the unseen samples in parts of their spread, the channels' mean; `stated`: the
    same of the stated error."""

    samples_a_token: float
    off: float
    stated: float
    vocabulary: int
    fit_s: float
    told: list[str]


def measured(known: Sequence[Series], unseen: Sequence[Series], name: str, settings: dict[str, int]) -> Measured:
    """A codec fitted on `known`, on `unseen`."""
    started = time.process_time()
    codec = coding.fit(name, known, **settings)
    fit_s = time.process_time() - started
    tokens, notes, off = 0, [], []
    for series in unseen:
        found = codec.encode(series, notes)
        tokens += len(found)
        again = codec.decode(found, coding.about(series))
        assert isinstance(again, Series)
        if not np.array_equal(np.isnan(again.values), np.isnan(series.values)):
            raise ContestantError(f"{series.name}: other samples are missing than were")
        off.append(again.values.astype(np.float64) - series.values)
    spread = np.nanstd(np.concatenate([series.values for series in unseen]), axis=0, dtype=np.float64)
    error = np.sqrt(np.nanmean(np.concatenate(off) ** 2, axis=0))
    stated = np.array([bound.absolute for bound in codec.error().values()])
    samples = sum(series.values.size for series in unseen)
    return Measured(
        samples / tokens,
        float((error / spread).mean()),
        float((stated / spread).mean()),
        codec.vocabulary,
        fit_s,
        notes,
    )


def row(title: str, settings: dict[str, int], ours: Measured, plain: Measured) -> Row:
    how = "".join(f", {name} {value}" for name, value in settings.items())
    details: dict[str, Any] = {
        side: {
            "stated": one.stated,
            "vocabulary": one.vocabulary,
            "fit_s": one.fit_s,
            "spelt": sum(int(note.split(": ")[1].split()[0]) for note in one.told if "patches are spelt" in note),
        }
        for side, one in (("ours", ours), ("peer", plain))
    }
    return Row(
        f"patches{how}, {title}: samples a token; error in parts of a channel's spread beside bins",
        measure="signals_patches",
        value=ours.samples_a_token,
        value_unit="samples a token",
        asked=None,
        unit="of the spread",
        ours=ours.off,
        peer=plain.off,
        peer_name=PEER,
        threads=1,
        details=details,
    )


def hearts(folder: Path) -> Sides:
    found = sorted(folder.glob("ptbxl500/records100/00000/*.hea"))
    series = [one for path in found for one in reading.read(path) if isinstance(one, Series)]
    return split(series, FIT, "ptbxl500")


def motion(folder: Path) -> Sides:
    """Acceleration and turning together, of two people; the unseen recordings are of two others."""
    series = []
    for path in sorted(folder.glob("hyperimu_har/acc_*.txt")):
        parts = [np.loadtxt(path.with_name(path.name.replace("acc", kind)), np.float32) for kind in ("acc", "gyro")]
        names, units = ("ax", "ay", "az", "gx", "gy", "gz"), ("m/s²",) * 3 + ("rad/s",) * 3
        series.append(Series(path.stem, np.concatenate(parts, axis=1), 50.0, names, units))
    subject = [one.name.rpartition("user")[2] for one in series]
    order = sorted(range(len(series)), key=lambda n: (subject[n], series[n].name))
    return split([series[n] for n in order], 4, "hyperimu_har")


def air(folder: Path) -> Sides:
    """Split by time."""
    series = []
    for path in folder.glob("air_quality_uci/AirQualityUCI.csv"):
        for one in reading.read(path):
            assert isinstance(one, Series)
            kept = [n for n, name in enumerate(one.channels) if name != MOSTLY_GONE]
            values = np.where(one.values == AIR_MISSING, np.float32(np.nan), one.values)[:, kept]
            names, units = tuple(one.channels[n] for n in kept), tuple(one.units[n] for n in kept)
            whole = Series(one.name, values, one.rate_hz, names, units)
            series += [whole.part(0, AIR_FIT), whole.part(AIR_FIT, len(whole))]
    return split(series, 1, "air_quality_uci")


def split(series: list[Series], first: int, name: str) -> Sides:
    if len(series) <= first:
        raise ContestantError(f"{name}: no recordings; name the folder of data sets in {NAMED}")
    return series[:first], series[first:]
