"""Neither what the model knows already nor what it makes nothing of: a band of losses (Marion et al. 2023, arXiv
2309.04564: the middle is best)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genmote.spec import setting
from genmote.tune.select._base import Indices, Seen, Select


@dataclass(frozen=True)
class Perplexity(Select):
    """Takes one pass over the examples."""

    low: float = setting("share of the examples, by their loss, below the band", default=0.25)
    high: float = setting("share below its end", default=0.75)

    def faults(self) -> Iterator[str]:
        if not 0 <= self.low < self.high <= 1:
            yield f"low={self.low}, high={self.high}: wanted 0 <= low < high <= 1"

    def pick(self, seen: Seen, count: int) -> Indices:
        order = np.argsort(seen.reading().losses, kind="stable")
        start, stop = round(self.low * len(order)), round(self.high * len(order))
        if stop - start < count:
            start = int(np.clip((start + stop - count) // 2, 0, len(order) - count))
            stop = start + count
            seen.notes.append(
                f"the band holds fewer than {count} examples: it is widened to {start} to {stop}, by loss"
            )
        return seen.random.permutation(order[start:stop])[:count]
