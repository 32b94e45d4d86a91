"""How a model measures examples: by reading them, by a pilot that learns from a few, by gradients.

A pilot is a short training of a small adapter. All that it costs is passes over the examples, so that the upper layers
alone are learnt (`upper`): a way back through a third of the layers takes a third of the time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.models.backward import Backward
from genmote.models.decoder import Decoder
from genmote.ops import gradients
from genmote.ops.protocol import Span
from genmote.tune import batches
from genmote.tune.examples import Examples
from genmote.tune.learnt import Numbers, fresh
from genmote.tune.select._base import KEPT_STATES, Floats, Indices, Reading
from genmote.tune.select.gradients import directions
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer

GRADIENT_LAYERS = 4  # whose gradients are compared: a way back through a few of them costs little
Progress = Callable[[str, int, int], None]  # what is measured, examples done, and in all


@dataclass(frozen=True)
class Pilot:
    """What a pilot is."""

    steps: int = 24  # of a pilot
    stages: int = 2  # readings while the pilot learns, beside the one before it
    held_out: int = 64  # examples whose gradients others are compared to, at most
    upper: float = 1 / 3  # share of the layers, the last, that learn
    numbers: int = 1024  # that a gradient is projected to


class DecoderProbe:
    """Measures examples by a decoder. `held_out`: those that gradients are compared to."""

    def __init__(
        self,
        decoder: Decoder,
        texts: Examples,
        held_out: Examples,
        tuning: Tuning,
        pilot: Pilot | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.decoder, self.texts, self.tuning = decoder, texts, tuning
        self.pilot = pilot or Pilot()
        self.held_out = held_out.take(range(min(len(held_out), self.pilot.held_out)))
        self.progress = progress
        self.rows = tuning.rows or tuning.context  # tokens that go through the model at once
        self._piloted: Trainer | None = None

    def read(self, of: Indices) -> Reading:
        return self._read(self.decoder.weights, of)

    def follow(self, of: Indices) -> list[Reading]:
        found = [self.read(of)]

        def at_stage(trainer: Trainer) -> None:
            found.append(self._read(trainer.weights, of))

        self._piloted = self._train(of, self.pilot.steps, "pilot", at_stage, self.pilot.stages)
        return found

    def gradients(self, of: Indices) -> tuple[Floats, Floats]:
        if self._piloted is None:
            self._piloted = self._train(of, self.pilot.steps, "pilot")
        every = np.arange(len(self.held_out))
        return self._gradients(self._piloted, self.texts, of), self._gradients(self._piloted, self.held_out, every)

    def _train(
        self, of: Indices, steps: int, what: str, at_stage: Callable[[Trainer], None] | None = None, stages: int = 1
    ) -> Trainer:
        """What has learnt from these examples for so many steps; `at_stage` is told it at equal distances."""
        trainer = Trainer(self.decoder, replace(self.tuning, steps=steps, rows=self.rows), numbers=self._fresh())
        told = {round(steps * (n + 1) / stages) for n in range(stages)}
        for step in range(1, steps + 1):
            some = of[batches.chosen(len(of), self.tuning.batch, step - 1, self.tuning.seed)]
            trainer.step(self.texts, some.tolist(), step)
            self._tell(what, step, steps)
            if at_stage is not None and step in told:
                at_stage(trainer)
        return trainer

    def _fresh(self) -> Numbers:
        """What a pilot learns: what the tuning does, of the upper layers alone."""
        layers = self.decoder.config.n_layers
        lowest = layers - max(1, round(layers * self.pilot.upper))
        numbers = fresh(self.decoder.weights, self.decoder.config, self.tuning)
        upper = {name: array for name, array in numbers.items() if _layer(name) >= lowest}
        return upper or numbers

    # -- measuring ------------------------------------------------------------------------------------------------

    def _gradients(self, trainer: Trainer, texts: Examples, of: Indices) -> Floats:
        lowest = max(map(_layer, trainer.numbers)) + 1 - GRADIENT_LAYERS
        wanted = {name: array for name, array in trainer.numbers.items() if _layer(name) >= lowest}
        back = Backward(trainer.decoder, gradients.of(self.decoder.ops), wanted)
        sketch = {name: _Sketch(name, array.size, self.pilot.numbers) for name, array in wanted.items()}
        found = np.zeros((len(of), self.pilot.numbers))
        for n, index in enumerate(of.tolist()):
            share = 1 / batches.learnt_tokens(texts, [index])
            for batch in batches.passes(texts, [index], self.rows, share):
                back.step(batch, partial(_add, sketch, found[n]))
            self._tell("gradients, examples", n + 1, len(of))
        return found

    def _read(self, weights: Any, of: Indices) -> Reading:
        decoder = Decoder(self.decoder.config, weights, self.decoder.ops)
        losses, errors = np.empty(len(of)), np.empty(len(of))
        right, hidden = np.empty(len(of), bool), np.empty((len(of), decoder.config.width), np.float32)
        kept = np.zeros((len(of), KEPT_STATES, decoder.config.width), np.float16)
        said = np.full((len(of), KEPT_STATES), -1, np.int32)
        done = 0
        for batch in batches.passes(self.texts, of.tolist(), self.rows, 1.0):
            starts = np.cumsum([0, *batch.lengths])
            spans = [Span(decoder.cache(n), int(at), n) for at, n in zip(starts, batch.lengths, strict=False)]
            states = decoder.ops.numpy(decoder.ops.norm(x := decoder.run(batch.tokens, spans), weights.output_norm))
            counted = np.flatnonzero(batch.weights)
            nats, wrong, best = (np.zeros(len(batch.tokens)) for _ in range(3))
            for at in range(0, len(counted), self.tuning.logit_rows):
                rows = counted[at : at + self.tuning.logit_rows]
                nats[rows], wrong[rows], best[rows] = _told(
                    decoder.ops.numpy(decoder.head(x[rows])), batch.targets[rows]
                )
            for n, count in enumerate(batch.lengths):
                part = slice(starts[n], starts[n] + count)
                these = part.start + np.flatnonzero(batch.weights[part])
                losses[done], errors[done] = nats[these].mean(), wrong[these].mean()
                right[done], hidden[done] = best[these].all(), states[part].mean(axis=0)
                some = these[np.linspace(0, len(these) - 1, min(len(these), KEPT_STATES)).round().astype(int)]
                kept[done, : len(some)] = directions(states[some])
                said[done, : len(some)] = batch.targets[some]
                done += 1
            self._tell("reading, examples", done, len(of))
        return Reading(losses, errors, right, hidden, kept, said)

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


class _Sketch:
    """A random projection to few numbers: each number of a gradient, with a random sign, is added to a random one of
    them (count sketch: Charikar, Chen & Farach-Colton 2002). Angles are kept, about."""

    def __init__(self, name: str, size: int, numbers: int) -> None:
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        self.numbers = numbers
        self.at = draw.integers(0, numbers, size, np.int16 if numbers <= 1 << 15 else np.int32)
        self.signs = draw.integers(0, 2, size, np.int8) * np.int8(2) - np.int8(1)

    def add(self, row: Floats, gradient: NDArray[np.float32]) -> None:
        row += np.bincount(self.at, gradient.reshape(-1) * self.signs, self.numbers)


def _add(sketch: Mapping[str, _Sketch], row: Floats, name: str, gradient: NDArray[np.float32]) -> None:
    sketch[name].add(row, gradient)


def _told(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Of each row: the target's nats, the length of (probabilities - target), whether the target is most probable."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    sums = powers.sum(axis=1, dtype=np.float64)
    at = (np.arange(len(targets)), targets)
    probability = powers[at] / sums
    squares = np.einsum("mv,mv->m", powers, powers, dtype=np.float64) / sums**2
    return (
        np.log(sums) - shifted[at],
        np.sqrt(np.maximum(squares - 2 * probability + 1, 0)),
        logits.argmax(axis=1) == targets,
    )


def _layer(name: str) -> int:
    pieces = name.split(".")
    return int(pieces[1]) if pieces[0] == "blk" else 1 << 30
