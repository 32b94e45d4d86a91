"""What a model makes of a text that is given: log-probabilities, perplexity, a vector."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ContextError, ModelFileError, SpecError
from genmote.runtime.sample import token_logprobs
from genmote.runtime.session import BESIDE, Session

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine

_LOGITS_BYTES = 8 << 20  # logits held at once: a large vocabulary times a whole window would be half a gigabyte

Progress = Callable[[int, int], None]  # windows or tokens done, and in all


@dataclass(frozen=True)
class Score:
    """Log-probability (natural) of each token, given all before it."""

    tokens: list[int]
    logprobs: NDArray[np.float64]

    @property
    def total(self) -> float:
        return float(self.logprobs.sum())


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood over `tokens` scored tokens; `stderr` is its standard error."""

    value: float
    stderr: float
    tokens: int
    windows: int
    context: int


def perplexity(
    engine: Engine,
    tokens: Sequence[int],
    *,
    bos: int | None,
    context: int,
    chunks: int | None,
    progress: Progress | None,
) -> Perplexity:
    """By llama.cpp's definition, so that figures compare: the text is cut into windows of `context` tokens, the last
    part dropped; `bos` (where the model begins texts with one) takes the place of each window's first token; the
    predictions from position context // 2 on are scored, so that each has at least half a window before it."""
    if not _whole(context) or context < 4:
        raise ContextError(f"context={context!r}: use a window of at least 4 tokens")
    if context > engine.context:
        raise ContextError(
            f"context={context}: use a window of 4 to {engine.context} tokens, which this model was loaded with"
        )
    if chunks is not None and (not _whole(chunks) or chunks < 1):
        raise SpecError(f"chunks={chunks!r}: use at least 1, or None for the whole text")
    windows = len(tokens) // context
    if not windows:
        raise SpecError(
            f"the text has {len(tokens)} tokens, one window takes {context}: give a longer text or a smaller context"
        )
    windows = min(windows, chunks or windows)
    first = context // 2
    session = Session(engine)
    losses: list[NDArray[np.float64]] = []
    if progress is not None:
        progress(0, windows)
    for window in range(windows):
        text = list(tokens[window * context : (window + 1) * context])
        if bos is not None:
            text[0] = bos
        losses.append(-text_logprobs(engine, text, first + 1, session))
        if progress is not None:
            progress(window + 1, windows)
    loss = np.concatenate(losses)
    mean = float(loss.mean())
    variance = max(0.0, float((loss**2).mean()) - mean**2)
    value = math.exp(mean)
    stderr = value * math.sqrt(variance / (len(loss) - 1)) if len(loss) > 1 else math.nan
    return Perplexity(value, stderr, len(loss), windows, context)


def text_logprobs(
    engine: Engine, tokens: Sequence[int], first: int, session: Session | None = None
) -> NDArray[np.float64]:
    """Log-probability of each of tokens[first:] after all before it, (len(tokens) - first,); first is at least 1. Where
    the engine evicts, each token sees what the policy had left of those before it.

    `session` is used anew, where one is at hand.
    """
    found: list[NDArray[np.float64]] = []
    for at, logits in text_logits(engine, tokens, first, session):
        found.append(token_logprobs(logits, np.array(tokens[at : at + len(logits)], np.int64)))
        del logits  # or they would be there beside the next ones
    return np.concatenate(found) if found else np.zeros(0)


def text_logits(
    engine: Engine, tokens: Sequence[int], first: int, session: Session | None = None
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The logits (n, V) that tokens[first:] are predicted with, some at a time, each with the place of its first token;
    see `text_logprobs`."""
    decoder = engine.decoder
    last = len(tokens) - 1  # the last token's own prediction is not needed
    if last > engine.context:
        raise ContextError(f"got {len(tokens)} tokens, the context is {engine.context}: score a shorter text")
    rows = max(1, _LOGITS_BYTES // (4 * decoder.config.vocab_size))
    if engine.extras is not None:
        rows = engine.extras.rows_of_logits(_LOGITS_BYTES)
    session = session or Session(engine)
    session.truncate(0)
    start = 0
    while start < last:
        with engine.lock:
            engine.between_passes()
            stop = min(start + engine.chunk, start + session.ahead, last)
            with session.running(list(tokens[start:stop])) as span:
                x = decoder.run(
                    np.array(tokens[start:stop], np.int32), [span], head=max(0, min(rows, stop - max(start, first - 1)))
                )
                span.cache.advance(span.count)
            for at in range(max(start, first - 1), stop, rows):
                end = min(at + rows, stop)
                yield at + 1, decoder.ops.numpy(decoder.head(x[at - start : end - start]))
        start = stop
        _give_way()


def text_vector(
    engine: Engine, tokens: Sequence[int], pooling: str, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Unit vector (D,): the mean of the final normalised states of all tokens, or the last one's."""
    if pooling not in ("mean", "last"):
        raise SpecError(f"pooling={pooling!r}: use 'mean' or 'last'")
    total = np.zeros(engine.config.width)
    session = Session(engine)
    start = 0
    while start < len(tokens):
        with engine.lock:
            engine.between_passes()
            part = list(tokens[start : start + min(BESIDE, engine.chunk, session.ahead)])
            with session.running(part) as span:
                states = engine.decoder.hidden(np.array(part, np.int32), [span]).astype(np.float64)  # (N, D)
        total = states[-1] if pooling == "last" else total + states.sum(0)
        if progress is not None:
            progress(start + len(part), len(tokens))
        start += len(part)
        _give_way()
    length = float(np.linalg.norm(total))
    if not math.isfinite(length):
        raise ModelFileError(
            "the model's states are not numbers: the model file, its adapter or its re-laid copy is likely damaged; "
            "`genmote pack` mends the copy, else fetch the model again"
        )
    return np.asarray(total / length if length > 0 else total, np.float32)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _give_way() -> None:
    """Let a thread that waits for the engine have it: one that lets go and takes again at once is faster than any that
    must first wake up."""
    time.sleep(0.0002)
