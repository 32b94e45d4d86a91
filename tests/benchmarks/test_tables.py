"""Tables come from records alone."""

from __future__ import annotations

import pytest

from benchmarks import record, tables

MACHINE = {"name": "Chip", "cpu": "Chip", "cores": 2, "machine": "x86_64", "cpu_flags": ["avx2"], "cpu_family": "6"}
MACHINE |= {"cpu_model": "1"}


def entry(
    name="decode a", value=1.7, *, time, quick=False, measure="decode", cpu="Chip", asked=1.6, note="", others=0.0
):
    row = record.Row(
        name=name, measure=measure, value=value, value_unit="x", asked=asked, unit="tokens/s", ours=170.0, peer=100.0,
        peer_name="llama.cpp 1", others_cores=others, note=note,
    )  # fmt: skip
    made = record.as_record(
        row, machine=MACHINE | {"cpu": cpu}, versions={"genmote": "1", "commit": "abc"}, quick=quick
    )
    object.__setattr__(made, "time", time)
    return made


def test_the_newest_full_record_of_a_row_is_shown():
    found = [
        entry(value=1.1, time="2026-01-03T"),
        entry(value=1.9, time="2026-01-02T"),
        entry(value=9.0, time="2026-02-01T", quick=True),
    ]
    (chosen,) = tables.latest(found)
    assert chosen.values["value"] == 1.1


def test_a_quiet_record_goes_before_a_disturbed_one_and_a_lone_disturbed_one_is_marked():
    loud = entry(value=9.0, time="2026-02-01T", others=1.3)
    (chosen,) = tables.latest([entry(value=1.1, time="2026-01-03T", quick=True), loud])
    assert chosen.values["value"] == 1.1
    assert "9 x (disturbed)" in tables.table("decode", [loud])


def test_more_trainings_go_before_fewer_and_their_spread_is_shown():
    one, three = entry(time="2026-02-01T"), entry(value=1.2, time="2026-01-01T", others=1.3)
    three.values.update(seeds=3, ours=2.0, ours_samples=[2.0, 1.5, 2.5])
    (chosen,) = tables.latest([one, three])
    assert chosen is three
    assert "| 2 (1.5 to 2.5) tokens/s | 100 | 1.2 x |" in tables.table("decode", [one, three])


def test_a_figure_goes_before_a_newer_record_without_one():
    absent = entry(value=None, time="2026-03-01T", others=None, note="no peer")
    found = [entry(value=1.1, time="2026-01-03T", others=1.3), absent]
    (chosen,) = tables.latest(found)
    assert chosen.values["value"] == 1.1
    assert "1.1 x (disturbed) (not measured again since)" in tables.table("decode", found)
    assert "again since" not in tables.table("decode", found[:1])


def test_a_table_names_each_commit_that_its_rows_were_measured_at():
    older = entry("decode b", time="2026-01-01T")
    older.versions["commit"] = "older"
    assert "genmote 1 (older, abc)" in tables.table("decode", [entry(time="2026-01-02T"), older])


def test_each_cpu_has_its_own_table():
    found = [entry(time="2026-01-01T"), entry(time="2026-01-01T", cpu="Other", value=1.2)]
    text = tables.table("decode", found)
    assert text.count("| what |") == 2
    assert "1.7 x" in text and "met" in text
    assert "1.2 x" in text and "**missed**" in text


def test_blocks_are_filled_and_the_rest_is_kept():
    text = "a\n<!-- bench:decode -->\nold\n<!-- /bench -->\nb\n<!-- bench:memory -->\n<!-- /bench -->\n"
    filled = tables.fill(text, [entry(time="2026-01-01T")])
    assert filled.startswith("a\n") and "old" not in filled and "\nb\n" in filled
    assert "decode a" in filled and "No record yet" in filled
    assert tables.fill(filled, [entry(time="2026-01-01T")]) == filled


def test_a_number_that_was_not_measured_says_why():
    text = tables.table("speed", [entry(value=None, time="2026-01-01T", note="no AMX here")])
    assert "not measured: no AMX here" in text


def test_check_tells_a_stale_file_and_changes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "load", lambda: [entry(time="2026-01-01T")])
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:speed -->\n<!-- /bench -->\n")
    assert tables.main([str(page), "--check"]) == 1
    assert "not what the records say" in capsys.readouterr().out
    assert tables.main([str(page)]) == 0
    assert "decode a" in page.read_text()
    assert tables.main([str(page), "--check"]) == 0


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (1.2345, "1.23"), (1234.5, "1234"), (999.997, "1000"), (0.00456, "0.00456")]
)
def test_figures_are_short(value, text):
    assert tables.figure(value) == text
