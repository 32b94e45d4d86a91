"""Forecasts of recordings that nobody has seen, beside the classical peers: CRPS and MASE of the same windows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.bench import Bench, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, Row
from benchmarks.signals import models, sets
from benchmarks.signals.sets import ForecastSet
from genmote.errors import GenmoteError
from genmote.generator.evaluate.forecast import Window, judge
from genmote.generator.scores import forecast as scores

PEERS = ("seasonal naive", "AutoETS", "Theta")
PATHS = 32  # ways that the model draws
WANTED, OF = 4, 6  # sets on which both figures are asked to be better than every peer's
MEASURE = "signals_forecast"


def measure(bench: Bench) -> Iterator[Row]:
    """For each set and figure how many times larger the best peer's is; and on how many sets ours are the least."""
    better = 0
    for name, one in sets.FORECASTS.items():
        title = f"forecast, {one.title}: the best peer's"
        try:
            found, told = compared(bench, name, one)
        except (ContestantError, GenmoteError, OSError) as why:
            yield missing(f"{title} CRPS and MASE over ours", MEASURE, why)
            continue
        rows = [row(f"{title} {figure.upper()} over ours", figure, found, told) for figure in ("crps", "mase")]
        better += all(each.value is not None and each.value > 1 for each in rows)
        yield from rows
    yield Row(
        f"forecast: sets of {OF} with CRPS and MASE better than every peer's",
        measure=MEASURE,
        seeds=bench.seeds,
        value=float(better),
        value_unit="sets",
        asked=float(WANTED),
    )


def row(name: str, figure: str, found: list[dict[str, dict[str, float]]], told: dict[str, Any]) -> Row:
    """Of a figure of all sides, seed by seed."""
    ours = [sides["ours"][figure] for sides in found]
    best = min(PEERS, key=lambda peer: found[0][peer][figure])
    peer = found[0][best][figure]
    return Row(
        name,
        measure=MEASURE,
        seeds=len(found),
        value=peer / statistics.median(ours),
        value_unit="x",
        asked=None,
        sense=AT_LEAST,
        unit="of the naive error",
        ours=statistics.median(ours),
        ours_samples=ours,
        peer_name=best,
        peer=peer,
        details={**told, "sides": found},
    )


def compared(bench: Bench, name: str, one: ForecastSet) -> tuple[list[dict[str, dict[str, float]]], dict[str, Any]]:
    """For each seed of each side `crps`, `mase` and `coverage`; and what the windows were."""
    learnt, _ = one.load()
    windows = one.windows(bench.pick(32, 12))
    seasons = [one.season_of(window.history.values) for window in windows]
    bench.say(f"{name}: {len(windows)} windows for the peers")
    histories = {f"h{n}": scores.forward_filled(w.history.values)[:, 0] for n, w in enumerate(windows)}
    given = models.others("forecast", {"steps": one.horizon, "seasons": np.array(seasons), **histories})
    sides = {
        "seasonal naive": [
            scores.seasonal_naive(w.history.values, one.horizon, season)
            for w, season in zip(windows, seasons, strict=True)
        ],
        **{peer: list(given[peer][:, :, :, None]) for peer in PEERS[1:]},
    }
    found = []
    for seed in range(bench.seeds):
        model = models.trained(bench, name, learnt, one.training, seed)
        bench.say(f"{name}: {len(windows)} windows for ours, seed {seed}")
        sides["ours"] = [
            scores.quantiles(model.forecast(w.history, one.horizon, paths=PATHS, seed=seed).samples) for w in windows
        ]
        found.append(figures(windows, sides))
    told = {
        "windows": len(windows),
        "horizon": one.horizon,
        "history": one.history,
        "training": one.training,
        "seconds": {peer: float(given[f"{peer} seconds"]) for peer in PEERS[1:]},
    }
    return found, told


def figures(windows: list[Window], sides: dict[str, list[Any]]) -> dict[str, dict[str, float]]:
    """Of each side: its quantiles of all windows."""
    at = {id(window.history): n for n, window in enumerate(windows)}
    forecasters = {name: (lambda history, _, given=given: given[at[id(history)]]) for name, given in sides.items()}
    judged = judge(windows, forecasters).values["sides"]
    return {
        name: {"crps": each["crps_scaled"], "mase": each["mase"], "coverage": each["coverage"]}
        for name, each in judged.items()
    }
