"""Even numbers by a seed, without NumPy's `random`, which takes 6 MB of a small device (and OpenSSL with it).

SplitMix64 (Steele, Lea & Flood 2014): each number is a mix of a counter, so that many are made at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
PART = 2.0**-53


class Draw:
    """Numbers of a seed, one after another.

    >>> bool((Draw(1).uniform(3) == Draw(1).uniform(3)).all()), Draw(1).uniform(2).round(6).tolist()
    (True, [0.566562, 0.745782])
    """

    def __init__(self, seed: int) -> None:
        self._state = np.uint64(seed % (1 << 64))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """(count,) above 0 and below 1."""
        with np.errstate(over="ignore"):
            z = self._state + STEP * np.arange(1, count + 1, dtype=np.uint64)
            self._state = self._state + STEP * np.uint64(count)
            z = (z ^ (z >> np.uint64(30))) * FIRST
            z = (z ^ (z >> np.uint64(27))) * SECOND
            z = z ^ (z >> np.uint64(31))
        return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * PART
