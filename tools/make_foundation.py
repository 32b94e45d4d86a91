"""Make the generator that genmote ships, genmote/zoo/signals-foundation: what signals of many kinds look like.

    python tools/make_foundation.py DATA --minutes 75 --out first
    python tools/make_foundation.py DATA --minutes 17 --base first/signals-foundation.gguf

DATA holds the data sets under the names of `SETS`, each as it was published, whose licences allow that a model of them
is passed on. Training goes by the clock, so another machine gives another model of about this quality.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from genmote import digest
from genmote.generator import card as cards
from genmote.generator import file as model_files
from genmote.generator import material
from genmote.generator.train import Training, train
from genmote.models.gguf import ModelFile
from genmote.signals import reading
from genmote.signals.header import MODALITY
from genmote.signals.kinds import Records, Series

OUT = Path(__file__).parents[1] / "genmote" / "zoo" / "signals-foundation"
LEADS = 3  # of each record's twelve
LONGEST = 60_000  # samples of a recording
LABELS = ("activity", "failure")


def single(series: Series, modality: str, *, channels: tuple[str, ...] = (), unit: str | None = None) -> list[Series]:
    """A series for each channel."""
    found = []
    for name in channels or series.channels:
        one = material.chosen(series, [name])
        labels = {k: v for k, v in one.labels.items() if k in LABELS} | {MODALITY: modality}
        found.append(replace(one, labels=labels, marks=(), units=(unit or one.units[0],)).part(0, LONGEST))
    return found


def read(path: Path, *, missing: tuple[float, ...] = ()) -> list[Series]:
    signals = material.read([path], missing=missing)
    return [signal for signal in signals if isinstance(signal, Series)]


def ecg(folder: Path) -> list[Series]:
    found: list[Series] = []
    for n, path in enumerate(sorted(folder.rglob("*.hea"))):
        (series,) = read(path)
        leads = [series.channels[(n + 4 * k) % len(series.channels)] for k in range(LEADS)]
        found += single(series, "ecg", channels=tuple(leads))
    return found


def motion(folder: Path) -> list[Series]:
    """Accelerations at 50 Hz, and the activities that are said of their stretches."""
    names = [line.split(maxsplit=1) for line in (folder / "activity_labels.txt").read_text().splitlines() if line]
    said = {int(number): word.strip().lower() for number, word in names}
    rows = np.array([line.split() for line in (folder / "labels.txt").read_text().splitlines() if line], int)
    found = []
    for path in sorted(folder.glob("acc_exp*.txt")):
        (series,) = read(path)
        experiment = int(path.stem.split("_")[1][3:])
        named = replace(series, rate_hz=50.0, channels=("ax", "ay", "az"), units=("m/s²",) * 3, marks=(), grid=None)
        for number, _, activity, start, stop in rows:
            if number == experiment and stop <= len(series):
                part = named.part(int(start), int(stop))
                labels = {MODALITY: "imu", "activity": said[int(activity)]}
                found.append(replace(part, name=f"{path.stem}-{start}", labels=labels))
        found.append(replace(named, labels={MODALITY: "imu"}))
    return found


def air(folder: Path) -> list[Series]:
    (series,) = read(folder / "AirQualityUCI.csv", missing=(-200.0,))
    kept = tuple(name for name in series.channels if name != "NMHC_GT")  # hardly any of it is there
    return single(series, "air-quality", channels=kept)


def room(folder: Path) -> list[Series]:
    found: list[Series] = []
    for path in sorted(folder.glob("data*.txt")):
        for series in read(path):
            found += single(series, "home", channels=("Temperature", "Humidity", "Light", "CO2"))
    return found


def steps(folder: Path) -> list[Series]:
    """Steps an hour, a series a person."""
    (records,) = material.read([folder / "hourlySteps_merged.csv"])
    assert isinstance(records, Records) and records.times_s is not None
    who, count = records.column("Id"), records.column("StepTotal")
    found = []
    for person in np.unique(who):
        own = np.flatnonzero(who == person)
        own = own[np.argsort(records.times_s[own], kind="stable")]
        values = count[own].astype(np.float32)[:, None]
        start = float(records.times_s[own[0]])
        found.append(
            Series(
                f"steps-{int(person)}", values, 1 / 3600, ("steps",), ("1",), labels={MODALITY: "steps"}, start_s=start
            )
        )
    return found


def robot(folder: Path) -> list[Series]:
    found = []
    for path in sorted(folder.glob("lp*.data")):
        for series in read(path):
            found.append(replace(series, labels={**series.labels, MODALITY: "force-torque"}))
    return found


def paths(folder: Path) -> list[Series]:
    found: list[Series] = []
    for path in sorted(folder.glob("*.gpx")):
        found += [
            one for s in read(path) if "elevation" in s.channels for one in single(s, "gps", channels=("elevation",))
        ]
    return found


def waves(folder: Path) -> list[Series]:
    """Pressures, pulses and hearts of PhysioNet's samples."""
    found: list[Series] = []
    for path in sorted(folder.glob("*.hea")):
        try:
            signals = reading.read(path)
        except Exception:  # some have other forms than we read
            continue
        for signal in signals:
            if isinstance(signal, Series):
                known = [c for c in signal.channels if c in ("ABP", "PLETH", "RESP", "MLII", "V5", "II", "V", "ABP ")]
                modality = {"ABP": "blood-pressure", "PLETH": "pulse", "RESP": "breath"}
                for channel in known:
                    found += single(signal, modality.get(channel, "ecg"), channels=(channel,))
    return found


