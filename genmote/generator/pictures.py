"""A forecast, filled gaps and scores as SVG pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.signals import chart
from genmote.signals.chart import Panel
from genmote.signals.kinds import Series, Signal
from genmote.signals.writing import is_date, moment

if TYPE_CHECKING:
    from genmote.generator.forecast import Forecast

MOST = 6  # channels that are drawn
PAST = 3  # times the forecast's length that is drawn of what came before


def forecast(history: Series, found: Forecast) -> str:
    """The end of the history, then the median and between what four in five ways lie."""
    steps = len(found.series)
    past = history.part(max(0, len(history) - PAST * steps), len(history))
    low, middle, high = found.quantiles((0.1, 0.5, 0.9))
    panels = []
    before, after = np.arange(-len(past), 0), np.arange(steps)
    each, unit = _step(history)
    for n, (channel, of) in enumerate(zip(history.channels[:MOST], history.units, strict=False)):
        there = np.isfinite(past.values[:, n])
        if not there.any():
            continue
        panels.append(
            Panel(
                channel,
                np.concatenate([before[there], after]) * each,
                np.concatenate([past.values[there, n], middle[:, n]]),
                f"time, {unit}; the forecast begins at 0",
                of,
                band=(after * each, low[:, n], high[:, n]),
            )
        )
    title = f"{history.name}: {steps} steps on"
    return chart.svg(title, f"median of {len(found.samples)} ways; four in five lie in the band", panels)


def imputed(series: Series, found: Forecast) -> str:
    """The series with what was filled in, where that is marked."""
    low, middle, high = found.quantiles((0.1, 0.5, 0.9))
    each, unit = _step(series)
    x = np.arange(len(series)) * each
    panels = []
    for n, (channel, of) in enumerate(zip(series.channels[:MOST], series.units, strict=False)):
        gone = np.isnan(series.values[:, n])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], gone, [False]]).astype(int)))
        shades = [(a * each, b * each) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]
        panels.append(
            Panel(channel, x, middle[:, n], f"time, {unit}", of, shades=shades, band=(x, low[:, n], high[:, n]))
        )
    count = int(np.isnan(series.values).sum())
    return chart.svg(series.name, f"{count} samples filled in, where it is shaded", panels)


def detected(
    signal: Signal,
    scores: NDArray[np.float32],
    threshold: float,
    stretches: Sequence[tuple[int, int, str | None]],
    above: int,
    times: NDArray[np.float64] | None = None,
) -> str:
    """A series, or just the scores of rows, with the stretches [start, stop) that are told, each in the channel that
    it is of; `above`: alarms; `times` (T,): when samples or rows were taken, where that is known."""
    panels = []
    edges, label = np.arange(len(scores) + 1, dtype=np.float64), "sample or row"
    if times is not None and len(times) > 1 and (np.diff(times) >= 0).all():  # not where they run backwards
        step = float(np.median(np.diff(times)))
        each, unit = _unit(step)
        zero, since = (float(times[0]), f" since {moment(float(times[0]))}") if is_date(float(times[0])) else (0.0, "")
        edges, label = (np.append(times, times[-1] + step) - zero) / each, f"time, {unit}{since}"
    x, spans = edges[:-1], [(float(edges[start]), float(edges[stop])) for start, stop, _ in stretches]
    if isinstance(signal, Series):
        odd = {channel for _, _, channel in stretches}
        drawn = sorted(range(len(signal.channels)), key=lambda n: signal.channels[n] not in odd)[:MOST]
        for n in sorted(drawn):
            there, channel = np.isfinite(signal.values[:, n]), signal.channels[n]
            own = [span for span, (_, _, one) in zip(spans, stretches, strict=True) if one in (None, channel)]
            if there.any():
                panels.append(Panel(channel, x[there], signal.values[there, n], label, signal.units[n], shades=own))
    line = (x[[0, -1]], np.full(2, threshold), np.full(2, threshold))
    panels.append(Panel("how unlikely", x, scores, label, "nats", shades=spans, band=line))
    return chart.svg(signal.name, f"{above} of {len(scores)} above {threshold:.3g}, shaded", panels)


def _step(series: Series) -> tuple[float, str]:
    """How long a step is, and in what."""
    if series.rate_hz > 0:
        seconds = 1 / series.rate_hz
    elif series.times_s is not None and len(series) > 1:
        seconds = float(np.median(np.diff(series.times_s)))
    else:
        return 1.0, "steps"
    each, unit = _unit(seconds)
    return seconds / each, unit


def _unit(seconds: float) -> tuple[float, str]:
    """What steps of so long are told in, and how long that is."""
    if seconds >= 600:
        return 3600.0, "h"
    return (60.0, "min") if seconds >= 10 else (1.0, "s")
