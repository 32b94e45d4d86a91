"""Tables: whole contents against Python's csv module, repairs against what they are told to be."""

from __future__ import annotations

import csv
import io
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import _tables, reading
from genmote.signals.kinds import MISSING, Records, Series
from genmote.signals.readers import csv as tables

DRAW = np.random.default_rng(5)
START = datetime(2024, 2, 27, 22, 58, 30, tzinfo=UTC)


def put(tmp_path: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def series(path: Path, notes: list[str] | None = None) -> Series:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Series)
    return found


def records(path: Path, notes: list[str] | None = None) -> Records:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Records)
    return found


def clock(path: Path) -> np.ndarray:
    """The times of a table, steady or not."""
    (found,) = reading.read(path)
    if isinstance(found, Series) and found.rate_hz:
        assert found.start_s is not None
        return found.start_s + np.arange(len(found)) / found.rate_hz
    assert isinstance(found, (Series, Records)) and found.times_s is not None
    return found.times_s


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("point", [".", ","])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("start", ["", "\ufeff", "# by a logger, of ours; at 20.5\n"])
@pytest.mark.parametrize("quoted", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_way_to_write_numbers(
    tmp_path: Path, delimiter: str, point: str, named: bool, start: str, quoted: int
) -> None:
    whole = DRAW.integers(-(10**6), 10**6, (50, 3))
    out = io.StringIO()
    write = csv.writer(out, delimiter=delimiter, quoting=quoted, lineterminator="\r\n" if named else "\n")
    if named:
        write.writerow(["x", "y", "z"])
    for row in whole:
        write.writerow([f"{row[0] / 100:.2f}".replace(".", point), f"{row[1] / 10:.1f}".replace(".", point), row[2]])
    notes: list[str] = []
    found = series(put(tmp_path, start + out.getvalue()), notes)
    assert found.grid is not None and (found.grid.integers == whole).all()
    assert found.grid.step.tolist() == [0.01, 0.1, 1.0] and found.rate_hz == 1.0
    assert (found.values == (whole / [100, 10, 1]).astype(np.float32)).all()
    assert found.channels == (("x", "y", "z") if named else ("column 1", "column 2", "column 3"))
    untold = [] if named else ["a.csv: has no line of names; its columns are numbered, but for --names"]
    assert notes == [*untold, "a.csv: no time was found; taken as one sample a second, but for --sample-rate"]


def test_cells_that_make_numbers_words_are_told(tmp_path: Path) -> None:
    lines = [f"{n},{'ERR' if n in (3, 6) else n / 4},{'a' if n % 3 else n % 2}" for n in range(40)]
    notes: list[str] = []
    path = put(tmp_path, "time,level (mV),kind\n" + "\n".join(lines) + "\n")
    assert [field.type for field in records(path, notes).fields] == ["text", "category"]
    said = "a.csv: level is read as words: 2 of its first 40 cells are neither numbers nor missing, first line 5 'ERR'"
    assert [line for line in notes if "words" in line] == [said]  # kind is mostly words


FORMS: list[Callable[[datetime], str]] = [
    lambda t: t.isoformat(),
    lambda t: t.strftime("%Y-%m-%d %H:%M:%S"),
    lambda t: t.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    lambda t: (t + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00"),
    lambda t: (t - timedelta(hours=3.5)).strftime("%Y%m%dT%H%M%S-0330"),
    lambda t: t.strftime("%Y.%m.%d_%H.%M.%S"),
    lambda t: t.strftime("%Y/%m/%d %H:%M:%S"),
    lambda t: t.strftime("%d.%m.%Y %H:%M:%S"),
    lambda t: t.strftime("%d/%m/%y %H:%M:%S"),
    lambda t: t.strftime("%m/%d/%Y %I:%M:%S %p"),
    lambda t: t.strftime("%d-%b-%y %H:%M:%S"),
    lambda t: t.strftime("%d %B %Y %H:%M:%S,%f"),
    lambda t: t.strftime("%b %d %Y %H:%M:%S"),
    lambda t: str(int(t.timestamp())),
    lambda t: f"{t.timestamp():.3f}",
    lambda t: str(int(t.timestamp() * 1000)),
    lambda t: str(int(t.timestamp()) * 10**6),
    lambda t: str(int(t.timestamp()) * 10**9),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step_s", [30, 3607])
def test_every_way_to_write_times(tmp_path: Path, form: Callable[[datetime], str], step_s: int) -> None:
    """Over the 29th of February, two days with it and many."""
    times = [START + timedelta(seconds=step_s * n) for n in range(40)]
    text = "time;x\n" + "".join(f"{form(time)};{n % 7}\n" for n, time in enumerate(times))
    found = series(put(tmp_path, text))
    assert found.channels == ("x",) and found.rate_hz == pytest.approx(1 / step_s) and found.start_s is not None
    assert found.start_s == pytest.approx(times[0].timestamp(), abs=1e-3)
    assert found.values[:, 0].tolist() == [n % 7 for n in range(40)]


@pytest.mark.parametrize(("day", "hour"), [("%d/%m/%Y", "%H:%M:%S"), ("%m/%d/%Y", "%I:%M %p"), ("%d-%b-%y", " %H:%M ")])
def test_a_date_and_a_time_of_day(tmp_path: Path, day: str, hour: str) -> None:
    times = [START.replace(second=0) + timedelta(minutes=7 * n) for n in range(600)]
    text = "Date,x,Time\n" + "".join(f"{t.strftime(day)},{n},{t.strftime(hour)}\n" for n, t in enumerate(times))
    found = series(put(tmp_path, text))
    assert found.channels == ("x",) and found.rate_hz == pytest.approx(1 / 420)
    assert found.start_s == times[0].timestamp() and len(found) == 600


def test_times_of_day_alone_go_over_midnight(tmp_path: Path) -> None:
    times = [START + timedelta(minutes=10 * n) for n in range(300)]
    text = "at,x\n" + "".join(f"{t:%H:%M:%S},{n}\n" for n, t in enumerate(times))
    found = series(put(tmp_path, text))
    assert found.rate_hz == pytest.approx(1 / 600) and len(found) == 300
    assert found.start_s == 22 * 3600 + 58 * 60 + 30


@pytest.mark.parametrize(
    ("dates", "first", "note"),
    [
        (["01/02/2024", "02/02/2024", "03/02/2024"], (2024, 2, 1), "day, month, so they lie closer together"),
        (["01/02/2024", "01/03/2024", "01/04/2024"], (2024, 1, 2), "month, day, so they lie closer together"),
        (["03/04/2024"] * 3, (2024, 3, 4), "month, day, as is usual with /"),
        (["03.04.2024"] * 3, (2024, 4, 3), "day, month, as is usual"),
    ],
)
def test_what_day_and_month_are_is_told(
    tmp_path: Path, dates: list[str], first: tuple[int, int, int], note: str
) -> None:
    notes: list[str] = []
    (found,) = reading.read(put(tmp_path, "when,x\n" + "".join(f"{d},{n}\n" for n, d in enumerate(dates))), notes=notes)
    assert isinstance(found, Series)
    start = found.start_s if found.times_s is None else found.times_s[0]
    assert start == datetime(*first, tzinfo=UTC).timestamp()
    assert notes[0] == f"a.csv: when: days and months cannot be told apart; read as {note}"


@pytest.mark.parametrize(
    ("name", "step", "rate_hz"),
    [("t [ms]", 20, 50), ("time_us", 500, 2000), ("Elapsed (s)", 4, 0.25), ("timer", 2, 0.5)],
)
def test_times_from_the_start(tmp_path: Path, name: str, step: int, rate_hz: float) -> None:
    notes: list[str] = []
    text = f"{name},x\n" + "".join(f"{7 + step * n},{n}\n" for n in range(30))
    found = series(put(tmp_path, text), notes)
    assert found.rate_hz == pytest.approx(rate_hz) and found.channels == ("x",)
    assert notes == (["a.csv: timer is a time without a unit; taken as seconds"] if name == "timer" else [])


def test_a_column_that_only_sounds_like_a_time_is_none(tmp_path: Path) -> None:
    text = "response_time,x,time_left\n" + "".join(f"{n * 37 % 11},{n},{9 - n}\n" for n in range(10))
    assert series(put(tmp_path, text)).channels == ("response_time", "x", "time_left")


def test_units_come_out_of_the_names(tmp_path: Path) -> None:
    text = "T (°C),CO(GT),Temp_C,RSRP [dBm],class_C,pressure hPa,light (lux),acc_x [m/s^2],v (km/h),odd [pixels]\n"
    found = series(put(tmp_path, text + "1,2,3,4,5,6,7,8,9,10\n2,3,4,5,6,7,8,9,10,11\n"))
    assert list(zip(found.channels, found.units, strict=True)) == [
        ("T", "°C"), ("CO(GT)", ""), ("Temp", "°C"), ("RSRP", "dBm"), ("class_C", ""), ("pressure", "hPa"),
        ("light", "lux"), ("acc_x", "m/s²"), ("v", "km/h"), ("odd", "pixels"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "x,y\n" + "".join(f'"{n + 3}",{n},{n * n}\n' for n in range(20)),  # as R writes it: a value more than names
        ",x,y\n" + "".join(f"{n},{n},{n * n}\n" for n in range(20)),  # as pandas writes it
        "Index,x,y\n" + "".join(f"{n},{n},{n * n}\n" for n in range(20)),
        "#,x,y\n" + "".join(f"{n},{n},{n * n}\n" for n in range(20)),
    ],
)
def test_a_column_that_counts_rows_is_left_out(tmp_path: Path, text: str) -> None:
    notes: list[str] = []
    found = series(put(tmp_path, text), notes)
    assert found.channels == ("x", "y") and found.values.tolist() == [[n, n * n] for n in range(20)]
    assert "a.csv: the first column counts the rows; left out" in notes


@pytest.mark.parametrize("last", [";", ";;"])
def test_last_columns_without_a_cell(tmp_path: Path, last: str) -> None:
    """The Air Quality set as UCI gives it: two empty columns, and empty rows at the end."""
    notes: list[str] = []
    text = f"Date;Time;CO(GT);T{last}\r\n10/03/2004;18.00.00;2,6;13,6{last}\r\n10/03/2004;19.00.00;2;-200{last}\r\n"
    path = put(tmp_path, text + f"13/03/2004;20.00.00;2,2;11,9{last}\r\n" + f";;;{last}\r\n" * 5)
    parts = list(tables.pieces(path, 100, notes, absent={"-200"}))
    assert len(parts) == 1 and isinstance(parts[0], Series) and parts[0].grid is not None
    assert parts[0].channels == ("CO(GT)", "T") and parts[0].grid.integers.tolist() == [
        [26, 136],
        [20, MISSING],
        [22, 119],
    ]
    assert parts[0].times_s is not None and parts[0].times_s[0] == datetime(2004, 3, 10, 18, tzinfo=UTC).timestamp()
    assert notes == ["a.csv: 5 rows of empty cells are left out: line 5, line 6, line 7, …"]


def test_names_in_a_comment_and_a_spreadsheets_delimiter(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "b.txt", [[1.5, 2.5], [3.5, 4.5]], header="volts amps", fmt="%.1f")
    assert series(tmp_path / "b.txt").channels == ("volts", "amps")
    assert series(put(tmp_path, "sep=;\nx;y\n1,5;2\n2,5;3\n")).values.tolist() == [[1.5, 2], [2.5, 3]]
    assert series(put(tmp_path, "x,x,,x\n1,2,3,4\n")).channels == ("x", "x 2", "column 3", "x 3")
    assert series(put(tmp_path, "530\n518\n506")).values[:, 0].tolist() == [530, 518, 506]
    assert series(put(tmp_path, '\ufeff"hr"\n1\n')).channels == ("hr",)


def test_other_encodings(tmp_path: Path) -> None:
    notes: list[str] = []
    assert series(put(tmp_path, "T (°C)\n1\n2\n".encode("latin-1")), notes).units == ("°C",)
    assert notes[0] == "a.csv: is not in UTF-8; read as Latin-1"
    assert series(put(tmp_path, "T (°C);y\n1;2\n2;3\n".encode("utf-16"))).units == ("°C", "")


def test_types_of_fields(tmp_path: Path) -> None:
    rows = [[n, n / 4, "on" if n % 3 else "off", f"note {n}", "" if n == 5 else n * 2, 10**20 + n] for n in range(40)]
    out = io.StringIO()
    csv.writer(out).writerows([["n", "x", "state", "said", "gone", "large"], *rows])
    notes: list[str] = []
    found = records(put(tmp_path, out.getvalue()), notes)
    assert [f.type for f in found.fields] == ["integer", "number", "category", "text", "integer", "number"]
    assert found.column("n").dtype == np.int64 and found.column("n").tolist() == list(range(40))
    assert found.column("state").tolist() == [row[2] for row in rows]
    assert found.column("said").tolist() == [row[3] for row in rows]
    assert np.isnan(found.column("gone")[5]) and found.column("gone")[6] == 12
    assert found.times_s is None and notes == []


def test_words_for_what_is_missing(tmp_path: Path) -> None:
    words = ["", "-", "NA", "nan", "NaN", "null", "n/a", "?"]
    text = "x,y,z\n" + "".join(f"{word},{n},a\n" for n, word in enumerate(words)) + "-200,8,\n3.5,9,b\n"
    found = records(put(tmp_path, text))
    assert np.isnan(found.column("x")[:8]).all() and found.column("x")[8:].tolist() == [-200, 3.5]
    assert found.column("z")[8] is None
    (part,) = tables.pieces(tmp_path / "a.csv", 100, [], absent={"-200"})
    assert isinstance(part, Records) and np.isnan(part.column("x")[:9]).all()


def test_what_does_not_fit_later_is_missing_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "WINDOW", 20)
    lines = [f"{n},{n}.5,w{n % 2}" for n in range(100)]
    lines[50], lines[60], lines[61], lines[70] = "oops,1.5,w1", "1e39,1.5,w0", "4.5,x{n},w0", "3,1.25,new"
    notes: list[str] = []
    found = records(put(tmp_path, "n,x,w\n" + "\n".join(lines)), notes)
    assert np.isnan(found.column("n")[[50, 60, 61]]).all() and np.isfinite(found.column("n")).sum() == 97
    assert np.isnan(found.column("x")[61]) and found.column("x")[70] == 1.25 and found.column("w")[70] == "new"
    assert sorted(notes) == [
        "a.csv: 1 cells of x that are no numbers are missing now: line 63 'x{n}'",
        "a.csv: 1 numbers of n with decimals, whole in the first rows, are missing now: line 63",
        "a.csv: 2 cells of n that are no numbers are missing now: line 52 'oops', line 62 '1e39'",
    ]


def test_more_decimals_later_are_kept_but_not_as_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "WINDOW", 20)
    notes: list[str] = []
    path = put(tmp_path, "x\n" + "".join("1.5\n" if n != 30 else "1.25\n" for n in range(60)))
    parts = list(reading.pieces(path, notes=notes))
    grids = [part.grid is not None for part in parts if isinstance(part, Series)]
    found = series(path)
    assert grids == [True, False, True] and found.grid is None and found.values[30, 0] == 1.25
    assert notes[-1] == "a.csv: x has more digits than at first, or than 63 bits hold; no whole numbers: from line 22"


def test_whole_numbers_of_many_digits_are_exact(tmp_path: Path) -> None:
    whole = [int(n) for n in DRAW.integers(10**17, 9 * 10**17, 50)]
    text = "x,y\n" + "".join(f"0.{n},{n % 89}e-3\n" for n in whole)
    found = series(put(tmp_path, text))
    assert found.grid is not None and found.grid.integers.tolist() == [[n, n % 89] for n in whole]
    assert found.grid.step.tolist() == [1e-18, 1e-3]


def test_numbers_that_no_sensor_gives(tmp_path: Path) -> None:
    """A value too large, an exponent without an end, more decimals than 63 bits hold, a carriage return in a row."""
    lines = ["1.5,2,3"] * 200
    lines[3], lines[5], lines[7] = "1e999,-1e39,3", "1e-999999999999,2,3", "1.5,2,0.0000000000000000000000001"
    notes: list[str] = []
    found = series(put(tmp_path, "x,y,z\n" + "\n".join(lines)), notes)
    assert np.argwhere(np.isnan(found.values)).tolist() == [[3, 0], [3, 1], [5, 0]] and found.grid is None
    assert found.values[7, 2] == np.float32(1e-25)
    assert "a.csv: 2 cells of x that are no numbers are missing now: line 5 '1e999', line 7 '1e-999999999999'" in notes
    assert series(put(tmp_path, "x,y\r1,2\r3,4\r")).values.tolist() == [[1, 2], [3, 4]]
    assert tables.knows(tmp_path / "a.csv", b"x,y\r1,2\r3,4\r")


def stamped(times: Iterator[float] | list[float] | np.ndarray) -> str:
    return "time_s,x\n" + "".join(f"{t:.6f},{n}\n" for n, t in enumerate(times))


def test_jitter_and_gaps(tmp_path: Path) -> None:
    at = np.delete(np.arange(500), [7, *range(100, 130), 400])
    notes: list[str] = []
    found = series(put(tmp_path, stamped(1e9 + (at + DRAW.uniform(-0.1, 0.1, len(at))) / 50)), notes)
    assert found.rate_hz == pytest.approx(50, rel=1e-3) and len(found) == 500 and found.grid is not None
    there = np.zeros(500, bool)
    there[at] = True
    assert (np.isfinite(found.values[:, 0]) == there).all() and (found.values[there, 0] == np.arange(468)).all()
    assert ((found.grid.integers[:, 0] == MISSING) == ~there).all()
    assert notes == ["a.csv: 32 samples that are missing in gaps are NaN now"]


@pytest.mark.parametrize(
    "times",
    [
        np.cumsum(DRAW.exponential(1, 200)),  # no rate at all
        np.concatenate([np.arange(100), np.arange(200, 300)]),  # a gap of more than a fifth
        np.repeat(np.arange(100), 2),  # twice each
    ],
)
def test_times_that_are_not_steady_are_kept(tmp_path: Path, times: np.ndarray) -> None:
    found = series(put(tmp_path, stamped(times)))
    assert found.rate_hz == 0 and found.times_s is not None
    assert np.allclose(found.times_s, times, atol=1e-6) and found.values[:, 0].tolist() == list(range(200))


@pytest.mark.parametrize("window", [1 << 14, 150])
def test_late_rows_and_equal_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(_tables, "WINDOW", window)
    times = np.arange(1000.0)
    for n in (140, 149, 290, 900):  # around the ends of windows too
        times[n : n + 12] = np.roll(times[n : n + 12], 1)
    times[100] = 99
    notes: list[str] = []
    found = series(put(tmp_path, stamped(times)), notes)
    assert found.times_s is not None and (np.diff(found.times_s) >= 0).all()
    assert (found.values[:, 0] == np.argsort(times, kind="stable")).all()
    late = int((times < np.maximum.accumulate(times)).sum())
    assert notes == [
        f"a.csv: {late} rows came late; brought into the order of time",
        "a.csv: 1 rows have the time of the row before",
    ]


@pytest.mark.parametrize("window", [90, 100, 110, 150])
def test_a_clock_that_is_set_begins_another_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(_tables, "WINDOW", window)
    times = np.concatenate([1e9 + np.arange(200), 5e8 + np.arange(100), 9e8 + 2 * np.arange(150)])
    notes: list[str] = []
    found = reading.read(put(tmp_path, stamped(times)), notes=notes)
    assert [(s.name, len(s), s.rate_hz, s.start_s) for s in found if isinstance(s, Series)] == [
        ("a", 200, 1.0, 1e9),
        ("a (2)", 100, 1.0, 5e8),
        ("a (3)", 150, 0.5, 9e8),
    ]
    assert notes == ["a.csv: the times do not go on as they began; 2 more recordings begin"]


def test_rows_of_many_clocks_stay_as_they_come(tmp_path: Path) -> None:
    notes: list[str] = []
    times = np.tile(np.arange(100), 5)
    found = records(put(tmp_path, stamped(times)), notes)
    assert found.times_s is not None and (found.times_s == times).all() and (found.column("x") == np.arange(500)).all()
    assert notes == ["a.csv: times go back again and again; the rows stay as they come"]


def test_a_piece_is_of_at_most_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DRAW.integers(-999, 999, (1000, 2))
    path = put(tmp_path, "time_s,x,y\n" + "".join(f"{n / 4},{x},{y / 100}\n" for n, (x, y) in enumerate(whole)))
    want = series(path)
    monkeypatch.setattr(_tables, "WINDOW", 130)
    parts = list(reading.pieces(path, rows=100))
    found = reading.joined(parts)
    assert max(map(len, parts)) == 100 and isinstance(found, Series)
    assert found.grid is not None and want.grid is not None and (found.grid.integers == whole).all()
    assert (found.values == want.values).all() and found.rate_hz == want.rate_hz and found.start_s == want.start_s == 0
    at = np.cumsum([0, *map(len, parts)])[:-1]
    assert [part.start_s for part in parts if isinstance(part, Series)] == pytest.approx((at / 4).tolist())


def test_a_file_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "WINDOW", 500)
    with open(tmp_path / "a.csv", "w") as out:
        out.write("time_s,x,said\n")
        for n in range(60000):
            out.write(f"{n},{n % 1000}.25,{'what is said' * 9}\n")
    tracemalloc.start()
    count = sum(len(part) for part in reading.pieces(tmp_path / "a.csv", rows=200))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 60000 and peak < 2e6 < 7e6 < (tmp_path / "a.csv").stat().st_size


