"""Generated windows beside real ones that nobody has seen: are they hard to tell apart, useful, and no copies?

The peers are SDV's PAR, a recurrent network by time and label, and a bootstrap copy: real training windows drawn again.
A copy cannot be told apart and is as useful as they are, and gives all of them away.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row
from benchmarks.signals import labelled, models
from benchmarks.signals.labelled import GenerateSet
from genmote.errors import GenmoteError
from genmote.generator.evaluate.data import Columns
from genmote.generator.evaluate.generate import generated, windows
from genmote.generator.scores import generation, leakage

MEASURE = "signals_generate"
PAR, COPY = "SDV PAR", "bootstrap copy"
WANTED = 3  # sets
MOST = 600  # windows of each side that are judged
DISCRIMINATIVE, BEHIND, MEMBERSHIP = 0.2, 5.0, 55.0
FIGURES = {  # what is asked of each, and its unit
    "discriminative": (DISCRIMINATIVE, "of 0.5"),
    "behind": (BEHIND, "points"),
    "membership": (MEMBERSHIP, "%"),
}
TITLES = {
    "discriminative": "how far a recurrent network tells generated from unseen windows",
    "behind": "accuracy behind training on real windows",
    "membership": "training windows told from unseen ones by the nearest generated one or the likelihood, the worse",
}


def measure(bench: Bench) -> Iterator[Row]:
    """For each set three figures; and on how many sets all of them are reached."""
    reached = 0
    for name, one in labelled.GENERATIONS.items():
        try:
            found, told = compared(bench, name, one)
        except (ContestantError, GenmoteError, OSError) as why:
            yield missing(f"generation, {one.title}", MEASURE, why)
            continue
        rows = []
        for figure, (asked, unit) in FIGURES.items():
            ours = [each["ours"][figure] for each in found]
            peer = found[0][PAR][figure]
            rows.append(
                Row(
                    f"generation, {one.title}: {TITLES[figure]}",
                    measure=MEASURE,
                    seeds=bench.seeds,
                    value=statistics.median(ours),
                    value_unit=unit,
                    asked=MEMBERSHIP if figure == "membership" else None,
                    sense=AT_MOST,
                    unit=unit,
                    ours=statistics.median(ours),
                    ours_samples=ours,
                    peer_name=PAR,
                    peer=peer,
                    details={**told, "sides": found, "wanted": asked},
                )
            )
        apart, behind, member = (statistics.median(row.ours_samples) for row in rows)
        reached += apart < DISCRIMINATIVE and behind <= BEHIND and member < MEMBERSHIP
        yield from rows
    yield Row(
        f"generation: sets with a discriminative score below {DISCRIMINATIVE}, at most {BEHIND:g} points behind and "
        f"membership below {MEMBERSHIP:g} %",
        measure=MEASURE,
        seeds=bench.seeds,
        value=float(reached),
        value_unit="sets",
        asked=float(WANTED),
    )


@dataclass(frozen=True, eq=False)
class Side:
    """Windows (N, T, C) and their labels (N,)."""

    numbers: NDArray[np.float32]
    labels: NDArray[Any]


def compared(bench: Bench, name: str, one: GenerateSet) -> tuple[list[dict[str, dict[str, float]]], dict[str, Any]]:
    """For each seed the figures of both sides; and what was compared."""
    learnt, judged = one.load()
    columns = Columns.fit(learnt)
    key = learnt[0].key
    found = []
    told: dict[str, Any] = {}
    for seed in range(bench.seeds):
        known = windows(learnt, one.steps, bench.pick(one.windows, 200), seed, [])
        unseen = windows(judged, one.steps, bench.pick(MOST, 200), seed, [])
        model = models.trained(bench, name, [w.signal for w in known], {**one.training, "labels": (key,)}, seed)
        total, known = len(known), [known[n] for n in np.linspace(0, len(known) - 1, min(MOST, len(known))).astype(int)]
        bench.say(f"{name}: {len(known)} windows of ours, seed {seed}")
        made, labels, _ = generated(model, known, key, columns, one.steps, seed, learnt[0], lambda *_: None)
        real, held = (
            Side(np.stack([columns(w.signal) for w in side]), np.array([w.label for w in side]))
            for side in (known, unseen)
        )
        again = np.random.default_rng(seed).integers(0, len(known), len(known))
        sides = {
            "ours": Side(made, np.asarray(labels, str)),
            COPY: Side(real.numbers[again], real.labels[again]),
        }
        if not seed:  # it takes its time
            bench.say(f"{name}: {len(known)} windows of {PAR}")
            theirs = models.others("generate", {"windows": real.numbers, "labels": real.labels, "seed": np.array(seed)})
            sides[PAR] = Side(theirs[PAR].astype(np.float32), real.labels)
        bench.say(f"{name}: the figures, seed {seed}")
        right = generation.right(generation.predicted(real.numbers, real.labels, held.numbers, seed=seed), held.labels)
        each = {side: figures(real, held, given, 100 * right["accuracy"], seed) for side, given in sides.items()}
        nats = [np.array([model.scores(w.signal).mean() for w in side]) for side in (known, unseen)]
        count = min(map(len, nats))
        by_likelihood = 100 * leakage.membership(nats[0][:count], nats[1][:count], seed=seed)
        each["ours"]["by likelihood"] = by_likelihood
        each["ours"]["membership"] = max(each["ours"]["nearest"], by_likelihood)
        for peer in sides.keys() - {"ours"}:
            each[peer]["membership"] = each[peer]["nearest"]
        found.append(each)
        told = {
            "accuracy of real": 100 * right["accuracy"],
            "learnt": total,
            "train": len(known),
            "test": len(unseen),
            "steps": one.steps,
            "training": one.training,
            "seconds of PAR": float(theirs[f"{PAR} seconds"]),
        }
    return found, told


def figures(real: Side, held: Side, made: Side, of_real: float, seed: int) -> dict[str, float]:
    """Of generated windows, beside real ones and ones that nobody has seen; `of_real`: how many of these, in percent, a
    classifier gets right that learnt from the real ones."""
    from genmote.generator.scores import networks

    found = generation.predicted(made.numbers, made.labels, held.numbers, seed=seed)
    accuracy = 100 * generation.right(found, held.labels)["accuracy"]
    lags = min(64, real.numbers.shape[1] - 1)
    return {
        "discriminative": networks.discriminative(held.numbers, made.numbers, seed=seed),
        "by rocket": generation.discriminative(held.numbers, made.numbers, seed=seed),
        "accuracy": accuracy,
        "behind": of_real - accuracy,
        "autocorrelation": generation.autocorrelation_distance(held.numbers, made.numbers, lags),
        "nearest": 100 * leakage.attack(real.numbers, held.numbers, made.numbers, seed=seed),
        "closer to train": leakage.neighbours(made.numbers, real.numbers, held.numbers, seed=seed)["closer_to_train"],
    }
