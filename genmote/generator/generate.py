"""Signals out of nothing, or out of how one begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError, SpecError
from genmote.fetch import Progress
from genmote.generator.draw import Draw
from genmote.generator.layout import ASKS, Rows
from genmote.generator.scale import Scale
from genmote.generator.walk import Walk, sampled
from genmote.signals.coding import About
from genmote.signals.header import END
from genmote.signals.kinds import Records, Series, Signal

if TYPE_CHECKING:
    from genmote.generator.model import Generator

BATCH = 32  # signals that are made at once
CHECKED = 16  # tokens after which it is looked how long a series has become


def generate(
    model: Generator,
    count: int,
    steps: int | None,
    labels: dict[str, str],
    channels: Sequence[str],
    prefix: Signal | None,
    seed: int,
    temperature: float,
    progress: Progress,
) -> list[Signal]:
    """What `Generator.generate` does."""
    if count < 1 or (steps is not None and steps < 1) or not 0 <= temperature < 100:
        raise SpecError(f"count={count}, steps={steps}, temperature={temperature}: use 1 or more, and 0 to 100")
    draw = Draw(seed)
    found: list[Signal] = []
    for at in range(0, count, BATCH):
        progress("generating", at, count)
        paths = min(BATCH, count - at)
        if model.layout.steady:
            made = _series(model, paths, steps, labels, channels, prefix, draw, temperature)
        else:
            made = _others(model, paths, steps, labels, channels, prefix, draw, temperature)
        found += [
            replace(signal, name=f"{model.card.get('name', 'signal')}-{at + n + 1}") for n, signal in enumerate(made)
        ]
    progress("generating", count, count)
    return found


def _series(
    model: Generator,
    paths: int,
    steps: int | None,
    labels: dict[str, str],
    channels: Sequence[str],
    prefix: Signal | None,
    draw: Draw,
    temperature: float,
) -> list[Signal]:
    layout = model.layout
    if prefix is not None and not isinstance(prefix, Series):
        raise SignalError(f"{prefix.name}: is no series, and the model is of series")
    begun = model.empty(labels, channels) if prefix is None else _begun(model, prefix, labels, channels)
    assert isinstance(begun, Series)
    if layout.scale != "none" and not len(begun):
        raise SignalError(
            "the model tells all by the scale of what came before: give a prefix, or train without --scale"
        )
    scale = Scale.of(begun.values, layout.scale)
    header, rows = layout.header(begun), layout.rows(scale.told(begun))
    width = len(begun.channels)
    whole = steps is not None
    wanted = steps if steps is not None else (layout.context - len(header)) // width - len(begun)
    if wanted < 1:
        raise SignalError(f"{begun.name}: as long as the model sees at once; tell how many steps with --steps")
    asks = layout.asks(begun, _later(model, begun, wanted), np.zeros(wanted, np.int32))  # (wanted * C, ASKS)
    walk = Walk(model.decoder, layout, header, rows, asks[0], paths, len(asks))
    allowed = layout.allowed.copy()
    ends = np.full(paths, wanted)
    living = np.arange(paths)
    made = np.full((paths, wanted * width), -1, np.int64)
    for n in range(wanted * width):
        allowed[END] = not whole and n > 0 and n % width == 0
        tokens = sampled(walk.logits, allowed, draw, temperature)
        if allowed[END] and (tokens == END).any():
            done = tokens == END
            ends[living[done]] = n // width
            living, tokens = living[~done], tokens[~done]
            if not len(living):
                break
            walk.keep(~done)
        made[living, n] = tokens
        if n + 1 < wanted * width:
            walk.put(tokens, asks[n], asks[n + 1])
    about = About(begun.name, begun.channels, begun.units, begun.rate_hz or 1.0, begun.labels)
    found: list[Signal] = []
    for path in range(paths):
        said = np.concatenate([rows.tokens, made[path, : ends[path] * width]])
        one = layout.codec.decode(said.astype(np.int32), about)
        assert isinstance(one, Series)
        found.append(_timed(begun, replace(one, values=scale.back(one.values))))
    return found


def _begun(model: Generator, prefix: Signal, labels: dict[str, str], channels: Sequence[str]) -> Signal:
    """What is gone on from, with what is asked to be said of it."""
    if channels:
        raise SignalError(f"{prefix.name}: what goes on from a prefix has its channels; leave out either")
    model.labels(labels)
    return replace(prefix, labels={**model.fitted(prefix).labels, **labels})


def _timed(begun: Series, made: Series) -> Series:
    """What was made after `begun`, which it begins with: at the times of that and those that follow."""
    count = min(len(begun), len(made))
    values = made.values
    if made.grid is None:
        values = np.concatenate([begun.values[:count], values[count:]])
    if begun.rate_hz > 0 or begun.times_s is None or not len(begun):
        return replace(made, values=values, start_s=begun.start_s)
    times = np.concatenate([begun.times_s[:count], onward(begun.times_s, len(made) - count)])
    return replace(made, values=values, rate_hz=0.0, times_s=times)


def onward(times: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """(steps,) times that go on after those of samples, by their median step.

    >>> onward(np.array([0.0, 2.0, 4.0, 7.0]), 2).tolist()
    [9.0, 11.0]
    """
    each = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    return np.asarray(times[-1] + each * (1 + np.arange(steps)), np.float64)


def _later(model: Generator, begun: Series, steps: int) -> NDArray[np.float64] | None:
    """(steps,) seconds since 1970 of what goes on after a series; None where that is not known or not asked."""
    known = model.layout.times(begun)
    if known is None:
        return None
    return onward(known, steps) if begun.rate_hz <= 0 else known[-1] + (1 + np.arange(steps)) / begun.rate_hz


def _others(
    model: Generator,
    paths: int,
    steps: int | None,
    labels: dict[str, str],
    channels: Sequence[str],
    prefix: Signal | None,
    draw: Draw,
    temperature: float,
) -> list[Signal]:
    """Of a codec whose tokens are not each a sample: rows, frames, exact numbers."""
    layout, codec = model.layout, model.codec
    nothing = np.full(ASKS, -1, np.int32)
    begun: Signal | None = None
    if prefix is not None:
        begun = _begun(model, prefix, labels, channels)
        header, rows = layout.header(begun), layout.rows(begun)
    elif codec.KIND is Series:
        begun = model.empty(labels, channels)
        header, rows = layout.header(begun), layout.header(begun)[:0]
    else:
        header = _head(model, labels)
        rows = header[:0]
    first = codec.head.size
    row = first + codec.row
    series = codec.KIND is Series
    most = layout.context - len(header) if steps is None else max(layout.context, (16 if series else 4096) * steps)
    walk = Walk(model.decoder, layout, header, rows, nothing, paths)
    about = codec.head.about(header.tokens)
    began = None
    if isinstance(prefix, Records) and prefix.times_s is not None and len(prefix):
        began = float(prefix.times_s[0])
    about = replace(about, name="signal", start_s=began, rate_hz=about.rate_hz or 1.0)
    if isinstance(begun, Series):
        grid = begun.grid
        about = About(begun.name, begun.channels, begun.units, begun.rate_hz or 1.0, begun.labels)
        if grid is not None:
            about = replace(about, step=grid.step, zero=grid.zero)
    before = len(prefix) if series and prefix is not None else 0
    texts: list[list[int]] = [[] for _ in range(paths)]
    latest = rows.tokens[np.flatnonzero(rows.tokens == row)[-1] :] if row in rows.tokens else rows.tokens
    open_rows = [[token - first for token in latest.tolist()] for _ in range(paths)]
    counts = np.zeros(paths, int)
    living = list(range(paths))
    for n in range(most):
        allowed = np.zeros((len(living), layout.vocabulary), bool)
        for k, path in enumerate(living):
            for start, stop in codec.follows(open_rows[path]):
                allowed[k, first + start : first + stop] = True
            allowed[k, END] = allowed[k, row] and steps is None and bool(texts[path])
        tokens = sampled(walk.logits, allowed, draw, temperature)
        if not series:
            counts[living] += tokens == row
        elif steps is not None and n % CHECKED == CHECKED - 1:  # how much is said is known when it is decoded
            counts[living] = [
                len(codec.decode(np.array([*rows.tokens, *texts[path]], np.int32), about)) - before for path in living
            ]
        done = (tokens == END) | ((counts[living] > steps) if steps is not None else False)
        if done.any():
            living, tokens = [path for path, over in zip(living, done.tolist(), strict=True) if not over], tokens[~done]
            if not living:
                break
            walk.keep(~done)
        for path, token in zip(living, tokens.tolist(), strict=True):
            texts[path].append(token)
            if token == row:
                open_rows[path].clear()
            open_rows[path].append(token - first)
        walk.put(tokens, nothing, nothing)
    made = [codec.decode(np.array([*rows.tokens, *text], np.int32), about) for text in texts]
    if isinstance(begun, Series):
        made = [_timed(begun, one) for one in made if isinstance(one, Series)]
    return [one.part(0, before + steps) for one in made] if series and steps is not None else made


def _head(model: Generator, labels: dict[str, str]) -> Rows:
    """A header for records or frames that are not there yet."""
    from genmote.signals.header import FIRST, MODALITY, START

    head, said = model.codec.head, model.labels(labels)
    tokens = [START, FIRST + head.modalities.index(said[MODALITY])]
    first = head.size - len(head.label_keys)
    pairs = list(zip(head.label_keys, head.label_values, strict=True))
    tokens += [first + pairs.index((key, said[key])) for key in dict.fromkeys(head.label_keys) if key in said]
    return Rows(np.array(tokens, np.int32), np.full((len(tokens), ASKS), -1, np.int32))