def test_ragged_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = ["1,2,3"] * 60
    lines[9], lines[19], lines[29], lines[39], lines[49] = "1,2", "1", "1,2,3,4", "1,2,3,,", "1,2"
    notes: list[str] = []
    found = series(put(tmp_path, "x,y,z\n" + "\n".join(lines)), notes)
    assert found.values.tolist() == [[1, 2, 3]] * 56
    assert (
        "a.csv: 4 rows of another number of cells than 3 are left out: line 11 has 2, line 21 has 1, line 31 has 4, …"
        in notes
    )


def test_rows_without_a_time_are_left_out(tmp_path: Path) -> None:
    lines = [f"2024-01-01 00:{n:02d}:00,{n}" for n in range(60)]
    lines[20] = "later,20"
    notes: list[str] = []
    found = series(put(tmp_path, "at,x\n" + "\n".join(lines)), notes)
    assert len(found) == 60 and np.isnan(found.values[20, 0]) and found.values[21, 0] == 21
    assert sorted(notes) == [
        "a.csv: 1 rows without a time that can be read are left out: line 22 'later'",
        "a.csv: 1 samples that are missing in gaps are NaN now",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n# nothing\n", r"a\.csv: has no line but comments: wanted a table of text"),
        ("x,y\n", r"a\.csv: has no rows: wanted a table with at least one"),
        ("x,y\n1,2\n\x002,3\n", r"a\.csv, line 3: signs that are no text: wanted a table of text"),
        (
            "Once upon a time\nthere was\na table.\n",
            r"a\.csv: its lines are no rows of a table: wanted as many cells in",
        ),
        ("time,date\n10:00:00,2024-01-01\n", r"a\.csv: has no column but times and empty ones: wanted one of values"),
        ('x,y\n1,2\n"1,2\n3,4\n5,6\n', r"a\.csv: its lines are no rows of a table"),
        (
            "x,y\n" + "1,2\n" * 1000 + '"1,2\n' + "3,4\n" * 9,
            r"a\.csv, line 1002: a quote that is not closed in its row:",
        ),
        (
            "x,y\n" + "1,2\n" * 1000 + '"1,2\n' + "3,4\n" * 90000,
            r"a\.csv, line .*: field larger than field limit.*: wanted",
        ),
        (
            "x,y\n" + "1,2\n" * 1000 + "3,4,5\n" * 900,
            r"a\.csv, line .*: \d+ of \d+ rows have another number of cells than 2; wanted at most 1 in 10: look for",
        ),
        (
            "at,x\n" + "2024-01-02 10:00:00,1\n" * 20000 + "gone,1\n" * 9000,
            r"a\.csv, line 20002: got the time 'gone', and \d+ more of \d+ rows are not as the first rows' times;",
        ),
        ("x,y\n1," + "2" * (1 << 20) + "\n", r"a\.csv, line 2: a line without an end: wanted a table of text"),
        (b"\xff\xfex\x00,\x00y\x00\n\x00\x00\xd8\x00", r"a\.csv"),
    ],
)
def test_what_it_cannot_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        list(reading.pieces(put(tmp_path, text), reader="csv"))


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"b\.csv: cannot be read \(No such file or directory\): wanted a table of"):
        list(tables.pieces(tmp_path / "b.csv", 100, []))


