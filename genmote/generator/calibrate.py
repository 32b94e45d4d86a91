"""What `compress` learns from where the model is a generator: stretches of recordings, as the decoder reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.generator import material
from genmote.generator.model import Generator
from genmote.generator.windows import Windows, recordings
from genmote.ops.protocol import Span
from genmote.signals.header import END
from genmote.signals.kinds import Series, Signal
from genmote.signals.said import Said

Int = NDArray[np.int32]
SHORTEST = 16  # rows of a stretch
REACHED = 0.75  # part of all rows that are in stretches of at least the length that is taken


def read(model: Generator, paths: Sequence[Path], notes: list[str], said: Said | None = None) -> list[Signal]:
    """The recordings in files and folders, as the model takes them: without those of another kind and channels that it
    does not know, and in series of those that it knows together. SignalError where it knows none."""
    head, missing = model.codec.head, model.card.get("missing", [])
    known = set(zip(head.channels, head.units, strict=True))
    found: list[Signal] = []
    for signal in material.read(paths, missing=missing, notes=notes, said=said):
        if not isinstance(signal, model.codec.KIND):
            kinds = (type(signal).__name__.lower(), model.codec.KIND.__name__.lower())
            notes.append("{}: is of {}, the model of {}: left out".format(signal.name, *kinds))
        elif isinstance(signal, Series):
            pairs = list(zip(signal.channels, signal.units, strict=True))
            if not known.issuperset(pairs):
                notes.append(f"{signal.name}: channels that the model does not know are left out")
            if not (kept := [n for n, pair in enumerate(pairs) if pair in known]):
                continue
            for group in model.together([signal.channels[n] for n in kept]):
                found.append(model.fitted(material.placed(signal, [kept[n] for n in group])))
        else:
            found.append(model.fitted(signal))
    if not found:
        raise SignalError("the model knows no channel of these recordings; give such as it was trained on")
    return found


def stretches(model: Generator, signals: Sequence[Signal], count: int, length: int) -> tuple[Int, Int]:
    """At most `count` stretches (N, T, 1 + ASKS) to learn from, of at most `length` rows, evenly over all recordings:
    the token of each row, and what the next one is asked to be; and others, at most as many, to judge by.

    SignalError where there is no stretch of 16 rows."""
    layout = model.layout
    every = Windows(layout, recordings(layout, signals, [])).fixed(1 << 30)
    lengths = np.sort([min(len(rows) - 1, length) for rows in every])
    # As long as can be, so that few rows are left out.
    shorter = np.cumsum(lengths) / lengths.sum()
    whole = int(lengths[np.searchsorted(shorter, 1 - REACHED)])
    if whole < SHORTEST:
        raise SignalError(
            f"stretches of {whole} tokens: wanted {SHORTEST} or more to learn from; give longer recordings"
        )
    fit = [rows for rows in every if len(rows) > whole]
    order = np.linspace(0, len(fit) - 1, min(2 * count, len(fit))).round().astype(int)
    picked = [fit[n] for n in np.unique(order).tolist()]
    chosen = np.stack([np.column_stack([r.tokens[:whole], r.asks[1 : whole + 1]]) for r in picked]).astype(np.int32)
    return chosen[::2], chosen[1::2]


def nats(model: Generator, windows: Int) -> float:
    """Mean surprise of a token of stretches (N, T, 1 + ASKS): of those that stand for samples, rows, or a signal's
    end."""
    head, last = model.codec.head.size, model.codec.vocabulary
    lost, scored = 0.0, 0
    for window in windows:
        cache = model.decoder.cache(len(window))
        logits = model.decoder.forward(window, [Span(cache, 0, len(window))], logits="all")
        assert logits is not None
        next_ = window[1:, 0]
        counted = np.flatnonzero(((next_ >= head) & (next_ < last)) | (next_ == END))
        rows = logits[counted].astype(np.float64)
        best = rows.max(axis=1, keepdims=True)
        sums = np.log(np.exp(rows - best).sum(axis=1)) + best[:, 0]
        lost += float((sums - rows[np.arange(len(rows)), next_[counted]]).sum())
        scored += len(counted)
    return lost / max(1, scored)
