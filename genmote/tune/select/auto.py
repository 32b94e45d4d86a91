"""The way whose choice teaches a pilot most, tried on a small part; chance, unless another is better beyond doubt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genmote.spec import setting
from genmote.tune.select._base import Indices, Seen, Select, named

DRAWS = 2  # of random examples


@dataclass(frozen=True)
class Auto(Select):
    """Tries each way with a short training on a few of its choice. Random is tried with two draws, and taken unless
    another way is better than the better of them."""

    among: str = setting("ways that are tried, with + between", default="cover+coreset+curves+perplexity")
    few: int = setting("examples that a trial learns from, at most", default=32)

    def faults(self) -> Iterator[str]:
        for name in self.among.split("+"):
            if name in ("auto", "random"):
                yield f"among: {name} is no way to try beside random"
        if self.few < 4:
            yield f"few={self.few}, wanted at least 4"

    def pick(self, seen: Seen, count: int) -> Indices:
        few = min(count, self.few)
        chance = [seen.trial(seen.random.permutation(len(seen))[:few]) for _ in range(DRAWS)]
        told = [f"random {np.mean(chance):.3f} ({min(chance):.3f} to {max(chance):.3f})"]
        best, loss = "random", min(chance)
        for name in self.among.split("+"):
            picked = named(name).pick(seen, few)
            found = seen.trial(picked)
            told.append(f"{name} {found:.3f}")
            if found < loss:
                best, loss = name, found
        seen.notes.append(f"nats a token after a trial with {few} examples: " + ", ".join(told) + f"; taken: {best}")
        return named(best).pick(seen, count)
