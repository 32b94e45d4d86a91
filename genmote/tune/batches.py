"""The order in which examples are gone through, and examples as rows of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.models.backward import Batch
from genmote.tune.examples import Examples


def chosen(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The examples of step `step` (the first is 0): all of them in an order drawn anew each time round. What comes
    depends on nothing but these numbers, so that a run goes on where it was.

    >>> sorted(chosen(3, 2, 0, 7) + chosen(3, 2, 1, 7)[:1])
    [0, 1, 2]
    """
    found: list[int] = []
    at = step * batch
    while len(found) < batch:
        order = np.random.default_rng([seed, 2, at // count]).permutation(count)
        part = order[at % count :][: batch - len(found)]
        found += part.tolist()
        at += len(part)
    return found


def most_rows(examples: Examples, batch: int, steps: int, seed: int) -> int:
    """Rows of the one of these steps that has the most: often half of what `batch` of the longest example have."""
    rows = [examples.rows(index) for index in range(len(examples))]
    return max(sum(rows[index] for index in chosen(len(rows), batch, step, seed)) for step in range(steps))


def passes(examples: Examples, some: Sequence[int], rows: int, share: float) -> Iterator[Batch]:
    """Some examples in passes of at most `rows` rows (an example that is longer goes alone), each row's loss counting
    `share` where its next token is to be learnt."""
    group: list[int] = []
    held = 0
    for index in some:
        if group and held + examples.rows(index) > rows:
            yield _batch(examples, group, share)
            group, held = [], 0
        group.append(index)
        held += examples.rows(index)
    if group:
        yield _batch(examples, group, share)


def judged(examples: Examples, rows: int, done: Callable[[int], None]) -> Iterator[Batch]:
    """All examples in passes, as `passes` has them, whose losses add up to the mean of all tokens that are to be
    learnt; `done` is told how many examples are gone through."""
    every, count = range(len(examples)), 0
    for batch in passes(examples, every, rows, 1 / max(1, learnt_tokens(examples, every))):
        yield batch
        count += len(batch.lengths)
        done(count)


def learnt_tokens(examples: Examples, some: Sequence[int]) -> int:
    """Tokens of some examples that are to be learnt."""
    return sum(int(examples[index][1].sum()) for index in some)


def _said(tokens: NDArray[Any]) -> NDArray[Any]:
    """(T,) the tokens themselves, without what is asked beside them."""
    return tokens if tokens.ndim == 1 else tokens[:, 0]


def _batch(examples: Examples, some: Sequence[int], share: float) -> Batch:
    parts = [examples[index] for index in some]
    return Batch(
        tokens=np.concatenate([tokens[:-1] for tokens, _ in parts]).astype(np.int32),
        lengths=tuple(len(tokens) - 1 for tokens, _ in parts),
        targets=np.concatenate([_said(tokens)[1:] for tokens, _ in parts]).astype(np.int32),
        weights=np.concatenate([learnt[1:] for _, learnt in parts]).astype(np.float32) * np.float32(share),
    )
