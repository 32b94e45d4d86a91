"""Labelled blocks of samples: the UCI robot failures, and files of that form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Series
from genmote.signals.readers import robot

DRAW = np.random.default_rng(3)


def all_of(path: Path, notes: list[str] | None = None) -> list[Series]:
    found = [series for series in reading.read(path, notes=notes) if isinstance(series, Series)]
    assert len({series.name for series in found}) == len(found)
    return found


def test_blocks_come_back(tmp_path: Path) -> None:
    blocks = [(f"kind_{n % 3}", DRAW.integers(-999, 999, (15, 6))) for n in range(20)]
    text = "".join(
        label + "\r\n" + "".join("\t" + "\t".join(map(str, row)) + "\r\n" for row in block) + "\r\n\r\n"
        for label, block in blocks
    )
    (tmp_path / "a.data").write_text(text)
    notes: list[str] = []
    found = all_of(tmp_path / "a.data", notes)
    assert [series.labels for series in found] == [{"failure": label} for label, _ in blocks] and notes == []
    for series, (_, block) in zip(found, blocks, strict=True):
        assert series.channels == ("Fx", "Fy", "Fz", "Tx", "Ty", "Tz") and series.duration_s == pytest.approx(0.315)
        assert series.grid is not None and (series.grid.integers == block).all() and (series.values == block).all()
    assert [len(part) for part in reading.pieces(tmp_path / "a.data", rows=10)] == [10, 5] * 20


def test_blocks_of_other_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.data").write_text("up\n1.5,2\n-0.25,3\n\ndown\n4.5 5\nup\n")
    notes: list[str] = []
    up, down = all_of(tmp_path / "a.data", notes)
    assert up.values.tolist() == [[1.5, 2], [-0.25, 3]] and up.grid is not None and up.grid.step.tolist() == [0.01, 1]
    assert (up.labels, down.labels, up.rate_hz, down.channels) == (
        {"label": "up"},
        {"label": "down"},
        1.0,
        ("column 1", "column 2"),
    )
    assert notes == [
        "a.data: has 2 values a sample and no rate; taken as one sample a second",
        "a.data: 1 labels without a sample are left out: up",
    ]


def test_ragged_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.data").write_text("ok\n" + "1 2 3 4 5 6\n" * 30 + "1 2 3\n" + "bad\n" + "1 2 3 4 5 6\n" * 5)
    notes: list[str] = []
    assert [len(series) for series in all_of(tmp_path / "a.data", notes)] == [30, 5]
    assert notes == ["a.data: 1 samples of another number of values than 6 are left out: line 32 has 3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ok\n1 2 1e999\n", r"a\.data, line 2: got '1 2 1e999': wanted a label, or numbers"),
        ("1 2 3\n", r"a\.data, line 1: got '1 2 3': wanted a label above the samples"),
        ("ok\n1 2 3\n1 x 3\n", r"a\.data, line 3: got '1 x 3': wanted a label, or numbers"),
        ("\n\n", r"a\.data: is empty: wanted a label, then samples"),
        ("ok\n" + "1 2 3\n" * 10 + "1 2\n" * 10, r"a\.data: 10 of 20 samples have another number of values than 3;"),
        ("ok\n1 2\xff\n", r"a\.data: is not in UTF-8: wanted a label, or numbers, in each line"),
    ],
)
def test_what_it_cannot_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.data").write_bytes(text.encode("latin-1"))
    with pytest.raises(SignalError, match=message):
        reading.read(tmp_path / "a.data", reader="robot")


def test_an_endless_block_and_an_absent_file_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robot, "MOST", 100)
    (tmp_path / "a.data").write_text("ok\n" + "1 2\n" * 101)
    with pytest.raises(SignalError, match=r"a\.data, line 102: got a block of more than 100 samples: wanted a label"):
        reading.read(tmp_path / "a.data")
    with pytest.raises(SignalError, match=r"b\.data: cannot be read \(No such file or directory\): wanted blocks of"):
        list(robot.pieces(tmp_path / "b.data", 100, []))


def test_what_it_knows(tmp_path: Path) -> None:
    assert robot.knows(tmp_path / "a.data", b"normal\n\t-1\t2\n\t3\t4\n")
    assert not robot.knows(tmp_path / "a.data", b"x,y\n1,2\n3,4\n")
    assert not robot.knows(tmp_path / "a.data", b"5.1,3.5,1.4,0.2,Iris-setosa\n4.9,3.0,1.4,0.2,Iris-setosa\n")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("lp1", {"normal": 21, "collision": 17, "fr_collision": 16, "obstruction": 34}),
        ("lp2", {"normal": 20, "front_col": 6, "back_col": 7, "right_col": 5, "left_col": 9}),
        ("lp3", {"ok": 20, "slightly_moved": 9, "moved": 15, "lost": 3}),
        ("lp4", {"normal": 24, "collision": 72, "obstruction": 21}),
        (
            "lp5",
            {
                "normal": 44,
                "bottom_collision": 26,
                "bottom_obstruction": 21,
                "collision_in_part": 47,
                "collision_in_tool": 26,
            },
        ),
    ],
)
def test_the_robots_failures(data: Callable[[str], Path], name: str, kinds: dict[str, int]) -> None:
    path = data(f"robot_failures/{name}.data")
    assert reading.reader_of(path) is robot
    found = all_of(path)
    assert Counter(series.labels["failure"] for series in found) == kinds
    lines = [line.split() for line in path.read_text().splitlines()]
    want = np.array([list(map(int, cells)) for cells in lines if len(cells) == 6])
    assert all(series.values.shape == (15, 6) for series in found)
    assert (np.concatenate([series.grid.integers for series in found if series.grid]) == want).all()
