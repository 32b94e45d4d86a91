"""Drift detectors: what all of them promise, and each against something slow and plain, or river's of the same name."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmote.errors import SpecError
from genmote.tune.drift import _base, adwin, kswin
from genmote.tune.drift._base import named, names

ALL = names()
STREAMS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "skewed": lambda rng, n: rng.exponential(size=n),
    "errors": lambda rng, n: (rng.random(n) < 0.2).astype(float),
    "heavy": lambda rng, n: rng.standard_t(4, size=n),
}


def alarms(text: str, values: np.ndarray) -> list[int]:
    detector = named(text)
    return [n for n, value in enumerate(values) if detector.update(value)]


def test_the_three_are_found_by_name() -> None:
    assert ALL == ["adwin", "kswin", "page-hinkley"]


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("kind", STREAMS)
def test_no_alarm_without_a_change(text: str, kind: str) -> None:
    """The stated rate: at most one false alarm in 20,000 values; here 40,000 in streams of 4,000."""
    found = [alarms(text, STREAMS[kind](np.random.default_rng([seed, 1]), 4000)) for seed in range(10)]
    assert sum(map(len, found)) <= 2


@pytest.mark.parametrize(
    ("text", "step", "delay"),
    [("adwin", 1, 192), ("adwin", 2, 96), ("kswin", 1.5, 50), ("page-hinkley", 1, 60), ("page-hinkley", 2, 30)],
)
def test_a_step_is_seen_within_the_stated_delay(text: str, step: float, delay: int) -> None:
    """A step of the mean, in standard deviations, either way; the change is put near where it was."""
    for seed, sign in itertools.product(range(10), (1, -1)):
        values = np.random.default_rng([seed, 2]).normal(size=900)
        values[500:] += sign * step
        detector = named(text)
        at = next((n for n, value in enumerate(values, 1) if detector.update(value)), 0)
        assert 500 < at <= 500 + delay, f"seed {seed}: seen at {at}"
        assert detector.change is not None and detector.change.at == at and 0 <= detector.change.chance < 0.01
        assert abs(detector.change.since - 501) <= 50


@pytest.mark.parametrize("text", ALL)
def test_what_comes_after_a_change_is_the_new_normal(text: str) -> None:
    values = np.random.default_rng(3).normal(size=3000)
    values[1000:] += 3
    found = alarms(text, values)
    assert found and found[0] < 1100
    assert all(n < 1150 for n in found), "the alarms end with the change"


def test_a_slow_change_is_for_adwin() -> None:
    values = np.random.default_rng(4).normal(size=4000) * 0.1 + np.linspace(0, 1, 4000)
    assert len(alarms("adwin", values)) > 3


def test_the_spread_alone_is_for_kswin() -> None:
    values = np.random.default_rng(5).normal(size=2000)
    values[1000:] *= 4
    assert 1000 <= alarms("kswin", values)[0] < 1100
    assert alarms("adwin", values) == []
    wandering = np.random.default_rng(6).normal(size=5000) * (1 + 0.5 * np.sin(np.arange(5000) / 800))
    assert alarms("adwin", wandering) == []
    assert alarms("page-hinkley", wandering) == []


@pytest.mark.parametrize("text", ALL)
def test_units_do_not_matter(text: str) -> None:
    values = np.random.default_rng(7).normal(size=800)
    values[400:] += 2
    assert alarms(text, values * 1024) == alarms(text, values) != []


@pytest.mark.parametrize("text", ALL)
def test_one_outlier_or_a_stream_that_stands_still_is_no_change(text: str) -> None:
    values = np.random.default_rng(8).normal(size=600)
    values[300] = 1e9
    assert alarms(text, values) == []
    still = np.ones(600)
    still[300] = 2
    assert alarms(text, still) == []


@pytest.mark.parametrize("text", ALL)
def test_a_state_goes_through_json_and_on(text: str) -> None:
    values = np.random.default_rng(9).normal(size=900)
    values[500:] += 1.5
    whole, first, second = named(text), named(text), named(text)
    told = [whole.update(value) for value in values]
    for value in values[:450]:
        first.update(value)
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert [second.update(value) for value in values[450:]] == told[450:]
    assert any(told) and second.state() == whole.state()
    whole.reset()
    assert whole.state() == named(text).state()


@pytest.mark.parametrize("text", ALL)
def test_memory_is_bounded(text: str) -> None:
    detector, sizes = named(text), []
    for n, value in enumerate(np.random.default_rng(10).random(20000)):
        detector.update(value)
        if n in (2000, 19999):
            sizes.append(len(json.dumps(detector.state())))
    assert sizes[1] < sizes[0] * 1.5 < 12000


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "x"])
def test_what_is_no_number_is_told_and_changes_nothing(text: str, value: object) -> None:
    detector = named(text)
    detector.update(1.0)
    before = detector.state()
    with pytest.raises(SpecError, match=r"value 2 of the stream is .*: a detector takes finite numbers; leave this"):
        detector.update(value)  # type: ignore[arg-type]
    assert detector.state() == before


def test_a_state_of_another_or_a_damaged_one_is_told() -> None:
    detector = named("adwin")
    for value in range(100):
        detector.update(value)
    whole = detector.state()
    with pytest.raises(
        SpecError, match=r"the state of a detector is .*adwin.*, this one is .*kswin.*: make it as it was"
    ):
        named("kswin").restore(whole)
    with pytest.raises(SpecError, match=r"this one is .*'delta': 0.01"):
        named("adwin:delta=0.01").restore(whole)
    for damage in (
        {"held": {}},
        {"held": None},
        {"seen": "x"},
        {"change": {"at": 1}},
        {"held": whole["held"] | {"buckets": 3}},
    ):
        other = named("adwin")
        with pytest.raises(SpecError, match=r"the state of a detector \(adwin\) is damaged: reset it"):
            other.restore(whole | damage)
        assert other.state() == named("adwin").state()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("adwim", r"no drift detector is called 'adwim', did you mean adwin\?; known: adwin, kswin, page-hinkley"),
        ("adwin:delta=2", "delta=2.0, wanted a probability between 0 and 1"),
        ("adwin:delta=x", "'delta=x' is no number; write it like delta=8"),
        ("adwin:range=-1", "range=-1.0, wanted the largest distance between two values, or 0"),
        ("adwin:every=0,least=0,buckets=0", "every=0, wanted at least 1; least=0, .*; buckets=0, wanted at least 1"),
        ("adwin:window=3", "window is no setting"),
        ("page-hinkley:tolerance=-1", "tolerance=-1.0, wanted 0 or more"),
        ("page-hinkley:threshold=0", "threshold=0.0, wanted more than 0"),
        ("page-hinkley:least=1", "least=1, wanted at least 2"),
        ("page-hinkley:keep=2", "keep=2.0, wanted above 0, at most 1"),
        ("page-hinkley:scale=-1", "scale=-1.0, wanted a unit above 0, or 0"),
        ("kswin:level=0", "level=0.0, wanted a probability between 0 and 1"),
        ("kswin:newest=1", "newest=1, wanted at least 2"),
        ("kswin:window=60", "window=60, wanted at least twice newest=50"),
        ("kswin:window=6000", "window=6000, wanted at most 5000"),
        ("kswin:window=10,newest=3", "no sample of 3 is that unlikely; raise newest"),
    ],
)
def test_settings_are_checked(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        named(text)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300))
def test_adwin_keeps_the_window_that_it_says(values: list[float]) -> None:
    """Without a cut: the buckets are the values in order, of sizes that only shrink, few of each."""
    detector = named("adwin:every=1000")
    for value in values:
        detector.update(value)
    buckets = detector.state()["held"]["buckets"]
    sizes = [int(count) for count, _, _ in buckets]
    assert sizes == sorted(sizes, reverse=True) and max(map(sizes.count, sizes)) <= 5
    at = 0
    for (count, mean, squares), size in zip(buckets, sizes, strict=True):
        part = np.array(values[at : at + size])
        at += size
        assert count == size and mean == pytest.approx(part.mean(), abs=1e-9)
        assert squares == pytest.approx(((part - part.mean()) ** 2).sum(), abs=1e-6)
    assert at == len(values)


@given(st.floats(1e-3, 10), st.floats(0, 1), st.floats(1e-3, 1), st.floats(10, 1e6))
def test_adwin_s_chance_solves_the_paper_s_bound(apart: float, variance: float, spread: float, count: float) -> None:
    chance = adwin._chance(apart, variance, spread, count)
    if 1e-290 < chance < 1:
        x = math.log(2 * math.log(count) / chance)
        assert math.sqrt(variance * x) + 2 / 3 * spread * x == pytest.approx(apart, rel=1e-6)


def test_kswin_s_p_value_counts_the_orders() -> None:
    """Against every order of 4 and 3 values, and the distance against its definition."""
    orders = [(set(chosen), set(range(7)) - set(chosen)) for chosen in itertools.combinations(range(7), 4)]
    plain = [
        max(abs(sum(v <= x for v in one) * 3 - sum(v <= x for v in other) * 4) for x in range(7))
        for one, other in orders
    ]
    for (one, other), steps in zip(orders, plain, strict=True):
        assert kswin.distance([*map(float, one)], [*map(float, other)]) == steps
        assert kswin.p_value(steps, 4, 3) == pytest.approx(np.mean([p >= steps for p in plain]))


class TestRiver:
    """river is an oracle of the tests alone (the `dev` extra): it takes 111 MB to import."""

    @pytest.fixture
    def drift(self) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what river itself imports
            return pytest.importorskip("river.drift", reason="river is not installed: pip install genmote[dev]")

    def first(self, theirs: object, values: np.ndarray) -> int:
        for n, value in enumerate(values):
            theirs.update(float(value))  # type: ignore[attr-defined]
            if theirs.drift_detected:  # type: ignore[attr-defined]
                return n
        return -1

    @staticmethod
    def streams() -> list[np.ndarray]:
        made = []
        for seed in range(12):
            rng = np.random.default_rng([seed, 11])
            values = np.clip(rng.normal(0.4, 0.1, 1500) + (rng.random(1500) < 0.1) * 0.2, 0, 1)
            values[700:] = np.clip(values[700:] + (seed - 6) * 0.05, 0, 1)
            made.append(values)
        return made

    def test_adwin(self, drift: object) -> None:
        """With river's `min_window_length` of 1 the bounds are the same; with more it takes the parts for smaller than
        they are, and is a test later at most."""
        for values in self.streams():
            found = alarms("adwin:range=1,least=1", values)[:1] or [-1]
            assert self.first(drift.ADWIN(min_window_length=1), values) == found[0]  # type: ignore[attr-defined]
            theirs = self.first(drift.ADWIN(), values)  # type: ignore[attr-defined]
            found = alarms("adwin:range=1", values)[:1] or [-1]
            assert theirs - found[0] in (0, 32)

    def test_page_hinkley(self, drift: object) -> None:
        for values in self.streams():
            theirs = drift.PageHinkley(delta=0.02, threshold=10, alpha=1.0)  # type: ignore[attr-defined]
            found = alarms("page-hinkley:tolerance=0.02,threshold=10,scale=1,least=30", values)[:1] or [-1]
            assert self.first(theirs, values) == found[0]

    def test_kswin(self, drift: object) -> None:
        """river draws 50 of the older values, ours takes all: it sees what river sees, seldom later."""
        later = []
        for seed, values in enumerate(self.streams()):
            theirs = self.first(drift.KSWIN(alpha=1e-5, window_size=200, stat_size=50, seed=seed), values)  # type: ignore[attr-defined]
            ours = (alarms("kswin", values)[:1] or [-1])[0]
            if theirs >= 0:
                assert ours >= 700
                later.append(ours - theirs)
        assert len(later) >= 6 and np.mean(later) <= 0

    def test_kswin_s_p_value_is_scipy_s(self) -> None:
        stats = pytest.importorskip("scipy.stats", reason="scipy is not installed: pip install genmote[dev]")
        for seed in range(20):
            rng = np.random.default_rng(seed)
            one, other = rng.normal(size=70).tolist(), rng.normal(0.05 * seed, 1, size=30).tolist()
            theirs = stats.ks_2samp(one, other, method="exact")
            steps = kswin.distance(one, other)
            assert steps / (70 * 30) == pytest.approx(theirs.statistic)
            assert kswin.p_value(steps, 70, 30) == pytest.approx(theirs.pvalue, rel=1e-9)


def test_a_detector_s_first_line_says_what_it_sees() -> None:
    for name in ALL:
        assert (type(named(name)).__doc__ or "").startswith("Sees ")
    assert _base.named("ADWIN") == named("adwin")
