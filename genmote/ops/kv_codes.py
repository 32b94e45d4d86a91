"""How int8 and int4 caches store a row: rotated, then one scale and a small code for each number.

A row's key (or value) of one head is turned by an orthogonal matrix, a Hadamard transform as in QuaRot (Ashkboos et al.
2024, arXiv 2404.00456), which spreads single large channels over all: what is left looks like normal noise, for which
few levels do. Queries are turned likewise, so scores stay what they are; the sum over the values is turned back.

int8  value = scale * code, code from -127 to 127, for keys and values
int4  value = scale * level: 16 levels for values, 32 for keys (whose errors cost more), placed where they are best for
      normal noise (Lloyd 1957, Max 1960); of seven scales the one with the least squared error

Each row is coded from itself alone. Every sum has a stated order (docs/numerics.md): the native kernels give the same
bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.ops.exact import Float32, row_squares

# Half of the levels; the other half are these with a minus. 127 is 2.733 and 3.267 standard deviations.
VALUE_LEVELS = np.array([6, 18, 31, 44, 58, 75, 96, 127], np.float32)
KEY_LEVELS = np.array([3, 8, 13, 18, 24, 29, 35, 41, 47, 54, 62, 70, 79, 90, 105, 127], np.float32)
VALUE_UNIT, KEY_UNIT = np.float32(2.7331 / 127), np.float32(3.2674 / 127)  # scale of a row of deviation 1
FACTORS = np.array([0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3], np.float32)  # scales that are tried
LEAST = np.float32(1e-20)  # rows whose deviation is below are zero


def rotate(x: Float32) -> Float32:
    """Turn the last axis (..., D) by an orthogonal, symmetric matrix: doing it twice gives x again, but for rounding.

    With D = p * n, n the largest power of two: a Hadamard transform of each run of n numbers, by butterflies from the
    nearest pairs to the farthest, times 1/sqrt(n); then, over the p runs, a reflection: minus 2/p times their sum.

    >>> rotate(np.array([1, 1, 1, 1], np.float32)).tolist()
    [2.0, 0.0, 0.0, 0.0]
    """
    dim = x.shape[-1]
    n = dim & -dim
    y = np.array(x.reshape(-1, dim).T, np.float32, order="C")  # (D, rows): each sum is of whole rows of numbers
    other = np.empty_like(y)
    step = 1
    while step < n:
        pairs, sums = (part.reshape(dim // (2 * step), 2, step, y.shape[1]) for part in (y, other))
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        y, other = other, y
        step *= 2
    y *= np.float32(1) / np.sqrt(np.float32(n))
    if n < dim:
        runs = y.reshape(dim // n, n, y.shape[1])
        total = runs[0]
        for run in runs[1:]:
            total = total + run
        y = (runs - np.float32(2) / np.float32(dim // n) * total).reshape(dim, y.shape[1])
    turned: Float32 = np.ascontiguousarray(y.T).reshape(x.shape)
    return turned


def encode(kind: str, x: Float32, *, key: bool) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Rows (N, H, D), finite, as codes (N, H, D) and scales (N, H). int4's codes are the levels' numbers: for values
    from the lowest up, for keys the magnitude's number, plus 16 for a minus."""
    y = rotate(x)
    if kind == "int8":
        scale = (np.abs(y).max(axis=-1) / np.float32(127)).astype(np.float16)
        wide = scale.astype(np.float32)[..., None]
        scaled = np.divide(y, wide, out=np.zeros_like(y), where=wide > 0)
        return np.clip(np.rint(scaled), -127, 127).astype(np.int8), scale
    half, unit = (KEY_LEVELS, KEY_UNIT) if key else (VALUE_LEVELS, VALUE_UNIT)
    levels = np.concatenate([-half[::-1], half])
    between = (levels[1:] + levels[:-1]) / np.float32(2)
    deviation = np.sqrt(row_squares(y) / np.float32(y.shape[-1]))
    size = np.where(deviation > LEAST, deviation, np.float32(0)) * unit
    least = scale = place = None
    for factor in FACTORS:
        tried = (size * factor).astype(np.float16)
        wide = tried.astype(np.float32)
        chosen = _place(y, wide, between)
        error = row_squares(y - levels[chosen] * wide[..., None])
        if least is None or scale is None or place is None:
            least, scale, place = error, tried, chosen
            continue
        better = error < least
        least, scale = np.where(better, error, least), np.where(better, tried, scale)
        place = np.where(better[..., None], chosen, place)
    assert scale is not None and place is not None  # there are factors
    if key:
        place = np.where(place < 16, 31 - place, place - 16)  # 0 to 15 below zero: the magnitude counts from there
    return place.astype(np.uint8), scale


def _place(y: Float32, scale: Float32, between: Float32) -> NDArray[np.int64]:
    """The number of the nearest level: how many of the borders lie below y / scale."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.searchsorted(between, y * inverse[..., None], side="left")


def levels(kind: str, codes: NDArray[Any], *, key: bool) -> Float32:
    """What the codes stand for, before the scale."""
    if kind == "int8":
        return codes.astype(np.float32)
    table = np.concatenate([KEY_LEVELS, -KEY_LEVELS] if key else [-VALUE_LEVELS[::-1], VALUE_LEVELS])
    found: Float32 = table.take(codes)
    return found
