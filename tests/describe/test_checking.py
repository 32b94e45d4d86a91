"""What is right and what is not, in the words of models."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.describe.checking import mentioned, refused, right
from genmote.describe.examples import Example
from genmote.signals.kinds import Field, Records, Series

TREND = ("rising", "falling", "no clear trend")


def number(value: float, tolerance: float, answer: str, unit: str = "") -> Example:
    return Example((), "?", answer, "mean", value=value, tolerance=tolerance, unit=unit)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *[("23.2 °C", True), ("It is about 23.5 degrees.", True), ("24", False), ("", False)],
        *[("-23.2", False), ("−23.2", False), ("warm", False), ("I cannot tell, maybe 23.2", False)],
    ],
)
def test_a_number(text: str, wanted: bool) -> None:
    assert right(number(23.2, 0.5, "23.2 °C", "°C"), text) is wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *[("2.5 min", True), ("150 s", True), ("2 min 30 s", True), ("2 minutes and 30 seconds", True)],
        *[("0.0417 hours", True), ("2.5", True), ("150", False), ("2.5 s", False), ("150000 ms", True)],
    ],
)
def test_a_time_in_any_unit(text: str, wanted: bool) -> None:
    assert right(number(150.0, 5.0, "2.5 min", "s"), text) is wanted


def test_a_channel_that_is_a_time() -> None:
    example = number(146.0, 10.0, "146 ms", "ms")
    assert (
        right(example, "146 ms") and right(example, "0.15 s") and right(example, "150") and not right(example, "146 s")
    )


def test_the_exact_number_and_thousands() -> None:
    assert right(number(3.0, 0.0, "3"), "There are 3.") and not right(number(3.0, 0.0, "3"), "There are 4.")
    assert right(number(1200.0, 50.0, "1200 lx"), "1,210 lx")
    assert right(number(3.2e9, 1e8, "3.2e+09 B"), "3.25e9")


def test_numbers_in_names_are_no_answers() -> None:
    rows = Records("r", (Field("connections in 2 s", "number"),), ([4.0],))  # type: ignore[arg-type]
    example = Example((rows,), "?", "4", "mean", value=4.0, tolerance=0.1)
    assert right(example, "connections in 2 s is 4.0") and not right(example, "connections in 2 s is 2")
    assert right(number(0.3, 0.05, "0.3 mV"), "V1 is at 0.3 mV")


def test_names_of_channels_are_no_answers() -> None:
    level = Series("s", np.zeros((9, 1), np.float32), 1.0, ("sound level",), ("dB",))
    example = Example((level,), "?", "sound level: rising.", "trend", TREND)
    for text in ("rising", "The sound level is rising.", "sound level: rising."):
        assert right(example, text)
    assert not right(example, "The sound level is level.") and not right(example, "sound level")
    air = Series("s", np.zeros((9, 2), np.float32), 1.0, ("NO", "b"), ("", ""))
    assert right(Example((air,), "?", "yes", "periodic", ("yes", "no")), "NO repeats: yes")
    assert right(Example((air,), "?", "NO", "leads", ("NO", "b", "at the same time")), "It is NO.")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *[("rising", True), ("It is RISING.", True), ("The value increases over time", True), ("not rising", False)],
        *[("falling", False), ("rising, then falling", False), ("no clear trend", False), ("isn't rising", False)],
        *[("not falling but rising", True), ("", False)],
    ],
)
def test_a_category(text: str, wanted: bool) -> None:
    assert right(Example((), "?", "rising", "trend", TREND), text) is wanted


def test_longer_names_before_shorter_ones() -> None:
    choices = ("walking", "walking upstairs", "I", "II")
    assert mentioned("walking upstairs", choices) == {"walking upstairs"}
    assert mentioned("It is lead II", choices) == {"II"} and mentioned("I think it is II", choices) == {"II"}
    assert mentioned("the second half", ("the first half", "the second half", "about the same")) == {"the second half"}


def test_several_labels() -> None:
    example = Example((), "?", "infarction, hypertrophy", "label", ("infarction", "hypertrophy", "normal"))
    assert right(example, "hypertrophy and infarction")
    assert not right(example, "infarction") and not right(example, "infarction, hypertrophy, normal")


def test_units_as_choices() -> None:
    example = Example((), "?", "m/s²", "unit", ("m/s²", "m", "°C"))
    assert right(example, "x is in m/s².") and not right(example, "m") and not right(example, "in °C")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("Yes, it repeats.", True), ("yes", True), ("No.", False), ("it repeats", False), ("Not yes", True)],
)
def test_yes_and_no(text: str, wanted: bool) -> None:
    assert right(Example((), "?", "yes", "periodic", ("yes", "no")), text) is wanted


@pytest.mark.parametrize(
    "text",
    [
        *["I cannot tell: it is noise.", "I can't tell.", "It is impossible to say.", "I am unable to determine it."],
        *["That cannot be determined.", "There is not enough information.", "This could not be seen; I couldn't tell"],
    ],
)
def test_refusals(text: str) -> None:
    assert refused(text)
    assert right(Example((), "?", "I cannot tell: no.", "cannot"), text)
    assert not right(Example((), "?", "rising", "trend", TREND), text + " rising")


def test_an_answer_is_no_refusal() -> None:
    for text in ("72 bpm", "no", "It is not rising.", "There is no trend to tell of.", "The patient cannot walk"):
        assert not refused(text)
        assert not right(Example((), "?", "I cannot tell: no.", "cannot"), text)


def test_other_answers_must_be_the_same() -> None:
    example = Example((), "?", "Sinus rhythm. Normal ECG.", "report")
    assert right(example, "sinus rhythm, normal ecg") and not right(example, "sinus rhythm")
