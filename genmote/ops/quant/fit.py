"""Searches for the scales and codes that store a group of numbers with the least error.

Rounding is only the last step of quantising: the scale decides. Each search here tries some scales around the one that
just covers the group's range, solves for the best real-valued scale (and offset) given the codes that each one rounds
to, and keeps the best. This is weighted least squares alternated with rounding, as in Lloyd's algorithm (S. Lloyd,
"Least squares quantization in PCM", 1982).

Where a caller does not say how much each number's error counts (``weight``, of x's shape and above 0), numbers that
are larger than their group's usual size weigh a little more (``rms + |x|``): they carry most of a dot product. All
functions take groups as rows, ``x`` of shape (groups, size), already divided by their largest magnitude, and return
float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def weights_of(x: Floats) -> Floats:
    """Importance of each number in its group. (groups, size) -> (groups, size)"""
    rms = np.sqrt(np.mean(np.square(x), axis=1, keepdims=True))
    # A row of zeros still needs a weight to divide by.
    result: Floats = np.abs(x) + np.maximum(rms, np.float32(1e-6))
    return result


def symmetric(x: Floats, levels: int, weight: Floats | None = None, steps: int = 9) -> Floats:
    """Scale ``d`` (groups,) with ``x ~ d * q`` and integer ``q`` in [-levels, levels - 1]; its sign may be negative.

    The number of largest magnitude is first put on ``-levels``, the end that reaches further.
    """
    weight = weights_of(x) if weight is None else weight
    weighted = weight * x
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    peak = np.where(peak == 0, np.float32(1), peak)
    best = np.full(len(x), -1, np.float32)
    scale = np.zeros(len(x), np.float32)
    for step in range(-steps, steps + 1):
        inverse = np.float32(-levels + 0.1 * step) / peak
        codes = np.clip(np.rint(x * inverse[:, None]), -levels, levels - 1)
        scale, best = _keep_better(codes, weighted, weight, scale, best)
    return scale


def codebook(x: Floats, table: Floats, weight: Floats | None = None, steps: int = 7) -> Floats:
    """Scale ``d`` (groups,) with ``x ~ d * table[q]``, for a sorted ``table`` of levels."""
    weight = weights_of(x) if weight is None else weight
    weighted = weight * x
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    peak = np.where(peak == 0, np.float32(1), peak)
    best = np.full(len(x), -1, np.float32)
    scale = np.zeros(len(x), np.float32)
    for step in range(-steps, steps + 1):
        inverse = (table[0] + np.float32(step)) / peak
        codes = table[nearest(x * inverse[:, None], table)]
        scale, best = _keep_better(codes, weighted, weight, scale, best)
    return scale


def listed(
    x: Floats,
    table: Floats,
    scales: Floats,
    size: Floats,
    least: float,
    weight: Floats | None = None,
    tried: int = 12,
) -> NDArray[np.uint8]:
    """Which of the sorted ``scales`` (from 0 on) stores each group best, ``size * x ~ d * table[q]``; with its sign.

    ``size`` (groups,) is what the groups were divided by. Result: the index of d, plus 128 where d is to be negative.
    Tried are ``tried`` scales with either sign, from the first that is at least ``least`` of the one that puts the
    group's largest number on the table's first level.
    """
    weight = weights_of(x) if weight is None else weight
    weighted = weight * x
    first = np.searchsorted(scales, np.float32(least) * size * np.abs(x).max(axis=1) / np.abs(table[0]))
    best = np.zeros(len(x), np.float32)  # of sum(w x^2) explained: by scale 0 nothing
    found = np.zeros(len(x), np.uint8)
    levels = table[_nearest_of(table)]
    for step in range(tried):
        index = np.clip(first + step, 1, len(scales) - 1)
        d = scales[index] / size
        for sign in (0, 128):
            codes = levels[_half_steps(x / d[:, None])]
            along = np.einsum("ij,ij->i", weighted, codes)
            with np.errstate(over="ignore"):  # far too large a scale for tiny numbers: -inf
                explained = d * (2 * along - d * np.einsum("ij,ij,ij->i", weight, codes, codes))
            better = explained > best
            best = np.where(better, explained, best)
            found = np.where(better, index + sign, found).astype(np.uint8)
            d = -d
    return found


def nearest(x: Floats, table: Floats) -> NDArray[np.uint8]:
    """Index of the level that is nearest to each number; ``table`` holds sorted integers within a byte's range.

    >>> nearest(np.float32([-9.0, 0.4, 0.6]), np.float32([-1, 0, 1])).tolist()
    [0, 1, 2]
    """
    return _nearest_of(table)[_half_steps(x)]


def _nearest_of(table: Floats) -> NDArray[np.uint8]:
    """Index of the nearest level for each of :func:`_half_steps`."""
    # Twice a middle between two integers is an integer, so floor(2 x) decides on which side of it x lies.
    return np.searchsorted(table[1:] + table[:-1], np.arange(-256, 257), side="right").astype(np.uint8)


def _half_steps(x: Floats) -> NDArray[np.int16]:
    """floor(2 x) within a byte's range, from 0 on."""
    steps = np.floor(np.clip(2 * x, -256, 256)).astype(np.int16)
    steps += 256
    return steps


