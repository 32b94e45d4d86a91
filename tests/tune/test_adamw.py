"""AdamW with averages in eight bits, against the same in float32."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.tune.adamw import BLOCK, SIGNED, SQUARES, AdamW, Levels


class Plain:
    """AdamW in float64, as the paper has it."""

    def __init__(self, betas: tuple[float, float], decay: float) -> None:
        self.betas, self.decay, self.m, self.v = betas, decay, 0.0, 0.0

    def update(self, x: np.ndarray, g: np.ndarray, rate: float, step: int) -> None:
        b1, b2 = self.betas
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        x -= rate * (self.m / (1 - b1**step) / (np.sqrt(self.v / (1 - b2**step)) + 1e-8) + self.decay * x)


@pytest.mark.parametrize("levels", [SIGNED, SQUARES])
def test_levels_keep_a_number_on_average_and_within_a_level(levels: Levels) -> None:
    rng = np.random.default_rng(0)
    x = (10.0 ** rng.uniform(-4, 3, (64, BLOCK))).astype(np.float32)
    x[3] = 0
    x[5, :7] = 0
    total = np.zeros(x.shape)
    for _ in range(400):
        codes, scale = levels.encode(x, rng.random(x.shape, np.float32))
        got = levels.decode(codes, scale)
        assert not got[3].any() and not got[5, :7].any()
        above = x > 1e-5 * scale
        ratio = levels.values[-1] / levels.values[-2]
        assert (np.abs(np.log(got[above] / x[above])) < np.log(ratio) * 1.01).all()
        total += got
    assert np.allclose(total / 400, x, rtol=0.02, atol=1e-5 * float(x.max()))


def test_the_largest_of_a_block_is_kept_exactly() -> None:
    x = np.abs(np.random.default_rng(1).standard_normal((5, BLOCK))).astype(np.float32)
    codes, scale = SIGNED.encode(x, np.full(x.shape, 0.999, np.float32))
    assert np.array_equal(SIGNED.decode(codes, scale).max(axis=-1), x.max(axis=-1))


def learn(update: object, steps: int = 300) -> tuple[np.ndarray, float]:
    """A regression with noise in its gradients and columns of very different size, step by step."""
    rng = np.random.default_rng(2)
    x, truth = rng.standard_normal((512, 300)) * 10.0 ** rng.uniform(-2, 0.5, 300), rng.standard_normal(300)
    y = x @ truth
    w = np.zeros(300, np.float32)
    for step in range(1, steps + 1):
        rows = rng.integers(0, 512, 32)
        g = (x[rows].T @ (x[rows] @ w - y[rows]) / 32).astype(np.float32)
        update(w, g, 0.02, step)  # type: ignore[operator]
    return w, float(np.square(x @ w - y).mean())


def test_it_learns_as_well_as_with_averages_in_full() -> None:
    for decay in (0.0, 0.1):
        plain = Plain((0.9, 0.999), decay)
        wanted, loss = learn(plain.update)
        eight = AdamW(decay=decay)
        got, found = learn(lambda w, g, rate, step, of=eight: of.update("w", w, g, rate, step))
        assert found < 1.1 * loss
        assert np.abs(got - wanted).mean() < 0.05 * np.abs(wanted).mean()
        assert float(got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted)) > 0.995


def test_one_step_is_the_rate_in_the_gradient_s_direction() -> None:
    x, g = np.zeros((3, 50), np.float32), np.random.default_rng(3).standard_normal((3, 50)).astype(np.float32)
    AdamW().update("x", x, g, 0.5, 1)
    np.testing.assert_allclose(x, -0.5 * np.sign(g), rtol=1e-4)


def test_the_same_seed_gives_the_same_bits_and_a_state_goes_on() -> None:
    rng = np.random.default_rng(4)
    gradients = rng.standard_normal((6, 1000)).astype(np.float32)
    whole, first, second = AdamW(seed=5), AdamW(seed=5), AdamW(seed=5)
    x, y = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    for step, g in enumerate(gradients, 1):
        whole.update("a", x, g, 0.1, step)
    for step, g in enumerate(gradients[:3], 1):
        first.update("a", y, g, 0.1, step)
    second.states = first.states
    for step, g in enumerate(gradients[3:], 4):
        second.update("a", y, g, 0.1, step)
    assert np.array_equal(x, y)
    other = AdamW(seed=6)
    z = np.zeros(1000, np.float32)
    for step, g in enumerate(gradients, 1):
        other.update("a", z, g, 0.1, step)
    assert not np.array_equal(x, z)
    assert sum(array.nbytes for array in whole.states["a"].values()) < 2.1 * 1024


def test_an_array_larger_than_what_is_gone_through_at_once() -> None:
    from genmote.tune import adamw

    g = np.random.default_rng(7).standard_normal(2 * adamw.AT_ONCE + 77).astype(np.float32)
    x, plain, eight = np.zeros_like(g), Plain((0.9, 0.999), 0.0), AdamW()
    wanted = np.zeros(g.size)
    for step in range(1, 4):
        eight.update("x", x, g, 0.1, step)
        plain.update(wanted, g.astype(np.float64), 0.1, step)
    assert np.abs(x - wanted).mean() < 0.01
