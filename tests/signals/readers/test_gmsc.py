from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import container, reading
from genmote.signals.kinds import Grid, Mark, Series

DRAW = np.random.default_rng(3)


def beat(count: int, name: str = "beat") -> Series:
    grid = Grid(DRAW.integers(-500, 500, (count, 2)), np.array([0.5, 2.0]), np.zeros(2))
    marks = (Mark(3, count, "walk"),)
    return Series(name, grid.values(), 50.0, ("a", "b"), ("mV", ""), grid=grid, labels={"of": name}, marks=marks)


@pytest.mark.parametrize("rows", [7, 1000])
def test_series_come_back_each_for_itself(tmp_path: Path, rows: int) -> None:
    told = [beat(40), beat(20), beat(30, "other"), beat(10)]
    container.write(tmp_path / "a.gmsc", told)
    notes: list[str] = []
    parts = [*reading.pieces(tmp_path / "a.gmsc", rows=rows, notes=notes)]
    assert all(len(part) <= rows for part in parts) and notes == []
    found = reading.joined_all(parts)
    assert [one.name for one in found] == ["beat", "beat (2)", "other", "beat"]
    for one, before in zip(found, told, strict=True):
        assert isinstance(one, Series) and one.grid is not None and before.grid is not None
        assert np.array_equal(one.grid.integers, before.grid.integers) and np.array_equal(one.values, before.values)
        assert (one.rate_hz, one.channels, one.units, one.labels, one.marks) == (
            *(before.rate_hz, before.channels, before.units, before.labels, before.marks),
        )


def test_a_recording_in_pieces_is_one(tmp_path: Path) -> None:
    growing, whole = container.Growing(tmp_path / "a.gmsc"), replace(beat(60), marks=())
    for start in range(0, 60, 20):
        growing.add(whole.part(start, start + 20))
    (found,) = reading.read(tmp_path / "a.gmsc")
    assert isinstance(found, Series) and np.array_equal(found.values, whole.values)


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.gmsc"
    container.write(path, [beat(40), beat(20)])
    raw, notes = path.read_bytes(), list[str]()
    path.write_bytes(raw[:-20])
    (found,) = reading.read(path, notes=notes)
    assert len(found) == 40 and len(notes) == 1 and "ends in the middle, after byte" in notes[0]
    path.write_bytes(raw[:10])
    with pytest.raises(SignalError, match=r"a\.gmsc: holds no samples that are whole: wanted some"):
        reading.read(path)
    path.write_bytes(raw[:60] + bytes([raw[60] ^ 1]) + raw[61:])
    with pytest.raises(SignalError, match=r"a\.gmsc: is damaged after byte \d+ \(checksum\): get the file again"):
        reading.read(path)
