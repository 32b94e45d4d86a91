"""Both sides of a lossless compression: they get the same whole numbers.

The peer is, for each recording, the smallest of:

- xz and zstd on the samples, on their first and on their second differences, each as they come, channel after channel,
  and with bytes of one weight together, in as many bytes as all channels need;
- xz and bzip2 on each channel by itself, less its lowest value, in as few bytes and in the best of those ways for it;
- a linear predictor over the channel's past and the other channels' present, of the best of four lengths, with
  coefficients of 16 bits, and what it leaves by xz or in blocks of Rice codes, the cheaper;
- FLAC, without its comments.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.process import ContestantError
from genmote.signals import container, reading
from genmote.signals.kinds import Series

Integers = NDArray[np.int64]
PASTS = (4, 8, 16, 32)  # samples that the linear predictor looks back
RICE_BLOCK = 64
FLAC_CHANNELS, FLAC_BITS = 8, 24
XZ = [
    [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "lp": lp, "pb": pb}]
    for lc, lp, pb in ((3, 0, 2), (4, 0, 0), (0, 1, 1))
]


def ours(series: Series, folder: Path) -> int:
    """Bytes of our file, its header and index included."""
    return container.write(folder / "ours.gmsc", [series], threads=1).bytes


def check(series: Series, folder: Path) -> None:
    """Raises `ContestantError` where our file does not give the same numbers."""
    (again,) = reading.joined_all(container.read(folder / "ours.gmsc"))
    same = isinstance(again, Series) and again.grid is not None and series.grid is not None
    if not (same and np.array_equal(again.grid.integers, series.grid.integers)):  # type: ignore[union-attr]
        raise ContestantError(f"{series.name}: came back changed")


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
                found[f"zstd, differences {order}, {how}"] = piped(["zstd", "-19", "--ultra", "--no-check", "-c"], data)
        values = np.diff(values, axis=0, prepend=0)
    found["each channel by itself"] = sum(alone(integers[:, n]) for n in range(integers.shape[1]))
    for past in PASTS:
        left, coefficients = predicted(integers, past)
        beside = 2 * coefficients + 2 * integers.shape[1]
        for how, data in layouts(left, width).items():
            found[f"linear predictor of {past} and xz, {how}"] = beside + xz(data)
        found[f"linear predictor of {past} and Rice codes"] = beside + sum(rice(x) for x in left.T)
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


def alone(values: Integers) -> int:
    """Bytes of one channel, three that say how included."""
    best = 1 << 60
    for order in range(3):
        held = np.diff(values, n=order, prepend=[0] * order) if order else values
        held = held - held.min()
        width = next(w for w in (1, 2, 4, 8) if int(held.max()) < 1 << (8 * w - (w == 8)))
        planes = np.ascontiguousarray(held.astype(f"<u{width}")).view(np.uint8).reshape(-1, width)
        for data in (planes.tobytes(), np.ascontiguousarray(planes.T).tobytes()):
            best = min(best, xz(data) + 3 + width, len(bz2.compress(data)) + 3 + width)
    return best


def predicted(integers: Integers, past: int) -> tuple[Integers, int]:
    """What the best linear predictor of each channel leaves, with weights of 16 bits, and how many weights it has."""
    left, count = np.empty_like(integers), 0
    for number in range(integers.shape[1]):
        own = integers[:, number].astype(np.float64)
        seen = [np.concatenate([np.zeros(back), own[:-back]])[: len(own)] for back in range(1, past + 1)]
        seen += [integers[:, other].astype(np.float64) for other in range(number)]
        inputs = np.stack(seen, axis=1)
        weights = np.linalg.lstsq(inputs, own, rcond=None)[0]
        scale = 2.0 ** np.floor(np.log2(32767 / max(1e-9, np.abs(weights).max())))
        left[:, number] = integers[:, number] - np.rint(inputs @ (np.rint(weights * scale) / scale)).astype(np.int64)
        count += len(weights)
    return left, count


def rice(left: Integers) -> int:
    """Bytes of residuals in blocks of Rice codes, each block with the best of its parameters (a byte)."""
    folded, bits = np.where(left < 0, -2 * left - 1, 2 * left), 0
    for start in range(0, len(folded), RICE_BLOCK):
        block = folded[start : start + RICE_BLOCK]
        bits += 8 + min(int((block >> k).sum()) + len(block) * (k + 1) for k in range(40))
    return -(-bits // 8)


def flac(integers: Integers) -> int | None:
    """Bytes of FLAC files of at most eight channels each; None where a sample has more than 24 bits."""
    most = int(np.abs(integers).max())
    bits = next((b for b in (8, 16, FLAC_BITS) if most < 1 << (b - 1)), None)
    if bits is None:
        return None
    total = 0
    for first in range(0, integers.shape[1], FLAC_CHANNELS):
        some = integers[:, first : first + FLAC_CHANNELS]
        raw = np.ascontiguousarray(some.astype("<i4")).view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
        form = ["--force-raw-format", "--endian=little", "--sign=signed", f"--bps={bits}", "--sample-rate=8000"]
        words = ["flac", "-8", "-e", "-p", "--silent", "--no-padding", "--lax", f"--channels={some.shape[1]}", *form]
        made = subprocess.run([*words, "-c", "-"], input=raw, capture_output=True, check=True).stdout
        total += len(made) - comments(made)
    return total


def comments(made: bytes) -> int:
    """Bytes of a FLAC file's blocks beside its first, which are no samples."""
    at, last, found = 4, False, 0
    while not last:
        last, size = bool(made[at] & 128), int.from_bytes(made[at + 1 : at + 4], "big")
        found += 0 if made[at] & 127 == 0 else 4 + size
        at += 4 + size
    return found
