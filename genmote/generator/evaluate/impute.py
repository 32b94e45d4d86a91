"""Gaps of stated lengths, taken out of recordings that nobody has seen and filled in again.

A filler is a function of a series with missing samples that gives all values (T, C): a peer of another package can be
judged on the same gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator.evaluate.data import Columns, Recording
from genmote.generator.evaluate.forecast import as_series
from genmote.generator.evaluate.model import Make
from genmote.generator.evaluate.result import Result, mean
from genmote.generator.scores import imputation as scores
from genmote.signals.chart import Panel
from genmote.signals.kinds import MISSING, Series

Filler = Callable[[Series], NDArray[np.floating]]


@dataclass(frozen=True, eq=False)
class Gap:
    """`series`: a stretch of a recording from row `begin` on, whose samples `missing` are taken out; `actual` (T, C):
    all that was there."""

    recording: str
    begin: int
    missing: slice
    series: Series
    actual: NDArray[np.float32]


def gaps(test: Sequence[Recording], lengths: Sequence[int], *, context: int, most: int, seed: int) -> list[Gap]:
    """One gap of each length in each stretch of `context` rows, in its middle half, at a place drawn by `seed`; of all
    channels at once. At most `most` of a length, evenly spread. SignalError where there is no stretch."""
    rng = np.random.default_rng(seed)
    pieces = []
    for one in test:
        series = as_series(one)
        pieces += [(one, series, at) for at in range(0, len(series) - context + 1, context)]
    if not pieces:
        longest = max(len(one.signal) for one in test)
        raise SignalError(
            f"--test: the longest recording has {longest} rows, wanted {context}; use a smaller --context"
        )
    if max(lengths) > context // 2:
        raise SignalError(f"a gap of {max(lengths)} rows in {context}: use at most half, or a larger --context")
    kept = np.unique(np.linspace(0, len(pieces) - 1, min(most, len(pieces))).round().astype(int))
    found = []
    for length in lengths:
        for n in kept:
            one, series, at = pieces[n]
            start = context // 4 + int(rng.integers(context // 2 - length + 1))
            piece = series.part(at, at + context)
            found.append(
                Gap(one.name, at, slice(start, start + length), without(piece, start, start + length), piece.values)
            )
    return found


def without(series: Series, start: int, stop: int) -> Series:
    """A series whose samples [start, stop) are missing."""
    values = series.values.copy()
    values[start:stop] = np.nan
    grid = series.grid
    if grid is not None:
        integers = grid.integers.copy()
        integers[start:stop] = MISSING
        grid = replace(grid, integers=integers)
    return replace(series, values=values, grid=grid)


def evaluate(
    train: Sequence[Recording],
    test: Sequence[Recording],
    make: Make,
    *,
    lengths: Sequence[int] = (8, 32),
    context: int = 128,
    most: int = 100,
    paths: int = 16,
    seed: int = 0,
    progress: Progress = quiet,
) -> Result:
    """`paths`: ways that the model draws, whose median it is judged by."""
    chosen = gaps(test, lengths, context=context, most=most, seed=seed)
    model = make([as_series(one) for one in train])

    def ours(series: Series) -> NDArray[np.floating]:
        return np.median(model.impute(series, paths=paths, seed=seed).samples, axis=0)

    sides: dict[str, Filler] = {"model": ours, **plain()}
    judged = judge(chosen, sides, Columns.fit(train).spread, progress)
    stated = {"gaps": len(chosen), "lengths": list(lengths), "context": context, "paths": paths}
    return Result({**stated, **judged.values}, judged.items, judged.panels)


def plain() -> dict[str, Filler]:
    """The two plain ways to fill a gap."""
    return {
        "linear": lambda series: scores.linear(series.values),
        "last value": lambda series: scores.last(series.values),
    }


def judge(
    chosen: Sequence[Gap], sides: Mapping[str, Filler], spread: NDArray[np.float64], progress: Progress = quiet
) -> Result:
    """All fillers on all gaps. Of each length and side: `mae_scaled`, over the channels' `spread` (C,) in the training
    recordings, and by channel `mae` in its unit."""
    items: list[dict[str, Any]] = []
    off: dict[int, dict[str, list[NDArray[np.float64]]]] = {}
    shown: dict[str, NDArray[np.floating]] = {}
    for number, gap in enumerate(chosen):
        start, length = gap.missing.start, gap.missing.stop - gap.missing.start
        item: dict[str, Any] = {"recording": gap.recording, "start": gap.begin + start, "length": length}
        for name, filler in sides.items():
            filled = np.asarray(filler(gap.series))
            if filled.shape != gap.actual.shape:
                raise SignalError(f"{name}: gave {filled.shape}, wanted {gap.actual.shape}")
            error = scores.absolute_error(gap.actual, filled, gap.missing)
            off.setdefault(length, {}).setdefault(name, []).append(error)
            item[name] = float(mean(error / spread))
            if number == len(chosen) - 1:
                shown[name] = filled
        items.append(item)
        progress("filling gaps", number + 1, len(chosen))
    channels = chosen[0].series.channels
    values = {
        str(length): {
            name: {
                "mae_scaled": float(mean(np.stack(errors) / spread)),
                "channels": dict(zip(channels, mean(np.stack(errors), (0,)).tolist(), strict=True)),
            }
            for name, errors in sides_off.items()
        }
        for length, sides_off in off.items()
    }
    return Result({"by_length": values}, items, _panels(chosen[-1], shown))


def _panels(gap: Gap, shown: Mapping[str, NDArray[np.floating]]) -> list[Panel]:
    """The first channel of the last gap as it was filled, what was there as points, and the error as a band."""
    channel, unit = gap.series.channels[0], gap.series.units[0]
    shade = [(float(gap.missing.start), float(gap.missing.stop))]
    x = np.arange(float(len(gap.actual)))
    known = np.flatnonzero(np.isfinite(gap.actual[gap.missing, 0])) + gap.missing.start
    if not len(known):
        return []
    points = (x[known], gap.actual[known, 0])
    panels = []
    for name, values in shown.items():
        there = np.isfinite(values[:, 0])
        band = (x[known], *(pick(values[known, 0], points[1]) for pick in (np.minimum, np.maximum)))
        title = f"{channel}: {name}, what was there as points"
        panels.append(
            Panel(title, x[there], values[there, 0], "rows", unit or channel, points=points, shades=shade, band=band)
        )
    return panels
