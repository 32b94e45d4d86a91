"""Files that are written here by the format's page, cell by cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import MISSING, Series

HEAD = "# what it is\n\n@problemName Two\n@timeStamps false\n@univariate false\n@classLabel true up down\n@data\n"


def write(folder: Path, lines: str, head: str = HEAD) -> Path:
    path = folder / "a.ts"
    path.write_text(head + lines, "utf-8")
    return path


def read(path: Path, rows: int = 1000) -> tuple[list[Series], list[str]]:
    notes: list[str] = []
    pieces = list(reading.pieces(path, rows=rows, notes=notes))
    assert all(len(piece) <= rows for piece in pieces)
    found = reading.joined_all(pieces)
    assert all(isinstance(one, Series) for one in found)
    return found, [note.removeprefix("a.ts: ") for note in notes]  # type: ignore[return-value]


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_a_series_a_line_with_its_class(tmp_path: Path, rows: int) -> None:
    draw = np.random.default_rng(0)
    cases = [(np.round(draw.normal(size=(2, length)), 3), name) for length, name in ((5, "up"), (3, "down"), (4, "up"))]
    text = "".join(":".join(",".join(f"{x:.3f}" for x in row) for row in case) + f":{name}\n" for case, name in cases)
    found, notes = read(write(tmp_path, text), rows)
    assert notes == ["tells no rate; taken as one sample a second"]
    for n, (one, (case, name)) in enumerate(zip(found, cases, strict=True), 1):
        assert (one.name, one.labels, one.rate_hz) == (f"a {n}", {"class": name}, 1.0)
        assert one.channels == ("channel 1", "channel 2") and one.grid is not None
        assert np.array_equal(one.values, case.T.astype(np.float32))
        assert np.array_equal(one.grid.integers, np.rint(case.T * 1000).astype(np.int64))


def test_missing_samples_targets_and_channels_of_other_lengths(tmp_path: Path) -> None:
    head = "@problemname X\n@missing true\n@targetlabel true\n@data\n"
    found, notes = read(write(tmp_path, "1,?,3:4,5:0.25\nNaN,1.5,2,7:0,0:1\n", head))
    assert [one.labels for one in found] == [{"target": "0.25"}, {"target": "1"}]
    assert np.array_equal(found[0].values, [[1, 4], [np.nan, 5], [3, np.nan]], equal_nan=True)
    assert found[0].grid is not None and found[0].grid.integers.tolist() == [[1, 4], [MISSING, 5], [3, MISSING]]
    assert notes == [
        "tells no rate; taken as one sample a second",
        "2 series have channels of other lengths; filled with NaN: line 5, line 6",
    ]


def test_without_classes(tmp_path: Path) -> None:
    found, _ = read(write(tmp_path, "1,2,3\n4,5\n", "@problemName X\n@classLabel false\n@data\n"))
    assert [one.values[:, 0].tolist() for one in found] == [[1, 2, 3], [4, 5]] and found[0].labels == {}


def test_a_long_comment_before_the_head(tmp_path: Path) -> None:
    path = write(tmp_path, "1,2:up\n", f"#{'long ' * 2000}\n" + HEAD)
    assert len(read(path)[0]) == 1
    assert reading.reader_of(path).__name__.endswith(".ts")
    (tmp_path / "b.txt").write_text(HEAD + "1,2:up\n")
    assert reading.reader_of(tmp_path / "b.txt").__name__.endswith(".ts")


def test_a_damaged_series_is_left_out_and_told(tmp_path: Path) -> None:
    good = "1,2:3,4:up\n"
    found, notes = read(write(tmp_path, f"{good}1,2:3,4\n{8 * good}"))
    assert [one.name for one in found] == [f"a {n}" for n in range(1, 11) if n != 2]
    assert notes[1] == "1 series of another number of channels than 2, or without their class, are left out: line 9"
    for lines, odd in ((f"{good}1:up\n", "1 of 2"), (good + 100 * "1:up\n", "11 of 12")):
        with pytest.raises(
            SignalError,
            match=rf"a\.ts: {odd} series have another number of channels than 2, or without their class; wanted",
        ):
            read(write(tmp_path, lines))


@pytest.mark.parametrize(
    ("head", "lines", "message"),
    [
        (HEAD, "1,2:x,4:up\n", r"line 8: got 'x' in channel 2: wanted a number or \?"),
        (HEAD, "", "has no series after @data: wanted one a line"),
        (HEAD.replace("@data\n", ""), "", "has no line @data: wanted a file of the UCR archive"),
        (HEAD.replace("@data\n", ""), "1,2:up\n", "line 7: got '1,2:up': wanted @ and a name, or @data"),
        (HEAD.replace("Stamps false", "Stamps true"), "(0,1):up\n", r"line 7: its samples have times \(@timeStamps\)"),
    ],
)
def test_faults(tmp_path: Path, head: str, lines: str, message: str) -> None:
    with pytest.raises(SignalError, match=rf"a\.ts.*{message}"):
        reading.read(write(tmp_path, lines, head))


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SignalError, match=r"absent\.ts: cannot be read \(No such file or directory\): wanted a file of"
    ):
        reading.read(tmp_path / "absent.ts", reader="ts")
    (tmp_path / "a.ts").write_bytes(b"@problemName \xff\xff\n@data\n1:up\n")
    with pytest.raises(SignalError, match=r"a\.ts: is not in UTF-8"):
        reading.read(tmp_path / "a.ts", reader="ts")
    monkeypatch.setattr("genmote.signals.readers.ts.LONGEST", 20)
    with pytest.raises(SignalError, match=r"line 1: is longer than 20 signs: wanted a series a line"):
        reading.read(write(tmp_path, "", f"#{'x' * 30}\n"), reader="ts")
