"""What compressing saves. Bytes are those of the whole numbers themselves, in as few bytes each as all of them need."""

from __future__ import annotations

import bz2
import lzma

import numpy as np
from numpy.typing import NDArray

from genmote.signals.kinds import MISSING

Integers = NDArray[np.int64]


def width(integers: Integers) -> int:
    """Bytes of a sample: 1, 2, 4 or 8, for numbers with a sign, of which the lowest says that one is missing."""
    there = integers[integers != MISSING]
    most = int(max(there.max(), -1 - there.min())) if there.size else 0
    return next(w for w in (1, 2, 4, 8) if most < 1 << (8 * w - 1))


def plain(integers: Integers) -> bytes:
    """The numbers (T, C) row after row: what the others are given."""
    w = width(integers)
    lowest = -(1 << (8 * w - 1))
    return np.where(integers == MISSING, lowest, integers).astype(f"<i{w}").tobytes()


def peers(integers: Integers) -> dict[str, int]:
    """Bytes that general compressors take for the numbers, or for each channel's differences from sample to sample,
    byte planes apart, the smaller of the two."""
    w = width(integers)
    whole = np.frombuffer(plain(integers), f"<i{w}").reshape(integers.shape)
    with np.errstate(over="ignore"):
        differences = np.diff(whole, axis=0, prepend=whole[:1] * 0)
    planes = np.ascontiguousarray(differences.T).view(np.uint8).reshape(-1, w).T
    forms = [whole.tobytes(), np.ascontiguousarray(planes).tobytes()]
    return {
        "xz": min(len(lzma.compress(form, preset=9 | lzma.PRESET_EXTREME)) for form in forms),
        "bzip2": min(len(bz2.compress(form, 9)) for form in forms),
    }


def paid_after(model_bytes: int, ours: float, other: float) -> float | None:
    """Bytes of recordings after which a model of `model_bytes` has saved its own size against another coder, where a
    byte takes `ours` and `other` bytes; None where it never does.

    >>> paid_after(1_000_000, 0.3, 0.5), paid_after(0, 0.3, 0.5), paid_after(1, 0.5, 0.5)
    (5000000.0, 0.0, None)
    """
    return round(model_bytes / (other - ours), 6) if other > ours else None
