"""The way whose choice tells most about the examples that it leaves, tried on a part of them; chance, unless another is
better.

A trial: the model reads a part of the examples, and each way chooses a quarter of that part, or as many as are to be
kept where that is fewer. A linear map from the model's final states to the tokens that they should say is fitted to the
chosen, and judged by how many of the others' answers it names. A fit takes milliseconds, since it is in closed form,
where a training takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genmote.spec import setting
from genmote.tune.select._base import Indices, Reading, Seen, Select, Unmeasured, named

ROUNDS = 3  # trials of each way, since most draw by chance
STIFF = 0.01  # how much a map may not bend to what it learns from


@dataclass(frozen=True)
class Auto(Select):
    """Reads a part of the examples. A way that measures does so for that part, and if it is taken for all of them."""

    among: str = setting("ways that are tried, with + between", default="balance+balance:power=0.75+dedup")
    of: int = setting("examples that are read for the trials, at most", default=192)

    def faults(self) -> Iterator[str]:
        for name in self.among.split("+"):
            if name in ("auto", "random"):
                yield f"among: {name} is no way to try beside random"
        if self.of < 16:
            yield f"of={self.of}, wanted at least 16"

    def pick(self, seen: Seen, count: int) -> Indices:
        part = np.sort(seen.random.permutation(len(seen))[: self.of])
        few = max(1, min(count, len(part) // 4))
        try:
            right = self._trials(seen if len(part) == len(seen) else seen.part(part), few)
        except Unmeasured as fault:
            raise Unmeasured(part[fault.where], str(fault)) from None
        best = max(right, key=lambda name: right[name])  # of equals the first, which is random
        told = ", ".join(f"{name} {100 * share:.1f}%" for name, share in right.items())
        seen.notes.append(
            f"right of {len(part)} examples after a trial with {few} of them, by way: {told}; taken: {best}"
        )
        return named(best).pick(seen, count)

    def _trials(self, part: Seen, few: int) -> dict[str, float]:
        """Share of examples that are told right, by each way."""
        reading, right = part.reading(), dict[str, float]()
        for name in ("random", *self.among.split("+")):
            picked = [named(name).pick(part, few) for _ in range(ROUNDS)]
            right[name] = float(np.mean([told_right(reading, each) for each in picked]))
        return right


def told_right(reading: Reading, learnt: Indices) -> float:
    """Of the examples that are not `learnt`, the share whose tokens (those that a reading keeps) are all named by a
    ridge regression (Hoerl & Kennard 1970) of tokens on states, fitted to the learnt ones."""
    others = np.setdiff1d(np.arange(len(reading.said)), learnt)
    if not len(others):
        return 1.0
    known = reading.said[learnt] >= 0
    x = reading.states[learnt][known].astype(np.float64)  # (n, D)
    tokens, y = np.unique(reading.said[learnt][known], return_inverse=True)
    mean = x.mean(axis=0)
    like = (x - mean) @ (x - mean).T  # (n, n): fewer rows than numbers in a state, so that it is solved for the rows
    due = np.eye(len(tokens))[y] - np.bincount(y) / len(y)
    weights = np.linalg.solve(like + (STIFF * np.trace(like) / len(x) + 1e-9) * np.eye(len(x)), due)
    scores = (reading.states[others].astype(np.float64) - mean) @ ((x - mean).T @ weights) + np.bincount(y) / len(y)
    said = reading.said[others]
    return float(((tokens[scores.argmax(axis=-1)] == said) | (said < 0)).all(axis=1).mean())
