"""A series: what one sensor recorded at a steady rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Series:
    """`values` (T, C) float32, taken `rate_hz` times a second; a name and a unit for each of the C channels.

    >>> Series("pulse", np.zeros((300, 1), np.float32), 100.0, ("light",), ("counts",)).duration_s
    3.0
    """

    name: str
    values: NDArray[np.float32]
    rate_hz: float
    channels: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        return len(self.values) / self.rate_hz
