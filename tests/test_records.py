from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from genmote import records
from genmote.errors import SpecError
from genmote.records import Record


def test_a_record_says_how_it_was_had(tmp_path: Path) -> None:
    record = Record("bench.decode", {"decode_tokens_per_s": 180.5}, model_sha256="ab", seed=7, threads=1)
    records.append(tmp_path / "runs" / "a.jsonl", record)
    (line,) = (tmp_path / "runs" / "a.jsonl").read_text().splitlines()
    fields = json.loads(line)
    assert fields["schema"] == 1 and fields["energy"] == "unavailable"
    assert {"name", "machine", "cpu", "cores", "memory_bytes", "system"} <= set(fields["device"])
    assert {"genmote", "python", "numpy"} <= set(fields["versions"])
    assert list(records.read(tmp_path / "runs" / "a.jsonl")) == [record]


def test_faults_are_listed_at_once() -> None:
    with pytest.raises(SpecError) as fault:
        Record("", {"joules": float("nan"), "tokens": 3}, energy="guessed")
    assert "what is empty" in str(fault.value)
    assert "energy='guessed', wanted one of measured, modelled, unavailable" in str(fault.value)
    assert "values joules are not finite: leave out what was not measured" in str(fault.value)


def _append_many(path: str, writer: int) -> None:
    for number in range(40):
        records.append(path, Record("test", {"writer": writer, "number": number, "padding": "x" * 3000}))


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(str(path), n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [(r.values["writer"], r.values["number"]) for r in records.read(path)]
    assert sorted(found) == [(w, n) for w in range(3) for n in range(40)]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records.append(path, Record("test", {"number": 1}))
    with open(path, "ab") as out:
        out.write(records.Record("test", {"number": 2}).line().encode()[:40])
    records.append(path, Record("test", {"number": 3}))
    with pytest.warns(UserWarning, match=r":2: not a record, left out"):
        assert [r.values["number"] for r in records.read(path)] == [1, 3]


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    records.append(path, Record("test", {}, schema=2))
    with pytest.raises(SpecError, match="record schema 2, this genmote reads up to 1: update it"):
        list(records.read(path))
