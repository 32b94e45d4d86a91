from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.signals import reading
from genmote.signals._tables import Tally
from genmote.signals.kinds import MISSING, Records, Series
from genmote.signals.live.payload import rows_of
from genmote.signals.live.recording import Recorder
from genmote.signals.live.topic import DIGITS, FILLED, LATE, Topic

NOW = 1.75e9  # a day in 2025


def made(rate_hz: float = 0.0) -> tuple[Topic, list[str], Tally]:
    notes: list[str] = []
    tally = Tally(notes)
    return Topic("a/b", tally, rate_hz), notes, tally


def sent(topic: Topic, rows: list[dict[str, object]], start: float = NOW, step: float = 1.0) -> list[Series | Records]:
    for n, row in enumerate(rows):
        for cells in rows_of(json.dumps(row).encode()):
            topic.push(start + n * step, cells)
    return topic.pieces()


def series(pieces: list[Series | Records]) -> Series:
    (one,) = pieces
    assert isinstance(one, Series)
    return one


def test_rows_without_a_time_have_that_of_arrival() -> None:
    topic, notes, _ = made()
    one = series(sent(topic, [{"temp_C": 20 + n / 4, "hum (%)": 40} for n in range(10)]))
    assert (one.name, one.channels, one.units, one.rate_hz) == ("a/b", ("temp", "hum"), ("°C", "%"), 0.0)
    assert one.times_s is not None and one.times_s.tolist() == [NOW + n for n in range(10)]
    assert one.values[:, 0].tolist() == [20 + n / 4 for n in range(10)]
    assert one.grid is not None and one.grid.integers[:, 0].tolist() == [2000 + 25 * n for n in range(10)]
    assert not notes


@pytest.mark.parametrize(
    ("key", "unit_s", "write"),
    [("ts", 1e-3, lambda t: round(t * 1000)), ("time", 1.0, lambda t: t), ("t", 1.0, lambda t: round(t - NOW, 3))],
)
def test_the_device_s_own_time_is_found_and_its_rate(key: str, unit_s: float, write: object) -> None:
    topic, notes, tally = made()
    rows = [{key: write(NOW + n / 10), "v": n} for n in range(20) if n not in (11, 12)]  # type: ignore[operator]
    one = series(sent(topic, rows))
    assert one.channels == ("v",) and one.rate_hz == pytest.approx(10, rel=1e-3) and len(one) == 20
    assert np.flatnonzero(np.isnan(one.values[:, 0])).tolist() == [11, 12]
    assert one.grid is not None and one.grid.integers[11, 0] == MISSING and one.grid.integers[13, 0] == 13
    more = series(sent(topic, [{key: write(NOW + n / 10), "v": n} for n in range(22, 30)]))  # type: ignore[operator]
    assert more.name == one.name and len(more) == 10 and more.values[2:, 0].tolist() == list(range(22, 30))
    assert more.start_s is not None and one.start_s is not None
    assert more.start_s == pytest.approx(one.start_s + len(one) / 10, abs=1e-3)
    tally.tell()
    assert any("4 samples that are missing in gaps are NaN now" in line for line in notes)


def test_a_long_gap_and_a_clock_set_back_begin_other_recordings() -> None:
    topic, notes, tally = made()
    sent(topic, [{"time": NOW + n, "v": n} for n in range(10)])
    late = NOW + 10 + FILLED + 5
    pieces = sent(topic, [{"time": NOW + 10, "v": 10}, *({"time": late + n, "v": n} for n in range(3))])
    assert [(one.name, len(one)) for one in pieces] == [("a/b", 1), ("a/b (2)", 3)]
    for n in range(LATE - 1):  # late rows, one in a piece
        assert sent(topic, [{"time": NOW - 100 + n, "v": n}]) == []
    (one,) = sent(topic, [{"time": NOW, "v": 7}])
    assert one.name == "a/b (3)"
    (one,) = sent(topic, [{"time": NOW + 1, "v": 8}])
    assert one.name == "a/b (3)" and len(one) == 1
    tally.tell()
    assert f"{LATE - 1} rows that came late, or again, are left out: a/b" in notes[0] + notes[1] + notes[2]
    assert any("a clock was set back; 1 more recordings begin" in line for line in notes)
    assert any("after a long gap; 1 more recordings begin" in line for line in notes)


