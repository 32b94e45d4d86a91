"""Parquet and Arrow files by pyarrow, compared with what the same table is as CSV."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Records, Series, Signal
from genmote.signals.readers import arrow as tables

pa = pytest.importorskip("pyarrow", reason="wants the extra: pip install 'genmote[signals]'")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

DRAW = np.random.default_rng(3)
COUNT = 40_000
TIMES = [datetime(2024, 5, 6, tzinfo=UTC) + timedelta(seconds=0.5 * n) for n in range(COUNT)]
WARM = np.round(20 + np.cumsum(DRAW.normal(0, 0.05, COUNT)), 2)
COUNTS = DRAW.integers(-(10**15), 10**15, COUNT)


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=9000)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, chunksize=30_000)
    else:
        new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
        with new(str(path), table.schema) as out:
            out.write_table(table)
    return path


def as_csv(path: Path, table: pa.Table) -> Path:
    """The same table by Python's own library."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(table.column_names)
        out.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return path


def alike(one: Signal, other: Signal) -> bool:
    assert type(one) is type(other) and len(one) == len(other)
    if isinstance(one, Series) and isinstance(other, Series):
        assert (one.grid is None) == (other.grid is None)
        assert one.grid is None or other.grid is None or (one.grid.integers == other.grid.integers).all()
        assert (one.channels, one.units, one.rate_hz, one.start_s) == (
            *(other.channels, other.units, other.rate_hz, other.start_s),
        )
        return np.array_equal(one.values, other.values, equal_nan=True)
    assert isinstance(one, Records) and isinstance(other, Records)
    assert one.fields == other.fields and (one.times_s is None) == (other.times_s is None)
    assert one.times_s is None or other.times_s is None or (one.times_s == other.times_s).all()
    return all(a.tolist() == b.tolist() for a, b in zip(one.columns, other.columns, strict=True))


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".arrow", ".arrows"])
def test_a_table_of_numbers_is_the_series_that_its_csv_is(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"time": TIMES, "t [degC]": WARM, "n": COUNTS})
    notes: list[str] = []
    (found,) = reading.read(write(tmp_path / f"a{suffix}", table), notes=notes)
    (wanted,) = reading.read(as_csv(tmp_path / "a.csv", table))
    assert alike(found, wanted) and notes == []
    assert isinstance(found, Series) and found.rate_hz == 2.0 and found.units == ("°C", "") and found.grid is not None
    assert (found.grid.integers[:, 1] == COUNTS).all() and (found.grid.integers[:, 0] == np.rint(WARM * 100)).all()
    assert found.start_s == TIMES[0].timestamp()
    parts = list(reading.pieces(tmp_path / f"a{suffix}", rows=7000))
    assert all(len(part) <= 7000 for part in parts) and alike(reading.joined(parts), wanted)


def test_words_are_records_and_types_are_kept(tmp_path: Path) -> None:
    table = pa.table(
        {
            "who": pa.array([["anna", None, "ben"][n % 3] for n in range(300)]).dictionary_encode(),
            "door": pa.array([n % 2 == 0 for n in range(300)]),
            "load": pa.array([n * 1.5 if n % 7 else None for n in range(300)], pa.float32()),
            "cost": pa.array(range(300), pa.decimal128(9, 2)),
            "at": pa.array([{"x": n, "y": f"word {n}"} for n in range(300)]),
            "took": pa.array(range(300), pa.duration("ms")),
            "axes": pa.array([[n, -n] for n in range(300)], pa.list_(pa.int16(), 2)),
            "raw": pa.array([b"\0"] * 300),
            "tags": pa.array([["a"] * (n % 3) for n in range(300)]),
            "none": pa.nulls(300),
        }
    )
    notes: list[str] = []
    (found,) = reading.read(write(tmp_path / "a.parquet", table), notes=notes)
    assert isinstance(found, Records) and found.times_s is None
    assert {field.name: (field.type, field.unit) for field in found.fields} == {
        "who": ("category", ""), "door": ("category", ""), "load": ("number", ""), "cost": ("number", ""),
        "at.x": ("integer", ""), "at.y": ("text", ""), "took": ("integer", "ms"), "axes.0": ("integer", ""),
        "axes.1": ("integer", ""), "none": ("number", ""),
    }  # fmt: skip
    assert found.column("who").tolist() == [["anna", None, "ben"][n % 3] for n in range(300)]
    assert found.column("door").tolist() == ["true", "false"] * 150
    assert found.column("axes.1").tolist() == [-n for n in range(300)]
    assert np.array_equal(found.column("load"), [n * 1.5 if n % 7 else np.nan for n in range(300)], equal_nan=True)
    assert notes == [
        "a.parquet: 2 columns that have no single number, time or word are left out: "
        "raw (binary), tags (list<element: string>)"
    ]


