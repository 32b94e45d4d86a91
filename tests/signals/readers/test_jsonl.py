"""JSON lines and arrays: whole contents against what Python's json wrote."""

from __future__ import annotations

import json
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import _tables, reading
from genmote.signals.kinds import Records, Series
from genmote.signals.readers import jsonl

DRAW = np.random.default_rng(11)


def put(tmp_path: Path, rows: list[Any], form: str = "lines") -> Path:
    path = tmp_path / "a.jsonl"
    if form == "lines":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, indent=2 if form == "indented" else None), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["lines", "array", "indented"])
def test_numbers_at_a_steady_rate(tmp_path: Path, form: str) -> None:
    whole = DRAW.integers(-(10**5), 10**5, (3000, 3))
    rows = [
        {"ts": 1715000000000 + 20 * n, "acc": {"x": x / 100, "y": [y / 10, int(z)]}}
        for n, (x, y, z) in enumerate(whole)
    ]
    notes: list[str] = []
    (found,) = reading.read(put(tmp_path, rows, form), notes=notes)
    assert isinstance(found, Series) and found.grid is not None and notes == []
    assert found.channels == ("acc.x", "acc.y.0", "acc.y.1") and (found.grid.integers == whole).all()
    assert found.rate_hz == pytest.approx(50) and found.start_s == 1715000000
    parts = list(reading.pieces(tmp_path / "a.jsonl", rows=700))
    assert [len(part) for part in parts] == [700, 700, 700, 700, 200]


@pytest.mark.parametrize("form", ["lines", "array", "indented"])
def test_fields_of_records(tmp_path: Path, form: str) -> None:
    rows: list[dict[str, Any]] = [
        {
            "time": f"2024-01-02 03:{n:02d}:00",
            "door": "open" if n % 2 else "shut",
            "who": f"Zoë {n}",
            "n": n,
            "on": n > 3,
        }
        for n in range(60)
    ]
    rows[7]["who"] = None
    rows[8].pop("n")
    rows[9]["n"] = float("nan")
    (found,) = reading.read(put(tmp_path, rows, form))
    assert isinstance(found, Records) and found.times_s is not None
    assert {f.name: f.type for f in found.fields} == {
        "door": "category",
        "who": "text",
        "n": "integer",
        "on": "category",
    }
    assert found.times_s[0] == datetime(2024, 1, 2, 3, tzinfo=UTC).timestamp() and found.times_s[-1] % 3600 == 59 * 60
    assert found.column("who").tolist() == [row["who"] for row in rows]
    assert found.column("on").tolist() == [str(n > 3).lower() for n in range(60)]
    assert np.flatnonzero(np.isnan(found.column("n"))).tolist() == [8, 9] and found.column("n")[10] == 10


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "WINDOW", 50)
    lines = [json.dumps({"x": n}) for n in range(100)]
    lines[10], lines[20], lines[30], lines[40], lines[70] = '{"x": 1', "[1]", "{x: 2}", "{" * 9, '{"x": 70, "y": 1}'
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    notes: list[str] = []
    (found,) = reading.read(tmp_path / "a.jsonl", notes=notes)
    assert isinstance(found, Series)
    assert found.values[:, 0].tolist() == [n for n in range(100) if n not in (10, 20, 30, 40)]
    assert sorted(notes) == [
        "a.jsonl: 1 values of y, which the first rows do not have, are left out: row 141",
        "a.jsonl: 4 lines that are no JSON object are left out: line 21 '{\"x\": 1', line 41 '[1]', "
        "line 61 '{x: 2}', …",
        "a.jsonl: no time was found; taken as one sample a second, but for --sample-rate",
    ]


def test_an_array_that_ends_early(tmp_path: Path) -> None:
    path = put(tmp_path, [{"x": n} for n in range(9000)], "array")
    path.write_text(path.read_text()[:-30])
    notes: list[str] = []
    (found,) = reading.read(path, notes=notes)
    assert len(found) == 8997 and "a.jsonl ends early, after 8997 objects; what is there is read" in notes


def test_lists_that_are_too_long_for_columns_are_text(tmp_path: Path) -> None:
    (found,) = reading.read(put(tmp_path, [{"x": 1.5, "all": list(range(n, n + 100))} for n in range(20)]))
    assert isinstance(found, Records) and found.fields[1].type == "text"
    assert [int(n) for n in json.loads(str(found.column("all")[3]))] == list(range(3, 103))


def test_a_file_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "WINDOW", 100)
    for form in ("lines", "array"):
        path = put(tmp_path, [{"x": n, "said": f"{n} is what is said" * 9} for n in range(20000)], form)
        tracemalloc.start()
        assert sum(len(part) for part in reading.pieces(path, rows=80)) == 20000
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1.5e6 < 3e6 < path.stat().st_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n \n", r"a\.jsonl: holds no object: wanted a JSON object a line, or an array of them"),
        ("[]", "holds no object"),
        ("not\njson\n", r"a\.jsonl, line 2: 2 of 2 lines are no JSON object; wanted at most 1 in 10 that is damaged"),
        ('{"x": 1}\n' * 20 + "x\n" * 3000, r"a\.jsonl, line 31: 11 of 31 lines are no JSON object"),
        (
            '[{"x": 1}, {"x": 2} ; {"x": 3}]',
            r"a\.jsonl, object 3: got '; {\"x\": 3}\]': wanted a JSON object of at most",
        ),
        ("[1, 2]", r"a\.jsonl, object 1: got '1, 2\]': wanted a JSON object"),
        ('[{"x": "' + "y" * (1 << 21), r"a\.jsonl, object 1: got .*: wanted a JSON object of at most 1048576 signs"),
        ("[" + '{"x": ' * 90000, r"a\.jsonl, object 1: is nested too deeply: wanted objects of values"),
        ('{"x": ' * 9000 + "\n", r"a\.jsonl, line 1: 1 of 1 lines are no JSON object"),
        ('{"x": "' + "y" * (1 << 20), r"a\.jsonl, line 1: is longer than 1048576 signs: wanted a JSON object a line"),
        ('{"x": 1}\n' * 20000 + "\xff", r"a\.jsonl: is not in UTF-8: wanted JSON lines"),
    ],
)
def test_what_it_cannot_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(SignalError, match=message):
        reading.read(tmp_path / "a.jsonl", reader="jsonl")


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"b\.jsonl: cannot be read \(No such file or directory\): wanted JSON lines"):
        list(jsonl.pieces(tmp_path / "b.jsonl", 100, []))


def test_what_it_knows(tmp_path: Path) -> None:
    assert jsonl.knows(tmp_path / "a.log", b'{"a": 1}\n{"a": 2}\n') and jsonl.knows(tmp_path / "a", b'[\n {"a": 1}, ')
    assert jsonl.knows(tmp_path / "a.jsonl", b'{"a": "' + b"x" * 4089)
    assert not jsonl.knows(tmp_path / "a.json", b'{\n  "a": 1\n}\n') and not jsonl.knows(tmp_path / "a.json", b"[1, 2]")
    assert not jsonl.knows(tmp_path / "a.log", b"[notice] x\n")
