"""Clouds of points of a turning lidar, as KITTI has them: a .bin file a turn, x, y, z in metres and reflectance.

Geiger, Lenz, Stiller and Urtasun, "Vision meets robotics: the KITTI dataset" (2013): x forward, y left, z up, four
little-endian floats of 32 bits a point, reflectance from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.kinds import Frames

SUFFIXES = (".bin",)
POINT = 16  # bytes
MOST = 1 << 22  # points of a turn; its lidar gives about 120,000
FARTHEST_M = 200.0  # the lidar reaches 120 m


def knows(path: Path, head: bytes) -> bool:
    points = np.frombuffer(head[: len(head) // POINT * POINT], "<f4").reshape(-1, 4)
    return path.suffix.lower() == ".bin" and len(points) > 0 and int(_odd(points).sum()) * 10 <= len(points)


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Frames]:
    with open(path, "rb") as file:
        raw = file.read(MOST * POINT + 1)
    if len(raw) > MOST * POINT:
        raise SignalError(f"{path}: is longer than {MOST} points: wanted one turn of a lidar, about 120,000 points")
    if not len(raw) // POINT:
        raise SignalError(f"{path}: has {len(raw)} bytes: wanted {POINT} for each point")
    if len(raw) % POINT:
        notes.append(f"{path.name}: ends with {len(raw) % POINT} bytes of a point; left out")
    points = np.frombuffer(raw[: len(raw) // POINT * POINT], "<f4").reshape(-1, 4).astype(np.float32)
    odd = _odd(points)
    if int(odd.sum()) * 2 > len(points):
        raise SignalError(
            f"{path}: {int(odd.sum())} of {len(points)} points lie at 0 m or over {FARTHEST_M:g} m or have a "
            "reflectance outside 0 to 1: wanted four floats a point: x, y, z in metres and reflectance"
        )
    there = np.isfinite(points).all(axis=1)
    if not there.all():
        notes.append(f"{path.name}: {int((~there).sum())} points have a value that is no number; left out")
    if (odd & there).any():
        notes.append(
            f"{path.name}: {int((odd & there).sum())} points lie at 0 m or over {FARTHEST_M:g} m or have a reflectance "
            "outside 0 to 1; kept as they are"
        )
    yield Frames(path.stem, "points", [points[there]], ("x", "y", "z", "reflectance"), ("m", "m", "m", ""))


def _odd(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which points (P, 4) no such lidar gives."""
    with np.errstate(over="ignore", invalid="ignore"):
        near = (np.abs(points[:, :3]) <= FARTHEST_M).all(axis=1) & points[:, :3].any(axis=1)
        return ~(near & (points[:, 3] >= 0) & (points[:, 3] <= 1))
