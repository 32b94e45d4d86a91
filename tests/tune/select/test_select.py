"""Ways to choose examples: what all promise, and each against something slow and plain."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmote.errors import SpecError
from genmote.tune.select import dedup
from genmote.tune.select._base import UNMEASURED, Choice, Indices, Reading, Unmeasured, choose, how_many, named, names
from genmote.tune.select.auto import STIFF, told_right
from genmote.tune.select.balance import shares
from genmote.tune.select.coreset import centres
from genmote.tune.select.cover import facilities
from genmote.tune.select.curves import k_means
from genmote.tune.select.gradients import directions

ALL = names()


def texts(count: int = 60, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        tokens = rng.integers(0, 50, rng.integers(4, 20)).astype(np.uint16)
        made.append((tokens, np.arange(len(tokens)) >= 2))
    return made


def reading(losses: np.ndarray, right: np.ndarray, hidden: np.ndarray, said: np.ndarray | None = None) -> Reading:
    """Of examples with one token to say, which their hidden state says."""
    tokens = np.full((len(losses), 4), -1, np.int32)
    tokens[:, 0] = 0 if said is None else said
    states = np.zeros((len(losses), 4, hidden.shape[1]), np.float16)
    states[:, 0] = hidden
    return Reading(losses, losses / 5, right, hidden, states, tokens)


@dataclass
class Measured:
    """A probe that says what it was given; it counts what it was asked."""

    losses: np.ndarray
    hidden: np.ndarray
    stages: int = 3
    said: np.ndarray | None = None  # what the model should say of each, one token
    held_out: np.ndarray | None = None
    asked: list[str] = field(default_factory=list)
    rights: np.ndarray | None = None

    @classmethod
    def drawn(cls, count: int = 60, seed: int = 0) -> Measured:
        rng = np.random.default_rng(seed)
        return cls(rng.random(count) * 5, rng.normal(size=(count, 6)).astype(np.float32))

    def _reading(self, of: Indices, stage: int) -> Reading:
        losses = self.losses[of] * 0.5**stage
        right = losses < 1 if self.rights is None else self.rights[stage][of]
        return reading(losses, right, self.hidden[of], None if self.said is None else self.said[of])

    def read(self, of: Indices) -> Reading:
        self.asked.append("read")
        return self._reading(of, 0)

    def follow(self, of: Indices) -> list[Reading]:
        self.asked.append("follow")
        return [self._reading(of, stage) for stage in range(self.stages)]

    def gradients(self, of: Indices) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append("gradients")
        held_out = self.hidden[:4] if self.held_out is None else self.held_out
        return self.hidden[of].astype(float), held_out.astype(float)


def test_the_ways_are_found_by_name() -> None:
    assert "auto balance coreset cover curves dedup forgetting gradients perplexity random".split() == ALL


@pytest.mark.parametrize("way", ALL)
@pytest.mark.parametrize("keep", [1, 7, 0.1, 60])
def test_as_many_as_asked_each_once_and_again_the_same(way: str, keep: float) -> None:
    count = how_many(keep, 60)
    chosen = choose(texts(), count, way, seed=3, probe=Measured.drawn())
    assert isinstance(chosen, Choice) and chosen.method == way and chosen.seconds >= 0
    assert len(chosen.indices) == count == len(set(chosen.indices.tolist()))
    assert chosen.indices.tolist() == sorted(chosen.indices.tolist())
    assert chosen.indices[0] >= 0 and chosen.indices[-1] < 60
    again = choose(texts(), count, way, seed=3, probe=Measured.drawn())
    assert np.array_equal(again.indices, chosen.indices) and again.notes == chosen.notes


@pytest.mark.parametrize("way", [way for way in ALL if way not in UNMEASURED])
def test_what_has_no_measure_is_left_out_and_told(way: str) -> None:
    probe = Measured.drawn()
    probe.losses[[4, 9]] = np.nan
    probe.hidden[[4, 9]] = np.inf
    chosen = choose(texts(), 30, way, probe=probe)
    assert not {4, 9} & set(chosen.indices.tolist()) and len(chosen.indices) == 30
    assert any(note.startswith("2 examples are left out (5, 10): the model gives a ") for note in chosen.notes)
    with pytest.raises(
        SpecError, match=r"2 of 60 examples cannot be used \(5, 10: the model gives .*\): keep fewer than 59"
    ):
        choose(texts(), 59, way, probe=probe)


def test_measures_are_taken_once() -> None:
    probe = Measured.drawn()
    probe.losses[3] = np.nan
    choose(texts(), 20, "auto:among=cover+coreset+curves+perplexity", probe=probe)
    assert probe.asked.count("read") == 1 and probe.asked.count("follow") == 1 and probe.asked.count("gradients") == 1


@pytest.mark.parametrize("way", ALL)
def test_equal_examples_are_chosen_from_too(way: str) -> None:
    same = [texts(1)[0]] * 20
    probe = Measured(np.ones(20), np.ones((20, 3), np.float32))
    chosen = choose(same, 5, way, probe=probe)
    assert len(set(chosen.indices.tolist())) == 5
    assert chosen.notes[0] == "all examples have the same answer: what is learnt from them is that answer alone"


def test_bad_input_is_told() -> None:
    some = texts(10)
    with pytest.raises(SpecError, match="no examples to choose from: give a file with some"):
        how_many(0.1, 0)
    for count in (0, 11):
        with pytest.raises(SpecError, match=f"{count} of 10 examples: wanted at least 1, and no more than there are"):
            choose(some, count)
    with pytest.raises(SpecError, match="keep=11: there are 10 examples; keep fewer, or all with 100%"):
        how_many(11, 10)
    for keep in (0, -1, 1.5, float("nan"), float("inf")):
        with pytest.raises(SpecError, match=r"keep=.*: wanted a share such as 10%, or a whole number of examples"):
            how_many(keep, 10)
    with pytest.raises(SpecError, match=r"no way to choose examples is called 'rando', did you mean random\?"):
        choose(some, 1, "rando")
    with pytest.raises(
        SpecError, match="reading takes a model to measure by: give one, or choose by random or dedup or balance"
    ):
        choose(some, 1, "perplexity")
    with pytest.raises(SpecError, match="reading takes a model to measure by"):
        choose(some, 1, "auto")
    nothing = (np.array([3]), np.array([True]))
    chosen = choose([*some, nothing], 10)
    assert chosen.indices.tolist() == list(range(10))
    assert chosen.notes == ["1 examples are left out (11): nothing in them is to be learnt"]
    with pytest.raises(SpecError, match="1 of 11 examples cannot be used"):
        choose([*some, nothing], 11)
    probe = Measured.drawn(10)
    probe.held_out = np.full((2, 6), np.nan)
    with pytest.raises(SpecError, match="gradients of what is held out are not finite"):
        choose(some, 2, "gradients", probe=probe)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("dedup:like=0.1", "like=0.1, wanted an overlap from 0.3 to 1"),
        ("dedup:run=0", "run=0, wanted 1 to 16"),
        ("perplexity:low=0.8", "low=0.8, high=0.75: wanted 0 <= low < high <= 1"),
        ("cover:short=1", "short=1.0, wanted a share between 0 and 1"),
        ("forgetting:from_hardest=2", "from_hardest=2.0, wanted a share from 0 to 1"),
        ("curves:groups=0", "groups=0, wanted at least 1"),
        ("auto:among=random", "among: random is no way to try beside random"),
        ("auto:of=1", "of=1, wanted at least 16"),
        ("balance:power=2", "power=2.0, wanted 0 to 1"),
    ],
)
def test_settings_are_checked(text: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        named(text)


class TestDedup:
    def test_near_ones_are_one_and_others_are_not(self) -> None:
        rng = np.random.default_rng(1)
        bases = [rng.integers(0, 9000, 40) for _ in range(30)]
        near = []
        for base in bases:
            changed = base.copy()
            changed[rng.integers(1, 39)] = 9001  # three of its 38 runs
            near.append(changed)
        groups = dedup.Dedup().groups([*bases, *near, *bases])
        assert groups.tolist() == [*range(30)] * 3

    @given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=12))
    def test_groups_against_all_pairs(self, rows: list[list[int]]) -> None:
        """What is told to be like is like, through others at most; equal rows always are."""
        way = dedup.Dedup()
        groups = way.groups([np.array(row) for row in rows])
        sets = [{tuple(row[at : at + 3]) for at in range(max(1, len(row) - 2))} for row in rows]
        like = [[len(a & b) / len(a | b) >= 0.7 for a in sets] for b in sets]
        reach = np.array(like)
        for _ in rows:
            reach = reach | (reach.astype(int) @ reach.astype(int) > 0)
        for i, j in itertools.combinations(range(len(rows)), 2):
            if groups[i] == groups[j]:
                assert reach[i][j]
            elif rows[i] == rows[j]:
                raise AssertionError("equal rows are in two groups")

    def test_what_repeats_takes_no_more_than_a_few_times_the_rest(self) -> None:
        """A log has one line thousands of times: every pair of them, in each band, was looked at by itself."""
        rng = np.random.default_rng(3)
        unlike, seconds = [rng.integers(0, 9000, 30) for _ in range(1000)], list[float]()
        for rows in (unlike, [unlike[0]] * 1000):
            began = time.process_time()
            dedup.Dedup().groups(rows)
            seconds.append(time.process_time() - began)
        assert seconds[1] < 10 * seconds[0]

    def test_one_of_each_group_then_repeats(self) -> None:
        some = texts(20)
        chosen = choose([*some, *some, *some], 20, "dedup")
        assert {int(n) % 20 for n in chosen.indices} == set(range(20))
        assert chosen.notes == ["40 of 60 examples repeat others"]
        assert choose([*some, *some], 5, "dedup").notes == ["20 of 40 examples repeat others"]
        chosen = choose([*some, *some], 30, "dedup")
        assert chosen.notes == ["only 20 examples are unlike each other: the other 10 repeat"]


def test_perplexity_keeps_its_band() -> None:
    probe = Measured.drawn()
    order = np.argsort(probe.losses).tolist()
    chosen = choose(texts(), 10, "perplexity", probe=probe)
    assert set(chosen.indices.tolist()) < set(order[15:45]) and chosen.notes == []
    drawn = {tuple(choose(texts(), 10, "perplexity", seed=seed, probe=probe).indices) for seed in range(5)}
    assert len(drawn) == 5
    chosen = choose(texts(), 40, "perplexity", probe=probe)
    assert set(chosen.indices.tolist()) == set(order[10:50])
    assert chosen.notes == ["the band holds fewer than 40 examples: it is widened to 10 to 50, by loss"]
    chosen = choose(texts(), 30, "perplexity:low=0,high=0.1", probe=probe)
    assert set(chosen.indices.tolist()) == set(order[:30])


def test_forgetting_puts_what_is_lost_again_first_then_errors() -> None:
    probe = Measured.drawn()
    probe.rights = np.zeros((3, 60), bool)
    probe.rights[1, 50:54] = True  # right after the first stage, wrong after the second
    chosen = choose(texts(), 4, "forgetting:from_hardest=0", probe=probe)
    assert chosen.indices.tolist() == [50, 51, 52, 53]
    probe.rights[:] = False
    order = np.argsort(-probe.losses)
    assert choose(texts(), 6, "forgetting:from_hardest=0", probe=probe).indices.tolist() == sorted(order[:6])
    assert choose(texts(), 6, "forgetting:from_hardest=0.5", probe=probe).indices.tolist() == sorted(order[30:36])
    assert choose(texts(), 6, "forgetting:from_hardest=1", probe=probe).indices.tolist() == sorted(order[54:])


@pytest.mark.parametrize("seed", range(5))
def test_centres_are_within_twice_the_best_radius(seed: int) -> None:
    """Against every choice of 3 of 9 points (Gonzalez 1985)."""
    points = np.random.default_rng(seed).normal(size=(9, 2))
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    best = min(apart[:, list(some)].min(axis=1).max() for some in itertools.combinations(range(9), 3))
    assert apart[:, centres(points, 3)].min(axis=1).max() <= 2 * best + 1e-12


def test_each_centre_is_the_farthest_from_those_before() -> None:
    points = np.random.default_rng(9).normal(size=(40, 5))
    chosen = centres(points, 12)
    for n in range(1, 12):
        apart = np.linalg.norm(points[:, None] - points[chosen[:n]], axis=2).min(axis=1)
        assert apart[chosen[n]] == pytest.approx(apart.max())
    twice = np.concatenate([points, points])
    assert len({int(n) % 40 for n in centres(twice, 40)}) == 40


@pytest.mark.parametrize("seed", range(5))
def test_what_covers_is_near_the_best(seed: int) -> None:
    """Against every choice of 3 of 9 rows: greedy comes to 63% of it at least (Nemhauser et al. 1978), counted from
    opposite rows."""
    rng = np.random.default_rng(seed)
    points = directions(rng.normal(size=(9, 3)))
    worth = [(points @ points[list(some)].T).max(axis=1).sum() + 9 for some in itertools.combinations(range(9), 3)]
    chosen = facilities(points, 3, 9, rng)
    found = (points @ points[chosen].T).max(axis=1).sum() + 9
    assert len(set(chosen.tolist())) == 3 and found >= (1 - 1 / np.e) * max(worth)
    first = (points @ points.T).sum(axis=0)
    assert first[chosen[0]] == pytest.approx(first.max())


def test_cover_takes_one_of_each_kind_of_gradient() -> None:
    probe = Measured.drawn()
    kind = np.arange(60) % 6
    probe.hidden[:] = np.eye(6)[kind] + np.random.default_rng(1).normal(size=(60, 6)) * 0.01
    assert sorted(kind[choose(texts(), 6, "cover", probe=probe).indices]) == [0, 1, 2, 3, 4, 5]


def test_groups_of_curves_are_found_and_shared_out() -> None:
    """Three kinds of curve, of 40, 12 and 8 examples: 24 of them are 8 of each."""
    rng = np.random.default_rng(2)
    kind = np.repeat([0, 1, 2], [40, 12, 8])
    curves = np.array([[3, 3, 3], [3, 1, 0.2], [0.1, 0.1, 0.1]])[kind] + rng.normal(size=(60, 3)) * 0.01
    group = k_means(curves, 3, np.random.default_rng(0))
    assert all(len(set(group[kind == k])) == 1 for k in range(3)) and len(set(group)) == 3
    probe = Measured(curves[:, 0], np.zeros((60, 2), np.float32))
    probe.follow = lambda of: [reading(c[of], c[of] < 1, probe.hidden[of]) for c in curves.T]  # type: ignore[method-assign]
    chosen = choose(texts(), 24, "curves:groups=3", probe=probe)
    assert np.bincount(kind[chosen.indices]).tolist() == [8, 8, 8]
    chosen = choose(texts(), 30, "curves:groups=3", probe=probe)
    assert np.bincount(kind[chosen.indices]).tolist() == [11, 11, 8]


def test_means_are_means_of_their_groups() -> None:
    points = np.random.default_rng(3).normal(size=(80, 2))
    group = k_means(points, 5, np.random.default_rng(1), rounds=500)
    means = np.array([points[group == g].mean(axis=0) for g in range(5)])
    apart = ((points[:, None] - means) ** 2).sum(axis=2)
    assert np.array_equal(apart.argmin(axis=1), group)


def test_gradients_take_what_would_move_the_model_as_the_held_out_do() -> None:
    rng = np.random.default_rng(4)
    probe = Measured.drawn()
    probe.held_out = np.array([[1.0, 0, 0, 0, 0, 0], [0, 2.0, 0, 0, 0, 0]])
    probe.hidden[:] = rng.normal(size=(60, 6)) * [0, 0, 1, 1, 1, 1]
    probe.hidden[7] = [5, 0, 0.1, 0, 0, 0]
    probe.hidden[8] = [0, 0.1, 0, 0, 0, 0.001]
    probe.hidden[9] = [-9, -9, 0, 0, 0, 0]
    assert choose(texts(), 2, "gradients", probe=probe).indices.tolist() == [7, 8]
    assert 9 not in choose(texts(), 30, "gradients", probe=probe).indices


class TestAuto:
    def kinds(self, seed: int = 0) -> tuple[list[tuple[np.ndarray, np.ndarray]], Measured]:
        """Examples of twenty kinds, most of them of the first few, that a model can tell from one another."""
        rng = np.random.default_rng(seed)
        kind = np.minimum(rng.geometric(0.35, 300) - 1 + 10 * (rng.random(300) < 0.05), 19)
        some = [(np.array([1, *rng.integers(60, 99, 6), 10 + k]), np.arange(8) == 7) for k in kind]
        hidden = (np.eye(24)[kind] + rng.normal(size=(300, 24)) * 0.05).astype(np.float32)
        return some, Measured(np.ones(300), hidden, said=10 + kind)

    def test_the_best_is_taken_and_random_is_shown(self) -> None:
        some, probe = self.kinds()
        chosen = choose(some, 30, "auto", probe=probe)
        assert chosen.notes[-1].startswith("right of 192 examples after a trial with 30 of them, by way: random ")
        told = dict(part.rsplit(" ", 1) for part in chosen.notes[-1].split("by way: ")[1].split("; ")[0].split(", "))
        best = chosen.notes[-1].rpartition("taken: ")[2]
        assert told[best] == max(told.values(), key=lambda share: float(share[:-1])) and best.startswith("balance")
        assert len({some[n][0][-1] for n in chosen.indices}) == len({row[-1] for row, _ in some})
        assert probe.asked == ["read"]

    def test_chance_where_nothing_is_better(self) -> None:
        probe = Measured(np.ones(60), Measured.drawn().hidden)
        chosen = choose(texts(), 10, "auto", probe=probe)
        assert chosen.notes[-1].endswith("taken: random")

    def test_a_trial_against_a_plain_ridge_regression(self) -> None:
        rng = np.random.default_rng(0)
        said = rng.integers(0, 3, 40)
        hidden = (np.eye(5)[said] + rng.normal(size=(40, 5)) * 0.6).astype(np.float16).astype(np.float32)
        learnt = np.arange(25)
        x, y = hidden[:25].astype(float), np.eye(3)[said[:25]]
        stiff = STIFF * ((x - x.mean(0)) ** 2).sum() / 25 + 1e-9
        weights = np.linalg.solve((x - x.mean(0)).T @ (x - x.mean(0)) + stiff * np.eye(5), (x - x.mean(0)).T @ y)
        scores = (hidden[25:] - x.mean(0)) @ weights + y.mean(0)
        right = float((scores.argmax(1) == said[25:]).mean())
        assert 0 < right < 1
        assert told_right(reading(np.ones(40), np.ones(40, bool), hidden, said), learnt) == right
        assert told_right(reading(np.ones(40), np.ones(40, bool), hidden, said), np.arange(40)) == 1


class TestBalance:
    def test_each_answer_has_its_share_and_rare_ones_are_there(self) -> None:
        answers = [0] * 64 + [1] * 16 + [2] * 4 + [3, 4, 5, 6]
        some = [(np.array([1, 7, n % 50, 100 + a]), np.arange(4) == 3) for n, a in enumerate(answers)]
        chosen = choose(some, 16, "balance")
        kept = np.array(answers)[chosen.indices]
        # roots 8, 4, 2, and 2 of those that are there once
        assert [int((kept == a).sum()) for a in range(3)] == [8, 4, 2] and (kept > 2).sum() == 2
        even = np.array(answers)[choose(some, 16, "balance:power=0").indices]
        assert [int((even == a).sum()) for a in range(3)] == [4, 4, 4] and (even > 2).sum() == 4

    def test_texts_of_an_answer_are_unlike(self) -> None:
        rows = [[1, 2, 3, 4, 90]] * 20 + [[5, 6, 7, 8, 90]] + [[11, 12, 13, 14, 90]]
        some = [(np.array(row), np.arange(5) == 4) for row in rows]
        for seed in range(5):
            assert {20, 21} < set(choose(some, 3, "balance", seed=seed).indices.tolist())

    def test_free_texts_are_one_group(self) -> None:
        some = texts(40)
        assert len(set(choose(some, 10, "balance").indices.tolist())) == 10

    @given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.data(), st.sampled_from([0, 0.5, 1]))
    def test_shares_are_all_that_is_asked_and_no_more_than_there_is(
        self, sizes: list[int], data: st.DataObject, power: float
    ) -> None:
        count = data.draw(st.integers(0, sum(sizes)))
        given = shares(sizes, count, power)
        assert sum(given) == count and all(0 <= g <= s for g, s in zip(given, sizes, strict=True))
        for g, s in zip(given, sizes, strict=True):  # a larger group never has less
            assert all(g >= h or g == s for h, t in zip(given, sizes, strict=True) if t < s and power)


def test_unmeasured_never_leaves() -> None:
    probe = Measured.drawn()
    probe.losses[:] = np.nan
    with pytest.raises(SpecError, match=r"60 of 60 examples cannot be used \(1, 2, 3, 4, 5, …: the model gives a loss"):
        choose(texts(), 1, "perplexity", probe=probe)
    assert issubclass(Unmeasured, Exception)
