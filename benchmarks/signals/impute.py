"""Gaps in recordings that nobody has seen, filled by the models that forecast them, and in two plain ways."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import Bench, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, Row
from benchmarks.signals import models, sets
from benchmarks.signals.sets import ForecastSet
from genmote.errors import GenmoteError
from genmote.generator.evaluate.data import Recording
from genmote.generator.evaluate.impute import gaps
from genmote.generator.scores import imputation as scores

PEERS = ("linear", "last value")
LENGTHS, CONTEXT = (8, 24), 128  # rows
PATHS = 16
MEASURE = "signals_impute"


def measure(bench: Bench) -> Iterator[Row]:
    """For each set and length of a gap how many times larger the better plain way's mean absolute error is."""
    for name, one in sets.FORECASTS.items():
        try:
            found, told = compared(bench, name, one)
        except (ContestantError, GenmoteError, OSError) as why:
            yield missing(f"filling gaps, {one.title.rpartition(',')[0]}", MEASURE, why)
            continue
        for length in LENGTHS:
            ours = [each[length]["ours"] for each in found]
            plain = {peer: found[0][length][peer] for peer in PEERS}
            best = min(plain, key=plain.__getitem__)
            yield Row(
                f"filling gaps of {length} rows, {one.title.rpartition(',')[0]}: the better plain error over ours",
                measure=MEASURE,
                seeds=bench.seeds,
                value=plain[best] / statistics.median(ours),
                value_unit="x",
                asked=None,
                sense=AT_LEAST,
                unit="spreads",
                ours=statistics.median(ours),
                ours_samples=ours,
                peer_name=best,
                peer=plain[best],
                details=told,
            )


def compared(bench: Bench, name: str, one: ForecastSet) -> tuple[list[dict[int, dict[str, float]]], dict[str, Any]]:
    """For each seed and length the mean absolute error of each side, over the spread of what was learnt from."""
    learnt, judged = one.load()
    spreads: dict[str, float] = {}
    for channel in dict.fromkeys(series.channels[0] for series in learnt):
        values = [series.values for series in learnt if series.channels[0] == channel]
        spreads[channel] = float(np.nanstd(np.concatenate(values)))
    unseen = [Recording(Path(series.name), series.part(first, len(series))) for series, first in judged]
    found = []
    for seed in range(bench.seeds):
        chosen = gaps(unseen, LENGTHS, context=CONTEXT, most=bench.pick(24, 8), seed=seed)
        chosen = [gap for gap in chosen if np.isfinite(gap.actual).all()]
        model = models.trained(bench, name, learnt, one.training, seed)
        bench.say(f"{name}: {len(chosen)} gaps, seed {seed}")
        off: dict[int, dict[str, list[float]]] = {n: {side: [] for side in ("ours", *PEERS)} for n in LENGTHS}
        for gap in chosen:
            ways = {
                "ours": np.median(model.impute(gap.series, paths=PATHS, seed=seed).samples, axis=0),
                "linear": scores.linear(gap.series.values),
                "last value": scores.last(gap.series.values),
            }
            for side, filled in ways.items():
                error = scores.absolute_error(gap.actual, filled, gap.missing)[0]
                length = gap.missing.stop - gap.missing.start
                off[length][side].append(float(error) / spreads[gap.series.channels[0]])
        found.append({n: {side: statistics.mean(each) for side, each in sides.items()} for n, sides in off.items()})
    return found, {"gaps": len(chosen), "context": CONTEXT, "training": one.training}
