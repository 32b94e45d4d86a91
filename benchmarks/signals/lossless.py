"""Lossless compression of recordings that no setting was chosen on, against the best peer of each."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench, missing
from benchmarks.process import REPOSITORY, ContestantError
from benchmarks.record import AT_LEAST, Row
from benchmarks.signals import sides
from genmote.errors import GenmoteError
from genmote.signals import reading
from genmote.signals.kinds import MISSING, Grid, Series

NAMED = "GENMOTE_BENCH_SIGNALS"
# On these the coder's settings were chosen.
SEEN = {f"0000{n}_lr" for n in range(1, 7)} | {"100", "0_george_0", "7_jackson_1", "3_nicolas_3"}
DROPPED = {"HumidityRatio"}  # computed of the other columns
PEERS = "the best of xz, zstd, bzip2, linear predictors, FLAC"
FINEST, COARSE = 1e-4, 0.01  # a channel with finer steps than the one is rounded to the other, for all contestants
SETS = {  # where the recordings lie, how many of them, and the least that is asked: together, and of each
    "ECG of 12 leads (PTB-XL, 100 Hz)": ("ptbxl500/records100/00000/*.hea", 24, 15.0, 6.0),
    "spoken digits (8 kHz)": ("fsdd_test/*.wav", 24, 5.0, None),
    "a room's sensors (UCI occupancy)": ("occupancy_uci/data*.txt", 3, 15.0, None),
}


def measure(bench: Bench) -> Iterator[Row]:
    """For each set: how much smaller than the best peers, all together and the worst recording; and the speed."""
    folder = Path(os.environ.get(NAMED) or REPOSITORY.parent / "shared" / "data")
    samples, seconds = 0, 0.0
    for title, (pattern, most, together, each) in SETS.items():
        name = f"lossless, {title}: smaller than the best peer of each recording"
        try:
            rows = list(compared(bench, folder, pattern, bench.pick(most, 6)))
        except (ContestantError, GenmoteError, OSError) as why:
            yield missing(name, "signals_lossless", why, asked=together, unit="%")
            continue
        mine, theirs = sum(row[1] for row in rows), sum(min(row[2].values()) for row in rows)
        saved = {row[0]: 100 * (1 - row[1] / min(row[2].values())) for row in rows}
        samples, seconds = samples + sum(row[3] for row in rows), seconds + sum(row[4] for row in rows)
        told = {
            "recordings": {
                row[0]: {"ours": row[1], "peer": min(row[2].values()), "which": min(row[2], key=lambda k: row[2][k])}
                for row in rows
            }
        }
        sums = {
            "ours": mine / 1e3,
            "peer": theirs / 1e3,
            "peer_name": PEERS,
        }
        common = {"measure": "signals_lossless", "value_unit": "%", "sense": AT_LEAST, "unit": "kB", **sums}
        value = 100 * (1 - mine / theirs)
        yield Row(f"{name}, {len(rows)} together", value=value, asked=together, details=told, **common)
        worst = min(saved, key=lambda key: saved[key])
        sums = {"ours": told["recordings"][worst]["ours"] / 1e3, "peer": told["recordings"][worst]["peer"] / 1e3}
        yield Row(f"{name}, the worst of {len(rows)}", value=saved[worst], asked=each, note=worst, **{**common, **sums})
    if seconds:
        yield Row(
            "lossless coding of samples of two bytes, processor time of one thread",
            measure="signals_lossless",
            value=2 * samples / seconds / 1e3,
            value_unit="kB/s",
            asked=50.0,
            threads=1,
        )


def compared(
    bench: Bench, folder: Path, pattern: str, most: int
) -> Iterator[tuple[str, int, dict[str, int], int, float]]:
    """Of each recording its name, our bytes, the peers', its samples and the seconds that coding them took."""
    found = [path for path in sorted(folder.glob(pattern)) if path.stem not in SEEN]
    if not found:
        raise ContestantError(f"no recordings at {pattern}; name the folder of data sets in {NAMED}")
    chosen = [found[int(n)] for n in np.linspace(0, len(found) - 1, min(most, len(found)))]
    with tempfile.TemporaryDirectory() as place:
        for path in chosen:
            bench.say(f"compressing {path.name}")
            (signal,) = reading.read(path)
            series = whole(signal, path)
            assert series.grid is not None
            integers = series.grid.integers
            started = time.process_time()
            size = sides.ours(series, Path(place))
            seconds = time.process_time() - started
            sides.check(series, Path(place))
            yield path.stem, size, sides.peers(integers), integers.size, seconds


def whole(signal: object, path: Path) -> Series:
    """The recording's whole numbers alone, without times, computed columns and missing samples."""
    if not isinstance(signal, Series) or signal.grid is None:
        raise ContestantError(f"{path.name}: no whole numbers")
    kept = [n for n, channel in enumerate(signal.channels) if channel not in DROPPED]
    grid = Grid(signal.grid.integers[:, kept], signal.grid.step[kept], signal.grid.zero[kept])
    if grid.step.min() < FINEST:  # means that were written with all their digits
        fine = np.where(grid.step < FINEST, np.rint(COARSE / grid.step), 1).astype(np.int64)
        rounded = np.floor_divide(2 * grid.integers + fine, 2 * fine)
        grid = Grid(np.where(grid.integers == MISSING, MISSING, rounded), grid.step * fine, grid.zero)
    there = (grid.integers != MISSING).all(axis=1)
    grid = Grid(grid.integers[there], grid.step, grid.zero)
    names = tuple(signal.channels[n] for n in kept)
    return Series(path.stem, grid.values(), 1.0, names, tuple(signal.units[n] for n in kept), grid=grid)
