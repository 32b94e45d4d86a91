from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Records
from genmote.signals.readers import jsonl, zeek

FIELDS = {
    "ts": "time", "uid": "string", "id.orig_h": "addr", "id.orig_p": "port", "proto": "enum", "service": "string",
    "duration": "interval", "orig_bytes": "count", "local_orig": "bool", "ports": "set[port]", "note": "string",
}  # fmt: skip
DRAW = np.random.default_rng(1)
ROWS = [
    (
        f"{1_521_911_720 + n + DRAW.integers(0, 10**6) / 10**6:.6f}",
        f"C{n:05d}", f"10.0.{n % 3}.7", str(40_000 + n), ["tcp", "udp"][n % 2], ["-", "dns", "7"][n % 3],
        f"{n / 1000:.6f}" if n % 5 else "-", str(n * 97), "TF-"[n % 3], ["80,443", "(empty)"][n % 2], "-",
    )
    for n in range(200)
]  # fmt: skip


def text(rows: list[tuple[str, ...]] = ROWS, separator: str = "\t") -> str:
    code = "".join(f"\\x{ord(sign):02x}" for sign in separator)
    head = [("#set_separator", ","), ("#empty_field", "(empty)"), ("#unset_field", "-"), ("#path", "conn")]
    head += [("#open", "2018-03-24-17-15-20"), ("#fields", *FIELDS), ("#types", *FIELDS.values())]
    lines = [separator.join(line) for line in [*head, *rows, ("#close", "2018-03-24-18-00-00")]]
    return "\n".join([f"#separator {code}", *lines]) + "\n"


def put(tmp_path: Path, written: str, name: str = "conn.log") -> Path:
    (tmp_path / name).write_text(written, "utf-8")
    return tmp_path / name


def one(path: Path, notes: list[str] | None = None) -> Records:
    (found,) = reading.read(path, notes=notes)
    assert isinstance(found, Records)
    return found


@pytest.mark.parametrize("separator", ["\t", "|", "\x01\x02"])
def test_all_comes_back_as_its_types_say(tmp_path: Path, separator: str) -> None:
    notes: list[str] = []
    found = one(put(tmp_path, text(separator=separator)), notes)
    assert reading.reader_of(tmp_path / "conn.log") is zeek and found.name == "conn" and notes == []
    assert {field.name: (field.type, field.unit) for field in found.fields} == {
        "uid": ("text", ""), "id.orig_h": ("category", ""), "id.orig_p": ("integer", ""), "proto": ("category", ""),
        "service": ("category", ""), "duration": ("number", "s"), "orig_bytes": ("integer", ""),
        "local_orig": ("category", ""), "ports": ("category", ""), "note": ("category", ""),
    }  # fmt: skip
    assert found.times_s is not None and found.times_s.tolist() == [float(row[0]) for row in ROWS]
    for n, name in enumerate(FIELDS):
        if name == "ts":
            continue
        wanted = [None if row[n] in ("-", "(empty)") else row[n] for row in ROWS]
        if FIELDS[name] in zeek.NUMBERS:
            values = [np.nan if cell is None else float(cell) for cell in wanted]
            assert np.array_equal(found.column(name).astype(float), values, equal_nan=True)
        else:
            assert found.column(name).tolist() == wanted
    parts = list(reading.pieces(tmp_path / "conn.log", rows=70))
    assert [len(part) for part in parts] == [70, 70, 60]


def test_logs_one_after_another(tmp_path: Path) -> None:
    assert len(one(put(tmp_path, text(ROWS[:100]) + text(ROWS[100:]), "conn.log.2"))) == 200
    other = text(ROWS[:5]).replace("uid", "id")
    with pytest.raises(
        SignalError, match=r"conn\.log, line 216: other #fields than at first: wanted a log of one kind"
    ):
        one(put(tmp_path, text() + other))


def test_without_types_they_are_found(tmp_path: Path) -> None:
    lines = [line for line in text().splitlines() if not line.startswith(("#types", "#sep"))]
    found = one(put(tmp_path, "\n".join(sorted(lines, key=lambda line: not line.startswith("#fields")))))
    assert found.times_s is not None and found.column("orig_bytes").tolist() == [97 * n for n in range(200)]


def test_damaged_rows(tmp_path: Path) -> None:
    lines = text().splitlines()
    lines[20], lines[40] = lines[20][:30], lines[40] + "\tmore"
    notes: list[str] = []
    assert len(one(put(tmp_path, "\n".join(lines)), notes)) == 198
    assert notes == ["conn.log: 2 rows of another number of cells than 11 are left out: line 21 has 3, line 41 has 12"]
    short = [line if line.startswith("#") or n % 3 else line[:30] for n, line in enumerate(lines)]
    with pytest.raises(
        SignalError, match=r"conn\.log, line \d+: \d+ of 200 rows have another number of cells than 11;"
    ):
        one(put(tmp_path, "\n".join(short)))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (text([]), r"a\.log: has no rows: wanted a log of Zeek"),
        ("#separator \\x09\n#path\tconn\n", r"a\.log: has no #fields: wanted a log of Zeek"),
        (text().replace("\tset[port]", ""), r"a\.log: has 11 #fields and 10 #types: wanted as many"),
        (text() + "x" * (1 << 20), r"a\.log, line 210: is longer than 1048576 bytes, or no text: wanted a log of Zeek"),
        (text().replace("C00003", "C\0"), r"a\.log, line 12: is longer than 1048576 bytes, or no text"),
    ],
)
def test_what_it_cannot_read(tmp_path: Path, written: str, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        one(put(tmp_path, written, "a.log"))


def test_its_logs_in_json_go_by_another(tmp_path: Path) -> None:
    rows = [dict(zip(FIELDS, (float(row[0]), *row[1:]), strict=True)) for row in ROWS]
    path = put(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    assert reading.reader_of(path) is jsonl
    found = one(path)
    assert found.times_s is not None and np.allclose(found.times_s, [float(row[0]) for row in ROWS], atol=1e-6)