def test_rows_in_any_order_are_sorted_and_doubles_left_out() -> None:
    topic, notes, tally = made()
    order = [0, 1, 3, 2, 4, 4, 5, 6, 7, 8]
    one = series(sent(topic, [{"time": NOW + n, "v": n} for n in order]))
    assert one.rate_hz == 0  # unsteady at first: doubles
    assert one.values[:, 0].tolist() == sorted(order)
    topic, notes, tally = made()
    sent(topic, [{"time": NOW + n, "v": n} for n in range(8)])
    one = series(sent(topic, [{"time": NOW + n, "v": n} for n in (9, 8, 8, 10)]))
    assert one.values[:, 0].tolist() == [8, 9, 10]
    tally.tell()
    assert notes == ["1 rows that came late, or again, are left out: a/b"]


def test_a_given_rate_counts_samples() -> None:
    topic, _, _ = made(50.0)
    one = series(sent(topic, [{"time": NOW + n, "v": n} for n in range(10)]))
    two = series(sent(topic, [{"time": NOW + 500, "v": 10}]))
    assert (one.rate_hz, one.start_s, two.start_s, one.channels) == (50.0, NOW, NOW + 10 / 50, ("v",))


def test_words_make_records() -> None:
    topic, _, tally = made()
    rows = [{"state": "on" if n % 2 else "off", "n": n, "x": n / 2, "free": "word " * n} for n in range(8)]
    (one,) = sent(topic, rows)
    assert isinstance(one, Records) and one.times_s is not None
    assert [(f.name, f.type) for f in one.fields] == [
        ("state", "category"),
        ("n", "integer"),
        ("x", "number"),
        ("free", "text"),
    ]
    assert one.column("state").tolist() == ["off", "on"] * 4 and one.column("n").dtype == np.int64
    (two,) = sent(topic, [{"state": None, "n": None, "x": "much", "free": "y"}])
    assert isinstance(two, Records) and two.column("state").tolist() == [None]
    assert np.isnan(two.column("n").astype(float)).all() and np.isnan(two.column("x").astype(float)).all()
    assert tally.found["{n} values that are no numbers are missing now"][0] == 1


def test_a_version_that_looks_like_a_date_is_no_clock() -> None:
    for rows in (1, 8):
        topic, _, _ = made()
        (one,) = sent(topic, [{"version": "1.2.3", "temp": n} for n in range(rows)])
        assert isinstance(one, Records) and [f.name for f in one.fields] == ["version", "temp"]
        assert one.times_s is not None and one.times_s.tolist() == [NOW + n for n in range(rows)]


def test_one_row_of_today_has_a_clock() -> None:
    topic, _, _ = made()
    one = series(sent(topic, [{"time": "2025-06-15T15:06:40Z", "v": 1}]))
    assert one.channels == ("v",) and one.times_s is not None and one.times_s.tolist() == [NOW]


def test_only_times_are_what_is_measured() -> None:
    topic, _, _ = made()
    assert series(sent(topic, [{"time": NOW + n} for n in range(9)])).channels == ("time",)


def test_what_does_not_fit_the_first_rows_is_told() -> None:
    topic, notes, tally = made()
    sent(topic, [{"time": NOW + n, "v": n, "w": 1} for n in range(8)])
    (one,) = sent(topic, [{"time": NOW + 8, "v": 8, "new": 3}, {"time": "soon", "v": 1, "w": 1}, {"other": 1}])
    assert isinstance(one, Series) and one.values[0, 0] == 8 and np.isnan(one.values[0, 1]) and len(one) == 1
    tally.tell()
    assert notes == [
        "1 values under names that their topic's first rows do not have are left out: a/b",
        "1 rows without any of the fields of their topic's first rows are left out: a/b",
        "1 rows without a time that can be read are left out: a/b",
    ]


