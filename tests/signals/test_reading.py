"""What every reader has, and how a file finds its reader."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmote import registry
from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals._marks import windows
from genmote.signals.kinds import MISSING, Frames, Grid, Mark, Records, Series
from genmote.signals.kinds import Field as Column

READERS = registry.names(reading.READERS)


@pytest.mark.parametrize("name", READERS)
def test_each_reader_has_what_the_page_says(name: str, tmp_path: Path) -> None:
    reader = registry.load(reading.READERS, name)
    assert reader.__doc__ and reader.SUFFIXES and all(s.startswith(".") and s == s.lower() for s in reader.SUFFIXES)
    assert reader.knows(tmp_path / "x.exe", b"\x7fELF" + bytes(100)) is False


@pytest.mark.parametrize("name", READERS)
def test_noise_is_a_signal_error_or_a_signal(name: str, tmp_path: Path) -> None:
    """No reader ends in a traceback, whatever the bytes."""
    draw = np.random.default_rng(7)
    reader = registry.load(reading.READERS, name)
    for count in (1, 10, 100, 5000):
        path = tmp_path / f"noise{reader.SUFFIXES[0]}"
        path.write_bytes(draw.integers(0, 256, count, dtype=np.uint8).tobytes())
        with_error = None
        try:
            list(reader.pieces(path, 100, []))
        except SignalError as fault:
            with_error = str(fault)
        assert with_error is None or path.name in with_error


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"absent: cannot be read \(No such file or directory\): wanted a recording"):
        reading.read(tmp_path / "absent")
    (tmp_path / "empty.wav").touch()
    with pytest.raises(SignalError, match=r"empty\.wav: is empty: wanted a recording"):
        reading.read(tmp_path / "empty.wav")
    (tmp_path / "x.bin2").write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(SignalError, match=r"x\.bin2: no reader knows such a file; name one of .*wav.* with --reader"):
        reading.read(tmp_path / "x.bin2")
    with pytest.raises(SignalError, match=r"no reader is called 'wave', did you mean wav\?"):
        reading.read(tmp_path / "x.bin2", reader="wave")


def test_pieces_become_one_again() -> None:
    draw = np.random.default_rng(0)
    grid = Grid(draw.integers(-9, 9, (100, 2)), np.array([0.5, 2.0]), np.array([0.0, 1.0]))
    marks = (Mark(5, 20, "a"), Mark(30, 31, "b"))
    whole = Series("s", grid.values(), 10.0, ("x", "y"), ("g", "g"), np.arange(100.0), grid, {"who": "me"}, marks)
    again = reading.joined([whole.part(0, 25), whole.part(25, 60), whole.part(60, 100)])
    assert isinstance(again, Series) and again.grid is not None and again.times_s is not None
    assert (again.values == whole.values).all() and (again.grid.integers == grid.integers).all()
    assert again.marks == marks and again.labels == whole.labels and (again.times_s == whole.times_s).all()
    across = replace(
        whole, marks=(Mark(3, 80, "walk"), Mark(24, 25, "step"), Mark(25, 26, "turn"), Mark(60, 70, "walk"))
    )
    cut = [across.part(0, 25), across.part(25, 60), across.part(60, 100)]
    assert cut[1].marks == (Mark(0, 35, "walk", goes_on=True), Mark(0, 1, "turn"))
    again = reading.joined([*cut])
    assert isinstance(again, Series) and again.marks == across.marks
    rows = Records(
        "r", (Column("n", "number"), Column("w", "category")), (np.arange(9.0), np.array([*"abcabcabc"], object))
    )
    both = reading.joined([rows.part(0, 4), rows.part(4, 9)])
    assert (
        isinstance(both, Records)
        and (both.column("n") == np.arange(9.0)).all()
        and both.columns[1].tolist() == [*"abcabcabc"]
    )
    frames = Frames("f", "points", [np.zeros((n, 3)) for n in range(4)], ("x", "y", "z"), ("m",) * 3)
    cloud = reading.joined([frames.part(0, 1), frames.part(1, 4)])
    assert isinstance(cloud, Frames) and [len(f) for f in cloud.frames] == [0, 1, 2, 3]


PLACES = st.integers(0, 30)


@given(
    st.lists(st.tuples(PLACES, PLACES, st.sampled_from("ab")), max_size=12),
    st.sets(st.integers(1, 29), max_size=6),
    st.integers(1, 7),
)
def test_marks_of_any_kind_come_back(said: list[tuple[int, int, str]], cuts: set[int], most: int) -> None:
    """Touching ones of one label, ones within another, ones of no length at either end: cut by `part` and by a reader's
    windows, and again within a piece."""
    marks = tuple(sorted((Mark(min(a, b), max(a, b), label) for a, b, label in said), key=lambda mark: mark.start))
    whole = Series("s", np.zeros((30, 1), np.float32), 10.0, ("x",), ("g",), marks=marks)
    edges = [0, *sorted(cuts), 30]
    parts = [whole.part(start, stop) for start, stop in pairwise(edges)]
    again = [part.part(at, at + most) for part in parts for at in range(0, len(part), most)]
    read = [replace(whole.part(a, b), marks=seen) for a, b, seen in windows(marks, 30, most)]
    for pieces in (parts, again, read):
        for piece in pieces:
            assert all(0 <= mark.start <= mark.stop <= len(piece) for mark in piece.marks)
            assert all(mark.stop == len(piece) for mark in piece.marks if mark.goes_on)
        assert sum(not mark.goes_on for piece in pieces for mark in piece.marks) == len(marks)
        joined = reading.joined([*pieces])
        assert isinstance(joined, Series)
        assert sorted(joined.marks, key=repr) == sorted(marks, key=repr)


def test_recordings_of_one_name_stay_apart() -> None:
    one = Series("s", np.arange(6.0, dtype=np.float32)[:, None], 1.0, ("x",), ("g",))
    rows = Records("s", (Column("n", "number"),), (np.arange(4.0),))
    frames = Frames("s", "grid", [np.zeros((1, 1, 1))] * 3, ("grey",), ("",))
    for whole in (one, rows, frames):
        cut = [whole.part(0, 2), whole.part(2, 3)]
        assert [len(each) for each in reading.joined_all([*cut, *cut, whole])] == [3, 3, len(whole)]
        assert [each.continues for each in [*cut, *(part.part(0, 1) for part in cut)]] == [False, True, False, True]
        # A later part of something begins what it is put first in.
        assert [len(each) for each in reading.joined_all([whole.part(1, 3), whole])] == [2, len(whole)]


def test_pieces_of_a_file_say_whether_they_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,x\n" + "".join(f"{n % 25},{n}\n" for n in range(50)))  # a clock that was set back
    assert [(piece.continues, len(piece)) for piece in reading.pieces(path, rows=10)] == [
        *[(False, 10), (True, 10), (True, 5)],
        *[(False, 10), (True, 10), (True, 5)],
    ]


def test_kinds_say_what_does_not_fit() -> None:
    values = np.zeros((4, 2), np.float32)
    with pytest.raises(SignalError, match=r"s: values of shape \(4, 2\) with 1 channels and 1 units; wanted"):
        Series("s", values, 1.0, ("a",), ("V",))
    with pytest.raises(SignalError, match="s: neither a rate above 0 nor times; wanted one of them"):
        Series("s", values, 0.0, ("a", "b"), ("V", "V"))
    with pytest.raises(SignalError, match="s: 3 times for 4 samples; wanted one each"):
        Series("s", values, 0.0, ("a", "b"), ("V", "V"), np.arange(3.0))
    with pytest.raises(SignalError, match=r"s: a grid of shape \(1, 1\) for values of \(4, 2\)"):
        Series("s", values, 1.0, ("a", "b"), ("V", "V"), grid=Grid(np.zeros((1, 1), int), np.ones(1), np.zeros(1)))
    with pytest.raises(SignalError, match=r"r: 2 fields with columns of \[3\] rows; wanted a column for each field"):
        Records("r", (Column("a", "number"), Column("b", "text")), (np.zeros(3),))
    with pytest.raises(SignalError, match="r: 1 times for 3 rows; wanted one each"):
        Records("r", (Column("a", "number"),), (np.zeros(3),), np.zeros(1))
    with pytest.raises(SignalError, match="r has no field 'c': it has a"):
        Records("r", (Column("a", "number"),), (np.zeros(3),)).column("c")
    with pytest.raises(SignalError, match=r"f: a frame of shape \(3, 2\); wanted 3 axes, the last of 1 channels"):
        Frames("f", "grid", [np.zeros((3, 2))], ("grey",), ("",))
    with pytest.raises(SignalError, match="f: 2 units for 1 channels"):
        Frames("f", "grid", [], ("grey",), ("", ""))


def test_a_missing_sample_is_no_number() -> None:
    grid = Grid(np.array([[3], [MISSING]]), np.array([0.25]), np.array([1.0]))
    assert grid.values()[0, 0] == 1.75 and np.isnan(grid.values()[1, 0])
