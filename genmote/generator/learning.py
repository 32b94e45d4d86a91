"""The loop of training, with PyTorch: steps, judgements, and a state from which a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from genmote import home
from genmote.errors import SpecError
from genmote.fetch import Progress
from genmote.generator.layout import Layout, Rows
from genmote.generator.network import Network
from genmote.generator.windows import Batch, Windows
from genmote.runtime.threads import checked_threads

if TYPE_CHECKING:
    from genmote.generator.train import Training

SAVE_S = 30.0
TRIED = 5  # steps by which the time of one is measured
PATIENCE = 6  # judgements without getting better
JUDGEMENTS = 25  # in a whole training
WARM = 0.05  # part of the steps in which the rate rises
LOWEST = 0.05  # part of the rate that is left at the end
MOST = 20000  # steps
MINUTES = 10.0  # that training may take, where nothing is said of its length
EPOCHS = 60  # more is not tried, however much time there is


class Learning:
    """One training, from the model file `first` on, judged by the stretches `judged`."""

    def __init__(
        self,
        first: Path,
        layout: Layout,
        windows: Windows,
        judged: Sequence[Rows],
        training: Training,
        state: Path,
        notes: list[str],
    ) -> None:
        self.network = Network(first, layout)
        self.windows, self.training, self.state_path, self.notes = windows, training, state, notes
        self.judged = [windows.padded(judged[at : at + 16]) for at in range(0, len(judged), 16)]
        self.optimiser = torch.optim.AdamW(
            self.network.groups(training.decay), lr=training.rate, betas=(0.9, 0.98), eps=1e-9
        )
        self.step, self.total, self.spent_s = 0, training.steps, 0.0
        self.best, self.best_step, self.worse = math.inf, 0, 0
        self.kept = [p.detach().clone() for p in self.network.parameters()]
        self.curve: list[tuple[int, float]] = []
        self.key = _key(first, windows, training)
        self._resume()

    def go(self, progress: Progress) -> dict[str, Any]:
        """Train to the end; afterwards the network holds the best that was seen. Figures for the card."""
        training, began, saved = self.training, time.monotonic(), time.monotonic()
        spent, threads = self.spent_s, torch.get_num_threads()
        torch.set_num_threads(checked_threads(training.threads))
        try:
            while self.total == 0 or self.step < self.total:
                self._learn(self.step)
                self.step += 1
                self.spent_s = spent + time.monotonic() - began
                if self.total == 0 and self.step >= TRIED:
                    fit = int(60 * (training.minutes or MINUTES) * 0.93 * self.step / self.spent_s)
                    self.total = max(TRIED + 1, min(MOST, fit, self._enough()))
                if self.total and (self.step % max(1, self.total // JUDGEMENTS) == 0 or self.step == self.total):
                    self._judge()
                    if self.worse >= PATIENCE:
                        break
                if time.monotonic() - saved > SAVE_S:
                    self._save()
                    saved = time.monotonic()
                progress("training", self.step, self.total)
                if self.step < training.steps and self.spent_s > 60 * (training.minutes or math.inf):
                    self.notes.append(f"{training.minutes:g} minutes are over after {self.step} of {self.total} steps")
                    if not self.curve or self.curve[-1][0] < self.step:
                        self._judge()
                    break
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            torch.set_num_threads(threads)
        self._save()
        with torch.no_grad():
            for parameter, kept in zip(self.network.parameters(), self.kept, strict=True):
                parameter.copy_(kept)
        return {
            "weights": sum(p.numel() for p in self.network.parameters()),
            "steps": self.step,
            "best_step": self.best_step,
            "seconds": round(self.spent_s, 1),
            "held_out_nats": round(self.best, 4),
            "curve": [[step, round(loss, 4)] for step, loss in self.curve],
        }

    def _enough(self) -> int:
        return max(100, math.ceil(EPOCHS * self.windows.tokens / self.training.batch))

    def _learn(self, step: int) -> None:
        training = self.training
        draw = np.random.default_rng([training.seed, 2, step])
        torch.manual_seed(training.seed * 1_000_003 + step)
        count = max(1, training.batch // self.windows.layout.context)
        rate = training.rate * _rate(step, self.total or 1000)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.ops.dropout = training.dropout
        batch = self.windows.batch(count, draw, shift=training.shift)
        losses = self._losses(batch)
        loss = losses.sum() / max(1, int((losses > 0).sum()))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()

    def _losses(self, batch: Batch) -> torch.Tensor:
        return self.network.losses(*(torch.from_numpy(x) for x in (batch.tokens, batch.asks, batch.targets)))

    @torch.no_grad()
    def _judge(self) -> None:
        self.network.ops.dropout = 0.0
        total = count = 0.0
        for batch in self.judged:
            total += float(self._losses(batch).sum())
            count += int((batch.targets >= 0).sum())
        loss = total / max(1.0, count)
        if not math.isfinite(loss):
            raise SpecError(f"the model's loss is no number after {self.step} steps: use a lower --rate")
        self.curve.append((self.step, loss))
        if loss < self.best - 1e-4:
            self.best, self.best_step, self.worse = loss, self.step, 0
            for kept, parameter in zip(self.kept, self.network.parameters(), strict=True):
                kept.copy_(parameter)
        else:
            self.worse += 1

    # -- a state to go on from -------------------------------------------------------------------------------------
    def _save(self) -> None:
        state = {
            "key": self.key,
            "figures": [self.step, self.total, self.spent_s, self.best, self.best_step, self.worse],
            "curve": self.curve,
            "weights": [p.detach() for p in self.network.parameters()],
            "kept": self.kept,
            "optimiser": self.optimiser.state_dict(),
        }
        with home.atomic_write(self.state_path, "wb") as out:
            torch.save(state, out)

    def _resume(self) -> None:
        if not self.state_path.exists():
            return
        try:
            state = torch.load(self.state_path, weights_only=True)
            if state["key"] != self.key:
                self.notes.append(f"{self.state_path.parent}: of another training; this one begins anew")
                return
            shapes = [p.shape for p in self.network.parameters()]
            if any([w.shape for w in state[name]] != shapes for name in ("weights", "kept")):
                raise ValueError("weights of other shapes")
            curve = [(int(step), float(loss)) for step, loss in state["curve"]]
            figures = state["figures"]
            if len(figures) != 6:
                raise ValueError("other figures")
            self.optimiser.load_state_dict(state["optimiser"])
            # From here on nothing can fail: a damaged state changes nothing.
            self.step, self.total, self.spent_s, self.best, self.best_step, self.worse = figures
            self.curve, self.kept = curve, state["kept"]
            with torch.no_grad():
                for parameter, value in zip(self.network.parameters(), state["weights"], strict=True):
                    parameter.copy_(value)
            self.notes.append(f"goes on after step {self.step} of {self.total}")
        except Exception as fault:  # whatever a damaged file makes PyTorch raise
            self.notes.append(f"{self.state_path}: is damaged ({type(fault).__name__}); training begins anew")


def _rate(step: int, total: int) -> float:
    warm = max(1, int(WARM * total))
    if step < warm:
        return (step + 1) / warm
    done = min(1.0, (step - warm) / max(1, total - warm))
    return LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * done))


def _key(first: Path, windows: Windows, training: Training) -> str:
    """Names what a training is of: its settings, the model that it begins with, and the recordings."""
    found = hashlib.sha256(
        json.dumps({k: str(v) for k, v in vars(training).items() if k != "threads"}, sort_keys=True).encode()
    )
    found.update(first.read_bytes())
    for recording in windows.found:
        found.update(recording.header.tokens.tobytes() + recording.rows.tokens.tobytes())
    return found.hexdigest()
