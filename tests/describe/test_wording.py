"""Wordings: enough of them, all filled, and none of those held out is one of training."""

from __future__ import annotations

import re

import numpy as np
import pytest

from genmote.describe import wording
from genmote.describe.facts import Fact
from genmote.errors import SpecError

SLOTS = {"channel": "c", "other": "o", "word": "w", "task": "t", "guess": "g"}


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("about", wording.kinds())
@pytest.mark.parametrize("claim", [False, True])
def test_training_and_evaluation_share_no_wording(about: str, claim: bool) -> None:
    train, held_out = ({plain(one) for one in wording.questions(about, held, claim)} for held in (False, True))
    assert not train & held_out
    if not claim:
        least = 5 if about == "report_de" else 6
        assert len(train) >= least and len(held_out) >= 2
    assert bool(train) == bool(held_out)


def test_no_held_out_wording_is_one_of_another_kind_of_training() -> None:
    """Else a model has seen it all the same. Openers, and questions that have no answer, too."""
    kinds = wording.kinds()
    table = wording.table()
    train = {plain(one) for about in kinds for claim in (False, True) for one in wording.questions(about, False, claim)}
    held_out = {
        plain(one) for about in kinds for claim in (False, True) for one in wording.questions(about, True, claim)
    }
    train |= {plain(one) for one in table["cannot"]["unanswerable"]}
    held_out |= {plain(one) for one in table["cannot"]["unanswerable_held_out"]}
    for one in table["elsewhere"]:
        train |= {plain(text) for text in one["questions"]}
        held_out |= {plain(text) for text in one["held_out"]}
    assert not train & held_out
    assert {*table["openers"]["questions"]} & {*table["openers"]["held_out"]} == {""}


@pytest.mark.parametrize("about", wording.kinds())
def test_every_slot_is_filled(about: str) -> None:
    random = np.random.default_rng(0)
    for held_out in (False, True):
        for claim in (False, True):
            for _ in range(30 if wording.questions(about, held_out, claim) else 0):
                assert "{" not in wording.question(about, SLOTS, random, held_out, claim)
    told = wording.table()["ask"][about]
    for _ in range(10):
        if "yes" in told:
            assert wording.answer(Fact(about, "yes", ("yes", "no"), slots=SLOTS), random).lower().startswith("yes")
            assert wording.answer(Fact(about, "no", ("yes", "no"), slots=SLOTS), random).lower().startswith("no")
        else:
            fact = Fact(about, value=2.5, unit="V", tolerance=0.1, slots={"channel": "c", "other": "o"})
            assert "2.5 V" in wording.answer(fact, random) or "{word}" in told["answers"][0]


def test_an_unknown_kind_is_told() -> None:
    with pytest.raises(SpecError, match="about='colour': there is no wording for such a question; known: duration"):
        wording.questions("colour")


@pytest.mark.parametrize(
    ("value", "unit", "tolerance", "wanted"),
    [
        (0.0423, "s", 0.002, "42 ms"),
        (11.96, "s", 0.6, "12.0 s"),
        (300.0, "s", 15.0, "5.0 min"),
        (14_400.0, "s", 700.0, "4.0 h"),
        (864_000.0, "s", 40_000.0, "10.0 days"),
        (-3.0004, "V", 0.01, "-3.00 V"),
        (-0.001, "V", 0.1, "0.0 V"),
        (123_456.0, "B", 4000.0, "123000 B"),
        (3.2e9, "B", 1e8, "3.2e+09 B"),
        (4.4e-7, "A", 1e-8, "4.4e-07 A"),
        (0.0, "V", 1e-12, "0 V"),
        (0.0, "s", 24_000.0, "0 h"),
        (0.0, "s", float("nan"), "0 ms"),
        (5.0, "", 0.0, "5"),
        (5.25, "", 0.0, "5.25"),
    ],
)
def test_numbers(value: float, unit: str, tolerance: float, wanted: str) -> None:
    assert wording.number(value, unit, tolerance) == wanted
