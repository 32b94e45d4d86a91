"""Each score against a slow, plain definition, or a value that is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from genmote.generator.scores import compression, detection, forecast, generation, imputation, leakage, rocket
from genmote.signals.kinds import MISSING


def autoregressive(count: int, steps: int, phi: float, seed: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, steps, channels)).astype(np.float32)
    for n in range(1, steps):
        drawn[:, n] = phi * drawn[:, n - 1] + (1 - phi**2) ** 0.5 * drawn[:, n]
    return drawn


def test_auroc_and_auprc_are_what_counting_gives() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 12, 200).astype(np.float64), rng.random(200) < 0.3  # with many ties
    pairs = list(itertools.product(scores[truth], scores[~truth]))
    counted = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert detection.auroc(scores, truth) == pytest.approx(counted, abs=1e-12)
    precise, recall = 0.0, 0.0
    for at in sorted(set(scores), reverse=True):
        found = scores >= at
        now = (found & truth).sum() / truth.sum()
        precise += (now - recall) * (found & truth).sum() / found.sum()
        recall = now
    assert detection.auprc(scores, truth) == pytest.approx(precise, abs=1e-12)
    assert math.isnan(detection.auroc(scores, truth & False)) and math.isnan(detection.auprc(scores, truth & False))


def test_f1_at_a_threshold() -> None:
    found = detection.f1(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]), 2.5)
    assert found == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert detection.f1(np.zeros(3), np.array([True, False, True]), 1.0) == {"precision": 0, "recall": 0, "f1": 0}


def test_the_z_distance() -> None:
    clean = np.array([[0.0, 5.0], [2.0, 5.0], [np.nan, 5.0]])
    values = np.array([[1.0, 5.0], [3.0, 7.0], [np.nan, 5.0]])
    assert detection.z_distance(values, clean).tolist() == [0.0, 2.0, 0.0]


def test_crps_is_close_to_the_normal_distribution_s_closed_form() -> None:
    """Gneiting & Raftery 2007, (20): σ (z (2Φ(z) - 1) + 2φ(z) - 1/√π); nine quantiles come within a tenth of it."""
    rng = np.random.default_rng(0)
    samples = rng.normal(3.0, 2.0, (200_000, 1, 1))
    quantiles = forecast.quantiles(samples)
    for y in (3.0, 4.5, -1.0):
        z = (y - 3.0) / 2.0
        cumulative, density = 0.5 * (1 + math.erf(z / 2**0.5)), math.exp(-z * z / 2) / (2 * math.pi) ** 0.5
        exact = 2.0 * (z * (2 * cumulative - 1) + 2 * density - 1 / math.pi**0.5)
        assert forecast.crps(np.array([[y]]), quantiles)[0, 0] == pytest.approx(exact, rel=0.12)
    sure = np.full((9, 1, 1), 7.0)
    assert forecast.crps(np.array([[5.5]]), sure)[0, 0] == pytest.approx(1.5), "of one value: the absolute error"


def test_crps_is_least_for_the_quantiles_of_what_comes() -> None:
    rng = np.random.default_rng(1)
    actual = rng.normal(0, 1, (5000, 1))
    right = forecast.quantiles(rng.normal(0, 1, (9999, 1, 1)))
    losses = [
        forecast.crps(actual, right * wide + shift).mean() for wide, shift in ((1, 0), (2, 0), (0.5, 0), (1, 0.5))
    ]
    assert np.argmin(losses) == 0


def test_mase_is_one_for_the_naive_forecast() -> None:
    history = np.cumsum(np.random.default_rng(0).standard_normal((3000, 2)), axis=0)
    scale = forecast.seasonal_scale(history, 1)
    assert scale == pytest.approx([np.mean([abs(a - b) for a, b in itertools.pairwise(c)]) for c in history.T])
    off = np.abs(history[2:] - history[1:-1]) / scale
    assert off.mean() == pytest.approx(1, abs=0.01)
    with_gap = history.copy()
    with_gap[7] = np.nan
    assert np.isfinite(forecast.seasonal_scale(with_gap, 1)).all()
    assert np.isnan(forecast.seasonal_scale(np.ones((10, 1)), 1)).all(), "nothing ever changes"
    assert np.isnan(forecast.seasonal_scale(history[:4], 4)).all(), "no season"


def test_coverage_counts_what_is_there() -> None:
    quantiles = np.repeat(forecast.LEVELS[:, None, None], 3, axis=1)
    found = forecast.covered(np.array([[0.5], [0.95], [np.nan]]), quantiles)
    assert found[:2, 0].tolist() == [1, 0] and np.isnan(found[2, 0])


def test_the_seasonal_naive_forecast() -> None:
    season = np.array([1.0, 5.0, 2.0])
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.5, 3000)
    history = (np.tile(season, 1000) + noise)[:, None]
    found = forecast.seasonal_naive(history, 6, 3)
    assert found.shape == (9, 6, 1)
    assert found[4, :, 0] == pytest.approx(np.tile(history[-3:, 0], 2))
    for ahead, part in ((3, slice(0, 3)), (6, slice(3, 6))):
        off = history[ahead:] - history[:-ahead]
        either = np.concatenate([off, -off])
        for level, at in ((0.1, 0), (0.8, 7)):
            assert found[at, part, 0] == pytest.approx(history[-3:, 0] + np.quantile(either, level))
    # A random walk's interval widens, and covers four in five.
    walks = np.cumsum(rng.standard_normal((400, 220)), axis=1)[..., None]
    inside = [forecast.covered(w[200:], forecast.seasonal_naive(w[:200], 20, 1)) for w in walks]
    assert np.mean(inside) == pytest.approx(0.8, abs=0.05)


def test_the_seasonal_naive_forecast_of_a_short_or_gappy_history() -> None:
    found = forecast.seasonal_naive(np.array([[2.0], [np.nan]]), 5, 3)
    assert found.shape == (9, 5, 1) and (found == 2).all()
    assert forecast.forward_filled(np.array([[np.nan, np.nan], [1, np.nan], [np.nan, np.nan]])).tolist() == [
        [1, 0],
        [1, 0],
        [1, 0],
    ]


def test_gaps_are_filled_plainly_and_judged() -> None:
    actual = np.array([[0.0, 9], [1, 9], [5, 9], [3, 9], [4, 9]])
    holed = actual.copy()
    holed[1:4] = np.nan
    assert imputation.linear(holed)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert imputation.last(holed)[:, 0].tolist() == [0, 0, 0, 0, 4]
    assert imputation.absolute_error(actual, imputation.linear(holed), slice(1, 4)).tolist() == [1, 0]
    assert imputation.absolute_error(actual, imputation.last(holed), slice(1, 4)).tolist() == [3, 0]
    actual[1:4, 1] = np.nan
    assert np.isnan(imputation.absolute_error(actual, imputation.linear(holed), slice(1, 4))[1])


def test_the_convolutions_are_what_their_definition_gives() -> None:
    windows = autoregressive(5, 40, 0.5, 0, channels=3)
    made = rocket.Rocket(windows, features=400, seed=3)
    features = made(windows)
    assert features.shape[0] == 5 and (features >= 0).all() and (features <= 1).all()
    column = 0
    for dilation in made.dilations.tolist():
        for kernel, twos in enumerate(itertools.combinations(range(9), 3)):
            weights = [2 if n in twos else -1 for n in range(9)]
            whole = np.zeros((5, 40))
            for at, place in itertools.product(range(40), range(9)):
                source = at + (place - 4) * dilation
                if 0 <= source < 40:
                    whole[:, at] += weights[place] * windows[:, source][:, made.chosen[dilation, kernel]].sum(axis=1)
            edge = 4 * dilation
            if (kernel + dilation) % 2 and 2 * edge < 40:
                whole = whole[:, edge:-edge]
            for mark in made.thresholds[dilation, kernel]:
                assert features[:, column] == pytest.approx((whole > mark).mean(axis=1), abs=1.01 / whole.shape[1])
                column += 1
    assert column == features.shape[1]


def test_the_ridge_is_the_one_whose_leave_one_out_error_is_least() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 8)).astype(np.float32)
    labels = np.where(x[:, 0] + 0.7 * rng.standard_normal(30) > 0.4, "a", "b")
    ridge = rocket.Ridge(x, labels)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    y = np.where(labels == "a", 1.0, -1.0)

    def solved(rows: np.ndarray, alpha: float) -> np.ndarray:
        wide = np.concatenate([scaled[rows], np.ones((len(rows), 1))], axis=1)
        penalty = alpha * np.diag([1.0] * 8 + [0.0])
        return np.linalg.solve(wide.T @ wide + penalty, wide.T @ y[rows])

    errors = []
    for alpha in rocket.ALPHAS:
        off = []
        for n in range(30):
            weights = solved(np.delete(np.arange(30), n), alpha)
            off.append(y[n] - scaled[n] @ weights[:8] - weights[8])
        errors.append(np.mean(np.square(off)))
    best = solved(np.arange(30), rocket.ALPHAS[int(np.argmin(errors))])
    assert ridge.scores(x)[:, 0] == pytest.approx(scaled @ best[:8] + best[8], abs=1e-4)


def test_training_on_synthetic_windows() -> None:
    def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
        both = np.concatenate([autoregressive(60, 50, 0.2, seed), autoregressive(60, 50, 0.9, seed + 1)])
        return both, np.repeat(["quick", "slow"], 60)

    (train, of), (test, truth) = drawn(0), drawn(10)
    right = generation.right(generation.predicted(train, of, test), truth)
    assert right["accuracy"] > 0.95
    useless = generation.right(generation.predicted(train, of[::-1], test), truth)
    assert useless["accuracy"] < 0.05, "what was learnt is what is told"
    assert set(generation.predicted(train, np.repeat("quick", 120), test)) == {"quick"}


def test_single_rows_are_told_apart_too() -> None:
    rows = np.random.default_rng(0).standard_normal((1200, 1, 2)).astype(np.float32)
    labels = np.where(np.abs(rows[:, 0, 0]) < 0.7, "inside", "outside")  # no straight line tells
    right = generation.right(generation.predicted(rows[:600], labels[:600], rows[600:]), labels[600:])
    assert right["accuracy"] > 0.93


@pytest.mark.slow
def test_the_discriminative_score_is_near_0_for_one_distribution_and_near_half_for_two() -> None:
    a, b, c = autoregressive(200, 40, 0.8, 0), autoregressive(200, 40, 0.8, 1), autoregressive(200, 40, 0.2, 2)
    assert generation.discriminative(a, b, seed=1) < 0.15
    assert generation.discriminative(a, c, seed=1) > 0.45
    assert generation.discriminative(a, b + 3, seed=1) > 0.45
    assert generation.discriminative(a, c, seed=1) == generation.discriminative(a, c, seed=1)


def test_a_discriminator_is_tested_on_what_it_has_not_seen_as_many_of_each() -> None:
    real, made = np.arange(50.0).reshape(-1, 1, 1), 100 + np.arange(30.0).reshape(-1, 1, 1)
    train, of, test, truth = generation.halves(real, made, seed=0)
    assert (of.sum(), len(of), truth.sum(), len(truth)) == (24, 48, 6, 12)
    assert not set(train.ravel()) & set(test.ravel())
    assert ((train.ravel() < 100) == (of == 1)).all() and ((test.ravel() < 100) == (truth == 1)).all()


def test_autocorrelation() -> None:
    windows = autoregressive(3000, 60, 0.7, 0)
    found = generation.autocorrelation(windows, 5)
    assert found[:, 0] == pytest.approx(0.7 ** np.arange(1, 6), abs=0.03)
    plain = [(windows[:, 2:] * windows[:, :-2]).mean() / windows.var()]
    assert found[1, 0] == pytest.approx(plain[0], abs=1e-3)
    assert generation.autocorrelation_distance(windows, windows, 5) == 0
    other = autoregressive(3000, 60, 0.0, 1)
    assert generation.autocorrelation_distance(windows, other, 5) == pytest.approx(np.mean(found), abs=0.02)


def test_the_frechet_distance_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100_000, 2))
    assert generation.frechet(x, x) == pytest.approx(0, abs=1e-9)
    # Independent axes: the squares of the means' and of the spreads' differences.
    y = rng.standard_normal((100_000, 2)) * [3, 0.5] + [1, -2]
    assert generation.frechet(x, y) == pytest.approx(1 + 4 + 4 + 0.25, rel=0.02)
    # It does not hang on the axes: a turn of both leaves it.
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert generation.frechet(x @ turn, y @ turn) == pytest.approx(generation.frechet(x, y), rel=1e-6)


def test_the_nearest_neighbour_is_the_one_that_comparing_all_finds() -> None:
    a, b = autoregressive(300, 20, 0.5, 0, 2), autoregressive(70, 20, 0.5, 1, 2)
    plain = [min(np.sqrt(((x - y) ** 2).mean()) for y in b) for x in a]
    assert leakage.nearest(a, b) == pytest.approx(plain, rel=1e-5)
    assert (leakage.nearest(a, a) == 0).all(), "a copy is found to be one"


def test_membership_inference_on_a_generator_that_copies_and_on_one_that_does_not() -> None:
    train, held_out, fresh = (autoregressive(200, 30, 0.6, seed) for seed in range(3))
    copied = train + np.float32(0.01) * autoregressive(200, 30, 0, 9)
    assert leakage.attack(train, held_out, copied) > 0.98
    assert leakage.attack(train, held_out, fresh) == pytest.approx(0.5, abs=0.05)
    found = leakage.neighbours(copied, train, held_out)
    assert found["synthetic_to_train"] < 0.02 < found["synthetic_to_held_out"] and found["closer_to_train"] > 0.99
    assert found["held_out_to_train"] == pytest.approx(float(np.median(leakage.nearest(held_out, train))))
    found = leakage.neighbours(fresh, train, held_out)
    assert found["closer_to_train"] == pytest.approx(0.5, abs=0.1)


def test_membership_is_measured_where_its_threshold_was_not_chosen() -> None:
    rng = np.random.default_rng(0)
    drawn = [leakage.membership(rng.standard_normal(40), rng.standard_normal(40)) for _ in range(30)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03), "chosen on the same it would be near 0.6"
    members, others = rng.standard_normal(40), rng.standard_normal(40)
    assert leakage.membership(members - 10, others) == 1.0
    assert leakage.membership(members + 10, others) == pytest.approx(0.5, abs=0.05), "what is higher is no member"


def test_whole_numbers_in_the_fewest_bytes_and_back() -> None:
    for low, high, width in ((-128, 127, 1), (-129, 0, 2), (0, 128, 2), (0, 32768, 4), (-(2**31), 0, 4), (0, 2**31, 8)):
        integers = np.array([[low, high]], np.int64)
        assert compression.width(integers) == width
        assert np.frombuffer(compression.plain(integers), f"<i{width}").tolist() == [low, high]
    missing = np.array([[3], [MISSING]], np.int64)
    assert np.frombuffer(compression.plain(missing), np.int8).tolist() == [3, -128]
    assert compression.width(np.array([[MISSING]])) == 1


def test_general_compressors_get_differences_too() -> None:
    ramp = np.arange(5000)[:, None] * np.array([[3, -7]])
    found = compression.peers(ramp)
    assert max(found.values()) < 300 < len(compression.plain(ramp)) / 10
    noise = np.random.default_rng(0).integers(-128, 128, (5000, 1))
    assert min(compression.peers(noise).values()) >= 5000