def affine(
    x: Floats, top: int, weight: Floats | None = None, *, negative_offset: bool, steps: int = 20
) -> tuple[Floats, Floats]:
    """Scale ``d`` >= 0 and offset ``m`` (groups,) with ``x ~ d * q + m`` and integer ``q`` in [0, top].

    ``negative_offset``: the format can only store m <= 0 (the K types), so the range is stretched to take in zero.
    """
    weight = weights_of(x) if weight is None else weight
    low, high = x.min(axis=1), x.max(axis=1)
    if negative_offset:
        low = np.minimum(low, 0)
    spread = high - low
    spread = np.where(spread <= 0, np.float32(1), spread)
    sum_w = weight.sum(axis=1)
    weighted = weight * x
    sum_x = weighted.sum(axis=1)
    # With q = 0 everywhere the offset alone fits best; every later candidate has to beat that.
    mean = sum_x / sum_w
    offset = np.minimum(mean, 0) if negative_offset else mean
    scale = np.zeros(len(x), np.float32)
    # Squared error less the constant sum(w x^2), in terms of the sums alone.
    best = offset * (offset * sum_w - 2 * sum_x)
    for step in range(steps + 1):
        inverse = np.float32(top - 1 + 0.1 * step) / spread
        codes = np.clip(np.rint((x - low[:, None]) * inverse[:, None]), 0, top)
        wq = weight * codes
        sum_q = wq.sum(axis=1)
        sum_qq = np.einsum("ij,ij->i", wq, codes)
        sum_xq = np.einsum("ij,ij->i", weighted, codes)
        det = sum_w * sum_qq - sum_q * sum_q
        solvable = det > 1e-6 * sum_w * sum_qq
        det = np.where(solvable, det, 1)
        d = np.where(solvable, (sum_w * sum_xq - sum_q * sum_x) / det, 0)
        m = np.where(solvable, (sum_qq * sum_x - sum_q * sum_xq) / det, mean)
        if negative_offset:
            through_zero = (m > 0) & (sum_qq > 0)
            d = np.where(through_zero, sum_xq / np.where(sum_qq > 0, sum_qq, 1), d)
            m = np.minimum(m, 0)
        error = d * (d * sum_qq + 2 * m * sum_q - 2 * sum_xq) + m * (m * sum_w - 2 * sum_x)
        better = (error < best) & (d > 0)
        scale = np.where(better, d, scale)
        offset = np.where(better, m, offset)
        best = np.where(better, error, best)
    return scale.astype(np.float32), offset.astype(np.float32)


def _keep_better(codes: Floats, weighted: Floats, weight: Floats, scale: Floats, best: Floats) -> tuple[Floats, Floats]:
    """The better of two candidates, by the part of sum(w x^2) that ``d * codes`` explains with the best ``d``."""
    along = np.einsum("ij,ij->i", weighted, codes)
    energy = np.einsum("ij,ij,ij->i", weight, codes, codes)
    usable = energy > 0
    d = along / np.where(usable, energy, 1)
    explained = np.where(usable, along * d, -1)
    better = explained > best
    return np.where(better, d, scale), np.where(better, explained, best)
