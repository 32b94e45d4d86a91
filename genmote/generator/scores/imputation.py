"""How good a gap is filled, and two plain ways to fill it. Values are (T, C), NaN in the gap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genmote.generator.scores.forecast import forward_filled

Floats = NDArray[np.floating]


def absolute_error(actual: Floats, filled: Floats, gap: slice) -> NDArray[np.float64]:
    """(C,): mean over the gap; NaN for a channel in which nothing was there."""
    off = np.abs(actual[gap].astype(np.float64) - filled[gap])
    there = np.isfinite(off)
    count = there.sum(axis=0)
    return np.where(count > 0, np.where(there, off, 0).sum(axis=0) / np.maximum(1, count), np.nan)


def linear(values: Floats) -> NDArray[np.float64]:
    """On a straight line from the sample before a gap to the one after it."""
    at = np.arange(len(values))
    filled = np.zeros(values.shape)
    for channel in range(values.shape[1]):
        there = np.isfinite(values[:, channel])
        if there.any():
            filled[:, channel] = np.interp(at, at[there], values[there, channel])
    return filled


def last(values: Floats) -> NDArray[np.float64]:
    """The sample before a gap, again and again."""
    return forward_filled(values).astype(np.float64)
