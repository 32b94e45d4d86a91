"""Sampling: every filter against its definition, draws against the distribution, every fault told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genmote.errors import ModelFileError, SpecError
from genmote.runtime.sample import Sampler, Sampling, draw, keep, token_logprobs, top_logprobs, uniform

Array = NDArray[np.float64]


def logits_of(seed: int, size: int, spread: float = 3.0, ties: bool = False) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal(size) * spread
    return (np.round(values) if ties else values).astype(np.float32)


def softmax(x: NDArray[np.floating]) -> Array:
    e = np.exp(x.astype(np.float64) - x.max())
    return e / e.sum()


def defined_distribution(logits: NDArray[np.float32], s: Sampling) -> Array:
    """The module's steps 3 and 4, slowly: sort everything, one token at a time."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if s.top_k:
        order = order[: s.top_k]
    if s.top_p < 1:
        p = softmax(logits[order])
        kept, mass = [], 0.0
        for token, share in zip(order, p, strict=True):
            kept.append(token)
            mass += share
            if mass > s.top_p:
                break
        order = kept
    if s.min_p:
        order = [i for i in order if logits[i] >= logits.max() + math.log(s.min_p)]
    result = np.zeros(len(logits))
    result[order] = softmax(logits[order].astype(np.float64) / s.temperature)
    return result


def kept_distribution(logits: NDArray[np.float32], s: Sampling) -> Array:
    tokens, weights = keep(logits, s)
    assert tokens is None or all(a < b for a, b in pairwise(tokens))
    result = np.zeros(len(logits))
    result[slice(None) if tokens is None else tokens] = weights / weights.sum()
    return result


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 400),
    st.sampled_from([0.3, 3.0, 20.0]),
    st.booleans(),
    st.integers(0, 50),
    st.sampled_from([1.0, 0.99903, 0.90017, 0.50071, 0.01013]),
    st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    st.sampled_from([0.1, 1.0, 5.0]),
)
def test_filters_are_their_definition(
    seed: int, size: int, spread: float, ties: bool, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = logits_of(seed, size, spread, ties)
    s = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    np.testing.assert_allclose(kept_distribution(logits, s), defined_distribution(logits, s), atol=1e-12)


@pytest.mark.parametrize(
    "s",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=12),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.05, top_p=0.95, top_k=20),
    ],
)
def test_draws_follow_the_distribution(s: Sampling) -> None:
    """Chi-square over the tokens of a fixed distribution; the 1e-6 quantile is approximated by Wilson and Hilferty."""
    logits = logits_of(3, 30, 1.0)
    expected = defined_distribution(logits, s)
    sampler, n = Sampler(s), 20_000
    sampler.seed = 11
    counts = np.zeros(30)
    for sampler.index in range(n):
        counts[sampler.sample(logits)] += 1
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    statistic = float(((counts - n * expected)[inside] ** 2 / (n * expected)[inside]).sum())
    degrees = int(inside.sum()) - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3
    assert statistic < limit


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 3, 511, 512, 513, 3000]),
    st.floats(0, 1, exclude_max=True),
    st.booleans(),
)
def test_a_draw_is_the_running_sums(seed: int, size: int, u: float, sparse: bool) -> None:
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.standard_normal(size) * 8)
    if sparse:
        weights[rng.random(size) < 0.9] = 0.0
        weights[rng.integers(size)] = 1.0
    place = draw(weights, u)
    assert weights[place] > 0
    before, after = weights[:place].sum(), weights[: place + 1].sum()
    assert before - 1e-9 * weights.sum() <= u * weights.sum() <= after + 1e-9 * weights.sum()


def test_a_draw_never_falls_off_the_end() -> None:
    weights = np.zeros(2000)
    weights[[3, 700]] = 1.0, 0.1
    assert draw(weights, 1 - 2**-53) == 700 and draw(weights, 0.0) == 3


