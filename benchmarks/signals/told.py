"""Lossless compression with a generator's help: trained and practised on some patients, measured on others.

The recordings are those of `lossless.py`, less six on which the coder's way of listening to a model was chosen. The
generator sees eight of the twelve leads, of which the other four follow; the coder practised on all twelve.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench, missing
from benchmarks.process import REPOSITORY, ContestantError
from benchmarks.record import AT_LEAST, AT_MOST, Row, sha256
from benchmarks.signals import sides
from benchmarks.signals.lossless import NAMED, PEERS, SEEN, SETS, whole
from genmote.errors import GenmoteError
from genmote.generator import material, practise
from genmote.generator.compress import Teller
from genmote.generator.train import Training, train
from genmote.signals import container, reading
from genmote.signals.kinds import Series

TITLE = "ECG of 12 leads (PTB-XL, 100 Hz)"
CHOSEN_ON = {f"{n}_lr" for n in ("00032", "00120", "00224", "00302", "00401", "00480")}
LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
MINUTES = 16


def measure(bench: Bench) -> Iterator[Row]:
    """How much smaller than the best peers, and than without a model; what the model costs; the speed both ways."""
    folder = Path(os.environ.get(NAMED) or REPOSITORY.parent / "shared" / "data")
    name = f"lossless with a model, {TITLE}: smaller than the best peer of each recording"
    try:
        learnt, tested = patients(folder)
        model = trained(bench, learnt)
        teller = Teller.load(model, threads=1)
        found = [compared(bench, teller, path) for path in tested[:: bench.pick(1, 4)]]
        encoded, decoded = speed(teller, [series for series, *_ in found])
    except (ContestantError, GenmoteError, OSError) as why:
        yield missing(name, "signals_told", why, asked=15.0, unit="%")
        return
    ours, plain, theirs = (sum(row[n] for row in found) for n in (1, 2, 3))
    raw = sum(2 * row[0].values.size for row in found)
    size = model.stat().st_size
    told = {
        "recordings": {row[0].name: dict(zip(("ours", "without", "peer"), row[1:], strict=True)) for row in found},
        "model_sha256": sha256(model),
        "model_bytes": size,
        "raw_bytes": raw,
        "learnt_on": len(learnt),
    }
    common = {"measure": "signals_told", "value_unit": "%", "sense": AT_LEAST, "unit": "kB", "peer_name": PEERS}
    sums = {"ours": ours / 1e3, "peer": theirs / 1e3}
    value = 100 * (1 - ours / theirs)
    yield Row(f"{name}, {len(found)} together", value=value, asked=15.0, details=told, **common, **sums)
    worst = max(found, key=lambda row: row[1] / row[3])
    sums = {"ours": worst[1] / 1e3, "peer": worst[3] / 1e3}
    value = 100 * (1 - worst[1] / worst[3])
    note = worst[0].name
    yield Row(f"{name}, the worst of {len(found)}", value=value, asked=6.0, note=note, **common, **sums)
    common["peer_name"] = "the same coder without a model"
    title = f"lossless with a model, {TITLE}: smaller than without"
    sums = {"ours": ours / 1e3, "peer": plain / 1e3}
    yield Row(f"{title}, {len(found)} together", value=100 * (1 - ours / plain), asked=None, **common, **sums)
    worst = max(found, key=lambda row: row[1] / row[2])
    sums = {"ours": worst[1] / 1e3, "peer": worst[2] / 1e3}
    value, note = 100 * (1 - worst[1] / worst[2]), worst[0].name
    yield Row(f"{title}, the worst of {len(found)}", value=value, asked=None, note=note, **common, **sums)
    for what, other in (("the best peers", theirs), ("without a model", plain)):
        yield Row(
            f"recordings by which a model of {size / 1e3:.0f} kB has paid for its own size, against {what}",
            measure="signals_told",
            value=size / max(1e-9, (other - ours) / raw) / 1e6,
            value_unit="MB",
            asked=None,
            sense=AT_MOST,
            note="samples of two bytes",
        )
    for what, rate in (("coding", encoded), ("giving back", decoded)):
        yield Row(
            f"lossless {what} with a model, samples of two bytes, {len(found)} blocks, processor time of one thread",
            measure="signals_told",
            value=rate,
            value_unit="kB/s",
            asked=50.0,
            threads=1,
        )


def patients(folder: Path) -> tuple[list[Path], list[Path]]:
    """Recordings to learn from, and others of none of their patients, nor of one that a setting was chosen on."""
    pattern, most, *_ = SETS[TITLE]
    found = [path for path in sorted(folder.glob(pattern)) if path.stem not in SEEN]
    table = folder / "ptbxl500" / "ptbxl_database.csv"
    if not found or not table.exists():
        raise ContestantError(f"no recordings at {pattern}; name the folder of data sets in {NAMED}")
    with open(table, newline="") as rows:
        patient = {Path(row["filename_lr"]).name: row["patient_id"] for row in csv.DictReader(rows)}
    judged = [found[int(n)] for n in np.linspace(0, len(found) - 1, most)]
    out = {patient[path.stem] for path in judged} | {patient[name] for name in SEEN if name in patient}
    chosen_on = {patient[name] for name in CHOSEN_ON}
    learnt = [path for path in found if patient[path.stem] not in out]
    return learnt, [path for path in judged if patient[path.stem] not in chosen_on]


def trained(bench: Bench, learnt: list[Path]) -> Path:
    """The model, made once."""
    minutes = bench.pick(MINUTES, 2)
    folder = REPOSITORY / "build" / "bench-signals"
    folder.mkdir(parents=True, exist_ok=True)
    bare, made = folder / f"ecg-{minutes}.gguf", folder / f"ecg-{minutes}-practised.gguf"
    if not bare.exists():
        bench.say(f"training a generator on {len(learnt)} recordings, {minutes} minutes")
        training = Training(size="tiny", minutes=minutes, dropout=0.0, rate=3e-3)
        train(material.read(learnt, channels=LEADS, modality="ecg"), bare, training)
    if not made.exists():
        bench.say("practising")
        practise.run(bare, material.read(learnt, modality="ecg"), made)
    return made


def compared(bench: Bench, teller: Teller, path: Path) -> tuple[Series, int, int, int]:
    """A recording, and its bytes with the model, without, and of the best peer."""
    bench.say(f"compressing {path.name}")
    (signal,) = reading.read(path)
    series = whole(signal, path)
    assert series.grid is not None
    with tempfile.TemporaryDirectory() as place:
        plain = sides.ours(series, Path(place))
        file = Path(place) / "told.gmsc"
        size = container.write(file, [series], threads=1, teller=teller).bytes
    return series, size, plain, min(sides.peers(series.grid.integers).values())


def speed(teller: Teller, recordings: list[Series]) -> tuple[float, float]:
    """kB/s of coding all into one file and of giving them back, which is compared."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "all.gmsc"
        started = time.process_time()
        written = container.write(file, recordings, threads=1, teller=teller)
        middle = time.process_time()
        again = list(container.read(file, teller))
        ended = time.process_time()
    for a, b in zip(recordings, again, strict=True):
        if a.grid is None or b.grid is None or not np.array_equal(a.grid.integers, b.grid.integers):
            raise ContestantError(f"{a.name}: came back changed")
    return 2 * written.samples / (middle - started) / 1e3, 2 * written.samples / (ended - middle) / 1e3
