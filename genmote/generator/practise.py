"""A generator's model file with what the coder of samples learnt on recordings, told by the generator as it will be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.fetch import Progress, quiet
from genmote.generator.compress import PRACTICE, Teller
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.signals import _twin, adaptive, practice
from genmote.signals.kinds import MISSING, Series, Signal
from genmote.signals.practice import Plane, Practice

ROWS = 2000  # of a recording that are practised on
MOST = 64  # stretches
MATCH = ("mix", "far", "shares")


def practise(teller: Teller, signals: Sequence[Signal], *, progress: Progress = quiet) -> Practice:
    """What a coder that `teller` tells learns on series of whole numbers. SignalError where there are none."""
    found = list(stretches(signals))
    if not found:
        raise SignalError("no recording of whole numbers without gaps to practise on; give some, such as ADC samples")
    chosen = [found[int(n)] for n in np.linspace(0, len(found) - 1, min(MOST, len(found)))]
    pairs = list(dict.fromkeys(pair for s in chosen for pair in zip(s.channels, s.units, strict=True)))
    learnt = _products(teller, chosen, pairs, progress)
    steps = len(chosen)
    for n, series in enumerate(chosen):
        learnt = _coded(teller, series, learnt)
        progress("practising", steps + n + 1, 2 * steps)
    return learnt


def write(model: Path, output: Path, learnt: Practice) -> None:
    """The model file again with the practice in it, whole or not at all."""
    file = ModelFile.open(model)
    kept = {key: value for key, value in file.typed_metadata().items() if not key.startswith(PRACTICE)}
    tensors: list[Any] = [(n, t.type, t.shape, file.read(n)) for n, t in file.tensors.items()]
    write_gguf(output, {**kept, **{PRACTICE + key: value for key, value in learnt.state().items()}}, tensors)


def stretches(signals: Sequence[Signal]) -> Iterator[Series]:
    """The first rows of series of whole numbers, as they are coded: over an origin."""
    for signal in signals:
        if not isinstance(signal, Series) or signal.grid is None or len(signal) < 64:
            continue
        part = signal.part(0, ROWS)
        if part.grid is not None and not (part.grid.integers == MISSING).any():
            yield part


def _planes(series: Series) -> NDArray[np.int64]:
    """(T, C) whole numbers that are 0 where the value is."""
    assert series.grid is not None
    return series.grid.integers - np.rint(-series.grid.zero / series.grid.step).astype(np.int64)


def _logits(teller: Teller, series: Series) -> tuple[list[int], NDArray[np.float64], NDArray[np.float32]]:
    """Of each channel its row of the cuts (-1: none), the cuts in whole numbers, and all logits (T * K, bins)."""
    assert series.grid is not None
    ends = teller.cuts(series)
    known = [n for n, cuts in enumerate(ends) if cuts is not None]
    if not known:
        return [-1] * len(ends), np.zeros((0, 0)), adaptive.NO_LOGITS
    told = [known.index(n) if n in known else -1 for n in range(len(ends))]
    cuts = np.stack([np.asarray(ends[n]) / series.grid.step[n] for n in known])
    values = _planes(series)[:, known]
    codes = np.stack([np.searchsorted(c[1:-1], v, side="right") for c, v in zip(cuts, values.T, strict=True)], axis=1)
    some = replace(
        series,
        values=series.values[:, known],
        channels=tuple(series.channels[n] for n in known),
        units=tuple(series.units[n] for n in known),
        grid=None,
    )
    return told, cuts, np.concatenate(list(teller.logits(some, codes)))


def _means(told: list[int], cuts: NDArray[np.float64], logits: NDArray[np.float32], rows: int) -> NDArray[np.float64]:
    """(T, C) of what is told, 0 where nothing is."""
    found = np.zeros((rows, len(told)))
    if len(cuts):
        shares = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64).reshape(rows, len(cuts), -1)
        middles = 0.5 * (cuts[:, 1:] + cuts[:, :-1])
        means = (shares * middles).sum(axis=2) / shares.sum(axis=2)
        for n, row in enumerate(told):
            if row >= 0:
                found[:, n] = means[:, row]
    return found


def _products(teller: Teller, chosen: Sequence[Series], pairs: list[tuple[str, str]], progress: Progress) -> Practice:
    """Mean products over all stretches; errors and weights as if nothing had been coded yet."""
    count, lags = len(pairs), practice.lags_of(len(pairs))
    products, told = np.zeros((count, count, lags)), np.zeros((count, count, lags))
    twice, seen, step, size = np.zeros(count), np.zeros((count, count)), np.ones(count), np.zeros(count)
    for number, series in enumerate(chosen):
        assert series.grid is not None
        own = [pairs.index(pair) for pair in zip(series.channels, series.units, strict=True)]
        step[own] = series.grid.step
        values = _planes(series) * series.grid.step
        means = _means(*_logits(teller, series), len(series)) * series.grid.step
        rows, columns = np.array(own)[:, None], np.array(own)[None]
        for lag in range(min(lags, len(series))):
            products[rows, columns, lag] += values[lag:].T @ values[: len(values) - lag] / len(values)
            told[rows, columns, lag] += means[lag:].T @ values[: len(values) - lag] / len(values)
        twice[own] += np.square(means).mean(axis=0)
        seen[rows, columns] += 1
        size[own] = np.abs(np.diff(values, axis=0)).mean(axis=0)
        progress("practising", number + 1, 2 * len(chosen))
    seen = np.maximum(seen, 1)
    return Practice(
        tuple(name for name, _ in pairs),
        tuple(unit for _, unit in pairs),
        step,
        (products / seen[:, :, None]).astype(np.float32),
        (told / seen[:, :, None]).astype(np.float32),
        (twice / np.diag(seen)).astype(np.float32),
        np.maximum(size, 1e-3 * step)[:, None].repeat(4, axis=1).astype(np.float32),
        first_weights().astype(np.float32),
        np.zeros(_twin.PARTS_OF_STATE["counters"], np.uint8),
    )


def first_weights() -> NDArray[np.float64]:
    """Of a coder that has learnt nothing."""
    samples = np.zeros((0, 1), np.int64)
    states = np.zeros((1, _twin.STATE_SIZE))
    adaptive.coder(samples, adaptive.Help.none(1)).learnt(states)
    parts = _twin.split(states[0])
    return np.concatenate([parts[key] for key in MATCH])


def _coded(teller: Teller, series: Series, before: Practice) -> Practice:
    """The practice after one more stretch: the weights and counters of all channels, by how much each used them."""
    assert series.grid is not None
    told, cuts, logits = _logits(teller, series)
    own = [before.at(*pair) for pair in zip(series.channels, series.units, strict=True)]
    step = series.grid.step
    planes = [Plane(at, float(step[n]), told[n]) for n, at in enumerate(own)]
    coder = adaptive.coder(np.ascontiguousarray(_planes(series)), practice.help_of(before, planes, cuts))
    coder.go(logits)
    states = np.zeros((len(own), _twin.STATE_SIZE))
    coder.learnt(states)
    parts = _twin.split(states)
    used = parts["seen"][:, :, None]
    mix, sizes = parts["mix"].reshape(len(own), _twin.NODES, -1), parts["widths"] * step[:, None]
    old = before.weights[: mix[0].size].astype(np.float64).reshape(mix[0].shape)
    mixed = np.where(used.sum(axis=0) > 0, (mix * used).sum(axis=0) / np.maximum(used.sum(axis=0), 1), old)
    counted = parts["counted"]
    chances = np.where(
        counted.sum(axis=0) > 0, (parts["counters"] * counted).sum(axis=0) / np.maximum(counted.sum(axis=0), 1), 0.5
    )
    widths = before.widths.copy()
    widths[own] = (0.7 * widths[own] + 0.3 * sizes).astype(np.float32)
    return replace(
        before,
        widths=widths,
        weights=np.concatenate([mixed.reshape(-1), parts["far"].mean(axis=0), parts["shares"].mean(axis=0)]).astype(
            np.float32
        ),
        counters=practice.coarse(chances, counted.sum(axis=0)),
    )


def run(
    model: str | os.PathLike[str], signals: Sequence[Signal], output: Path, *, progress: Progress = quiet
) -> Practice:
    """`practise` and `write`."""
    learnt = practise(Teller.load(model), signals, progress=progress)
    write(Path(model), output, learnt)
    return learnt
