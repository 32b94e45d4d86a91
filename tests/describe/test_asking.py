"""Questions out of facts: right by their own answers, yes and no in equal parts, the same for the same seed."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from genmote.describe import asking, cannot, drawn, facts, wording
from genmote.describe.checking import refused, right
from genmote.describe.examples import Example
from genmote.describe.facts import Fact
from genmote.signals import synthetic
from genmote.signals.kinds import Records, Series


@pytest.fixture(scope="module", params=[False, True])
def some(request: pytest.FixtureRequest) -> tuple[bool, list[Example]]:
    return request.param, list(itertools.islice(drawn.stream(1, held_out=request.param), 700))


def test_each_answer_is_right_and_no_other_kind_is_refused(some: tuple[bool, list[Example]]) -> None:
    held_out, examples = some
    assert not [(one.question, one.answer) for one in examples if not right(one, one.answer)]
    assert all(refused(one.answer) == (one.about == "cannot") for one in examples)
    assert all(one.held_out == held_out and one.group for one in examples)


def test_yes_and_no_come_equally_often(some: tuple[bool, list[Example]]) -> None:
    counts = Counter((one.about, one.answer[:1].lower()) for one in some[1] if one.choices == ("yes", "no"))
    assert len(counts) >= 10
    for about in {about for about, _ in counts}:
        assert abs(counts[about, "y"] - counts[about, "n"]) <= 2


def test_many_kinds_are_asked(some: tuple[bool, list[Example]]) -> None:
    kinds = {one.about for one in some[1]}
    assert len(kinds) >= 30 and {"cannot", "caption", "trend", "higher", "rows"} <= kinds
    share = np.mean([one.about == "cannot" for one in some[1]])
    assert 0.05 < share < 0.25


def test_the_words_are_those_of_the_part(some: tuple[bool, list[Example]]) -> None:
    held_out, examples = some
    for about in ("mean", "trend"):
        asked = [one.question for one in examples if one.about == about]
        own = [wording.questions(about, held) for held in (held_out, not held_out)]
        starts = [{text.split("{")[0] for text in part if text.split("{")[0]} for part in own]
        assert asked and any(start in text for start in starts[0] for text in asked)
        assert not any(start in text for start in starts[1] - starts[0] for text in asked if len(start) > 12)


def test_held_out_series_are_of_other_things() -> None:
    names = {one.name for one in drawn.TRAINED} & {one.name for one in drawn.HELD_OUT}
    assert not names and not {*drawn.WAVES} & {*drawn.WAVES_HELD_OUT}


def test_the_same_seed_gives_the_same_examples() -> None:
    first, again, other = (list(itertools.islice(drawn.stream(seed), 40)) for seed in (5, 5, 6))
    assert [(one.question, one.answer) for one in first] == [(one.question, one.answer) for one in again]
    assert [one.question for one in first] != [one.question for one in other]


def test_a_question_shows_nothing_that_tells_its_answer() -> None:
    series = Series("s", np.zeros((100, 1), np.float32), 1.0, ("x",), ("V",), labels={"activity": "walking"})
    example = asking.ask(
        [series], Fact("label", "walking", ("walking", "sitting"), slots={"task": "activity"}), np.random.default_rng(0)
    )
    assert isinstance(example.signals[0], Series) and example.signals[0].labels == {}


def test_claims_are_true_in_half_of_the_cases() -> None:
    random = np.random.default_rng(0)
    series = Series("s", np.zeros((100, 1), np.float32), 1.0, ("x",), ("V",))
    answers = Counter[str]()
    for word in ("rising", "falling", "no clear trend") * 300:
        fact = Fact("trend", word, ("rising", "falling", "no clear trend"), slots={"channel": "x"})
        example = asking.ask([series], fact, random)
        if example.choices == ("yes", "no"):
            answers[example.answer] += 1
            assert "no clear trend" not in example.question
            assert (example.answer == "yes") == (word in example.question)
    assert answers["yes"] > 30 and answers["no"] > 60


def test_claims_of_several_labels() -> None:
    random = np.random.default_rng(0)
    fact = Fact("label", "a, b", ("a", "b", "c"), slots={"task": "class"})
    series = Series("s", np.zeros((100, 1), np.float32), 1.0, ("x",), ("V",))
    for _ in range(100):
        example = asking.ask([series], fact, random)
        if example.choices == ("yes", "no"):
            guess = example.question.rstrip("?").split()[-1]
            assert example.answer == ("yes" if guess in "ab" else "no")


def test_captions() -> None:
    t = np.arange(1000) / 10
    x = 20 + 3 * np.sin(2 * np.pi * t / 5)
    series = Series("s", x[:, None].astype(np.float32), 10.0, ("heat",), ("°C",))
    told = asking.caption(series, np.random.default_rng(0))
    assert told is not None and told.about == "caption" and "heat" in told.question
    assert (
        told.answer.startswith("heat is 20.0 °C on average, from 17.0 °C to 23.0 °C") and "every 5.0 s" in told.answer
    )
    assert (
        asking.caption(Series("s", np.zeros((4, 1), np.float32), 1.0, ("x",), ("",)), np.random.default_rng(0)) is None
    )


def test_kinds_and_most() -> None:
    series = drawn.series(np.random.default_rng(3))
    random = np.random.default_rng(0)
    assert {one.about for one in asking.questions([series], random, kinds=("mean", "trend"))} <= {"mean", "trend"}
    assert len(asking.questions([series], random, most=3)) == 3


# -- what cannot be told -----------------------------------------------------------------------------------------------


def heart() -> Series:
    signal = synthetic.draw("blood-pressure")
    assert isinstance(signal, Series)
    return signal


def test_flat_noise_and_empty() -> None:
    random = np.random.default_rng(0)
    series = heart()
    assert (np.ptp(cannot.flat(series, random).values, axis=0) == 0).all()
    noisy = cannot.noise(series, random).values
    assert noisy.shape == series.values.shape
    assert (
        0.2 < noisy.std() / series.values.std() < 4 and abs(noisy.mean() - series.values.mean()) < series.values.std()
    )
    assert np.isnan(cannot.empty(series).values).all()
    reasons = Counter[str]()
    for _ in range(100):
        example = cannot.broken(series, random, task="activity")
        assert example.about == "cannot" and refused(example.answer)
        reasons[example.answer.split()[-1]] += 1
    assert len(reasons) >= 3


def test_a_missing_lead_is_gone_from_the_signal() -> None:
    random = np.random.default_rng(1)
    series = Series("s", np.zeros((50, 3), np.float32), 1.0, ("qa", "qb", "qc"), ("V",) * 3)
    for _ in range(60):
        example = cannot.absent(series, random)
        (signal,) = example.signals
        assert isinstance(signal, Series)
        gone = {"qa", "qb", "qc"} - set(signal.channels)
        assert not any(name in example.question for name in signal.channels)
        assert not gone or (gone.pop() in example.question and signal.values.shape == (50, 2))


def test_the_wrong_sensor_is_asked_only_where_it_is_wrong() -> None:
    random = np.random.default_rng(2)
    thermometer = Series("t", np.zeros((50, 1), np.float32), 1.0, ("room temperature",), ("°C",))
    asked = {one.question for _ in range(200) if (one := cannot.elsewhere(thermometer, random))}
    assert any("heart" in text for text in asked) and not any("temperature" in text or "warm" in text for text in asked)
    leads = Series("e", np.zeros((50, 2), np.float32), 100.0, ("II", "V5"), ("mV", "mV"))
    asked = {one.question for _ in range(200) if (one := cannot.elsewhere(leads, random))}
    assert asked and not any("heart" in text or "ECG" in text for text in asked)


def test_unanswerable_questions_of_records_and_series() -> None:
    random = np.random.default_rng(3)
    rows = synthetic.draw("smart-home")
    assert isinstance(rows, Records)
    for signal in (rows, heart()):
        for held_out in (False, True):
            for _ in range(20):
                example = cannot.any_of(signal, random, held_out=held_out, group="g")
                assert refused(example.answer) and "{" not in example.question + example.answer
                assert example.held_out == held_out and example.group == "g"


def test_facts_of_a_real_signal_are_never_refusals() -> None:
    random = np.random.default_rng(4)
    assert not any(refused(one.answer) for one in asking.questions([heart()], random))
    assert not any(fact.about == "cannot" for fact in facts.facts(heart()))


def test_a_channel_that_is_there_is_not_asked_for_as_if_it_were_not() -> None:
    random = np.random.default_rng(5)
    zeros = np.zeros((50, 1), np.float32)
    for held_out, strangers in ((False, cannot.STRANGERS), (True, cannot.STRANGERS_HELD_OUT)):
        for name in strangers:
            one = Series("s", zeros, 1.0, (name,), ("V",))
            asked = [cannot.absent(one, random, held_out=held_out).question for _ in range(60)]
            assert not any(name in text for text in asked)
    for name, other in {"relative humidity": "humidity", "temperature": "skin temperature"}.items():
        asked = [cannot.absent(Series("s", zeros, 1.0, (name,), ("V",)), random).question for _ in range(60)]
        assert not any(other in text for text in asked)
    every = Series("s", np.zeros((50, 8), np.float32), 1.0, cannot.STRANGERS, ("",) * 8)
    assert set(cannot._strangers(every, False)) == {"channel 99"}
    nameless = Series("s", zeros, 1.0, ("",), ("",))
    assert cannot.absent(nameless, random) and not cannot.absent(nameless, random).question.startswith("\0")
