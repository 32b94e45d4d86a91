"""How good forecasts are. All sides give the same nine quantiles, whatever they make them of.

A window's actual values are (H, C), NaN where one is missing, which counts for nobody; quantiles (9, H, C).

MASE: Hyndman & Koehler, "Another look at measures of forecast accuracy", IJF 22 (2006): the mean absolute error of the
median over what the seasonal naive forecast is off, on average, one season ahead within the history. CRPS (Gneiting &
Raftery, JASA 102 (2007)) by its integral over quantiles: twice the pinball loss, mean over the nine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
LEVELS = np.arange(1, 10) / 10  # the quantiles that a forecast gives
LOW, MIDDLE, HIGH = 0, 4, 8  # of these: the ends of the 80 % interval, and the median


def quantiles(samples: Floats) -> NDArray[np.float64]:
    """Of sample paths (P, H, C)."""
    found: NDArray[np.float64] = np.quantile(samples.astype(np.float64), LEVELS, axis=0)
    return found


def seasonal_scale(history: Floats, season: int) -> NDArray[np.float64]:
    """(C,): mean absolute difference from one season before, in a history (T, C); NaN where there is none, or where
    nothing ever changes."""
    if len(history) <= season:
        return np.full(history.shape[1], np.nan)
    off = np.abs(history[season:].astype(np.float64) - history[:-season])
    there = np.isfinite(off)
    mean = np.where(there, off, 0).sum(axis=0) / np.maximum(1, there.sum(axis=0))
    return np.asarray(np.where(mean > 0, mean, np.nan), np.float64)


def absolute_error(actual: Floats, found: Floats) -> NDArray[np.float64]:
    """(H, C), of the median."""
    return np.asarray(np.abs(actual - found[MIDDLE]), np.float64)


def crps(actual: Floats, found: Floats) -> NDArray[np.float64]:
    """(H, C), in the channel's unit: twice the pinball loss, mean over the quantiles."""
    levels = LEVELS[:, None, None]
    off = actual - found.astype(np.float64)
    loss: NDArray[np.float64] = 2 * np.maximum(levels * off, (levels - 1) * off).mean(axis=0)
    return loss


def covered(actual: Floats, found: Floats) -> NDArray[np.float64]:
    """(H, C): 1 where the actual value is within the 80 % interval, NaN where it is missing."""
    within = (actual >= found[LOW]) & (actual <= found[HIGH])
    return np.where(np.isfinite(actual), within.astype(np.float64), np.nan)


def seasonal_naive(history: Floats, steps: int, season: int) -> NDArray[np.float64]:
    """Quantiles (9, H, C): the last season again, which is the median, and about it what that was off in the history as
    many seasons ahead, either way."""
    filled = forward_filled(history)
    if len(filled) < season:
        filled = np.concatenate([np.repeat(filled[:1], season - len(filled), axis=0), filled])
    ahead = np.arange(steps)
    middle = filled[len(filled) - season + ahead % season]
    found = np.repeat(middle[None].astype(np.float64), len(LEVELS), axis=0)
    for seasons in range(1, -(-steps // season) + 1):
        far = seasons * season
        if len(history) > far:
            spread = _quantiles(history[far:].astype(np.float64) - history[:-far])
        elif seasons == 1:
            spread = np.zeros((len(LEVELS), history.shape[1]))
        # Where the history is too short for so many seasons, those of fewer stay.
        found[:, (seasons - 1) * season : far] += spread[:, None]
    return found


def _quantiles(off: NDArray[np.float64]) -> NDArray[np.float64]:
    """(9, C), of what is there of (T, C) and of its negative; 0 where nothing is."""
    found = np.zeros((len(LEVELS), off.shape[1]))
    for channel in range(off.shape[1]):
        there = off[np.isfinite(off[:, channel]), channel]
        if len(there):
            found[:, channel] = np.quantile(np.concatenate([there, -there]), LEVELS)
    return found


def forward_filled(values: Floats) -> Floats:
    """(T, C): a missing sample is the one before it; before the first, the first; 0 where there is none at all."""
    there = np.isfinite(values)
    first = np.where(there.any(axis=0), there.argmax(axis=0), 0)
    last = np.maximum.accumulate(np.where(there, np.arange(len(values))[:, None], first), axis=0)
    return np.nan_to_num(np.take_along_axis(values, last, axis=0), nan=0.0)