def test_numbers_are_even_and_independent_of_each_other() -> None:
    values = np.array([uniform(seed, i) for seed in range(20) for i in range(1000)])
    assert values.min() >= 0 and values.max() < 1
    counts, _ = np.histogram(values, 20, (0, 1))
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 60  # 19 degrees of freedom
    assert abs(float(np.corrcoef(values[:-1], values[1:])[0, 1])) < 0.03


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    logits = logits_of(5, 100)
    a, b = Sampler(Sampling(temperature=1.0, seed=7)), Sampler(Sampling(temperature=1.0, seed=7))
    first = [a.sample(logits) for _ in range(3)]
    assert len(set(first)) == 1  # sampling alone changes nothing
    drawn = []
    for _ in range(20):
        drawn.append(a.sample(logits))
        a.accept(drawn[-1])
    b.index = 13
    assert b.sample(logits) == drawn[13]
    assert len(set(drawn)) > 5
    assert Sampler(Sampling()).seed != Sampler(Sampling()).seed


def test_penalties_are_their_definition() -> None:
    logits = logits_of(9, 12)
    s = Sampling(repetition_penalty=1.5, repetition_window=3, presence_penalty=0.3, frequency_penalty=0.2)
    sampler = Sampler(s, prompt=[1, 2, 3])
    for token in (4, 5, 5):
        sampler.accept(token)
    wanted = logits.astype(np.float64).copy()
    for token in {4, 5}:  # the last 3: 4, 5, 5
        wanted[token] = wanted[token] / 1.5 if wanted[token] > 0 else wanted[token] * 1.5
    for token, times in ((4, 1), (5, 2)):  # generated, not the prompt
        wanted[token] -= 0.2 * times + 0.3
    before = logits.copy()
    np.testing.assert_allclose(sampler.adjusted(logits, None), wanted, rtol=1e-5)
    assert (logits == before).all()


def test_a_window_of_all_reaches_the_prompt_and_skips_embeddings() -> None:
    logits = np.ones(8, np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0, repetition_window=-1), prompt=[3, -5, 6])
    assert sampler.adjusted(logits, None).tolist() == [1, 1, 1, 0.5, 1, 1, 0.5, 1]


