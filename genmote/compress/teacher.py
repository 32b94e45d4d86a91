"""What a model teaches: text that it wrote, and for each token of it the likeliest next ones with their probabilities.

The teacher runs once over the text, in the engine's fast kernels; what it says is kept on disk, `top` tokens of each
row. The rest of the vocabulary counts as one token more.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.fetch import Progress
from genmote.home import atomic_write

Tensor = torch.Tensor
ROWS = 256  # logits of so many rows are in memory at once


@dataclass(frozen=True, eq=False)
class Lesson:
    """Windows of text, and the teacher's word on the token after each."""

    tokens: NDArray[np.int32]  # (N, T)
    ids: NDArray[np.int32]  # (N, T, top), by falling probability
    logs: NDArray[np.float16]  # (N, T, top), their log probabilities


def lesson(model: Path, text: Callable[[], NDArray[np.int32]], top: int, path: Path, progress: Progress) -> Lesson:
    """The lesson of `model` on token ids (N, T), which `text` makes; kept at `path`."""
    if path.exists():
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            return Lesson(found["tokens"], found["ids"], found["logs"])
    made = taught(model, text(), top, progress)
    with atomic_write(path) as out:
        np.savez(out, tokens=made.tokens, ids=made.ids, logs=made.logs)
    return made


def taught(model: Path, tokens: NDArray[np.int32], top: int, progress: Progress) -> Lesson:
    """Let the engine read token ids (N, T)."""
    from genmote.runtime.engine import Engine
    from genmote.runtime.prompt import Rows
    from genmote.runtime.session import Session

    count, length = tokens.shape
    with Engine.load(model) as engine:
        top = min(top, engine.config.vocab_size - 1)
        ids = np.zeros((count, length, top), np.int32)
        logs = np.zeros((count, length, top), np.float16)
        for number, window in enumerate(tokens):
            progress("asking the original", number, count)
            session, rows = Session(engine), Rows([int(token) for token in window])
            for start in range(0, length, ROWS):
                stop = min(start + ROWS, length)
                logits = session.extend(rows, start, stop, stop - start)
                assert logits is not None
                best, found = _likeliest(torch.from_numpy(logits), top)
                ids[number, start:stop], logs[number, start:stop] = found.numpy(), best.half().numpy()
        progress("asking the original", count, count)
    return Lesson(tokens, ids, logs)


def _likeliest(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    best, ids = torch.topk(logits, top)
    return best - torch.logsumexp(logits, dim=-1, keepdim=True), ids


class Divergence(torch.autograd.Function):
    """Sum over rows of the KL divergence of a student from its teacher, over the teacher's likeliest tokens and the
    rest of the vocabulary as one more. Keeps no logits: the gradient is made with the value, some rows at a time."""

    @staticmethod
    def forward(ctx: Any, final: Tensor, head: Tensor, cap: float, ids: Tensor, logs: Tensor) -> Tensor:
        """final (n, D), head (V, D), cap of the logits or 0, ids and log probabilities (n, top) → nats."""
        total, gradient = torch.zeros(()), torch.empty_like(final)
        for start in range(0, len(final), ROWS):
            rows = slice(start, start + ROWS)
            z, at, p = final[rows] @ head.T, ids[rows], logs[rows].exp()
            if cap:
                z = cap * torch.tanh(z / cap)
            slope = 1 - (z / cap).square() if cap else None
            chosen = z.gather(1, at)
            z.scatter_(1, at, -torch.inf)
            rest, best = torch.logsumexp(z, dim=1), torch.logsumexp(chosen, dim=1)
            whole = torch.logaddexp(rest, best)
            p_rest = (1 - p.sum(dim=1)).clamp(min=1e-6)
            q_logs, q_rest_log = chosen - whole[:, None], rest - whole
            total += (p * (logs[rows] - q_logs)).sum() + (p_rest * (p_rest.log() - q_rest_log)).sum()
            mass = p.sum(dim=1) + p_rest
            # A logit of the rest has a share of the rest's mass, the others their own; minus the teacher's.
            z.sub_(rest[:, None]).exp_().mul_((mass * q_rest_log.exp() - p_rest)[:, None])
            z.scatter_(1, at, mass[:, None] * q_logs.exp() - p)
            if slope is not None:
                z *= slope
            torch.mm(z, head, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None, None, None, None


def divergence(final: Tensor, head: Tensor, cap: float, part: Lesson, windows: list[int]) -> Tensor:
    """Nats of all rows together; final (n * T, D) are the student's states for these windows of the lesson."""
    ids = torch.from_numpy(part.ids[windows]).flatten(0, 1).long()
    logs = torch.from_numpy(part.logs[windows]).flatten(0, 1).float()
    loss: Tensor = Divergence.apply(final, head, cap, ids, logs)  # type: ignore[no-untyped-call]
    return loss
