"""Facts about series and tables whose truth is known, with names, units and tolerances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genmote.describe import asking, facts
from genmote.describe.facts import Fact
from genmote.signals.kinds import Field, Frames, Records, Series


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


def series(*columns: np.ndarray, rate: float = 10.0, names: str = "abcdef", units: tuple[str, ...] = ()) -> Series:
    values = np.stack(columns, axis=1).astype(np.float32)
    count = values.shape[1]
    return Series("test", values, rate, tuple(names[:count]), units or ("V",) * count)


def told(found: list[Fact], about: str, **slots: str) -> Fact:
    (one,) = [fact for fact in found if fact.about == about and slots.items() <= fact.slots.items()]
    return one


def absent(found: list[Fact], about: str) -> bool:
    return not [fact for fact in found if fact.about == about]


def test_levels_have_their_unit_and_a_tolerance_of_the_range() -> None:
    x = np.linspace(20, 30, 1000)
    found = facts.facts(series(x, units=("°C",)))
    assert told(found, "mean").value == pytest.approx(25) and told(found, "mean").unit == "°C"
    assert told(found, "highest").value == pytest.approx(30) and told(found, "highest").tolerance == pytest.approx(1)
    assert told(found, "lowest").value == pytest.approx(20) and told(found, "range").value == pytest.approx(10)
    assert told(found, "at_start").value == pytest.approx(20.25, abs=0.1)
    assert told(found, "at_end").value == pytest.approx(29.75, abs=0.1)
    assert told(found, "trend").word == "rising"
    assert told(found, "duration").value == pytest.approx(100) and told(found, "duration").unit == "s"
    assert told(found, "rate_hz").value == 10 and told(found, "channels").value == 1


def test_slow_sampling_is_told_by_its_interval() -> None:
    found = facts.facts(series(noise(100), rate=1 / 600))
    assert told(found, "interval").value == pytest.approx(600) and absent(found, "rate_hz")


def test_when_it_is_highest_is_told_only_where_no_other_time_may_be_meant() -> None:
    x = 0.1 * noise(1000)
    x[300:320] += 10
    assert told(facts.facts(series(x)), "when_highest").value == pytest.approx(31, abs=1)
    x[800:820] += 9.8
    assert absent(facts.facts(series(x)), "when_highest")


def test_gaps() -> None:
    x = noise(1000)
    assert told(facts.facts(series(x)), "gaps").word == "no"
    x[100:200] = np.nan
    x[500:510] = np.nan
    found = facts.facts(series(x))
    assert told(found, "gaps").word == "yes" and told(found, "longest_gap").value == pytest.approx(10)
    x[600:690] = np.nan
    assert absent(facts.facts(series(x)), "longest_gap"), "two are nearly as long"


def test_period_and_repetitions() -> None:
    t = np.arange(1000) / 10
    found = facts.facts(series(np.sin(2 * np.pi * t / 5) + 0.1 * noise(1000)))
    assert told(found, "periodic").word == "yes"
    assert told(found, "period").value == pytest.approx(5, rel=0.03)
    assert told(found, "repetitions").value == pytest.approx(20, abs=0.6)
    found = facts.facts(series(noise(1000)))
    assert told(found, "periodic").word == "no" and absent(found, "period")


def test_bursts_steps_and_flat_stretches() -> None:
    x = noise(1000)
    for at in (100, 400, 700):
        x[at : at + 5] += 30
    found = facts.facts(series(x))
    assert told(found, "bursts").word == "yes" and told(found, "burst_count").value == 3
    assert told(found, "burst_count").tolerance == 0 and absent(found, "when_burst")
    y = noise(1000)
    y[600:] += 8
    found = facts.facts(series(y))
    assert told(found, "step").word == "yes" and told(found, "when_step").value == pytest.approx(60, abs=0.5)
    z = noise(1000)
    z[200:600] = z[200]
    assert told(facts.facts(series(z)), "flat").word == "yes"


def test_halves() -> None:
    x = noise(1000)
    x[500:] = x[500:] * 3 + 4
    found = facts.facts(series(x))
    assert told(found, "higher_half").word == "the second half"
    assert told(found, "livelier_half").word == "the second half"
    same = facts.facts(series(np.tile(noise(500), 2)))
    assert told(same, "higher_half").word == told(same, "livelier_half").word == "about the same"


def test_channels_are_compared_where_they_have_one_unit() -> None:
    x, y = noise(1000, 1), 5 * noise(1000, 2) - 40
    found = facts.facts(series(x, y))
    assert told(found, "largest_swing").word == "b" and told(found, "highest_mean").word == "a"
    assert told(found, "together").word == "independently"
    found = facts.facts(series(x, y, units=("V", "A")))
    assert absent(found, "largest_swing") and told(found, "unit", channel="b").word == "A"
    assert absent(facts.facts(series(noise(1000, 1), noise(1000, 2))), "largest_swing"), "decided by a hair"


def test_together_opposite_and_late() -> None:
    smooth = np.convolve(noise(1200), np.hanning(41), "same")
    x, late = smooth[100:1100], smooth[60:1060]
    assert told(facts.facts(series(x, 2 * x + 1)), "together").word == "together"
    assert told(facts.facts(series(x, -x)), "together").word == "in opposite directions"
    found = facts.facts(series(x, late))
    assert told(found, "leads").word == "a" and told(found, "lag").value == pytest.approx(4, abs=0.2)
    assert told(facts.facts(series(late, x)), "leads").word == "b"
    assert told(facts.facts(series(x, x)), "leads").word == "at the same time"


def test_movements() -> None:
    t = np.arange(1000) / 50
    x, y = np.sin(2 * np.pi * t / 2), np.cos(2 * np.pi * t / 2)
    found = facts.facts(series(x, y, rate=50.0, units=("g", "g")))
    assert told(found, "movements").value == pytest.approx(10, abs=0.3)
    assert absent(facts.facts(series(x, y, rate=50.0, units=("V", "V"))), "movements")


def test_tempo() -> None:
    t = np.arange(3000) / 50

    def paced(late: float) -> list[Fact]:
        """Two seconds for a repetition at first, `late` times as long in the second half."""
        turns = np.cumsum(np.where(t < 30, 0.5, 0.5 / late)) / 50
        x, y = np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)
        return facts.facts(series(x, y, rate=50.0, units=("g", "g")))

    assert told(paced(1.0), "tempo").word == "steady"
    assert told(paced(1.4), "tempo").word == "slower" and told(paced(0.7), "tempo").word == "faster"
    assert absent(paced(1.1), "tempo"), "a tenth is neither"
    assert told(paced(0.7), "movements").value == pytest.approx(15 + 15 / 0.7, abs=1), "at both paces"
    assert absent(paced(0.7), "period")


def test_two_recordings() -> None:
    t = np.arange(1000) / 10
    slow, fast = np.sin(2 * np.pi * t / 10), 5 + 3 * np.sin(2 * np.pi * t / 5)
    found = [*facts.between(series(slow), series(fast).part(0, 600))]
    assert told(found, "longer").word == "the first" and told(found, "higher").word == "the second"
    assert told(found, "livelier").word == "the second" and told(found, "faster").word == "the second"
    found = [*facts.between(series(slow), series(slow))]
    assert {fact.word for fact in found} == {"about the same"}
    assert not [*facts.between(series(slow), replace(series(fast), units=("A",)))][1:], "another unit is another thing"


def test_records() -> None:
    fields = (Field("service", "category"), Field("size", "number", "B"), Field("port", "integer"))
    columns = (np.array(["dns"] * 6 + ["http"] * 3 + [None], object), np.arange(10.0), np.arange(10))
    found = facts.facts(Records("flows", fields, columns, np.arange(10.0) * 6))
    assert told(found, "rows").value == 10 and told(found, "records_duration").value == pytest.approx(54)
    assert told(found, "commonest").word == "dns" and told(found, "kinds").value == 2
    assert told(found, "share", word="dns").value == pytest.approx(60)
    assert told(found, "mean", channel="size").value == pytest.approx(4.5)
    assert not [fact for fact in found if fact.slots.get("channel") == "port"], "a port's number only names it"


def test_of_what_is_too_short_constant_or_a_picture_little_or_nothing_is_told() -> None:
    assert facts.facts(series(noise(10))) == []
    constant = facts.facts(series(np.full(200, 7.0)))
    assert told(constant, "mean").value == 7 and told(constant, "flat").word == "yes"
    assert absent(constant, "range") and absent(constant, "when_highest")
    assert told(constant, "trend").word == "no clear trend"
    assert facts.facts(Frames("a", "points", [np.zeros((2, 1))], ("x",), ("m",))) == []
    assert told(facts.facts(series(np.full(100, np.nan))), "gaps").word == "yes"


def test_of_chosen_channels_alone() -> None:
    found = facts.facts(series(noise(200), noise(200, 1), noise(200, 2)), [1])
    assert {fact.slots["channel"] for fact in found if "channel" in fact.slots and fact.about != "unit"} == {"b"}


def test_every_choice_holds_its_word() -> None:
    for seed in range(10):
        found = facts.facts(series(noise(300, seed), noise(300, seed + 100)))
        assert all(fact.word in fact.choices for fact in found if fact.choices)
        assert all(np.isfinite(fact.value) and fact.tolerance >= 0 for fact in found if not fact.word)


@pytest.mark.parametrize("seed", range(60))
def test_odd_signals_have_finite_facts_and_no_warning(seed: int) -> None:
    """Short, empty, constant, huge, tiny, with holes and infinities, at no rate and with times that stand still."""
    random = np.random.default_rng(seed)
    count, width = int(random.choice((0, 1, 16, 33, 65, 128, 500))), int(random.choice((1, 2, 5)))
    values = random.normal(size=(count, width))
    values = (
        np.full_like(values, random.choice((0, 1e-30, 1e30))),
        np.round(values),
        values * 10.0 ** random.integers(-20, 30),
        (values > 1.3).astype(np.float64),
        np.cumsum(values, axis=0),
    )[seed % 5]
    if count and random.random() < 0.5:
        values[random.random(values.shape) < random.choice((0.05, 0.3, 0.95))] = random.choice((np.nan, np.inf))
    rate = float(random.choice((0, 0.0003, 50)))
    times = np.sort(random.random(count)) if random.random() < 0.7 else np.zeros(count)
    names, units = ("II", "x", "pulse", "a{b}", "°")[:width], ("mV", "", "ms", "g", "s")[:width]
    odd = Series("odd", values.astype(np.float32), rate, names, units, None if rate else times)
    found = [*facts.facts(odd), *facts.between(odd, odd)]
    assert all(fact.word or (np.isfinite(fact.value) and fact.tolerance >= 0) for fact in found)
    assert all(one.question and one.answer for one in asking.questions([odd], random))
