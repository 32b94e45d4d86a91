"""How a series goes on, and what was where samples are missing: many ways, and their quantiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError, SpecError
from genmote.generator.draw import Draw
from genmote.generator.generate import _later, onward
from genmote.generator.layout import Rows, joined
from genmote.generator.material import placed
from genmote.generator.scale import Scale
from genmote.generator.walk import Walk, sampled
from genmote.signals.codecs.bins import Bins
from genmote.signals.kinds import Series

if TYPE_CHECKING:
    from genmote.generator.model import Generator

Floats = NDArray[np.float32]
MOST = 10_000  # paths, each of which keeps its past
AFTER = 0.25  # part of what the model sees at once that may be of what follows a gap


@dataclass(frozen=True, eq=False)
class Forecast:
    """`samples` (P, T, C): P ways that it may be; `series`: their median, with names, units and times. `outside`: how
    many values of what was seen before lie beyond those that the model learnt from, and count as the nearest of them,
    as all that is drawn lies within."""

    samples: Floats
    series: Series
    outside: int = 0

    def quantiles(self, levels: Sequence[float]) -> Floats:
        """(Q, T, C)"""
        return np.quantile(self.samples, levels, axis=0).astype(np.float32)


def apart(model: Generator, series: Series, job: Callable[[Series], Forecast]) -> Forecast:
    """A job of a series, or of each group of its channels that the model knows together."""
    groups = model.together(series.channels)
    if len(groups) == 1:
        return job(series)
    found = [job(placed(series, group)) for group in groups]
    samples = np.concatenate([one.samples for one in found], axis=2)
    values = np.concatenate([one.series.values for one in found], axis=1)
    whole = replace(found[0].series, values=values, channels=series.channels, units=series.units)
    return Forecast(samples, whole, sum(one.outside for one in found))


def forecast(model: Generator, history: Series, steps: int, paths: int, seed: int) -> Forecast:
    """What `Generator.forecast` does."""
    if steps < 1 or not 1 <= paths <= MOST:
        raise SpecError(f"steps={steps}, paths={paths}: use 1 or more, and at most {MOST} paths")
    history = _checked(model, history)
    layout, channels = model.layout, len(history.channels)
    header = layout.header(history)
    seen = _seen(layout.context, len(header), channels, steps)
    recent = history.part(max(0, len(history) - seen), len(history))
    scale = Scale.of(recent.values, layout.scale)
    told = scale.told(recent)
    rows = layout.rows(told)
    times = _later(model, recent, steps)
    asks = layout.asks(recent, times, np.zeros(steps, np.int32))
    draw = Draw(seed)
    walk = Walk(model.decoder, layout, header, rows, asks[0], paths, len(asks))
    allowed = _numbers(model)
    made = np.zeros((paths, steps * channels), np.int64)
    for n in range(steps * channels):
        made[:, n] = sampled(walk.logits, allowed, draw)
        if n + 1 < steps * channels:
            walk.put(made[:, n], asks[n], asks[n + 1])
    samples = scale.back(_values(model, history, made))
    return Forecast(samples, _after(history, np.median(samples, axis=0), times), _outside(model, told))


def impute(model: Generator, series: Series, paths: int, seed: int) -> Forecast:
    """What `Generator.impute` does: gap after gap, each with what was put into those before it."""
    if not 1 <= paths <= MOST:
        raise SpecError(f"paths={paths}: use 1 to {MOST}")
    series = _checked(model, series)
    samples = np.repeat(series.values[None], paths, axis=0)
    draw = Draw(seed)
    gone = np.isnan(series.values).any(axis=1)
    if np.isnan(series.values).all():
        raise SignalError(f"{series.name}: no sample is there; wanted some to go by")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], gone, [False]]).astype(int)))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        _fill(model, series, samples, start, stop, draw)
    return Forecast(samples, replace(series, values=np.median(samples, axis=0).astype(np.float32), grid=None))


def _fill(model: Generator, series: Series, samples: Floats, start: int, stop: int, draw: Draw) -> None:
    """Steps [start, stop) of `samples` (P, T, C), where they are missing."""
    layout, (paths, length, channels) = model.layout, samples.shape
    header = layout.header(series)
    room = (layout.context - len(header) - 3) // channels
    gap = stop - start
    after = min(length - stop, max(1, int(room * AFTER)))
    before = min(start, max(1, room - after - min(gap, room // 2)))
    times = layout.times(series)
    around = np.concatenate([samples[0, start - before : start], samples[0, stop : stop + after]])
    scale = Scale.of(around, layout.scale)

    def rows(first: int, last: int, values: Floats) -> Rows:
        part = series.part(first, last)
        tokens = layout.codec.encode(scale.told(replace(part, values=values[first:last], grid=None)))
        return Rows(tokens, layout.asks(part, None if times is None else times[first:last]))

    hole = series.part(start, stop)
    left = np.arange(gap, 0, -1, dtype=np.int32)
    asks = layout.asks(hole, None if times is None else times[start:stop], left)
    known = layout.codec.encode(scale.told(hole))
    fixed = ~np.isnan(hole.values).reshape(-1)
    follows = rows(stop, stop + after, samples[0]) if after else None
    told = [header]
    if follows is not None:
        told += [layout.mark(layout.after), follows, layout.mark(layout.before)]
    # Paths differ in gaps that were filled in before: those are a step back and take the median's place.
    middle = np.median(samples[:, start - before : start], axis=0).astype(np.float32)
    values = samples[0].copy()
    values[start - before : start] = middle
    past = rows(start - before, start, values)
    if follows is None:
        asks = layout.asks(hole, None if times is None else times[start:stop], np.zeros(gap, np.int32))
    walk = Walk(model.decoder, layout, joined(told), past, asks[0], paths, len(asks))
    allowed = _numbers(model)
    made = np.zeros((paths, gap * channels), np.int64)
    for n in range(gap * channels):
        made[:, n] = known[n] if fixed[n] else sampled(walk.logits, allowed, draw)
        if n + 1 < gap * channels:
            walk.put(made[:, n], asks[n], asks[n + 1])
    filled = scale.back(_values(model, series, made))
    there = ~np.isnan(hole.values)
    samples[:, start:stop] = np.where(there, hole.values, filled)


def _checked(model: Generator, series: Series) -> Series:
    if not model.layout.steady:
        raise SignalError(
            f"the model's codec {model.codec.name} has no token for each sample: train one with --codec bins"
        )
    if not len(series):
        raise SignalError(f"{series.name}: no sample to go on from")
    model.codec.head.positions(series)
    fitted = model.fitted(series)
    assert isinstance(fitted, Series)
    return fitted


def _seen(context: int, header: int, channels: int, steps: int) -> int:
    """Steps of the past that are told: so many that what comes has room, as far as it can."""
    room = (context - header) // channels
    return max(1, room - min(steps, room // 2))


def _outside(model: Generator, series: Series) -> int:
    """How many values are cut to what the codec was fitted on."""
    codec = model.codec
    assert isinstance(codec, Bins)
    positions = codec.head.positions(series)
    return sum(codec.scale.code(series.values[:, n], at)[1] for n, at in enumerate(positions))


def _numbers(model: Generator) -> NDArray[np.bool_]:
    """Tokens that stand for numbers."""
    allowed = np.zeros(model.layout.vocabulary, bool)
    for start, stop in model.codec.ordered():
        allowed[model.codec.head.size + start : model.codec.head.size + stop] = True
    return allowed


def _values(model: Generator, like: Series, tokens: NDArray[np.int64]) -> Floats:
    """(P, T * C) tokens as (P, T, C) numbers."""
    from genmote.signals.coding import About

    about = About(like.name, like.channels, like.units, like.rate_hz or 1.0)
    flat = model.codec.decode(tokens.reshape(-1).astype(np.int32), about)
    assert isinstance(flat, Series)
    return flat.values.reshape(len(tokens), -1, len(like.channels))


def _after(history: Series, values: NDArray[np.float64], times: NDArray[np.float64] | None) -> Series:
    """A series that goes on where another ends."""
    at = history.times_s
    start = None
    if at is not None:
        at = onward(at, len(values))
    elif history.start_s is not None:
        start = history.start_s + len(history) / history.rate_hz
    return Series(
        history.name, values.astype(np.float32), history.rate_hz, history.channels, history.units, at,
        labels=history.labels, start_s=start,
    )  # fmt: skip
