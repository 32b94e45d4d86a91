"""Steps of training: examples through the model and back, and the numbers moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.models.backward import Backward
from genmote.models.decoder import Decoder
from genmote.models.write_lora import write_lora
from genmote.ops.exact import Float32
from genmote.ops.gradients import Gradients, of
from genmote.tune import batches
from genmote.tune.adamw import AdamW
from genmote.tune.examples import Examples
from genmote.tune.learnt import Learnt, Numbers, fresh, go_on
from genmote.tune.settings import Tuning


def scheduled(tuning: Tuning, step: int) -> float:
    """The learning rate of step `step`, the first is 1: up in a line, then down as a cosine."""
    warm = max(1, math.ceil(tuning.warmup * tuning.steps))
    if step <= warm:
        return tuning.highest_rate * step / warm
    done = (step - warm) / max(1, tuning.steps - warm)
    return tuning.highest_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class AdapterTrainer:
    """What a run asks of a training of an adapter, beside its steps and judgements."""

    makes = "adapter"
    tuning: Tuning
    decoder: Decoder
    numbers: Numbers
    adam: AdamW

    @property
    def states(self) -> dict[str, dict[str, NDArray[Any]]]:
        """What is kept of the numbers beside them, to go on from."""
        return self.adam.states

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """The adapter as a file, whole or not at all; `about`: more metadata."""
        alpha = self.tuning.factor * self.tuning.rank
        write_lora(path, self.decoder.config.architecture, self.numbers, alpha, **about)

    def judge_file(self, path: Path, examples: Examples, done: Callable[[int], None]) -> float | None:
        """The held-out loss of what was written, where that is rounded; an adapter is not."""
        return None


class Trainer(AdapterTrainer):
    """A model and what is learnt of it. `numbers` are changed in place; whoever keeps them copies them."""

    def __init__(
        self, decoder: Decoder, tuning: Tuning, *, numbers: Numbers | None = None, gradients: Gradients | None = None
    ) -> None:
        """`decoder` gives the base, and stays as it is. `numbers`: to go on from; None: those of `tuning.base`, or
        fresh ones. Raises SpecError where the model has nothing of what is to be learnt, OpsError for an op set without
        backward operations."""
        self.tuning = tuning
        base, ops = decoder.weights, decoder.ops
        self.numbers = fresh(base, decoder.config, tuning) if numbers is None else numbers
        if numbers is None and tuning.base is not None:
            go_on(self.numbers, tuning.base, decoder.config, tuning.factor)
        self.weights: Any = Learnt(base, ops, self.numbers, tuning.factor * tuning.rank)
        self.decoder = Decoder(decoder.config, self.weights, ops, fused=False)
        self.backward = Backward(
            self.decoder,
            of(ops) if gradients is None else gradients,
            self.numbers,
            half=tuning.inputs == "f16",
            logit_rows=tuning.logit_rows,
        )
        self.adam = AdamW(decay=tuning.decay, seed=tuning.seed)
        self._sums: Numbers = {}

    @property
    def rows(self) -> int:
        """Rows of a pass, at most (an example of more goes alone)."""
        return self.tuning.rows or self.tuning.context

    def step(self, examples: Examples, some: Sequence[int], step: int) -> float:
        """Learn from some examples as step number `step`, the first is 1; the mean loss of their tokens before it, in
        nats. Where they go through the model in one pass, each gradient is used as it comes and is not kept. Raises
        FloatingPointError where a number is none any more, after which the numbers are of no use."""
        tokens = batches.learnt_tokens(examples, some)
        passes = list(batches.passes(examples, some, self.rows, 1 / max(1, tokens)))
        rate = scheduled(self.tuning, step)

        def apply(name: str, gradient: Float32) -> None:
            length = float(np.sqrt(np.square(gradient, dtype=np.float32).sum(dtype=np.float64)))
            if not math.isfinite(length):
                raise FloatingPointError(f"step {step}: the gradient of {name} is {length}")
            if length > self.tuning.clip:
                gradient *= np.float32(self.tuning.clip / length)
            self.adam.update(name, self.numbers[name], gradient, rate, step)

        def gather(name: str, gradient: Float32) -> None:
            if name in self._sums:
                self._sums[name] += gradient
            else:
                self._sums[name] = gradient

        with np.errstate(over="ignore", invalid="ignore"):  # told by the loss
            loss = sum(self.backward.step(each, apply if len(passes) == 1 else gather) for each in passes)
            if not math.isfinite(loss):
                raise FloatingPointError(f"step {step}: the loss is {loss}")
            for name in list(self._sums):
                apply(name, self._sums.pop(name))
        return float(loss)

    def judge(self, examples: Examples, done: Callable[[int], None] = lambda count: None) -> float:
        """Mean loss of all tokens that are to be learnt, in nats; `done` is told how many examples are gone through."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(sum(map(self.backward.loss, batches.judged(examples, self.rows, done))))
