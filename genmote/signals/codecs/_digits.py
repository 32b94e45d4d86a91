"""Whole numbers of 64 bits without loss, most of them in one code.

A number is written as its distance from `low`, modulo 2**64: one code if that is below `base`; else the code that says
how many digits follow, and those, to the base, the greatest first, of the distance with its sign in the last bit. Codes
are the digits, from 0; then the lengths, from 1; then that of a missing number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genmote.signals.coding import Codes

Unsigned = NDArray[np.uint64]
ONE, TOP = np.uint64(1), np.uint64(63)


def most(base: int) -> int:
    """How many digits a number of 64 bits has to a base.

    >>> most(256), most(2)
    (8, 64)
    """
    count = 1
    while base**count < 1 << 64:
        count += 1
    return count


def size(base: int) -> int:
    """How many codes there are."""
    return base + most(base) + 1


def lows(numbers: NDArray[np.int64], base: int) -> int:
    """The `low` with which numbers (n,) around their median take one code each."""
    return int(np.sort(numbers)[len(numbers) // 2]) - base // 2 if len(numbers) else -(base // 2)


def wrapped(low: int) -> np.uint64:
    return np.uint64(low % (1 << 64))


def code(numbers: NDArray[np.int64], gone: NDArray[np.bool_], low: Unsigned, base: int) -> Codes:
    """Codes of numbers (n,), of which some are `gone`, with a `low` (n,) for each."""
    far = numbers.view(np.uint64) - low
    signed = far.view(np.int64)
    folded = (far << ONE) ^ (signed >> np.int64(63)).view(np.uint64)
    long = (far >= np.uint64(base)) & ~gone
    digits = np.ones(len(numbers), np.int64)
    for count in range(2, most(base) + 1):
        digits += long & (folded >= np.uint64(base ** (count - 1)))
    lead = np.where(long, base + digits - 1, (far % np.uint64(base)).astype(np.int64))
    lead[gone] = size(base) - 1
    taken = np.where(long, 1 + digits, 1)
    at = np.cumsum(taken) - taken
    codes = np.zeros(int(taken.sum()), np.int64)
    codes[at] = lead
    for n in range(most(base)):
        some = long & (digits > n)  # the n-th digit from the end
        codes[at[some] + digits[some] - n] = (folded[some] // np.uint64(base**n) % np.uint64(base)).astype(np.int64)
    return codes


class Read(NamedTuple):
    """`far` (n,): distances from each number's `low`; `gone`: which are missing, of those `broken` by damage."""

    far: Unsigned
    gone: NDArray[np.bool_]
    broken: int


def read(codes: Codes, base: int) -> Read:
    """The numbers of codes, whatever these are: one that is no number, or whose digits end early, is missing."""
    lead = np.ones(len(codes), bool)
    far = np.where((codes >= 0) & (codes < base), codes, 0).astype(np.uint64)
    gone = (codes < 0) | (codes == size(base) - 1)
    broken = int((codes < 0).sum())
    end = 0
    for at in np.flatnonzero((codes >= base) & (codes < size(base) - 1)).tolist():
        if at < end:  # a place that a digit was wanted in: the number before has ended early
            continue
        count = int(codes[at]) - base + 1
        end = at + 1
        folded = 0
        while end < len(codes) and end <= at + count and 0 <= codes[end] < base:
            folded = folded * base + int(codes[end])
            end += 1
        lead[at + 1 : end] = False
        if end <= at + count or folded >= 1 << 64:
            gone[at], broken = True, broken + 1
        else:
            far[at] = np.uint64((folded >> 1) ^ (-(folded & 1) % (1 << 64)))
    return Read(far[lead], gone[lead], broken)
