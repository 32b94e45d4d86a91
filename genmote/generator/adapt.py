"""A generator that adapts itself to recordings, as a model of text does to examples (`tune/adapt.py`): its examples are
stretches of the recordings, in the order in which they were recorded.

from genmote.generator.adapt import adapt
told = adapt("sensor.gguf", [Path("today.csv")], "adapted")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from genmote.device.meter import Meter
from genmote.errors import SpecError
from genmote.generator import calibrate
from genmote.generator.layout import Layout, Rows
from genmote.generator.model import Generator
from genmote.generator.windows import Windows, recordings
from genmote.models.gguf import ModelFile
from genmote.signals.header import END
from genmote.signals.kinds import Signal
from genmote.signals.said import Said
from genmote.tune.adapt import One
from genmote.tune.examples import Examples
from genmote.tune.follow import STEPS, Followed, follow_with
from genmote.tune.settings import Tuning
from genmote.tune.watch import Watch

LEAST_ROOM = 16  # tokens that a stretch must have behind the longest header


def adapt(
    model: str | os.PathLike[str],
    paths: Sequence[Path],
    folder: str | os.PathLike[str],
    tuning: Tuning | None = None,
    watch: Watch | None = None,
    *,
    guard: Path | None = None,
    said: Said | None = None,
    threads: int | None = None,
    ops: str | None = None,
    **settings: Any,
) -> Followed:
    """Read recordings, files or folders, one after another, and adapt a generator where they change.

    `folder`, `watch` and other settings: as for `tune.follow.follow`; `guard`: recordings that must stay known;
    `tuning.context`: most tokens of a stretch. Raises SignalError where the model knows no channel of them, and what
    `Generator.load` and `follow` raise."""
    tuning, tell = tuning or Tuning(steps=STEPS), settings.get("tell", lambda line: None)
    tuning = replace(tuning, rows=tuning.rows or tuning.batch * tuning.context)  # small models: a step in one pass
    with Meter() as meter:
        generator, notes = Generator.load(model, threads=threads, ops=ops), list[str]()
        assert generator.path is not None

        def cut(some: Sequence[Path]) -> list[Rows]:
            return stretches(generator, calibrate.read(generator, some, notes, said), tuning.context)

        pieces = cut(paths)
        kept = (
            None if guard is None else Examples.of([example(generator.layout, rows) for rows in cut([guard])], np.int32)
        )
        for line in dict.fromkeys(notes):
            tell(line)
        told = follow_with(
            generator.decoder,
            ModelFile.open(generator.path).sha256(),
            pieces,
            lambda rows: example(generator.layout, rows),
            folder,
            tuning,
            watch,
            what="stretch",
            mark=lambda rows: rows.tokens.tobytes(),
            guard=kept,
            total=len(pieces),
            **settings,
        )
    told.reading = meter.reading
    return told


def stretches(generator: Generator, signals: Sequence[Signal], context: int) -> list[Rows]:
    """Recordings one after another as stretches of at most `context` tokens, header and all. SpecError where a header
    leaves no room."""
    layout = generator.layout
    head = max((len(layout.header(signal)) for signal in signals), default=0)
    if not head + LEAST_ROOM <= context:
        raise SpecError(f"context={context}: a stretch has {head} tokens of a header; use {head + LEAST_ROOM} or more")
    layout = replace(layout, context=min(context, layout.context))
    return Windows(layout, recordings(layout, signals, [])).fixed(1 << 30)


def example(layout: Layout, rows: Rows) -> One:
    """A stretch as training has it: (n, 1 + ASKS), each token and what is asked of the next one; what stands for
    samples, rows, or a signal's end is to be learnt."""
    tokens, asks = rows.tokens, np.full_like(rows.asks, -1)
    asks[:-1] = rows.asks[1:]
    learnt = ((tokens >= layout.codec.head.size) & (tokens < layout.codec.vocabulary)) | (tokens == END)
    learnt[:1] = False  # nothing says the first token
    return np.column_stack([tokens, asks]).astype(np.int32), learnt
