"""The optimal brain surgeon against plain definitions: least squares for each set of columns, exhaustive search."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from genmote.compress.surgeon import damped, fitted, removal, root, shared_out
from genmote.errors import SpecError

DAMP = 0.01


def problem(out: int = 5, cols: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=draw, dtype=torch.float64)
    rows = torch.randn(200, cols, generator=draw, dtype=torch.float64) @ mix
    return torch.randn(out, cols, generator=draw, dtype=torch.float64), rows.T @ rows / 200


def least(weight: torch.Tensor, hessian: torch.Tensor, gone: list[int]) -> float:
    """The least that tr(D H D^T) / 2 can be where W + D has zeros in the columns `gone`."""
    wide = damped(hessian, DAMP)
    stay = [c for c in range(weight.shape[1]) if c not in gone]
    new = torch.zeros_like(weight)
    new[:, stay] = torch.linalg.solve(wide[stay][:, stay], (weight @ wide[:, stay]), left=False)
    change = new - weight
    return float((change @ wide * change).sum() / 2)


@pytest.mark.parametrize(("size", "at_once"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_damage_is_what_least_squares_leave_behind(size: int, at_once: int) -> None:
    weight, hessian = problem()
    count = 12 // size - 1
    found = removal(weight, hessian, count, size=size, at_once=at_once, damp=DAMP)
    assert len(set(found.order.tolist())) == count
    for n in range(count + 1):
        gone = [g * size + c for g in found.order[:n].tolist() for c in range(size)]
        assert float(found.damage[n]) == pytest.approx(least(weight, hessian, gone), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [1, 3])
def test_each_choice_is_the_cheapest_one(size: int) -> None:
    weight, hessian = problem(seed=1)
    found = removal(weight, hessian, 12 // size - 1, size=size, damp=DAMP)
    gone: list[int] = []
    for group in found.order.tolist():
        left = [g for g in range(12 // size) if g * size not in gone]
        costs = {g: least(weight, hessian, gone + [g * size + c for c in range(size)]) for g in left}
        assert costs[group] == pytest.approx(min(costs.values()), rel=1e-9)
        gone += [group * size + c for c in range(size)]


def test_inputs_that_are_never_used_go_first_and_cost_nothing() -> None:
    weight, hessian = problem()
    hessian[[2, 7]] = 0
    hessian[:, [2, 7]] = 0
    found = removal(weight, hessian, 5, damp=1e-9)
    assert set(found.order[:2].tolist()) == {2, 7}
    assert float(found.damage[2]) < 1e-6 < float(found.damage[3])


def test_damage_in_the_gradients_metric_is_the_growth_of_a_quadratic_loss() -> None:
    """With L^T W for W: half the mean over g and x of (g^T D x)^2 where they are independent."""
    weight, hessian = problem()
    moments = problem(cols=5, seed=3)[1]
    metric = root(moments, damp=0.0)
    found = removal(metric @ weight, hessian, 4, damp=DAMP)
    stay = [c for c in range(12) if c not in found.order.tolist()]
    wide = damped(hessian, DAMP)
    change = -weight.clone()
    change[:, stay] += torch.linalg.solve(wide[stay][:, stay], weight @ wide[:, stay], left=False)
    wanted = torch.trace(moments @ change @ wide @ change.T) / 2
    assert float(found.damage[-1]) == pytest.approx(float(wanted), rel=1e-6)


def test_a_fit_is_least_squares() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, n, generator=draw, dtype=torch.float64) for n in (8, 4))
    start = torch.randn(4, 8, generator=draw, dtype=torch.float64)
    hessian, target = x.T @ x / 300, y.T @ x / 300
    wanted = torch.linalg.lstsq(x, y).solution.T
    assert torch.allclose(fitted(start, hessian, target, damp=0.0).double(), wanted, atol=1e-5)
    pulled = fitted(start, hessian, target, damp=1e9)
    assert torch.allclose(pulled.double(), start, atol=1e-5)


def test_units_are_shared_out_as_exhaustive_search_would() -> None:
    draw = torch.Generator().manual_seed(2)
    rising = [torch.cat([torch.zeros(1), torch.rand(5, generator=draw).sort().values.cumsum(0)]) for _ in range(3)]
    curves = [list(enumerate(costs.tolist())) for costs in rising]
    for units in range(16):
        taken = shared_out(curves, units)
        assert sum(taken) == units
        assert cost(curves, taken) == pytest.approx(cheapest(curves, units), rel=1e-6)


def test_curves_of_any_shape_are_shared_out_nearly_as_well() -> None:
    """Such as those of ranks: nothing is saved until much is lost. No dearer than the best that saves a step more."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        curves = []
        for _ in range(3):
            saved, costs = np.sort(draw.choice(np.arange(1, 40), 4, replace=False)), np.sort(draw.random(4))
            curves.append([(0, 0.0), *zip(saved.tolist(), costs.tolist(), strict=True)])
        most = sum(curve[-1][0] for curve in curves)
        for goal in range(1, most + 1, 7):
            taken = shared_out(curves, goal)
            assert sum(curve[n][0] for curve, n in zip(curves, taken, strict=True)) >= goal
            longest = max(b[0] - a[0] for curve in curves for a in curve for b in curve)
            assert cost(curves, taken) <= cheapest(curves, min(most, goal + longest)) + 1e-9


def cost(curves: list[list[tuple[int, float]]], taken: Sequence[int]) -> float:
    return sum(curve[n][1] for curve, n in zip(curves, taken, strict=True))


def cheapest(curves: list[list[tuple[int, float]]], goal: int) -> float:
    choices = itertools.product(*(range(len(curve)) for curve in curves))
    return min(
        cost(curves, choice)
        for choice in choices
        if sum(curve[n][0] for curve, n in zip(curves, choice, strict=True)) >= goal
    )


def test_what_cannot_be_is_told() -> None:
    weight, hessian = problem()
    with pytest.raises(SpecError, match="12 of 12 groups of columns to remove: leave at least one"):
        removal(weight, hessian, 12)
    with pytest.raises(SpecError, match="not finite"):
        removal(weight, hessian * float("nan"), 1)
    with pytest.raises(SpecError, match="3 are to go, the layers can give up 2"):
        shared_out([[(0, 0.0), (2, 1.0)]], 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_told(value: float) -> None:
    hessian = torch.eye(4)
    hessian[2, 2] = value
    with pytest.raises(SpecError, match="the inputs on the calibration text are not finite numbers"):
        damped(hessian, 0.01)
