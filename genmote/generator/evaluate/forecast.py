"""Forecasts at origins that roll over recordings which nobody has seen, of the model and of the seasonal naive one.

A forecaster is a function of a history and the steps ahead that gives nine quantiles (9, H, C): anything can be judged
on the same windows, a peer of another package too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator.evaluate.data import Recording
from genmote.generator.evaluate.model import Make
from genmote.generator.evaluate.result import Result, mean
from genmote.generator.scores import forecast as scores
from genmote.signals.chart import Panel
from genmote.signals.kinds import Series

Forecaster = Callable[[Series, int], NDArray[np.floating]]
NAIVE = "seasonal naive"


@dataclass(frozen=True, eq=False)
class Window:
    """`history` ends where the forecast begins; `actual` (H, C) is what came; `scale` (C,) the seasonal naive
    forecast's mean error in all that the recording has before."""

    recording: str
    origin: int
    history: Series
    actual: NDArray[np.float32]
    scale: NDArray[np.float64]


def windows(
    test: Sequence[Recording], *, context: int, horizon: int, stride: int, season: int, most: int
) -> list[Window]:
    """All origins `stride` rows apart that have `context` rows before and `horizon` rows after them; of more than
    `most` as many evenly spread. SignalError where there is none."""
    found = []
    for one in test:
        series = as_series(one)
        for origin in range(context, len(series) - horizon + 1, stride):
            scale = scores.seasonal_scale(series.values[:origin], season)
            actual = series.values[origin : origin + horizon]
            found.append(Window(one.name, origin, series.part(origin - context, origin), actual, scale))
    if not found:
        longest = max(len(one.signal) for one in test)
        raise SignalError(
            f"--test: the longest recording has {longest} rows, wanted at least {context + horizon}; use a smaller "
            "--context or --horizon"
        )
    kept = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[n] for n in kept]


def as_series(one: Recording) -> Series:
    """A recording as a series, of a row a second where rows have no times; SignalError for records that have more than
    numbers."""
    signal = one.signal
    if isinstance(signal, Series):
        return signal
    if others := [field.name for field in signal.fields if field.type not in ("number", "integer")]:
        raise SignalError(f"{one.name}: {', '.join(others)} are no numbers; leave them out with --drop")
    values = np.stack([column.astype(np.float32) for column in signal.columns], axis=1)
    names = tuple(field.name for field in signal.fields)
    units = tuple(field.unit for field in signal.fields)
    rate_hz = 1.0 if signal.times_s is None else 0.0
    return Series(signal.name, values, rate_hz, names, units, signal.times_s, labels=signal.labels)


def evaluate(
    train: Sequence[Recording],
    test: Sequence[Recording],
    make: Make,
    *,
    season: int = 1,
    context: int = 128,
    horizon: int = 32,
    stride: int = 0,
    most: int = 200,
    paths: int = 32,
    seed: int = 0,
    progress: Progress = quiet,
) -> Result:
    """`stride` 0: the horizon. `paths`: ways that the model draws, of which its quantiles are."""
    stride = stride or horizon
    chosen = windows(test, context=context, horizon=horizon, stride=stride, season=season, most=most)
    model = make([as_series(one) for one in train])

    def ours(history: Series, steps: int) -> NDArray[np.floating]:
        return scores.quantiles(model.forecast(history, steps, paths=paths, seed=seed).samples)

    judged = judge(chosen, {"model": ours, NAIVE: naive(season)}, progress)
    stated = {"windows": len(chosen), "season": season, "context": context, "horizon": horizon, "stride": stride}
    return Result({**stated, "paths": paths, **judged.values}, judged.items, judged.panels)


def naive(season: int) -> Forecaster:
    """The seasonal naive forecast as a forecaster."""
    return lambda history, steps: scores.seasonal_naive(history.values, steps, season)


def judge(chosen: Sequence[Window], sides: Mapping[str, Forecaster], progress: Progress = quiet) -> Result:
    """All forecasters on all windows. `sides`: of each its mean MASE, `crps` (over the channel's mean size, mean over
    channels), `crps_scaled` (over the same scale as MASE), `coverage` of the 80 % interval, and `seconds`, the median
    time of a forecast; and by channel `mae` and `crps` in the channel's unit. `unscaled`: how many channels of windows
    never changed before the origin, and so are not in what is scaled."""
    found: dict[str, list[NDArray[np.floating]]] = {name: [] for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, one in enumerate(chosen):
        for name, forecaster in sides.items():
            began = time.perf_counter()
            given = np.asarray(forecaster(one.history, len(one.actual)))
            seconds[name].append(time.perf_counter() - began)
            if given.shape != (len(scores.LEVELS), *one.actual.shape):
                raise SignalError(f"{name}: gave {given.shape}, wanted {(len(scores.LEVELS), *one.actual.shape)}")
            found[name].append(given)
        progress("forecasting", number + 1, len(chosen))
    actual = np.stack([one.actual for one in chosen]).astype(np.float64)  # (N, H, C)
    scale = np.stack([one.scale for one in chosen])[:, None]  # (N, 1, C)
    size = mean(np.abs(actual), (0, 1))  # (C,)
    channels = chosen[0].history.channels
    values: dict[str, Any] = {}
    items: list[dict[str, Any]] = [{"recording": one.recording, "origin": one.origin} for one in chosen]
    for name, made in found.items():
        off = np.stack([scores.absolute_error(one.actual, q) for one, q in zip(chosen, made, strict=True)])
        loss = np.stack([scores.crps(one.actual, q) for one, q in zip(chosen, made, strict=True)])
        within = np.stack([scores.covered(one.actual, q) for one, q in zip(chosen, made, strict=True)])
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(size > 0, mean(loss, (0, 1)) / size, np.nan)
        values[name] = {
            "mase": float(mean(off / scale)),
            "crps": float(mean(relative)),
            "crps_scaled": float(mean(loss / scale)),
            "coverage": float(mean(within)),
            "seconds": float(np.median(seconds[name])),
            "channels": {
                channel: {"mae": float(mae), "crps": float(crps)}
                for channel, mae, crps in zip(channels, mean(off, (0, 1)), mean(loss, (0, 1)), strict=True)
            },
        }
        for n, item in enumerate(items):
            item[name] = {
                "mase": float(mean(off[n] / scale[n])),
                "crps_scaled": float(mean(loss[n] / scale[n])),
                "coverage": float(mean(within[n])),
            }
    unscaled = int(np.isnan(scale).sum())
    return Result({"sides": values, "unscaled": unscaled}, items, _panels(chosen, found))


def _panels(chosen: Sequence[Window], found: Mapping[str, list[NDArray[np.floating]]]) -> list[Panel]:
    """The first channel of the middle window: the history and each side's median, its 80 % interval as a band, and what
    came as points."""
    at = len(chosen) // 2
    one = chosen[at]
    channel, unit = one.history.channels[0], one.history.units[0]
    past = one.history.values[:, 0].astype(np.float64)
    came = one.actual[:, 0].astype(np.float64)
    before, after = np.arange(-float(len(past)), 0.0), np.arange(float(len(came)))
    there, known = np.isfinite(past), np.isfinite(came)
    panels = []
    for name, made in found.items():
        low, middle, high = (made[at][level, :, 0] for level in (scores.LOW, scores.MIDDLE, scores.HIGH))
        panels.append(
            Panel(
                f"{channel}: {name}, the median, 80 % in the band, what came as points",
                np.concatenate([before[there], after]),
                np.concatenate([past[there], middle]),
                "rows from the origin",
                unit or channel,
                points=(after[known], came[known]),
                band=(after, low, high),
            )
        )
    return panels