def test_bias_and_mask() -> None:
    logits = np.array([1, 5, 3], np.float32)
    assert Sampler(Sampling(logit_bias={0: 10.0})).sample(logits) == 0
    assert Sampler(Sampling(logit_bias={1: -math.inf})).sample(logits) == 2
    assert Sampler(Sampling()).sample(logits, np.array([True, False, False])) == 0
    sampler = Sampler(Sampling(temperature=5.0, seed=1))
    for sampler.index in range(50):
        assert sampler.sample(logits, np.array([True, False, True])) != 1
    with pytest.raises(SpecError, match=r"logit_bias names token 3: this model has tokens 0 to 2"):
        Sampler(Sampling(logit_bias={3: 1.0})).sample(logits)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 2.0}, {"logit_bias": {0: -math.inf}}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[math.nan, 1.0], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_broken_logits_are_told(logits: list[float], temperature: float, more: dict[str, Any]) -> None:
    broken = np.array(logits, np.float32)
    with pytest.raises(ModelFileError, match="logits are not numbers, or no token is allowed"):
        Sampler(Sampling(temperature=temperature, **more), prompt=[0, 1]).sample(broken)
    with pytest.raises(ModelFileError, match="logits are not numbers"):
        Sampler(Sampling(temperature=temperature)).sample(broken, np.array([False, True]) & np.isfinite(broken))
    with pytest.raises(ModelFileError, match="logits are not numbers"):
        token_logprobs(broken[None], np.array([1]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "extreme",
    [{"repetition_penalty": p} for p in (0.01, 100)] + [{"logit_bias": {0: b}} for b in (-1e4, 1e4, -math.inf)],
)
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 100.0])
def test_settings_at_their_ends_draw_in_silence(extreme: dict[str, Any], temperature: float) -> None:
    sampling = Sampling(temperature=temperature, presence_penalty=100, frequency_penalty=-100, seed=1, **extreme)
    sampler = Sampler(sampling, prompt=[0, 1, 2])
    for _ in range(20):
        sampler.accept(sampler.sample(np.array([1e4, -1e4, 0.0, 5.0], np.float32)))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"temperature": math.nan}, "temperature=nan: use a number from 0"),
        ({"temperature": -1}, "temperature=-1: use"),
        ({"temperature": math.inf}, "temperature=inf: use"),
        ({"temperature": "hot"}, "temperature='hot': use"),
        ({"temperature": True}, "temperature=True: use"),
        ({"top_k": -1}, "top_k=-1: use a whole number"),
        ({"top_k": 1.5}, "top_k=1.5: use a whole number"),
        ({"top_p": 0}, "top_p=0: use a number above 0"),
        ({"top_p": 1.1}, "top_p=1.1: use"),
        ({"top_p": math.nan}, "top_p=nan: use"),
        ({"min_p": -0.1}, "min_p=-0.1: use"),
        ({"min_p": 2}, "min_p=2: use"),
        ({"repetition_penalty": 0}, "repetition_penalty=0: use a number from 0.01 to 100"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty=1e-300: use a number from 0.01 to 100"),
        ({"logit_bias": {1: 1e300}}, r"logit_bias\[1\]=1e\+300: use .* from -10000 to 10000, or -inf"),
        ({"logit_bias": {1: 10**400}}, r"logit_bias\[1\]=1000+: use a token id and a number"),
        ({"logit_bias": {2**70: 1.0}}, r"logit_bias\[1180591620717411303424\]=1.0: use a token id"),
        ({"repetition_penalty": math.nan}, "repetition_penalty=nan: use"),
        ({"repetition_window": -2}, "repetition_window=-2: use a whole number of tokens"),
        ({"presence_penalty": math.inf}, "presence_penalty=inf: use"),
        ({"frequency_penalty": math.nan}, "frequency_penalty=nan: use"),
        ({"seed": 1.5}, "seed=1.5: use a whole number"),
        ({"logit_bias": {-1: 2.0}}, r"logit_bias\[-1\]=2.0: use a token id and a number"),
        ({"logit_bias": {1: math.nan}}, r"logit_bias\[1\]=nan: use"),
        ({"logit_bias": {1: math.inf}}, r"logit_bias\[1\]=inf: use"),
        ({"logit_bias": [1]}, r"logit_bias=\[1\]: use a mapping"),
    ],
)
def test_every_fault_is_told(fault: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Sampling(**fault)  # type: ignore[arg-type]


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"temperature=-1: .*; top_p=2: .*; seed='x': "):
        Sampling(temperature=-1, top_p=2, seed="x")  # type: ignore[arg-type]


def test_logprobs_are_those_of_the_softmax() -> None:
    logits = logits_of(1, 500)
    p = np.log(softmax(logits))
    np.testing.assert_allclose(token_logprobs(logits[None], np.array([17]))[0], p[17], rtol=1e-5)
    best = top_logprobs(logits, 5)
    assert [token for token, _ in best] == np.argsort(-p, kind="stable")[:5].tolist()
    np.testing.assert_allclose([value for _, value in best], np.sort(p)[::-1][:5], rtol=1e-5)
    assert top_logprobs(logits, 0) == []
    assert len(top_logprobs(logits[:3], 10)) == 3
    assert [t for t, _ in top_logprobs(np.zeros(9, np.float32), 2)] == [0, 1]


def _best_of(call: Callable[[], object], times: int = 30) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)


def test_a_large_vocabulary_is_never_sorted() -> None:
    """Against the sort that a plain sampler does, in the same run."""
    logits = logits_of(2, 262_144)
    sort = _best_of(lambda: np.argsort(logits), 3)
    assert _best_of(lambda: Sampler(Sampling()).sample(logits)) < sort / 20
    for s in (Sampling(temperature=0.8, top_k=40), Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)):
        assert _best_of(lambda s=s: Sampler(s).sample(logits)) < sort / 2  # type: ignore[misc]
