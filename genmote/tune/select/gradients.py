"""Examples that would move the model as what is held out would (LESS: Xia et al. 2024, arXiv 2402.04333).

Gradients of an adapter after a short pilot, projected at random to a few numbers, compared by their angle. Each held
out example in turn takes the unchosen example most like it, so that all that is held out is served.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genmote.tune.select._base import Floats, Indices, Seen, Select


@dataclass(frozen=True)
class Gradients(Select):
    """Takes a pilot, and a pass forth and back over the examples: the dearest."""

    def pick(self, seen: Seen, count: int) -> Indices:
        here, held_out = seen.gradients()
        like = directions(here) @ directions(held_out).T  # (N, V)
        chosen: list[int] = []
        while len(chosen) < count:
            for v in seen.random.permutation(like.shape[1])[: count - len(chosen)]:
                best = int(np.argmax(like[:, v]))
                chosen.append(best)
                like[best] = -np.inf
        return np.array(chosen)


def directions(rows: Floats) -> Floats:
    """Scaled to length 1."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))
