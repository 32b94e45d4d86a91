from __future__ import annotations

import csv
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError, UserError
from genmote.signals import container, reading
from genmote.signals.kinds import Field, Grid, Records, Series
from genmote.signals.live import recording
from genmote.signals.live.recording import BLOCK_S, Recorder


def piece(first: int, count: int, *, name: str = "t", step: float = 0.5, times: bool = False) -> Series:
    whole = np.arange(first, first + count)[:, None] * np.array([[1, -3]])
    grid = Grid(whole, np.array([step, 1.0]), np.zeros(2))
    own = 1e9 + np.arange(first, first + count) ** 1.5 if times else None
    rate, start = (0.0, None) if times else (10.0, 100 + first / 10)
    return Series(name, grid.values(), rate, ("a", "b"), ("V", ""), own, grid, start_s=start)


def rows(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("times", [False, True])
def test_a_table_grows_by_whole_lines(times: bool, tmp_path: Path) -> None:
    out = Recorder(tmp_path / "a.csv")
    pieces = [piece(first, 10, times=times) for first in range(0, 30, 10)]
    for n, one in enumerate(pieces, 1):
        out.add("t", one, 0.0)
        found = rows(tmp_path / "a.csv")
        assert found[0] == ["time (s)", "a (V)", "b"] and len(found) == 1 + 10 * n
    assert [float(row[1]) for row in found[1:]] == [n / 2 for n in range(30)]
    assert [int(row[2]) for row in found[1:]] == [-3 * n for n in range(30)]
    wanted = [1e9 + n**1.5 for n in range(30)] if times else [100 + n / 10 for n in range(30)]
    assert [float(row[0]) for row in found[1:]] == pytest.approx(wanted, abs=1e-9)
    assert out.rows == {"t": 30}


def test_records_in_a_table(tmp_path: Path) -> None:
    out = Recorder(tmp_path / "a.csv")
    columns = (np.array(["on", None], object), np.array([1, 2]), np.array([np.nan, 0.25]))
    fields = (Field("s", "category"), Field("n", "integer"), Field("x", "number", "V"))
    out.add("t", Records("t", fields, columns, np.array([1.0, 2.5])), 0.0)
    assert rows(tmp_path / "a.csv") == [["time (s)", "s", "n", "x (V)"], ["1", "on", "1", ""], ["2.5", "", "2", "0.25"]]


def test_signs_that_are_no_text_do_not_spoil_a_table(tmp_path: Path) -> None:
    out = Recorder(tmp_path / "a.csv")
    words = np.array(["\x1b[2Jon", "of\0f", "a\r\nb", 'a,"b'], object)
    out.add("t", Records("t", (Field("s\x07", "category"),), (words,), np.arange(4.0)), 0.0)
    (found,) = reading.read(tmp_path / "a.csv")
    assert isinstance(found, Records) and found.fields[0].name == "s?"
    assert found.columns[0].tolist() == ["?[2Jon", "of?f", "a?\nb", 'a,"b']


def test_each_topic_has_a_file(tmp_path: Path) -> None:
    out = Recorder(tmp_path / "a.csv")
    for n in range(3):
        out.add(f"t{n % 2}", piece(n, 1, name=f"t{n % 2}"), 0.0)
    assert {name: path.name for name, path in out.files.items()} == {"t0": "a.csv", "t1": "a-2.csv"}
    assert len(rows(tmp_path / "a.csv")) == 3 and len(rows(tmp_path / "a-2.csv")) == 2


def test_blocks_are_whole_at_any_time(tmp_path: Path) -> None:
    out = Recorder(tmp_path / "a.gmsc")
    for n in range(6):  # the third has another step, the fifth another name
        out.add("t", piece(10 * n, 10, step=0.5 if n < 2 else 0.25, name="t" if n < 4 else "t (2)"), now_s=float(n))
        out.due(float(n))
    assert out.rows["t"] == 40  # what could not wait with what came after
    out.due(BLOCK_S + 5)
    assert out.rows["t"] == 60
    found = reading.joined_all(container.read(tmp_path / "a.gmsc"))
    assert [(one.name, len(one)) for one in found] == [("t", 40), ("t (2)", 20)]
    for one in found:
        assert isinstance(one, Series)
    first = found[0]
    assert isinstance(first, Series) and first.start_s == 100.0
    assert first.values[:, 0].tolist() == [n * (0.5 if n < 20 else 0.25) for n in range(40)]
    assert first.values[:, 1].tolist() == [-3.0 * n for n in range(40)]


def test_many_values_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "BLOCK_VALUES", 100)
    out = Recorder(tmp_path / "a.gmsc")
    out.add("t", piece(0, 49), 0.0)
    assert not (tmp_path / "a.gmsc").exists()
    out.add("t", piece(49, 1), 0.0)
    assert sum(len(one) for one in container.read(tmp_path / "a.gmsc")) == 50


