"""How well scores tell what is unusual: (N,) scores, the higher the more unusual, and (N,) truth.

Area under the ROC curve as the share of pairs in the right order, ties one half (Hanley & McNeil, Radiology 143, 1982);
area under the precision-recall curve as average precision, without interpolation (Davis & Goadrich, ICML 2006).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Truth = NDArray[np.bool_]


def auroc(scores: Floats, truth: Truth) -> float:
    """
    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]
    unusual = int(truth.sum())
    usual = len(truth) - unusual
    return float((ranks[truth].sum() - unusual * (unusual + 1) / 2) / (unusual * usual)) if unusual * usual else np.nan


def auprc(scores: Floats, truth: Truth) -> float:
    """Average precision: over every threshold, the precision there times how much recall it adds."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # rows of one score come together
    found = np.cumsum(truth[order])[ends]
    if not truth.any():
        return float("nan")
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / truth.sum())


def f1(scores: Floats, truth: Truth, threshold: float) -> dict[str, float]:
    """`precision`, `recall` and their harmonic mean `f1` where what is above the threshold is taken for unusual."""
    alarms = scores > threshold
    hits = int((alarms & truth).sum())
    precision = hits / max(1, int(alarms.sum()))
    recall = hits / max(1, int(truth.sum()))
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / ((precision + recall) or 1.0)}


def z_distance(values: Floats, clean: Floats) -> NDArray[np.float64]:
    """(T,): how many standard deviations the channels (T, C) are off the clean ones' mean, on average. What is missing
    is not off; what never changed in the clean stretch is counted in units of its own."""
    mean, spread = np.nanmean(clean, axis=0), np.nanstd(clean, axis=0)
    off = np.abs(values - mean) / np.where(spread > 0, spread, 1.0)
    found: NDArray[np.float64] = np.nan_to_num(off, nan=0.0).mean(axis=1)
    return found
