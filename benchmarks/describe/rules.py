"""The rules of facts on recordings: beats against what cardiologists wrote of the rhythm, beats in noise, and
repetitions of movements of which there are known to be 20."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row
from benchmarks.signals.sets import folder
from genmote.describe import beats, facts, labelled
from genmote.errors import GenmoteError
from genmote.signals import recordings
from genmote.signals.kinds import Series
from genmote.signals.numpy_pickle import load

SLOW_BPM, FAST_BPM = 60.0, 100.0  # bradycardia is below, tachycardia above
SLACK_BPM = 2.0  # the edges are not to the beat
REPETITIONS = 20


def measure(bench: Bench) -> Iterator[Row]:
    try:
        found = labelled.load(folder("ptbxl500"), "ptbxl")
    except ContestantError as why:
        yield _row("rates of the heart that agree with the rhythm of the cardiologist (PTB-XL)", None, 90, str(why))
    else:
        yield from _hearts(found)
    try:
        path = recordings.resolve("watch")
    except GenmoteError as why:
        yield _row("sets of 20 repetitions that are counted within 1 (watch)", None, 80, str(why))
    else:
        yield from _movements(path)


def _hearts(found: list[labelled.Labelled]) -> Iterator[Row]:
    signals = [one.signal for one in found if isinstance(one.signal, Series)]
    told = [beats.beats_s(signal) for signal in signals]
    known = [None if at is None else (beats.rate_bpm(at), beats.regular(at)) for at in told]
    yield _row("ECG recordings whose heart rate is told (PTB-XL)", 100 * np.mean([one is not None for one in known]))
    rates, regular = [], []
    for one, fact in zip(known, found, strict=True):
        rhythm = next((own.word for own in fact.known if own.about == "rhythm"), "")
        if one is None or not rhythm:
            continue
        if rhythm in ("sinus bradycardia", "sinus tachycardia"):
            slow = rhythm == "sinus bradycardia"
            rates.append(one[0] <= SLOW_BPM + SLACK_BPM if slow else one[0] >= FAST_BPM - SLACK_BPM)
        if rhythm in ("atrial fibrillation", "sinus arrhythmia") and one[1] is not None:
            regular.append(not one[1])
    yield _row(
        "rates of the heart that agree with the rhythm of the cardiologist (PTB-XL)",
        100 * np.mean(rates),
        90,
        details={"slow or fast": len(rates)},
    )
    yield _row(
        "atrial fibrillation and sinus arrhythmia called irregular, of those called anything (PTB-XL)",
        100 * np.mean(regular),
        90,
        details={"recordings": len(regular)},
    )
    heard = []
    for seed, signal in enumerate(signals):
        noise = np.random.default_rng(seed).normal(size=signal.values.shape).astype(np.float32)
        heard.append(beats.beats_s(replace(signal, values=noise, grid=None)) is not None)
    yield _row("noise of 12 leads in which beats are found", 100 * np.mean(heard), 5, sense=AT_MOST)


def _movements(path: Path) -> Iterator[Row]:
    held: Any = load(path)
    about = recordings.sample("watch")
    counts = []
    for values in held["X"]:
        channels, units = tuple(about.channels), tuple(about.units)
        series = Series("set", np.asarray(values, np.float32), about.rate_hz, channels, units)
        counts += [fact.value for fact in facts.facts(series, []) if fact.about == "movements"]
    yield _row("sets of 20 repetitions that are counted (watch)", 100 * len(counts) / len(held["X"]))
    within = np.abs(np.rint(counts) - REPETITIONS) <= 1
    yield _row("sets of 20 repetitions that are counted within 1, of those counted (watch)", 100 * within.mean(), 80)


def _row(name: str, value: float | None, asked: float | None = None, note: str = "", **more: Any) -> Row:
    value = None if value is None else float(value)
    return Row(name=name, measure="describe_rules", value=value, value_unit="%", asked=asked, note=note, **more)