def test_a_torn_block_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.gmsc"
    growing = container.Growing(path)
    growing.add(piece(0, 20))
    one = path.stat().st_size
    growing.add(piece(20, 20))
    whole = path.read_bytes()
    for length in range(one, len(whole)):  # what a machine that dies in the middle of the second write leaves
        path.write_bytes(whole[:length])
        with pytest.raises(SignalError, match="ends in the middle, after byte .*or what is whole of it with --cut"):
            list(container.read(path))
        notes: list[str] = []
        found = reading.joined_all(container.read(path, notes=notes))
        assert sum(map(len, found)) == (40 if length >= len(whole) - 6 else 20)
        assert len(notes) == 1 and "ends in the middle, after byte" in notes[0]


def test_a_full_disk_leaves_what_was_whole(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    out = Recorder(tmp_path / "a.gmsc")
    try:
        out.add("t", piece(0, 20), 0.0)
        out.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "a.gmsc").stat().st_size + 20, limits[1]))
        out.add("t", piece(20, 20), 0.0)
        with pytest.raises(UserError, match=r"a.gmsc cannot be written \(File too large\): what came before is kept"):
            out.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert sum(len(one) for one in container.read(tmp_path / "a.gmsc")) == 20


def test_a_full_disk_at_the_first_block_leaves_no_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    growing = container.Growing(tmp_path / "a.gmsc")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            growing.add(piece(0, 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not (tmp_path / "a.gmsc").exists()
    growing.add(piece(0, 20))
    assert sum(len(one) for one in container.read(tmp_path / "a.gmsc")) == 20


def test_floats_want_a_greatest_error(tmp_path: Path) -> None:
    floats = Series("f", np.linspace(0, 1, 50, dtype=np.float32)[:, None], 1.0, ("a",), ("V",))
    with pytest.raises(SignalError, match=r"--max-error"):
        container.Growing(tmp_path / "a.gmsc").add(floats)
    assert not (tmp_path / "a.gmsc").exists()
    container.Growing(tmp_path / "a.gmsc", max_error=0.01).add(floats)
    (found,) = container.read(tmp_path / "a.gmsc")
    assert np.abs(found.values - floats.values).max() <= 0.01 + 1e-6


def test_messages(tmp_path: Path) -> None:
    out = Recorder(tmp_path / "a.gmsc")
    with pytest.raises(SignalError, match=r"t: is records, which a .gmsc has no place for: record it as .csv"):
        out.add("t", Records("t", (), (), np.zeros(0)), 0.0)
    out.add("u", piece(0, 1), 0.0)
    out.flush()
    assert out.files == {"u": tmp_path / "a.gmsc"} and out.files["u"].exists()  # no name went to what has no place
    (tmp_path / "b.csv").write_text("here")
    with pytest.raises(UserError, match=r"b.csv is there already: name another file with --output, or take it away"):
        Recorder(tmp_path / "b.csv")
    (tmp_path / "d-2.csv").write_text("here")
    out = Recorder(tmp_path / "d.csv")
    out.add("t", piece(0, 1), 0.0)
    with pytest.raises(UserError, match=r"d-2.csv is there already: name another file with --output"):
        out.add("u", piece(0, 1), 0.0)
    out = Recorder(tmp_path / "c.csv")
    out.add("t", piece(0, 1), 0.0)
    (tmp_path / "c.csv").unlink()
    (tmp_path / "c.csv").mkdir()
    with pytest.raises(UserError, match=r"c.csv cannot be written \(Is a directory\): what came before is kept"):
        out.add("t", piece(1, 1), 0.0)
