"""Streams with a change, and without one, for `adapt`: the heart of another patient, the log of another system.

A change is real, both sides are as they were recorded, in their order; that one follows the other is ours. A model that
adapts begins with what was learnt of the first side's earlier part.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.signals.models import trained
from benchmarks.signals.sets import folder, forward_filled, series_of, slower
from genmote import Engine
from genmote.generator.adapt import example, stretches
from genmote.generator.model import Generator
from genmote.models.decoder import Decoder
from genmote.signals.kinds import Series
from genmote.tune import batches, examples
from genmote.tune.adapt import One
from genmote.tune.examples import Examples
from genmote.tune.learnt import Numbers
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer

# PhysioNet's records: the lead, and how many of its samples are one, about 60 a second.
HEARTS = {"100": ("MLII", 6), "a103l": ("II", 4), "v102s": ("II", 4), "03700181": ("MCL1", 8)}
HEART_PART = 0.4  # of the first patient's record, that the generator is trained on
HEART_TRAINING = {"size": "tiny", "context": 160, "bins": 64, "scale": "level", "steps": 250, "threads": 1}
LOG_KNOWN = 200  # lines of the first system that the model has learnt from
LOG_STEPS = 100


@dataclass(frozen=True, eq=False)
class Regime:
    """A model, what it knows of one side, and how its training is set."""

    name: str
    decoder: Decoder
    identity: str
    tuning: Tuning
    numbers: Numbers | None  # the adapter that it begins with
    later: list[One]  # examples of the first side after those, in their order
    other: Callable[[str], list[One]]  # examples of another side
    model: str  # its title


def together(some: list[One]) -> Examples:
    """As a trainer takes them."""
    return Examples.of(some, np.int32)


def hearts(bench: Bench, first: str) -> Regime:
    """A generator of one patient's ECG."""

    def record(name: str) -> Series:
        lead, by = HEARTS[name]
        one = series_of(folder("wfdb_samples") / f"{name}.hea")
        values = slower(forward_filled(one.values[:, [one.channels.index(lead)]])[:, 0], by)
        return Series(name, values.astype(np.float32)[:, None], 60.0, ("ecg",), ("mV",))

    tuning = Tuning(steps=60, context=128, rows=512, rate=4e-3)
    whole = record(first)
    path = trained(bench, f"adapt ecg {first}", [whole.part(0, int(HEART_PART * len(whole)))], HEART_TRAINING, 0).path
    assert path is not None
    model = Generator.load(path, threads=1)

    def of(series: Series) -> list[One]:
        return [example(model.layout, rows) for rows in stretches(model, [series], tuning.context)]

    later = of(whole.part(int(HEART_PART * len(whole)), len(whole)))
    title = "a generator of 0.4 million weights"
    return Regime(f"ECG of {first}", model.decoder, path.stem, tuning, None, later, lambda n: of(record(n)), title)


def logs(bench: Bench, first: str) -> Regime:
    """A small language model with an adapter that has learnt one system's log."""
    bench.say(f"learning {LOG_KNOWN} lines of {first}")
    engine = Engine.load("mixture-16x", threads=1)  # closed with this process
    tuning = Tuning(on="attention,head", steps=60, context=64, rows=512, rate=4e-3)

    def of(system: str) -> list[One]:
        path = folder("loghub_2k") / system / f"{system}_2k.log_structured.csv"
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = [json.dumps({"text": row["Content"]}) for row in csv.DictReader(file)]
        found = (examples.one(line, engine, tuning.context) for line in lines)
        return [one for one in found if one is not None]

    every = of(first)
    numbers = learnt(engine.decoder, tuning, None, every[:LOG_KNOWN], LOG_STEPS)
    title = "mixture-16x with an adapter"
    return Regime(f"log of {first}", engine.decoder, engine.identity(), tuning, numbers, every[LOG_KNOWN:], of, title)


def learnt(
    decoder: Decoder,
    tuning: Tuning,
    numbers: Numbers | None,
    some: list[One],
    steps: int,
    each: Callable[[int, Trainer], Any] = lambda step, trainer: None,
) -> Numbers:
    """A training without any of what `adapt` adds; `each` is told each step."""
    own = None if numbers is None else {name: array.copy() for name, array in numbers.items()}
    trainer, material = Trainer(decoder, replace(tuning, steps=steps), numbers=own), together(some)
    for step in range(1, steps + 1):
        trainer.step(material, batches.chosen(len(material), tuning.batch, step - 1, tuning.seed), step)
        each(step, trainer)
    return trainer.numbers