def test_many_fields_are_cut() -> None:
    topic, notes, tally = made()
    for n in range(3):
        topic.push(NOW + n, {f"v{n}-{i}": "1" for i in range(200)})
    assert len(series(topic.pieces()).channels) == 256
    tally.tell()
    assert notes == ["344 fields of topics with more than 256 are left out: a/b, …"]


def test_digits_that_come_later_stay_exact_and_absurd_ones_are_told() -> None:
    topic, notes, tally = made()
    sent(topic, [{"v": n} for n in range(8)])
    one = series(sent(topic, [{"v": 1.25}, {"v": 2}]))
    assert one.grid is not None and one.grid.step.tolist() == [0.01] and one.grid.integers[:, 0].tolist() == [125, 200]
    two = series(sent(topic, [{"v": 0.1234567890123}, {"v": 1e30}]))
    assert two.grid is not None and two.grid.step.tolist() == [10.0**-DIGITS]
    assert two.grid.integers[:, 0].tolist() == [123456789, MISSING]
    assert two.values[1, 0] == np.float32(1e30)
    tally.tell()
    assert notes == [
        f"2 numbers of more than {DIGITS} decimals, or too large, are rounded or missing as whole numbers: a/b, …"
    ]


def test_first_rows_wait_for_others_but_not_for_long() -> None:
    topic, _, _ = made()
    assert not topic.ready(NOW)
    topic.push(NOW, {"v": "1"})
    assert not topic.ready(NOW + 1) and topic.ready(NOW + 6)
    topic.pieces()
    topic.push(NOW + 7, {"v": "1"})
    assert topic.ready(NOW + 7)


def test_a_recorded_table_is_read_as_the_same_signal(tmp_path: Path) -> None:
    """What is watched and what is trained on, from the recording, have the same names, units and rate."""
    topic, _, _ = made()
    recorder = Recorder(tmp_path / "a.csv")
    pieces = []
    for first in range(0, 60, 10):
        rows = [
            {"ts": round(1000 * (NOW + n / 4)), "temp (°C)": n / 10, "acc": {"x": n}} for n in range(first, first + 10)
        ]
        pieces += sent(topic, rows)
    for piece in pieces:
        recorder.add("a/b", piece, 0.0)
    (found,) = reading.read(tmp_path / "a.csv")
    live = reading.joined(list(pieces))
    assert isinstance(found, Series) and isinstance(live, Series)
    assert (found.channels, found.units) == (live.channels, live.units)
    assert found.rate_hz == pytest.approx(live.rate_hz) and found.start_s == pytest.approx(live.start_s)
    assert np.array_equal(found.values, live.values)


WORDS = "1 -2.5 1e30 -3e38 1e-12 1750000000 1750000000123 0.1234567890123 on off 2025-06-15T15:06:40Z 23:59:59".split()
WORDS += ["", "7" * 40, "x" * 50, "00:00:01", "1.2.3", "12/31/2025", "nan", "true", "٣", "1_0"]
CELLS = st.sampled_from(WORDS) | st.integers(-(10**6), 10**6).map(str)
ROWS = st.dictionaries(st.sampled_from(["ts", "time", "t", "date", "v", "temp (°C)", "acc.x"]), CELLS, min_size=1)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(ROWS, max_size=12), max_size=5), st.sampled_from([0.0, 50.0]))
def test_whatever_comes_is_given_or_counted(chunks: list[list[dict[str, str]]], rate_hz: float) -> None:
    topic, _, tally = made(rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        table, packed = Recorder(Path(folder) / "a.csv"), Recorder(Path(folder) / "a.gmsc")
        pushed = given_back = missing = 0
        for number, rows in enumerate(chunks):
            for row in rows:
                topic.push(NOW + number, row)
            pushed += len(rows)
            for piece in topic.pieces():
                given_back += len(piece)
                table.add("a/b", piece, 0.0)
                if isinstance(piece, Series):
                    assert piece.rate_hz == rate_hz or rate_hz == 0
                    packed.add("a/b", piece, 0.0)
        packed.flush()
        for text, (times, _) in tally.found.items():
            given_back += times if text.startswith("{n} rows") else 0
            missing += times if "missing in gaps" in text else 0
        assert given_back - missing == pushed