# folder, what is made of it, how it is cited, licence
SETS: list[tuple[str, Callable[[Path], list[Series]], str, str]] = [
    ("ptbxl500", ecg, "PTB-XL 1.0.3, 500 of its records at 100 Hz (Wagner et al. 2020)", "CC BY 4.0"),
    ("hyperimu_har", motion, "HyperIMU activity recordings (DiFronzo)", "MIT"),
    ("air_quality_uci", air, "UCI Air Quality (De Vito et al. 2008)", "CC BY 4.0"),
    ("occupancy_uci", room, "UCI Occupancy Detection (Candanedo & Feldheim 2016)", "CC BY 4.0"),
    ("fitbit", steps, "FitBit Fitness Tracker Data (Furberg et al. 2016)", "CC0"),
    ("robot_failures", robot, "UCI Robot Execution Failures (Camarinha-Matos et al. 1996)", "CC BY 4.0"),
    ("gpx_tracks", paths, "tracks of the gpxpy project", "Apache-2.0"),
    ("wfdb_samples", waves, "PhysioNet samples: MIT-BIH, CinC 2015 (Goldberger et al. 2000)", "ODC-By 1.0"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--size", default="medium")
    parser.add_argument("--base", help="go on from this model")
    parser.add_argument("--card", action="store_true", help="write the card alone, of the model that is there")
    options = parser.parse_args()
    signals: list[Series] = []
    rows = ["| data | licence | recordings | samples |", "| --- | --- | ---: | ---: |"]
    for folder, made, cited, licence in SETS:
        found = made(options.data / folder)
        signals += found
        rows.append(f"| {cited} | {licence} | {len(found)} | {sum(s.values.size for s in found)} |")
        print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "signals-foundation.gguf"
    training = Training(
        bins=None if options.base else 256,
        labels=LABELS,
        size=options.size,
        context=384,
        minutes=options.minutes,
        rate=1e-3 if options.base else 2e-3,
        base=options.base,
        dropout=0.0,
        licence="CC BY 4.0, CC0, MIT, Apache-2.0 and ODC-By, by data set",
    )
    shown = [0]

    def progress(what: str, done: int, total: int) -> None:
        if done >= shown[0]:
            print(f"{what} {done} of {total}", flush=True)
            shown[0] = done + 50

    if not options.card:
        train(signals, path, training, name="signals-foundation", progress=progress)
    write_cards(path, rows)


def write_cards(path: Path, rows: list[str]) -> None:
    """`card.json` and `card.md` beside the model, from what it says of itself."""
    card = model_files.card_of(ModelFile.open(path))
    sha = digest.sha256(path.read_bytes()).hexdigest()
    figures = {"sha256": sha, "size_bytes": path.stat().st_size, **card}
    (path.parent / "card.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    told = f"""{cards.page(card)}
## Data

{chr(10).join(rows)}

Made again by, in the source tree, with the extra `workbench` (training goes by the clock, so another machine gives
another model of about this quality):

    python tools/make_foundation.py DATA --minutes 75 --out first
    python tools/make_foundation.py DATA --minutes 17 --base first/signals-foundation.gguf

| | |
| --- | --- |
| file | `{path.name}`, {path.stat().st_size:,} bytes, sha256 `{sha}` |
| licence | {card["licence"]} |
"""
    (path.parent / "card.md").write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
