"""The knapsack against brute force, its bound, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from genmote.compress import allocate as knapsack
from genmote.compress.allocate import Option, allocate, least_bytes
from genmote.errors import BudgetError, SpecError

Options = dict[str, list[Option]]


def some(seed: int, matrices: int = 6, most: int = 5, unit: int = 18, *, falling: bool = False) -> Options:
    """Options as chance wills; `falling`: more bytes hurt less, as tensor types do."""
    rng = np.random.default_rng(seed)
    made: Options = {}
    for number in range(matrices):
        count = int(rng.integers(1, most + 1))
        sizes = unit * rng.integers(1, 40, count)
        damages = rng.exponential(1.0, count)
        if falling:
            sizes, damages = np.sort(sizes), np.sort(damages)[::-1]
        made[f"blk.{number}"] = [
            Option(f"T{i}", int(s), float(d)) for i, (s, d) in enumerate(zip(sizes, damages, strict=True))
        ]
    return made


def brute(options: Options, budget: int) -> float:
    """The least damage of all allocations that fit."""
    sums = (
        sum(option.damage for option in each)
        for each in itertools.product(*options.values())
        if sum(option.bytes for option in each) <= budget
    )
    return min(sums)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_no_allocation_is_better(seed: int, falling: bool) -> None:
    options = some(seed, falling=falling)
    least = least_bytes(options)
    most = sum(max(option.bytes for option in each) for each in options.values())
    for budget in np.linspace(least, most + 10, 7).astype(int).tolist():
        found = allocate(options, budget)
        wanted = brute(options, budget)
        assert found.exact
        assert found.damage == pytest.approx(wanted, abs=1e-9)
        assert found.bytes == sum(option.bytes for option in found.chosen.values()) <= budget
        assert all(found.chosen[name] in each for name, each in options.items())
        assert list(found.chosen) == list(options)
        assert found.bound <= wanted + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_a_coarse_table_fits_and_tells_how_far_off_it_may_be(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "CELLS", 40)
    options = some(seed, unit=1001, falling=True)
    least = least_bytes(options)
    budget = least + 60_000
    found = allocate(options, budget)
    wanted = brute(options, budget)
    assert not found.exact and found.bytes <= budget
    assert found.bound - 1e-9 <= wanted <= found.damage + 1e-9
    assert wanted <= allocate(options, least).damage  # so that the rest of the test says something


def test_the_bound_is_tight_where_a_whole_step_fills_the_budget() -> None:
    options = {"a": [Option("small", 10, 4.0), Option("large", 20, 1.0)], "b": [Option("small", 10, 2.0)]}
    assert allocate(options, 30).bound == pytest.approx(3.0)
    assert allocate(options, 25).bound == pytest.approx(4.5)  # half of the step
    assert allocate(options, 25).damage == pytest.approx(6.0)


def test_a_model_of_many_matrices_is_within_a_permille_of_the_bound() -> None:
    """As many as SmolLM2 has, in a second."""
    options = some(1, matrices=211, most=9, unit=6912, falling=True)
    budget = 2 * least_bytes(options)
    found = allocate(options, budget)
    assert found.exact
    assert found.bound <= found.damage <= 1.001 * found.bound


def test_what_does_not_fit_is_refused_with_the_least() -> None:
    options = {"a": [Option("Q4_0", 18, 1.0)], "b": [Option("Q4_0", 18, 1.0), Option("Q8_0", 34, 0.5)]}
    with pytest.raises(BudgetError, match="the smallest options take 36 bytes together, the budget is 35") as fault:
        allocate(options, 35)
    assert fault.value.least_bytes == 36
    assert allocate(options, 36).bytes == 36


def test_a_matrix_without_options_is_refused() -> None:
    with pytest.raises(SpecError, match="blk.0 has no option"):
        allocate({"blk.0": []}, 10)


def test_a_damage_that_is_no_number_is_refused() -> None:
    with pytest.raises(SpecError, match="blk.0 as Q4_0: damage=nan is no finite number"):
        allocate({"blk.0": [Option("Q4_0", 18, float("nan"))]}, 100)
