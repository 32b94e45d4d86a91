"""What is unusual in recordings that nobody has seen, beside detectors of pyod: the area under the ROC curve."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, SEED, Row
from benchmarks.signals import models, unusual
from benchmarks.signals.unusual import DetectSet
from genmote.errors import GenmoteError
from genmote.generator.evaluate.data import Columns, Recording, stretches
from genmote.generator.evaluate.detect import judge

PEERS = ("IsolationForest", "ECOD", "KNN", "LOF")
WANTED, OF = 3, 5  # sets on which the figure is asked to be above every peer's
MOST = 10000  # items that the peers learn from
MEASURE = "signals_detect"
Floats = NDArray[np.floating]


def measure(bench: Bench) -> Iterator[Row]:
    """For each set by how much the AUROC is above the best peer's; and on how many sets it is."""
    better = 0
    for title, parts in unusual.DETECTIONS.items():
        name = f"detection, {title}: AUROC above the best peer's"
        try:
            found, told = compared(bench, parts)
        except (ContestantError, GenmoteError, OSError) as why:
            yield missing(name, MEASURE, why, unit="points")
            continue
        ours = [sides["ours"] for sides in found]
        best = max(PEERS, key=lambda peer: found[0][peer])
        value = 100 * (statistics.median(ours) - found[0][best])
        better += value > 0
        yield Row(
            name,
            measure=MEASURE,
            seeds=bench.seeds,
            value=value,
            value_unit="points",
            asked=None,
            sense=AT_LEAST,
            unit="AUROC",
            ours=statistics.median(ours),
            ours_samples=ours,
            peer_name=best,
            peer=found[0][best],
            details={**told, "sides": found},
        )
    yield Row(
        f"detection: sets of {OF} with an AUROC above every peer's",
        measure=MEASURE,
        seeds=bench.seeds,
        value=float(better),
        value_unit="sets",
        asked=float(WANTED),
    )


def compared(bench: Bench, parts: Mapping[str, DetectSet]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """For each seed of each side the AUROC, mean over the parts of a set; and what was judged."""
    by_part: list[list[dict[str, float]]] = []
    told: dict[str, Any] = {}
    for name, one in parts.items():
        learnt, judged = one.load()
        bench.say(f"{name}: the peers")
        given = others(one, learnt, judged)
        each = []
        for seed in range(SEED, SEED + bench.seeds):
            model = models.trained(bench, name, [r.signal for r in learnt], one.training, seed)
            bench.say(f"{name}: ours, seed {seed}")
            own = {id(r.signal): model.scores(r.signal) for r in judged}
            result = judge(
                judged,
                [],
                {side: (lambda signal, rows=rows: rows[id(signal)]) for side, rows in {**given, "ours": own}.items()},
                list(one.normal),
                smooth=one.smooth,
            ).values
            each.append({side: figures["auroc"] for side, figures in result["sides"].items()})
            told[name] = {key: result[key] for key in ("judged", "items", "unusual")} | {"training": one.training}
        by_part.append(each)
    means = [
        {side: statistics.mean(part[seed][side] for part in by_part) for side in (*PEERS, "ours")}
        for seed in range(bench.seeds)
    ]
    return means, told


def others(
    one: DetectSet, learnt: list[Recording], judged: list[Recording]
) -> dict[str, dict[int, NDArray[np.float64]]]:
    """Of each peer the scores (T,) of each judged signal, by its id."""
    columns = Columns.fit(learnt)
    train = np.concatenate([features(one, each, columns) for each in learnt])
    if len(train) > MOST:
        train = train[np.sort(np.random.default_rng(SEED).permutation(len(train))[:MOST])]
    test = [features(one, each, columns) for each in judged]
    given = models.others("detect", {"train": train, "test": np.concatenate(test), "seed": SEED})
    ends = np.cumsum([0, *map(len, test)])
    return {
        peer: {
            id(each.signal): by_row(each, given[peer][start:stop])
            for each, start, stop in zip(judged, ends[:-1], ends[1:], strict=True)
        }
        for peer in PEERS
    }


def features(one: DetectSet, recording: Recording, columns: Columns) -> Floats:
    """(items, F): what a peer is shown of each item: numbers of about one size, and steps of time."""
    rows: Floats = columns(recording.signal)
    times = recording.signal.times_s
    if times is not None:
        rows = np.column_stack([rows, np.log1p(np.maximum(0, np.diff(times, prepend=times[:1])))])
    if one.whole:
        return rows.reshape(1, -1)
    if recording.points:
        near = np.array(recording.points)[:, None] + np.arange(-one.back, one.back)
    else:
        near = np.arange(len(rows))[:, None] + np.arange(-one.back, 1)
    found: Floats = rows[np.clip(near, 0, len(rows) - 1)].reshape(len(near), -1)
    return found


def by_row(recording: Recording, items: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,): items' scores, said of their rows."""
    length = len(recording.signal)
    if len(items) == length and not recording.points:
        return items
    if len(items) == 1:
        return np.repeat(items, length)
    found = np.zeros(length)
    for (start, stop), score in zip(stretches(recording.points, length), items, strict=True):
        found[start:stop] = score
    return found