def test_a_table_of_words_and_times_is_the_records_that_its_csv_is(tmp_path: Path) -> None:
    words = [f"state {n % 5}" for n in range(3000)]
    table = pa.table({"who": words, "when": TIMES[:3000], "x": WARM[:3000]})
    (found,) = reading.read(write(tmp_path / "a.parquet", table))
    (wanted,) = reading.read(as_csv(tmp_path / "a.csv", table))
    assert isinstance(found, Records) and found.times_s is not None and alike(found, wanted)


def test_words_that_come_late_are_words(tmp_path: Path) -> None:
    late = [None] * 20_000 + ["open"] * 100
    (found,) = reading.read(write(tmp_path / "a.parquet", pa.table({"x": range(20_100), "state": pa.array(late)})))
    assert isinstance(found, Records) and found.column("state").tolist() == late


def test_the_index_of_pandas_counts_the_rows_or_tells_the_time(tmp_path: Path) -> None:
    values = pa.array(np.arange(300) * 0.25)
    for index in (pa.array(range(300)), pa.array(TIMES[:300])):
        table = pa.table({"x": values, "__index_level_0__": index})
        (found,) = reading.read(write(tmp_path / "a.parquet", table))
        assert isinstance(found, Series) and found.channels == ("x",)
    assert found.rate_hz == 2.0


def test_times_with_a_zone_are_read_in_utc(tmp_path: Path) -> None:
    local = pa.array(TIMES[:300], pa.timestamp("ns", "UTC")).cast(pa.timestamp("ns", "Europe/Berlin"))
    (found,) = reading.read(write(tmp_path / "a.parquet", pa.table({"x": range(300), "seen": local})))
    assert isinstance(found, Series) and found.start_s == TIMES[0].timestamp()


def test_what_is_not_finite_is_missing(tmp_path: Path) -> None:
    values = np.arange(300.0)
    values[5], values[6] = np.inf, np.nan
    notes: list[str] = []
    (found,) = reading.read(write(tmp_path / "a.parquet", pa.table({"x": values, "y": values})), notes=notes)
    assert isinstance(found, Series) and np.isnan(found.values[5:7]).all() and not np.isnan(found.values[7:]).any()
    assert "a.parquet: 1 infinite numbers of x are missing now" in notes


def test_what_it_cannot_read(tmp_path: Path) -> None:
    table = pa.table({"x": range(5000), "y": range(5000)})
    for suffix in (".parquet", ".arrow", ".feather", ".arrows"):
        path = write(tmp_path / f"a{suffix}", table)
        raw = path.read_bytes()
        for size in (7, 100, len(raw) // 2, len(raw) - 20):
            path.write_bytes(raw[:size])
            with pytest.raises(SignalError, match=rf"a\{suffix}: [^\n]+: wanted "):
                reading.read(path)
    with pytest.raises(SignalError, match=r"b\.parquet: has no rows: wanted a table with at least one"):
        reading.read(write(tmp_path / "b.parquet", table.slice(0, 0)))
    with pytest.raises(SignalError, match=r"b\.parquet: has no column of numbers, times or words: wanted one"):
        reading.read(write(tmp_path / "b.parquet", pa.table({"x": [b"\1", b"\2"]})))


def test_without_the_library_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"x": range(9)}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        SignalError, match=r"a\.parquet: to be read it needs pyarrow: run pip install 'genmote\[signals\]'$"
    ):
        reading.read(path)


def test_only_what_says_so_is_arrow(tmp_path: Path) -> None:
    assert tables.knows(tmp_path / "a", b"PAR1" + bytes(99)) and tables.knows(tmp_path / "a", b"ARROW1\0\0")
    assert tables.knows(tmp_path / "a.arrows", b"\xff\xff\xff\xff" + bytes(99))
    assert not tables.knows(tmp_path / "a.bin", b"\xff\xff\xff\xff" + bytes(99))
