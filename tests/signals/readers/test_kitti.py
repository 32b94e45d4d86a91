from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Frames
from genmote.signals.readers import kitti

POINTS = [(1.5 + n, -2.25, 0.5, n % 100 / 100) for n in range(50)]


def write(path: Path, points: list[tuple[float, ...]], more: bytes = b"") -> Path:
    path.write_bytes(b"".join(struct.pack("<4f", *point) for point in points) + more)
    return path


def one(path: Path, notes: list[str]) -> Frames:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Frames)
    return found


def test_points_come_back(tmp_path: Path) -> None:
    notes: list[str] = []
    found = one(write(tmp_path / "000007.bin", POINTS), notes)
    assert found.shape == "points" and len(found) == 1 and found.name == "000007" and notes == []
    assert found.frames[0].tolist() == np.array(POINTS, np.float32).tolist()
    assert found.channels == ("x", "y", "z", "reflectance") and found.units == ("m", "m", "m", "")


def test_what_is_odd_is_told(tmp_path: Path) -> None:
    odd = [(float("nan"), 0, 0, 0), (0, 0, float("inf"), 0.5), (3e38, 0, 0, 0), (1, 1, 1, 37.0), (0, 0, 0, 0.5)]
    notes: list[str] = []
    found = one(write(tmp_path / "a.bin", [*POINTS, *odd], b"12345"), notes)
    assert found.frames[0].tolist() == np.array([*POINTS, *odd[2:]], np.float32).tolist()
    assert notes == [
        "a.bin: ends with 5 bytes of a point; left out",
        "a.bin: 2 points have a value that is no number; left out",
        "a.bin: 3 points lie at 0 m or over 200 m or have a reflectance outside 0 to 1; kept as they are",
    ]


def test_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "five.bin"
    path.write_bytes(struct.pack("<5f", 20.0, 3.0, 1.0, 87.0, 4.0) * 100)  # five numbers a point
    assert not kitti.knows(path, path.read_bytes())
    with pytest.raises(
        SignalError, match=r"five\.bin: 100 of 125 points lie at 0 m or over 200 m or .*: wanted four floats"
    ):
        reading.read(path, reader="kitti")
    path.write_bytes(b"123")
    with pytest.raises(SignalError, match=r"five\.bin: has 3 bytes: wanted 16 for each point"):
        reading.read(path, reader="kitti")
    monkeypatch.setattr(kitti, "MOST", 49)
    with pytest.raises(SignalError, match=r"long\.bin: is longer than 49 points: wanted one turn of a lidar"):
        reading.read(write(tmp_path / "long.bin", POINTS))


def test_which_files_it_takes(tmp_path: Path) -> None:
    raw = write(tmp_path / "a.bin", POINTS).read_bytes()
    assert kitti.knows(tmp_path / "a.bin", raw) and kitti.knows(tmp_path / "A.BIN", raw[:100])
    assert not kitti.knows(tmp_path / "a.txt", raw) and not kitti.knows(tmp_path / "a.bin", raw[:15])
    assert not kitti.knows(tmp_path / "a.bin", np.random.default_rng(0).bytes(4096))
    assert not kitti.knows(tmp_path / "a.bin", bytes(4096))


@pytest.mark.parametrize(("name", "count"), [("000000", 115_384), ("000001", 120_268)])
def test_real_turns(data: Callable[[str], Path], name: str, count: int) -> None:
    notes: list[str] = []
    path = data(f"kitti_lidar3/velodyne/{name}.bin")
    (cloud,) = one(path, notes).frames
    assert cloud.shape == (count, 4) and notes == []
    raw = path.read_bytes()
    for at in (0, 1, count // 2, count - 1):
        assert tuple(cloud[at].tolist()) == struct.unpack_from("<4f", raw, 16 * at)
