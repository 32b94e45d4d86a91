"""Steps of a method: examples through the model and back, and what learns moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.write_lora import write_lora
from genmote.ops.exact import Float32
from genmote.tune import batches
from genmote.tune.examples import Examples
from genmote.tune.settings import Tuning
from genmote.tune.trainer import scheduled
from genmote.tune.workbench._base import ENDS, Method, block_of
from genmote.tune.workbench._model import TABLE, Model, WorkbenchOps
from genmote.tune.workbench._passes import Passes
from genmote.tune.workbench._write import write_model

Tensor = torch.Tensor


class WorkbenchTrainer:
    """A model and what is learnt of it, as `trainer.Trainer`. `numbers` share their memory with the tensors that learn,
    and `states` with what the method keeps of each."""

    def __init__(self, file: ModelFile, method: Method, tuning: Tuning, threads: int = 1) -> None:
        """Raises SpecError where the model has nothing of what is to be learnt."""
        self.method, self.tuning, self.threads = method, tuning, threads
        self.model = Model(file, method.ops(), packed=method.packed)
        weights, self.tensors = method.prepare(self.model, tuning)
        self.decoder = Decoder(self.model.config, weights, self.model.ops, fused=False)
        self.passes = Passes(self.decoder, recompute=tuning.recompute, logit_rows=tuning.logit_rows)
        self.numbers: dict[str, Float32] = {name: x.detach().numpy() for name, x in self.tensors.items()}
        self.states: dict[str, dict[str, Any]] = {}
        self._step = 0
        self._active: frozenset[str] = frozenset()
        self._at_once = False
        for name, tensor in self.tensors.items():
            tensor.requires_grad_()
            tensor.register_post_accumulate_grad_hook(partial(self._known, name))  # type: ignore[no-untyped-call]

    @property
    def rows(self) -> int:
        """Rows of a pass, at most (an example of more goes alone)."""
        return self.tuning.rows or self.tuning.batch * self.tuning.context

    def step(self, examples: Examples, some: Sequence[int], step: int) -> float:
        """Learn from some examples as step number `step`, the first is 1; the mean loss of their tokens before it, in
        nats. Where they go through the model in one pass, each gradient is used as it comes and is not kept. Raises
        FloatingPointError where a number is none any more, after which the numbers are of no use."""
        tokens = batches.learnt_tokens(examples, some)
        passes = list(batches.passes(examples, some, self.rows, 1 / max(1, tokens)))
        self._begin(step)
        self._at_once = self.method.applies_at_once or len(passes) == 1
        layers = [block_of(name) for name in self._active]
        embeds = any(name in self._active for name in (TABLE, "position_embd.weight"))
        in_layers = [layer for layer in layers if layer != ENDS]
        lowest = 0 if embeds else min(in_layers, default=self.model.config.n_layers)
        loss = 0.0
        with _threads(self.threads):
            try:
                for each in passes:
                    loss += self.passes.step(each, lowest)
                    if self._at_once:
                        self._apply_all()
                self._apply_all()
            except FloatingPointError as fault:
                raise FloatingPointError(f"step {step}: {fault}") from None
        return loss

    def judge(self, examples: Examples, done: Callable[[int], None] = lambda count: None) -> float:
        """Mean loss of all tokens that are to be learnt, in nats; `done` is told how many examples are gone through."""
        return self._judge(self.passes, examples, done)

    def judge_file(self, path: Path, examples: Examples, done: Callable[[int], None]) -> float | None:
        """The same with a model file that was written, what rounding costs in it; None for an adapter."""
        if self.makes == "adapter":
            return None
        model = Model(ModelFile.open(path), WorkbenchOps(), packed=True)
        decoder = Decoder(model.config, model.weights, model.ops, fused=False)
        return self._judge(Passes(decoder, recompute=False, logit_rows=self.passes.logit_rows), examples, done)

    @property
    def makes(self) -> str:
        return self.method.writes

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """What was learnt as a file, whole or not at all: an adapter, or a model; `about`: more metadata."""
        tuning, config = self.tuning, self.model.config
        if self.makes == "adapter":
            alpha = self.method.factor(tuning) * tuning.rank
            write_lora(path, config.architecture, self.numbers, alpha, **about)
        else:
            numbers = partial(self.method.matrix, self.model, self.tensors, tuning)
            write_model(path, self.model.file, numbers, tuning.type, about)

    def _judge(self, passes: Passes, examples: Examples, done: Callable[[int], None]) -> float:
        with _threads(self.threads):
            return float(sum(map(passes.loss, batches.judged(examples, self.rows, done))))

    def _begin(self, step: int) -> None:
        """Have those learn whose turn it is; what was kept of the others is let go."""
        self._step = step
        active = frozenset(self.method.active(tuple(self.tensors), self.tuning, step))
        if active != self._active:
            self._active = active
            for name, tensor in self.tensors.items():
                tensor.requires_grad_(name in active)
        for name in set(self.states) - active:
            del self.states[name]

    def _known(self, name: str, tensor: Tensor) -> None:
        """The gradient of a layer's tensor is whole in this pass."""
        if self._at_once and block_of(name) != ENDS:
            self._apply(name, tensor)

    def _apply_all(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.grad is not None:
                self._apply(name, tensor)

    def _apply(self, name: str, tensor: Tensor) -> None:
        gradient, tensor.grad = tensor.grad, None
        assert gradient is not None
        length = float(gradient.norm())
        if not math.isfinite(length):
            raise FloatingPointError(f"the gradient of {name} is {length}")
        if length > self.tuning.clip:
            gradient.mul_(self.tuning.clip / length)
        with torch.no_grad():
            state = self.states.setdefault(name, {})
            rate = scheduled(self.tuning, self._step)
            self.method.update(tensor, gradient, state, rate, self.tuning.decay)
            if not state:
                del self.states[name]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
