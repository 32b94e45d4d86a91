"""What an evaluation gives: figures, a line for each thing that was judged, and what a person looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.signals.chart import Panel


@dataclass(frozen=True, eq=False)
class Result:
    """`values`: the figures by name, in tables of tables; `items`: each thing that was judged; `panels`: a picture."""

    values: dict[str, Any]
    items: list[dict[str, Any]]
    panels: Sequence[Panel]


def mean(values: NDArray[np.floating], axis: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    """Of what is there; NaN where nothing is.

    >>> mean(np.array([[1.0, np.nan], [3.0, np.nan]]), (0,)).tolist()
    [2.0, nan]
    """
    there = np.isfinite(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0).sum(axis=axis)
    return np.asarray(np.where(count > 0, total / np.maximum(1, count), np.nan), np.float64)
