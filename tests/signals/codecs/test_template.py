"""Log lines as tokens: to the letter, whatever the templates; and damaged rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import SignalError, SpecError
from genmote.signals import coding
from genmote.signals.codecs.template import _between
from genmote.signals.coding import Bound, about, fit
from genmote.signals.kinds import Field, Records

WORDS = st.sampled_from(
    ["user", "root", "a", "<*>", "<*", "*>", "7", "10.0.0.1:80", "/etc/x", " ", "  ", "\t", "é", ""]
)
LINES = st.lists(
    st.none() | st.lists(WORDS, max_size=8).map("".join) | st.text(st.characters(codec=None), max_size=9), max_size=20
)


def logs(lines: list[str | None], times: Any = None) -> Records:
    column = np.array([None, *lines], object)[1:]
    return Records("l", (Field("message", "text"),), (column,), None if times is None else np.array(times, float))


def round_trip(codec: coding.Codec, signal: Records, notes: list[str] | None = None) -> Records:
    again = codec.decode(codec.encode(signal, notes), about(signal), notes)
    assert isinstance(again, Records)
    return again


@settings(max_examples=300, deadline=None)
@given(LINES, LINES, st.integers(1, 5), st.integers(1, 9))
def test_lines_come_back_to_the_letter(known: Any, new: Any, templates: int, words: int) -> None:
    """By a codec that was fitted on others."""
    codec = fit("template", [logs(known)], templates=templates, words=words)
    notes: list[str] = []
    assert round_trip(codec, logs(new), notes).columns[0].tolist() == new and notes == []
    assert codec.error() == {"message": Bound()}


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=8), st.lists(st.text("ab", max_size=2), min_size=1, max_size=4))
def test_a_line_is_of_a_template_where_any_filling_gives_it(line: str, pieces: list[str]) -> None:
    def fits(rest: str, wanted: list[str]) -> bool:
        if len(wanted) == 1:
            return rest.endswith(wanted[0])
        return any(
            rest[at:].startswith(wanted[0]) and fits(rest[at + len(wanted[0]) :], wanted[1:])
            for at in range(len(rest) + 1)
        )

    found = _between(line, pieces)
    if len(pieces) == 1:
        assert (found is not None) == (line == pieces[0])
    else:
        assert (found is not None) == (line.startswith(pieces[0]) and fits(line[len(pieces[0]) :], pieces[1:]))
    if found is not None:
        assert "".join(a + b for a, b in zip(pieces, [*found, ""], strict=True)) == line


def test_frequent_words_take_a_token_and_others_are_spelt() -> None:
    known = logs([f"login of {who} from {n}" for n in range(50) for who in ("ann", "bob")])
    codec = fit("template", [known])
    row, template, *words = (codec.encode(logs(["login of ann from 7"])) - codec.head.size).tolist()
    assert row == 0 and template >= 260 and len(words) == 2 and all(word > template for word in words)
    assert len(codec.encode(logs(["login of eve from 7"]))) == 4 + len("eve") + 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6) | st.sampled_from([0.0, 60.0]), min_size=1, max_size=30))
def test_times_are_off_by_a_part_of_their_steps(steps: list[float]) -> None:
    times = np.cumsum(steps)
    signal = logs(["x"] * len(steps), times)
    codec = fit("template", [signal, signal.part(0, 1)])
    again = round_trip(codec, signal)
    bound = codec.error()["time step"]
    assert again.times_s is not None and bound == Bound(0.0, 0.05)
    assert (np.abs(again.times_s - times) <= 0.05 * (times - times[0]) + 1e-6).all()


def test_a_damaged_row_costs_only_itself() -> None:
    lines = [f"sent {n} bytes to {who}" for n, who in enumerate(["ann", "bob", "eve", "joe"])]
    signal = logs(lines, [1.0, 2.0, 4.0, 8.0])
    codec = fit("template", [signal])
    tokens = codec.encode(signal)
    starts = np.flatnonzero(tokens == codec.head.size)
    for at in range(starts[1], starts[2]):
        notes: list[str] = []
        again = codec.decode(np.delete(tokens, at), about(signal), notes)
        assert isinstance(again, Records)
        kept = again.columns[0].tolist()
        assert [line for line in kept if line in lines[2:]] == lines[2:]
        assert len(kept) == 4 or notes[0].endswith("rows are broken, left out")
    codec.decode(tokens[:-1], about(signal), notes := [])
    assert notes == ["l: 1 of 4 rows are broken, left out"]


def test_what_the_codec_does_not_know_is_left_out_and_told() -> None:
    fields = (Field("message", "text"), Field("pid", "integer"))
    signal = Records("l", fields, (np.array(["x"], object), np.array([1])), np.zeros(1))
    codec = fit("template", [logs(["x"])])
    notes: list[str] = []
    again = round_trip(codec, signal, notes)
    assert notes == ["l: pid, time: not in the codec, left out"] and again.columns[0].tolist() == ["x"]


def test_errors() -> None:
    with pytest.raises(SpecError, match="relative=0.9, wanted 0.000001 to 0.5; words=0, wanted 1 to 65536"):
        fit("template", [logs(["x"])], relative=0.9, words=0)
    with pytest.raises(SignalError, match="l has no field 'line': it has message"):
        fit("template", [logs(["x"])], field="line")
    number = Records("l", (Field("message", "number"),), (np.zeros(1),))
    with pytest.raises(SignalError, match="l: field message is number; name the field of the lines with --field"):
        fit("template", [number])
    timed = fit("template", [logs(["x"], [1.0])])
    with pytest.raises(SignalError, match="l: no times; wanted one a row"):
        timed.encode(logs(["x"]))
    with pytest.raises(SignalError, match="a codec of 1 templates, 1 steps from 1.0: wanted <\\*> among the templates"):
        coding.from_state({**timed.state(), "templates": ["x"]})


@pytest.mark.parametrize("system", ["OpenSSH", "HDFS", "Apache"])
def test_real_logs(system: str, shared_data: Path) -> None:
    lines = (shared_data / f"loghub_2k/{system}/{system}_2k.log").read_text(encoding="utf-8").splitlines()
    codec = fit("template", [logs([*lines[:1000]])])
    again = round_trip(codec, logs([*lines]))
    assert again.columns[0].tolist() == lines
    assert len(codec.encode(logs([*lines]))) < 0.6 * sum(map(len, lines))  # times and all
