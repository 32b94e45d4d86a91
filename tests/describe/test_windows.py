from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.describe.windows import Growing, Windows, began
from genmote.errors import SignalError
from genmote.signals.kinds import Field, Frames, Records, Series
from tests.describe.tiny import wave


def test_windows_of_a_steady_series_have_every_sample_once() -> None:
    series = replace(wave(samples=1000), start_s=100.0)
    windows = Windows(2.5)  # 100 samples
    found = []
    for start in range(0, 1000, 70):
        found += windows.push("a", series.part(start, min(1000, start + 70)))
    assert [len(one.signal) for one in found] == [100] * 10
    assert np.array_equal(np.concatenate([one.signal.values for one in found]), series.values)
    assert [one.from_s for one in found] == pytest.approx([100 + 2.5 * n for n in range(10)])
    assert (
        found[0].to_s == pytest.approx(102.5) and found[0].name == "a" and found[0].signal.channels == series.channels
    )


def test_windows_by_times() -> None:
    times = np.array([0.0, 1, 2, 9, 10.5, 11, 31])
    values = np.arange(7, dtype=np.float32)[:, None]
    series = Series("odd", values, 0.0, ("x",), ("",), times)
    found = Windows(10.0).push("a", series)
    assert [one.signal.values[:, 0].tolist() for one in found] == [[0, 1, 2, 3], [4, 5]]
    rows = Records("r", (Field("n", "number"),), (values[:, 0].astype(np.float64),), times)
    assert [len(one.signal) for one in Windows(10.0).push("b", rows)] == [4, 2]


def test_topics_do_not_mix_and_another_recording_begins_anew() -> None:
    windows = Windows(1.0)  # 40 samples
    assert windows.push("a", wave(0, 30)) == [] and windows.push("b", wave(0, 30)) == []
    found = windows.push("a", replace(wave(1, 90), name="after a gap"))
    assert [len(one.signal) for one in found] == [40, 40] and found[0].signal.name == "after a gap"


def test_what_has_no_times_has_no_windows() -> None:
    rows = Records("r", (Field("n", "number"),), (np.zeros(3),))
    with pytest.raises(
        SignalError, match="a: is of rows without times, which windows cannot be counted of; describe it"
    ):
        Windows(1.0).push("a", rows)
    with pytest.raises(SignalError, match="a: is of frames, which windows cannot be counted of"):
        Windows(1.0).push("a", Frames("f", "grid", [], ("g",), ("",)))
    assert began(rows) == 0.0


def write(path: Path, start: int, stop: int, *, half: str = "") -> None:
    with open(path, "a") as out:
        if start == 0:
            out.write("time (s),level (m)\n")
        out.write("".join(f"{n / 10:.1f},{n * 0.5}\n" for n in range(start, stop)) + half)


def test_a_file_that_grows_gives_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "level.csv"
    write(path, 0, 30, half="3.0,1")
    growing = Growing(path)
    assert [len(piece) for piece in growing.step()] == [30] and growing.step() == []
    with open(path, "a") as out:
        out.write("5.0\n")  # the rest of the line: 15.0
    write(path, 31, 40)
    (piece,) = growing.step()
    assert isinstance(piece, Series) and piece.values[:, 0].tolist() == [n * 0.5 for n in range(30, 40)]
    assert began(piece) == pytest.approx(3.0) and growing.notes == []
    path.write_text("")
    write(path, 0, 20)
    assert [len(piece) for piece in growing.step()] == [20]
    assert growing.notes == ["level.csv: is shorter than it was: it begins anew"]
