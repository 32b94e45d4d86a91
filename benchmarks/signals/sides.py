"""Both sides of a lossless compression: they get the same whole numbers, in as few bytes as hold them.

The peer is, for each recording, the smallest of: xz and zstd on the samples, on their first and on their second
differences, each as they come, channel after channel, and with bytes of one weight together; xz on what a linear
predictor over the channel's past and the other channels' present leaves, its coefficients counted; FLAC.
"""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.signals import container
from genmote.signals.kinds import Series

Integers = NDArray[np.int64]
PAST = 8  # samples that the linear predictor looks back
FLAC_CHANNELS, FLAC_BITS = 8, 24
XZ = [
    [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "lp": lp, "pb": pb}]
    for lc, lp, pb in ((3, 0, 2), (4, 0, 0), (0, 1, 1))
]


def ours(series: Series, folder: Path) -> int:
    """Bytes of our file, its header and index included."""
    return container.write(folder / "ours.gmsc", [series], threads=1).bytes


def peers(integers: Integers) -> dict[str, int]:
    """Bytes that each peer takes for whole numbers (T, C)."""
    most = int(np.abs(integers).max())
    width = 2 if most < 1 << 15 else 4 if most < 1 << 31 else 8
    found: dict[str, int] = {}
    values = integers
    for order in range(3):
        for how, data in layouts(values, width).items():
            found[f"xz, differences {order}, {how}"] = xz(data)
            if shutil.which("zstd"):
                found[f"zstd, differences {order}, {how}"] = piped(["zstd", "-19", "--ultra", "-c"], data)
        values = np.diff(values, axis=0, prepend=0)
    left, coefficients = predicted(integers)
    for how, data in layouts(left, width).items():
        found[f"linear predictor and xz, {how}"] = 4 * coefficients + xz(data)
    if shutil.which("flac") and (size := flac(integers)) is not None:
        found["FLAC"] = size
    return found


def layouts(values: Integers, width: int) -> dict[str, bytes]:
    """Wrapped into `width` bytes each: what a byte holds comes back with the same wrap."""
    held = np.ascontiguousarray(values.astype(f"<i{width}"))
    planes = held.reshape(-1).view(np.uint8).reshape(-1, width)
    return {
        "rows": held.tobytes(),
        "channels": np.ascontiguousarray(held.T).tobytes(),
        "bytes": np.ascontiguousarray(planes.T).tobytes(),
    }


def xz(data: bytes) -> int:
    return min(len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters)) for filters in XZ)


def piped(command: list[str], data: bytes) -> int:
    return len(subprocess.run(command, input=data, capture_output=True, check=True).stdout)


def predicted(integers: Integers) -> tuple[Integers, int]:
    """What the best linear predictor of each channel leaves, and how many coefficients it has."""
    left, count = np.empty_like(integers), 0
    for number in range(integers.shape[1]):
        own = integers[:, number].astype(np.float64)
        seen = [np.concatenate([np.zeros(back), own[:-back]])[: len(own)] for back in range(1, PAST + 1)]
        seen += [integers[:, other].astype(np.float64) for other in range(number)]
        inputs = np.stack(seen, axis=1)
        weights = np.linalg.lstsq(inputs, own, rcond=None)[0].astype(np.float32)
        left[:, number] = integers[:, number] - np.rint(inputs @ weights.astype(np.float64)).astype(np.int64)
        count += len(weights)
    return left, count


def flac(integers: Integers) -> int | None:
    """Bytes of FLAC files of at most eight channels each; None where a sample has more than 24 bits."""
    most = int(np.abs(integers).max())
    if most >= 1 << (FLAC_BITS - 1):
        return None
    bits, total = (16 if most < 1 << 15 else FLAC_BITS), 0
    for first in range(0, integers.shape[1], FLAC_CHANNELS):
        some = integers[:, first : first + FLAC_CHANNELS]
        raw = np.ascontiguousarray(some.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
        form = ["--force-raw-format", "--endian=little", "--sign=signed", f"--bps={bits}", "--sample-rate=8000"]
        words = ["flac", "-8", "-e", "-p", "--silent", "--no-padding", "--lax", f"--channels={some.shape[1]}", *form]
        total += piped([*words, "-c", "-"], raw)
    return total
