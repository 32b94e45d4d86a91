"""Files of examples: what is read is what was written, without what tells the answer; damage is one line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from genmote.describe import examples
from genmote.describe.examples import Example
from genmote.errors import ExamplesError, SignalError
from genmote.signals.kinds import Field, Frames, Mark, Records, Series


def series(seed: int = 0, **more: object) -> Series:
    values = np.random.default_rng(seed).normal(size=(20, 2)).astype(np.float32)
    values[3, 1] = np.nan
    return Series("heart", values, 50.0, ("I", "aVR é"), ("mV", "mV"), **more)  # type: ignore[arg-type]


def records() -> Records:
    fields = (Field("size", "integer", "B"), Field("wait", "number", "s"), Field("service", "category"))
    columns = (np.array([3, 4]), np.array([0.5, np.nan]), np.array(["dns", None], object))
    return Records("flows", fields, columns, np.array([1.0, 2.5]))


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    one = series(start_s=12.0, labels={"report": "normal"}, marks=(Mark(0, 1, "N"),))
    timed = Series("slow", np.ones((3, 1), np.float32), 0.0, ("t",), ("°C",), np.array([0.0, 5.0, 7.0]))
    wrote = [
        Example((one,), "How fast?", "72 bpm", "rate", group="patient 1", value=72.0, tolerance=5.0),
        Example((one, timed), "Which is longer?", "the first", "compare", ("the first", "the second"), held_out=True),
        Example((records(),), "What is it?", "dns", "label"),
    ]
    assert examples.write(tmp_path / "a.npz", wrote) == 3
    back = examples.read(tmp_path / "a.npz")
    for ours, theirs in zip(wrote, back, strict=True):
        for name in ("question", "answer", "about", "choices", "group", "held_out"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert back[0].value == 72.0 and math.isnan(back[1].value)
    (heart,), (again, slow), (rows,) = (example.signals for example in back)
    assert isinstance(heart, Series) and isinstance(slow, Series) and isinstance(rows, Records)
    assert again is heart, "a signal of two examples is kept once"
    assert np.array_equal(heart.values, one.values, equal_nan=True) and heart.channels == one.channels
    assert (heart.rate_hz, heart.start_s, heart.units) == (50.0, 12.0, ("mV", "mV"))
    assert heart.labels == {} and heart.marks == (), "these tell the answer"
    assert slow.times_s is not None and slow.times_s.tolist() == [0.0, 5.0, 7.0]
    assert rows.fields == records().fields and rows.column("service").tolist() == ["dns", None]
    assert rows.column("size").dtype == np.int64 and np.isnan(rows.column("wait")[1])


def test_frames_are_refused(tmp_path: Path) -> None:
    cloud = Frames("lidar", "points", [np.zeros((2, 3))], ("x", "y", "z"), ("m", "m", "m"))
    with pytest.raises(SignalError, match="lidar: holds frames; series and records are described so far"):
        examples.write(tmp_path / "a.npz", [Example((cloud,), "", "", "")])
    assert not list(tmp_path.iterdir())


def test_no_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match="there is no example to write: wanted at least one"):
        examples.write(tmp_path / "a.npz", [])


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match="absent.npz: cannot be read .No such file or directory.*wanted a file of"):
        examples.read(tmp_path / "absent.npz")
    path = tmp_path / "a.npz"
    examples.write(path, [Example((series(),), "q", "a", "rate")])
    whole = path.read_bytes()
    for wrong in (b"", b"no archive", whole[: len(whole) // 2], whole.replace(b'"signals"', b'"sagnils"')):
        path.write_bytes(wrong)
        with pytest.raises(ExamplesError, match="a.npz: is damaged, or no file of examples: make it again"):
            examples.read(path)


def test_a_later_format_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "FORMAT", 2)
    examples.write(tmp_path / "a.npz", [Example((series(),), "q", "a", "rate")])
    monkeypatch.setattr(examples, "FORMAT", 1)
    with pytest.raises(ExamplesError, match="is of format 2, this genmote reads 1: make it again"):
        examples.read(tmp_path / "a.npz")
