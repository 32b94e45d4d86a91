"""The original teaches the compressed model: its distribution of the next token, on text that it wrote itself.

Hinton et al. 2015 (arXiv 1503.02531); on the model's own text as in LLM-QAT (Liu et al. 2023, arXiv 2305.17888).
Recovers what pruning lost, on plain numbers before quantising; of a quantised model what learns is plain numbers
afterwards, and the next step stores them again.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.compress import calibration
from genmote.compress.adam import Adam
from genmote.compress.calibration import Calibration
from genmote.compress.cut import original_blocks
from genmote.compress.layers import write
from genmote.compress.pupil import Part, Pupil
from genmote.compress.steps._base import ModelStep, Sight
from genmote.compress.teacher import Lesson, divergence, lesson
from genmote.compress.whole import Whole
from genmote.errors import SpecError
from genmote.fetch import quiet
from genmote.home import atomic_write
from genmote.models.gguf import ModelFile
from genmote.spec import setting

Tensor = torch.Tensor
WORSE = (
    "learning did not help: {:.4g} nats before and {:.4g} after, on other text; the model is left as it was; take a "
    "lower rate, or more tokens"
)
SHARD = 32  # windows of a lesson: text is written when training comes to it
CHECKPOINT_S = 120.0
WARM, LEAST = 0.05, 0.1  # the rate rises over this share of the steps, and falls to this share of its highest


@dataclass(frozen=True)
class Distill(ModelStep):
    calibrates: ClassVar[bool] = False  # it has text of its own: more of it, in shorter windows
    relearns: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    tokens: int = setting("tokens to learn from", default=200_000)
    train: Part = setting(
        "what learns: all of the blocks, their norms alone, low-rank adapters, or the codes (or scales alone) that the "
        "matrices are stored in",
        default="all",
    )
    rate: float = setting("Adam's learning rate at its highest", default=2e-4)
    batch: int = setting("windows of a step", default=8)
    at_once: int = setting("windows in memory at once", default=4)
    length: int = setting("tokens of a window", default=256)
    top: int = setting("likeliest tokens of each row that the original tells of", default=64)
    hidden: float = setting("weight of the blocks' outputs; above 0 the original runs once more", default=0.0)
    rank: int = setting("rank of the adapters", default=16)
    seed: int = setting("number that fixes the text", default=1)
    text: Path | None = setting("a text to learn from (default: the original writes it)", default=None)
    measured: int = setting("windows of other text on which the loss is told before and after", default=8)

    def faults(self) -> Iterable[str]:
        for name in ("batch", "at_once", "top", "rank", "measured"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: use 1 or more"
        if self.tokens < self.batch * self.length:
            yield f"tokens={self.tokens}: a step takes {self.batch} windows of {self.length}; use as many or more"
        if self.rate <= 0:
            yield f"rate={self.rate:g}: use more than 0, such as 2e-4"
        if self.hidden < 0:
            yield f"hidden={self.hidden:g}: use 0 or more"
        yield from Calibration(length=self.length, seed=self.seed).faults()

    @property
    def steps(self) -> int:
        return self.tokens // (self.batch * self.length)

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        return _Course(self, source, sight).run(target)


class _Course:
    """One distillation: who learns, what is taught, and how far it is."""

    def __init__(self, step: Distill, source: Path, sight: Sight) -> None:
        self.step, self.sight = step, sight
        self.teacher = ModelFile.open(sight.original)
        mine = ModelFile.open(source)
        tokens = [file.tensors["token_embd.weight"].shape[0] for file in (mine, self.teacher)]
        if tokens[0] != tokens[1]:
            raise SpecError(
                f"distill: the model has {tokens[0]} tokens and the original {tokens[1]}; put vocabulary after distill"
            )
        self.blocks = original_blocks(mine, self.teacher) if step.hidden else []
        self.shown = Whole(sight.original) if step.hidden else None
        self.pupil = Pupil(source, ModelFile.open(sight.compared), step.train, step.rank, step.seed)
        self.adam = Adam(self.pupil.parameters)
        self.losses: list[float] = []  # mean nats a token of each step
        self.before = math.nan
        self.seconds = 0.0

    def run(self, target: Path) -> dict[str, Any]:
        step, state = self.step, self.sight.folder / "state.pt"
        if state.exists():
            self._restore(state)
        else:
            self.before = self._measure()
        saved = time.monotonic()
        while (at := self.adam.steps) < step.steps:
            self.sight.progress("distilling", at, step.steps)
            started = time.perf_counter()
            self.losses.append(self._learn(at))
            self.seconds += time.perf_counter() - started
            if time.monotonic() - saved > CHECKPOINT_S:
                self._save(state)
                saved = time.monotonic()
        self.sight.progress("distilling", step.steps, step.steps)
        after = self._measure()
        better = after < self.before
        if better:
            self.pupil.write(target, self.sight.folder / "learned.gguf", self.sight.progress)
        else:
            write(target, self.pupil.whole.model.file, self.sight.progress)
        rows = step.steps * step.batch * step.length
        return {
            **({} if better else {"note": WORSE.format(self.before, after)}),
            "kl_before": self.before,
            "kl_after": after,
            "tokens": rows,
            "tokens_per_s": rows / max(self.seconds, 1e-9),
            "trained": sum(p.numel() for p in self.pupil.parameters),
            "losses": self.losses,
        }

    def _learn(self, at: int) -> float:
        """One step; the mean loss of its rows."""
        step = self.step
        numbers = range(at * step.batch, (at + 1) * step.batch)
        total = 0.0
        for start in range(0, step.batch, step.at_once):
            some = list(numbers[start : start + step.at_once])
            for shard in sorted({number // SHARD for number in some}):
                part = self._lesson(shard)
                loss = self._loss(part, [number % SHARD for number in some if number // SHARD == shard])
                loss = loss / (step.batch * step.length)
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        if not math.isfinite(total):
            raise SpecError(f"distill: step {at} has a loss that is no number; lower rate={step.rate:g}")
        self.pupil.gather()
        self.adam.step(self._rate(at))
        self.pupil.settle()
        return total

    def _rate(self, at: int) -> float:
        """Up in a line, down in half a cosine."""
        warm = max(1.0, WARM * self.step.steps)
        if at + 1 < warm:
            return self.step.rate * (at + 1) / warm
        done = (at + 1 - warm) / max(1.0, self.step.steps - warm)
        return self.step.rate * (LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))

    def _loss(self, part: Lesson, windows: list[int]) -> Tensor:
        """Sum over the rows of the divergence from the original, and of the blocks' relative squared errors where they
        count."""
        whole, tokens = self.pupil.whole, part.tokens[windows]
        states = list(whole.states(tokens))
        final = whole.ops.norm(states[-1], whole.norm)
        loss = divergence(final, whole.head.weight, whole.config.logit_cap, part, windows)
        if self.shown is not None:
            with torch.no_grad():
                wanted = list(self.shown.states(tokens))
            errors = [
                ((states[mine + 1] - wanted[theirs + 1]).square().sum(1) / wanted[theirs + 1].square().sum(1)).sum()
                for mine, theirs in enumerate(self.blocks)
            ]
            loss = loss + self.step.hidden * torch.stack(errors).mean()
        return loss

    def _measure(self) -> float:
        """Mean divergence in nats a token on text that is not learned from."""
        step, part = self.step, self._lesson(-1)
        total = 0.0
        with torch.no_grad():
            for start in range(0, step.measured, step.at_once):
                self.sight.progress("measuring", start, step.measured)
                windows = list(range(start, min(start + step.at_once, step.measured)))
                final = self.pupil.whole.final(part.tokens[windows])
                head, cap = self.pupil.whole.head.weight, self.pupil.whole.config.logit_cap
                total += float(divergence(final, head, cap, part, windows))
        return total / (step.measured * step.length)

    # -- text ---------------------------------------------------------------------------------------------------------

    def _lesson(self, shard: int) -> Lesson:
        """Windows `shard * SHARD` and the following ones; -1: those to measure on."""
        if self._at != shard:
            path = self.sight.folder / (f"lesson-{shard:04}.npz" if shard >= 0 else "measured.npz")
            # Quietly: a bar of its own for each lesson would hide how much time is left of the whole.
            self._part = lesson(self.sight.original, lambda: self._text(shard), self.step.top, path, quiet)
            self._at = shard
        return self._part

    _at: int | None = None
    _part: Lesson

    def _text(self, shard: int) -> NDArray[np.int32]:
        step = self.step
        windows = step.measured if shard < 0 else min(SHARD, step.steps * step.batch - shard * SHARD)
        if step.text is not None:
            start = len(self._cut) - step.measured if shard < 0 else shard * SHARD
            return self._cut[start : start + windows]
        seed = step.seed * 1_000_003 + shard + 1
        return self._windows(Calibration(windows=windows, length=step.length, seed=seed))

    @cached_property
    def _cut(self) -> NDArray[np.int32]:
        """The windows of a text that was given; the last are those to measure on."""
        step = self.step
        count = step.steps * step.batch + step.measured
        return self._windows(Calibration(windows=count, length=step.length, text=step.text))

    def _windows(self, settings: Calibration) -> NDArray[np.int32]:
        return calibration.windows(self.teacher.path, self.teacher.sha256(), settings)

    # -- interrupted runs ---------------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        with atomic_write(path) as out:
            told = {"losses": self.losses, "before": self.before, "seconds": self.seconds}
            torch.save({**self.adam.state(), **told}, out)

    def _restore(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True)
            self.adam.restore(state)
            self.pupil.settle()
            self.losses, self.before, self.seconds = state["losses"], state["before"], state["seconds"]
        except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError):
            raise SpecError(f"{path}: is damaged; remove it, and the distillation begins anew") from None