@pytest.mark.parametrize(
    "text",
    [
        "Jun 14 15:16:01 combo sshd[19939]: authentication failure; logname= uid=0, euid=0\n" * 9,
        '{"a": 1}\n' * 9,
        "<gpx>\n<a>1,2</a>\n<a>1,2</a>\n",
        "[Sun Dec 04 04:47:44 2005] [notice] workerEnv.init() ok\n" * 9,
        "2015-07-29 17:41:44,747 - INFO  [QuorumPeer] - Notification time out\n" * 9,
        "This, like all prose,\nhas commas, in each\nof its lines, as is right\n",
        "normal\n\t1\t2\t3\n\t1\t2\t3\n",
    ],
)
def test_other_texts_are_no_tables(tmp_path: Path, text: str) -> None:
    assert not tables.knows(tmp_path / "a.log", text.encode())
    assert tables.knows(tmp_path / "a.log", b"a,b\n" + b"1.5,2\n" * 4000)
    assert tables.knows(tmp_path / "a.csv", b"a,b\nyes,no\nno,perhaps\n")


def rows_of(path: Path, delimiter: str = ",") -> list[list[str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def numbers(cells: list[str]) -> np.ndarray:
    return np.array([float(cell) if cell not in ("", "-") else np.nan for cell in cells])


def utc(text: str, form: str) -> float:
    return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()


def test_air_quality(data: Callable[[str], Path]) -> None:
    path = data("air_quality_uci/AirQualityUCI.csv")
    head, *rows = rows_of(path)
    found = series(path)
    assert found.channels == tuple(head[2:]) and found.values.shape == (9357, 13) and found.rate_hz == 1 / 3600
    assert found.start_s == utc("10/03/2004 18:00:00", "%d/%m/%Y %H:%M:%S")
    assert found.start_s + 9356 * 3600 == utc("4/04/2005 14:00:00", "%d/%m/%Y %H:%M:%S")
    want = np.array([numbers(row[2:]) for row in rows])
    assert found.grid is not None and (found.values == want.astype(np.float32)).all()
    assert np.allclose(found.grid.integers * found.grid.step, want, rtol=1e-12)
    assert found.grid.step.tolist() == [0.1, 1, 1, 0.1, 1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.0001]
    (part,) = tables.pieces(path, 1 << 16, [], absent={"-200"})
    assert isinstance(part, Series) and (np.isnan(part.values) == (want == -200)).all()


@pytest.mark.parametrize("name", ["datatraining", "datatest", "datatest2"])
def test_occupancy(data: Callable[[str], Path], name: str) -> None:
    path = data(f"occupancy_uci/{name}.txt")
    head, *rows = rows_of(path)
    found = series(path)
    assert found.channels == tuple(head[1:]) and found.rate_hz == 1 / 60 and found.start_s is not None
    assert found.start_s == utc(rows[0][0], "%Y-%m-%d %H:%M:%S")
    assert found.start_s + (len(found) - 1) * 60 == pytest.approx(utc(rows[-1][0], "%Y-%m-%d %H:%M:%S"), abs=1)
    assert (found.values == np.array([numbers(row[1:]) for row in rows], np.float32)).all() and found.grid is not None
    for n in range(0, len(rows), 97):
        for c, cell in enumerate(rows[n][1:]):
            assert round(float(cell) / found.grid.step[c]) == pytest.approx(found.grid.integers[n, c], rel=1e-15)


@pytest.mark.parametrize(
    ("name", "times", "fields"),
    [
        ("fitbit/dailyActivity_merged.csv", lambda row: utc(row[1], "%m/%d/%Y"), {"TotalSteps": "integer"}),
        ("fitbit/hourlySteps_merged.csv", lambda row: utc(row[1], "%m/%d/%Y %H:%M"), {"StepTotal": "integer"}),
        ("fitbit/sleepDay_merged.csv", lambda row: utc(row[1], "%m/%d/%Y %H:%M"), {"TotalTimeInBed": "integer"}),
        ("fitbit/weightLogInfo_merged.csv", lambda row: utc(row[1], "%m/%d/%Y %H:%M"), {"IsManualReport": "category"}),
        (
            "nsl_kdd_test/rows.csv",
            None,
            {"duration": "integer", "protocol_type": "category", "service": "category", "serror_rate": "number"},
        ),
        (
            "ton_iot_telemetry/Train_Test_IoT_Fridge.csv",
            lambda row: utc(row[0] + row[1].strip(), "%d-%b-%y%H:%M:%S"),
            {"fridge_temperature": "number", "temp_condition": "category", "label": "integer", "type": "category"},
        ),
        (
            "ton_iot_telemetry/Train_Test_IoT_GPS_Tracker.csv",
            lambda row: utc(row[0] + row[1].strip(), "%d-%b-%y%H:%M:%S"),
            {"latitude": "number", "longitude": "number", "label": "integer", "type": "category"},
        ),
        (
            "ton_iot_telemetry/Train_Test_IoT_Thermostat.csv",
            lambda row: utc(row[0] + row[1].strip(), "%d-%b-%y%H:%M:%S"),
            {"current_temperature": "number", "thermostat_status": "integer", "type": "category"},
        ),
        (
            "eye_tracking/18sat_fixfinal.csv",
            None,
            {"CURRENT_FIX_X": "number", "CURRENT_FIX_DURATION": "integer", "RECORDING_SESSION_LABEL": "category"},
        ),
    ],
)
def test_records_of_many_sets(
    data: Callable[[str], Path], name: str, times: Callable[[list[str]], float] | None, fields: dict[str, str]
) -> None:
    """Every cell of every row."""
    path = data(name)
    head, *rows = rows_of(path)
    head = [name.strip() for name in head]
    found = records(path)
    assert len(found) == len(rows)
    if times is None:
        assert found.times_s is None
    else:
        assert found.times_s is not None and found.times_s.tolist() == [times(row) for row in rows]
    assert {f.name: f.type for f in found.fields if f.name in fields} == fields
    for field, column in zip(found.fields, found.columns, strict=True):
        cells = [row[head.index(field.name)].strip() for row in rows]
        if field.type in ("number", "integer"):
            assert np.array_equal(column.astype(float), numbers(cells), equal_nan=True), field
        else:
            assert column.tolist() == [cell or None for cell in cells], field


def test_5g_production(data: Callable[[str], Path]) -> None:
    paths = sorted(data("5g_production_ucc").rglob("*.csv"))
    assert len(paths) == 38
    for path in paths[::4]:
        head, *rows = rows_of(path)
        found = records(path)
        times = np.array([utc(row[0], "%Y.%m.%d_%H.%M.%S") for row in rows])
        order = np.argsort(times, kind="stable")
        assert found.times_s is not None and (found.times_s == times[order]).all() and len(found) == len(rows)
        types = {f.name: f.type for f in found.fields}
        assert types["NetworkMode"] == types["State"] == types["NODEHEX"] == "category"
        for name in ("Longitude", "RSRP", "SNR", "DL_bitrate", "PINGAVG"):
            assert types[name] in ("number", "integer")
            cells = numbers([rows[n][head.index(name)] for n in order])
            assert np.array_equal(found.column(name).astype(float), cells, equal_nan=True), (path, name)


def test_gaze(data: Callable[[str], Path]) -> None:
    path = data("eye_tracking/potsdam_binge_pvt_example.csv")
    head, *rows = rows_of(path)
    found = series(path)
    at = head.index("eyelink_timestamp")
    assert found.channels == tuple(head[:at] + head[at + 1 :]) and found.start_s == 18126651 and len(found) == 29
    assert (found.values == np.array([numbers(row[:at] + row[at + 1 :]) for row in rows], np.float32)).all()


@pytest.mark.parametrize("name", ["acc_exp01_user01", "gyro_exp06_user04"])
def test_motion_of_hyperimu(data: Callable[[str], Path], name: str) -> None:
    path = data(f"hyperimu_har/{name}.txt")
    rows = rows_of(path, " ")
    found = series(path)
    assert found.values.shape == (len(rows), 3) and found.channels == ("column 1", "column 2", "column 3")
    assert (found.values == np.array([numbers(row) for row in rows], np.float32)).all()


BODY = "".join(f"2024-05-06 07:{n:02d}:00,{20 + n / 10:.1f},{n}\n" for n in range(12))


@pytest.mark.parametrize(
    "above",
    [
        "Device: logger 7\n",
        "Device: logger 7\n\nFirmware,1.2\nSite,roof, north side,of,the house\n",
        "Device,logger 7,,\nStarted,2024-05-06,,\n,,\n",
        "Device,logger 7\nSerial,12\n",
        "Station,roof,A\nSerial,12,B\n",
        "sep=,\nInterval 60 s\n",
        "Channels 2\nStarted;06.05.2024\n",
    ],
)
def test_lines_above_a_table_are_left_out_and_told(tmp_path: Path, above: str) -> None:
    whole, notes = series(put(tmp_path, "time,t [°C],n\n" + BODY, "b.csv")), list[str]()
    found = series(put(tmp_path, above + "time,t [°C],n\n" + BODY), notes)
    assert found.channels == ("t", "n") and found.units == ("°C", "") and found.start_s == whole.start_s
    assert found.values.tolist() == whole.values.tolist() and len(found) == 12
    (note,) = notes
    count = sum(bool(line.strip()) and not line.startswith("sep=") for line in above.splitlines())
    assert note.startswith(f"a.csv: {count} lines above the table are left out: line ")


def test_a_table_without_names_under_lines_of_words(tmp_path: Path) -> None:
    notes: list[str] = []
    found = series(put(tmp_path, "Sampled by logger 7\nrate\t100\n1\t2\t3\n" + "4\t5\t6\n" * 5, "a.txt"), notes)
    assert found.values.tolist() == [[1, 2, 3]] + [[4, 5, 6]] * 5
    assert "a.txt: 2 lines above the table are left out: line 1 'Sampled by logger 7', line 2 'rate'" in notes


@pytest.mark.parametrize(
    "text",
    [
        "key,value\nname,foo\nrate,100\nbits,16\ngain,2\nsize,7\nport,80\n",  # a table of words
        "time,t\ns,degC\n" + "".join(f"{n},{n * n}\n" for n in range(20)),  # names, and units below them
        "x,y\n1,2\n3,4\n5,6\nerror,error\n" + "7,8\n" * 20,  # words among values
    ],
)
def test_what_is_no_line_above_a_table(tmp_path: Path, text: str) -> None:
    notes: list[str] = []
    found = reading.read(put(tmp_path, text), notes=notes)
    names = text.split("\n", 1)[0].split(",")
    for signal in found:
        kept = signal.channels if isinstance(signal, Series) else [field.name for field in signal.fields]
        assert {*kept} <= {*names}
    assert not any("above the table" in note for note in notes)


def test_a_sum_below_a_small_table(tmp_path: Path) -> None:
    """As nfdump writes it."""
    rows = "".join(f"2024-05-06 07:{n:02d}:00,tcp,10.0.0.{n},{n}\n" for n in range(8))
    notes: list[str] = []
    found = records(put(tmp_path, "ts,pr,sa,ibyt\n" + rows + "Summary\nflows,bytes,packets\n8,28,8\n"), notes)
    assert found.column("ibyt").tolist() == [*range(8)] and found.times_s is not None
    assert notes == [
        "a.csv: 3 rows of another number of cells than 4 are left out: line 10 has 1, line 11 has 3, line 12 has 3"
    ]


def test_a_table_under_too_many_lines_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "".join(f"Line {n}: words\n" for n in range(40)) + "time,t,n\n" + BODY)
    with pytest.raises(SignalError, match=r"a\.csv: its lines are no rows of a table"):
        reading.read(path, reader="csv")


def test_a_first_row_of_one_cell_less_is_left_out(tmp_path: Path) -> None:
    found = series(put(tmp_path, "1,2\n" + "1,2,3\n" * 20))
    assert found.values.tolist() == [[1, 2, 3]] * 20


def test_the_first_row_stays_where_a_comment_has_the_names(tmp_path: Path) -> None:
    notes: list[str] = []
    lines = [f"{n},{n + 1}" for n in range(30)]
    lines[9] = "1,2,3"
    found = series(put(tmp_path, "# x,y\n" + "\n".join(lines)), notes)
    assert found.channels == ("x", "y") and found.values[:2].tolist() == [[0, 1], [1, 2]] and len(found) == 29


def test_words_with_spaces_between_tabs(tmp_path: Path) -> None:
    """Spaces would split the times, too, so that more columns tell something."""
    lines = [f"{'off on'.split()[n % 2]}\t{n / 4}\t2024-01-01 00:00:0{n}" for n in range(1, 6)]
    path = put(tmp_path, "\n".join(["auto mode\t-3.25\t2024-01-01 00:00:00", *lines]), "a.tsv")
    (found,) = reading.read(path)
    assert isinstance(found, Records) and found.columns[0].tolist() == ["auto mode", *["on", "off"] * 2, "on"]
    assert len(found.columns) == 2 and found.times_s is not None and np.ptp(found.times_s) == 5
