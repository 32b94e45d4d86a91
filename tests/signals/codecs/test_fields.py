"""Records as tokens: words, numbers and times against the stated error, what is spelt out, and damaged rows."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genmote.errors import SignalError, SpecError
from genmote.signals import coding
from genmote.signals.coding import Bound, about, fit
from genmote.signals.kinds import Field, Records


def records(times: Any = None, **columns: tuple[str, list[Any]]) -> Records:
    made = []
    for type_, values in columns.values():
        if type_ in ("category", "text"):
            made.append(np.array([None, *values], object)[1:])
        else:
            made.append(np.array(values, np.int64 if type_ == "integer" and None not in values else np.float64))
    fields = tuple(Field(name, type_) for name, (type_, _) in columns.items())  # type: ignore[arg-type]
    return Records("r", fields, tuple(made), None if times is None else np.array(times, np.float64))


def round_trip(codec: coding.Codec, signal: Records, notes: list[str] | None = None) -> Records:
    again = codec.decode(codec.encode(signal, notes), about(signal), notes)
    assert isinstance(again, Records)
    return again


def within(value: float | None, got: float | None, bound: Bound) -> bool:
    if value is None or math.isnan(value):
        return got is None or math.isnan(got)
    assert got is not None
    return value == got or abs(got - value) <= bound.absolute + bound.relative * abs(value)


NUMBERS = st.lists(st.floats(allow_nan=True) | st.floats(-1e3, 1e3) | st.sampled_from([0.0, 5e-324]), max_size=30)
WHOLE = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-50, 50), max_size=30)
WORDS = st.lists(
    st.none() | st.sampled_from(["a", "b", "c"]) | st.text(st.characters(codec=None), max_size=5), max_size=30
)


@settings(max_examples=300, deadline=None)
@example([3e307], [3e307, 1.7e308, -1.7e308], 0.5, 1)
@example([8.063800892688589e307], [8.063800892688589e307], 1e-6, 1)
@given(NUMBERS, NUMBERS, st.floats(1e-6, 0.5), st.integers(1, 600))
def test_every_number_is_within_the_stated_error(known: Any, new: Any, relative: float, bins: int) -> None:
    codec = fit("fields", [records(x=("number", known))], relative=relative, bins=bins)
    notes: list[str] = []
    again = round_trip(codec, records(x=("number", new)), notes)
    assert notes == [] and codec.error()["x"] == Bound(0.0, relative)
    for value, got in zip(new, again.columns[0].tolist(), strict=True):
        assert within(value, got, codec.error()["x"]), (value, got)


@settings(max_examples=300, deadline=None)
@example([1.7e308], 0.5, 1)
@given(NUMBERS, st.floats(1e-6, 0.5), st.integers(1, 600))
def test_without_spelling_it_holds_for_what_was_fitted(known: Any, relative: float, bins: int) -> None:
    known = [value for value in known if not math.isinf(value)]
    codec = fit("fields", [records(x=("number", known))], relative=relative, bins=bins, spell=False)
    notes: list[str] = []
    again = round_trip(codec, records(x=("number", known)), notes)
    assert notes == []
    for value, got in zip(known, again.columns[0].tolist(), strict=True):
        assert within(value, got, codec.error()["x"]), (value, got)


@settings(max_examples=300, deadline=None)
@given(WHOLE, WHOLE, st.integers(1, 200), st.sampled_from(["log", "spelt"]))
def test_whole_numbers(known: Any, new: Any, integers: int, wide: str) -> None:
    codec = fit("fields", [records(x=("integer", known))], integers=integers, wide=wide)
    again = round_trip(codec, records(x=("integer", new)))
    bound = codec.error()["x"]
    small = not known or max(known) - min(known) < integers
    assert bound == (Bound() if small or wide == "spelt" else Bound(0.5, 0.05))
    for value, got in zip(new, again.columns[0].tolist(), strict=True):
        # Exactly, in whole numbers: a float has not the 64 bits.
        assert abs(got - value) <= bound.absolute + bound.relative * abs(value)
        assert isinstance(got, int) and (got == value or bound.relative)


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS, WORDS, st.integers(1, 5))
def test_words_and_text_come_back_to_the_letter(known: Any, new: Any, text: Any, words: int) -> None:
    codec = fit("fields", [records(w=("category", known), t=("text", known))], words=words)
    count = min(len(new), len(text))
    signal = records(w=("category", new[:count]), t=("text", text[:count]))
    again = round_trip(codec, signal)
    assert [column.tolist() for column in again.columns] == [new[:count], text[:count]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1e6) | st.sampled_from([0.0, 60.0]), min_size=1, max_size=30), st.booleans())
def test_times_are_off_by_a_part_of_their_steps(steps: list[float], spell: bool) -> None:
    times = 1.7e9 + np.cumsum(steps)
    signal = records(times, w=("category", ["a"] * len(steps)))
    codec = fit("fields", [signal], spell=spell)
    again = round_trip(codec, signal)
    assert again.times_s is not None and again.times_s[0] == times[0]
    bound = codec.error()["time step"]
    taken = np.diff(times)
    allowed = np.cumsum(bound.relative * taken + bound.absolute + 2e-6)  # what a float has at 1.7e9
    assert (np.abs(again.times_s[1:] - times[1:]) <= allowed).all()
    assert (np.diff(again.times_s)[taken == 0] == 0).all()  # what came at once stays together


def test_times_may_go_back() -> None:
    signal = records([10.0, 5.0, 6.0], w=("category", ["a"] * 3))
    again = round_trip(fit("fields", [signal]), signal)
    assert again.times_s is not None and np.allclose(np.diff(again.times_s), [-5, 1], rtol=0.05)


def test_what_has_no_token_is_told_where_it_is_not_spelt_out() -> None:
    known = records(w=("category", [*"aaabbc"]), n=("integer", [1, 2, 3, 4, 5, 6]), x=("number", [1.0] * 5 + [100.0]))
    codec = fit("fields", [known], words=2, spell=False)
    new = records(w=("category", ["a", "c"]), n=("integer", [9, -3]), x=("number", [1e9, -2.0]))
    notes: list[str] = []
    again = round_trip(codec, new, notes)
    assert notes == [
        "r: 1 of 2 values of w are unknown words",
        "r: 2 of 2 values of n are outside of what was fitted, cut to that",
        "r: 2 of 2 values of x are outside of what was fitted, cut to that",
    ]
    assert again.columns[0].tolist() == ["a", "?"] and again.columns[1].tolist() == [6, 1]
    assert again.columns[2][0] == pytest.approx(100, rel=0.05) and again.columns[2][1] == 0


def test_what_the_codec_does_not_know_is_left_out_and_told() -> None:
    timed = records([1.0, 2.0], a=("category", ["x", "y"]), t=("text", ["long", "story"]))
    notes: list[str] = []
    again = round_trip(fit("fields", [timed], text="drop"), timed, notes)
    assert notes == ["r: t: not in the codec, left out"] and [f.name for f in again.fields] == ["a"]
    codec = fit("fields", [records(a=("category", ["x"]))])
    again = round_trip(codec, timed, notes := [])
    assert notes == ["r: t, time: not in the codec, left out"] and again.times_s is None


def test_odd_records() -> None:
    empty = records([], a=("number", []), b=("integer", []), c=("category", []))
    codec = fit("fields", [empty])
    assert len(round_trip(codec, empty)) == 0
    full = records([1.0], a=("number", [5.0]), b=("integer", [7]), c=("category", ["new"]))
    again = round_trip(codec, full)  # nothing is known: all is spelt out
    assert [column.tolist() for column in again.columns] == [[5.0], [7], ["new"]]
    nothing = records(a=("number", [None] * 3), b=("integer", [None] * 3), c=("category", [None] * 3))
    again = round_trip(fit("fields", [nothing]), nothing)
    assert np.isnan(again.columns[0].astype(float)).all() and again.columns[2].tolist() == [None] * 3
    ends = records(b=("integer", [2**63 - 3, 2**63 - 1]))
    assert round_trip(fit("fields", [ends]), ends).columns[0].tolist() == [2**63 - 3, 2**63 - 1]


def test_a_damaged_row_costs_only_itself() -> None:
    signal = records(w=("category", [*"abcdef"]), x=("number", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), t=("text", [*"uvwxyz"]))
    codec = fit("fields", [signal], words=6)
    tokens = codec.encode(signal)
    starts = np.flatnonzero(tokens == codec.head.size)
    assert len(starts) == 6
    for row in range(6):
        stop = starts[row + 1] if row < 5 else len(tokens)
        for at in range(starts[row], stop):
            notes: list[str] = []
            again = codec.decode(np.delete(tokens, at), about(signal), notes)
            assert isinstance(again, Records)
            kept = again.columns[0].tolist()
            # A row whose beginning is lost takes the one before with it; a lost letter leaves a row of another word.
            others = [word for n, word in enumerate("abcdef") if n not in (row - 1, row)]
            assert [word for word in kept if word in others] == others
            assert len(kept) == 6 or notes[0].endswith("rows are broken, left out")
    cut = codec.decode(tokens[:-1], about(signal), notes := [])
    assert isinstance(cut, Records) and cut.columns[0].tolist() == [*"abcde"]
    assert notes == ["r: 1 of 6 rows are broken, left out"]


def test_what_is_spelt_wrongly_is_a_broken_row() -> None:
    signal = records(n=("integer", [1]), x=("number", [1.0]))
    codec = fit("fields", [signal])
    first = codec.head.size
    one, x = codec.encode(signal)[1:].tolist()
    for place, text in ((1, b"1x"), (1, b"9223372036854775808"), (1, b"\xff"), (2, b"nan"), (2, b"")):
        spelt = [first + 3, *(first + 5 + byte for byte in text), first + 4]
        row = [first, *spelt, x] if place == 1 else [first, one, *spelt]
        notes: list[str] = []
        again = codec.decode(np.array(row), about(signal), notes)
        assert len(again) == 0 and notes == ["r: 1 of 1 rows are broken, left out"]


def test_errors() -> None:
    with pytest.raises(SpecError, match="relative=0.6, wanted 0.000001 to 0.5; words=0, wanted 1 to 65536"):
        fit("fields", [records(a=("number", []))], relative=0.6, words=0)
    one, other = records(a=("number", [1.0])), records(b=("number", [1.0]))
    with pytest.raises(SignalError, match="r: other fields than r; fit a codec on each"):
        fit("fields", [one, other])
    with pytest.raises(SignalError, match="r: fields none; wanted some, all named apart"):
        fit("fields", [Records("r", (), ())])
    twice = Records("r", (Field("a", "number"),) * 2, (np.zeros(1),) * 2)
    with pytest.raises(SignalError, match="r: fields a, a; wanted some, all named apart"):
        fit("fields", [twice])
    codec = fit("fields", [one])
    with pytest.raises(SignalError, match="r has no field 'a': it has b"):
        codec.encode(other)
    with pytest.raises(SignalError, match="r: field a is integer, the codec was fitted on number; fit it on these"):
        codec.encode(records(a=("integer", [1])))
    with pytest.raises(SignalError, match="r, field a: 1.5 is no whole number of 64 bits; make it a number field"):
        fit("fields", [Records("r", (Field("a", "integer"),), (np.array([1.0, 1.5]),))])
    timed = records([1.0], a=("number", [1.0]))
    with pytest.raises(SignalError, match="r: no times; wanted one a row"):
        fit("fields", [timed]).encode(one)
    with pytest.raises(SignalError, match="r: times are missing; wanted one a row"):
        fit("fields", [records([np.nan], a=("number", [1.0]))])
    with pytest.raises(SignalError, match="a codec of 0 fields and 0 words that do not belong together: wanted one of"):
        coding.from_state({k: v for k, v in codec.state().items() if k != "names"})
    with pytest.raises(SignalError, match="a codec with fields number coded as how: wanted counts of 0 to 65536"):
        coding.from_state({**codec.state(), "ways": ["how"]})


def test_real_flows(shared_data: Path) -> None:
    """NSL-KDD's connections: 3 fields of words, 38 of numbers, one of the attack."""
    with open(shared_data / "nsl_kdd_test/rows.csv", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:2001]
    words = {1, 2, 3, 41}
    fields, columns = [], []
    for n in range(42):
        cells = [row[n] for row in rows]
        kind = "category" if n in words else "number" if any("." in cell for cell in cells) else "integer"
        fields.append(Field(f"f{n}", kind))  # type: ignore[arg-type]
        columns.append(np.array(cells, object) if n in words else np.array(cells, float))
    signal = Records("flows", tuple(fields), tuple(columns))
    codec = fit("fields", [signal.part(0, 1000)])
    again = round_trip(codec, signal)
    for n, (field, column) in enumerate(zip(fields, columns, strict=True)):
        if field.type == "category":
            assert again.columns[n].tolist() == column.tolist()
        else:
            bound = codec.error()[field.name]
            off = np.abs(again.columns[n].astype(float) - column) - bound.absolute - bound.relative * column
            assert (off <= 0).all()
    assert len(codec.encode(signal)) < 2000 * 43 * 1.1  # hardly anything is spelt out
