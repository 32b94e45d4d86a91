"""GPTQ and coordinate descent against their definitions, and against every choice that there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from genmote.compress import solve, sparse
from genmote.compress.grid import Grid, has_zero
from genmote.ops import quant

QUANTISED = [name for name in quant.codec_names() if quant.TYPES[name].block_size > 1]
COARSE = [name for name in QUANTISED if quant.TYPES[name].bits_per_weight < 6]
ZEROS = [name for name in QUANTISED if has_zero(name)]


def problem(rows: int, cols: int, seed: int = 0, inputs: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix (rows, cols), and the damped second moment of inputs that depend on one another, as real ones do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((cols, cols)) * 0.8 ** np.abs(np.subtract.outer(np.arange(cols), np.arange(cols)))
    x = rng.standard_normal((inputs or 4 * cols, cols)) @ mixed * rng.exponential(1.0, cols)
    weight = torch.from_numpy(rng.standard_normal((rows, cols)).astype(np.float32))
    hessian = torch.from_numpy((x.T @ x / len(x)).astype(np.float32))
    return weight, solve.damped(hessian, 0.01)


def slow_gptq(weight: np.ndarray, h: np.ndarray, grid: Grid, gone: np.ndarray | None = None) -> np.ndarray:
    """The definition: round the columns by falling second moment, those that are gone to zero; after each, the columns
    that are left become what is best of all real numbers, given what was rounded. Solved anew each time, row by row, in
    float64."""
    rows, cols = weight.shape
    order = np.argsort(-np.diag(h), kind="stable")
    codes = np.zeros((cols, rows))
    for row in range(rows):
        now = weight[row].copy()
        error = np.zeros(cols)
        for place, column in enumerate(order):
            code = grid.nearest(torch.full((rows,), float(now[column])), int(column) // grid.group)
            if gone is not None and gone[row, column]:
                code = torch.zeros(rows)
            codes[column, row] = code[row]
            error[column] = float(grid.value(code, int(column) // grid.group)[row]) - weight[row, column]
            done, left = order[: place + 1], order[place + 1 :]
            now[left] = weight[row, left] - np.linalg.solve(h[np.ix_(left, left)], h[np.ix_(left, done)] @ error[done])
    return codes


@pytest.mark.parametrize("name", QUANTISED)
def test_gptq_is_its_definition(name: str) -> None:
    cols = max(64, quant.TYPES[name].block_size)
    weight, hessian = problem(2, cols)
    grid = Grid(name, weight, hessian.diagonal())
    fast = solve.gptq(weight.T.contiguous(), hessian, grid)
    slow = slow_gptq(weight.double().numpy(), hessian.double().numpy(), grid)
    assert np.array_equal(fast.numpy(), slow)


@pytest.mark.parametrize("name", ZEROS)
def test_gptq_with_zeros_that_stay_is_its_definition(name: str) -> None:
    weight, hessian = problem(2, max(64, quant.TYPES[name].block_size))
    gone = torch.from_numpy(np.random.default_rng(1).random(weight.shape) < 0.5)
    grid = Grid(name, weight.masked_fill(gone, 0.0), hessian.diagonal())
    fast = solve.gptq(weight.T.contiguous(), hessian, grid, gone.T.contiguous())
    slow = slow_gptq(weight.double().numpy(), hessian.double().numpy(), grid, gone.numpy())
    assert np.array_equal(fast.numpy(), slow)


@pytest.mark.parametrize("name", ZEROS)
def test_zeros_stay_and_the_others_make_them_good(name: str) -> None:
    """Better than rounding what was pruned to the nearest, and in the end no single change of the others helps."""
    weight, hessian = problem(16, 256, seed=3)
    left = sparse.sparsegpt(weight, hessian, 0.5, (2, 4), 0.01)
    gone, goal = (left == 0).T.contiguous(), weight.T.contiguous()
    grid = Grid(name, weight.masked_fill(gone.T, 0.0), hessian.diagonal())
    codes = solve.gptq(goal, hessian, grid, gone)
    solve.descend(goal, hessian, grid, codes, 40, gone)
    stored = solve.values(codes, grid)
    assert torch.equal(stored == 0, (stored == 0) | gone)
    nearest = torch.from_numpy(quant.dequantize(name, quant.quantize(name, left.numpy()), left.shape))
    assert solve.mean_square(stored - goal, hessian) < 0.9 * solve.mean_square(nearest.T - goal, hessian)
    h, error = hessian.double(), (stored - goal).double()
    best = (error * (h @ error)).sum(0)
    for column in range(len(codes)):
        step = grid.value(grid.levels[:, None], column // grid.group) - stored[column]  # (levels, rows)
        change = 2 * step * (h @ error)[column] + step**2 * h[column, column]
        assert (change > -1e-5 * best)[:, ~gone[column]].all(), column
    assert gone.float().mean() == 0.5


def test_which_types_have_a_zero() -> None:
    """Those that store a matrix's zeros as zeros."""
    weight = problem(4, 256)[0].numpy()
    weight[:, ::3] = 0
    for name in quant.codec_names():
        stored = quant.dequantize(name, quant.quantize(name, weight), weight.shape)
        assert has_zero(name) == bool((stored[:, ::3] == 0).all()), name


@pytest.mark.parametrize("name", QUANTISED)
def test_each_way_is_better_than_the_one_before(name: str) -> None:
    weight, hessian = problem(48, 256, seed=1)
    grid = Grid(name, weight, hessian.diagonal())
    goal = weight.T.contiguous()
    size = grid.group
    nearest = torch.cat([grid.nearest(goal[g * size : (g + 1) * size], g) for g in range(len(grid.scale))])
    codes = solve.gptq(goal, hessian, grid)
    found = [solve.error(goal, hessian, nearest, grid), solve.error(goal, hessian, codes, grid)]
    for _ in range(3):
        solve.descend(goal, hessian, grid, codes, 1)
        found.append(solve.error(goal, hessian, codes, grid))
    assert found[1] < 0.7 * found[0] and found == sorted(found, reverse=True), found
    assert found[-1] < 0.99 * found[1], found
    # What was solved for is what is stored.
    stored = quant.dequantize(name, grid.bytes(codes), weight.shape)
    assert np.array_equal(stored, solve.values(codes, grid).T.numpy())


@pytest.mark.parametrize("name", COARSE)
def test_descent_ends_where_no_single_change_helps(name: str) -> None:
    """Every other level of every code, and the neighbours of every scale and offset, tried one at a time."""
    weight, hessian = problem(2, max(64, quant.TYPES[name].block_size), seed=2)
    goal = weight.T.contiguous().double()
    grid = Grid(name, weight, hessian.diagonal())
    codes = solve.gptq(goal.float(), hessian, grid)
    solve.descend(goal.float(), hessian, grid, codes, 40)
    h = hessian.double()

    def errors(matrix: torch.Tensor) -> torch.Tensor:
        e = matrix.double() - goal
        return (e * (h @ e)).sum(0)  # of each row

    now = solve.values(codes, grid).double()
    best, slope = errors(now), h @ (now - goal)
    for column in range(len(codes)):
        step = grid.value(grid.levels[:, None], column // grid.group) - now[column]  # (levels, rows)
        change = 2 * step * slope[column] + step**2 * h[column, column]  # of a quadratic, exactly
        assert (change > -1e-5 * best).all(), column
    for group in range(len(grid.scale)):
        for part in ("scale", "offset"):
            stored = grid.scale if part == "scale" else grid.offset
            if stored is None:
                continue
            before = stored[group].clone()
            for factor in (0.9, 0.97, 0.999, 1.001, 1.03, 1.1):
                grid.move(group, **{part: before * factor})
                assert (errors(solve.values(codes, grid)) > best * (1 - 1e-5)).all(), (part, factor)
            grid.move(group, **{part: before})
    for block in range(len(grid.unit) if grid.factor is not None else 0):
        for part in ("unit", "base"):
            stored = getattr(grid, part)
            if stored is None:
                continue
            before = stored[block].clone()
            for factor in (0.97, 0.999, 1.001, 1.03):
                grid.move_block(block, **{part: before * factor})
                assert (errors(solve.values(codes, grid)) > best * (1 - 1e-5)).all(), (part, factor)
            grid.move_block(block, **{part: before})


def test_close_to_the_best_of_all_codes() -> None:
    """Brute force: four columns of a group matter, and all 16**4 codes of them are tried."""
    ratios = []
    for seed in range(12):
        weight, _ = problem(1, 32, seed)
        _, live = problem(1, 4, seed)
        hessian = torch.eye(32)
        hessian[:4, :4] = live
        weight[:, 4:] = 0  # exactly on the grid
        weight[0, 4] = 3.0  # fixes the scale
        grid = Grid("Q4_0", weight, hessian.diagonal())
        goal = weight.T.contiguous()
        codes = solve.gptq(goal, hessian, grid)
        solve.descend(goal, hessian, grid, codes, 0)
        tried = torch.tensor(list(itertools.product(range(-8, 8), repeat=4))) * grid.scale[0, 0] - weight[0, :4]
        best = (tried @ live * tried).sum(1).min()
        mine = solve.values(codes, grid)[:4, 0] - weight[0, :4]
        ratios.append(float(mine @ live @ mine / best))
    assert min(ratios) >= 1 - 1e-4 and np.mean(ratios) < 1.3, ratios


def test_the_target_is_the_least_squares_solution() -> None:
    """Against a solver of the stacked equations: the outputs, and as many more as hold the weights where they are."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 24))
    original = rng.standard_normal((200, 24))
    now = original + 0.3 * rng.standard_normal((200, 24))
    lack = rng.standard_normal((200, 5))
    hessian, cross, owed = (torch.from_numpy((a.T @ now / 200).astype(np.float32)) for a in (now, original, lack))
    squares = np.diag(now.T @ now / 200)
    for more, ridge in ((None, 0.0), (owed, 0.0), (owed, 0.3)):
        h = solve.damped(hessian, 0.05, ridge)
        found = solve.target(torch.from_numpy(weight).float(), hessian, cross, h, more)
        hold = np.diag(np.sqrt(0.05 * squares.mean() + ridge * squares))
        wanted = original @ weight.T + (0 if more is None else lack)
        left = np.concatenate([now / np.sqrt(200), hold])
        right = np.concatenate([wanted / np.sqrt(200), hold @ weight.T])
        assert np.allclose(found.numpy(), np.linalg.lstsq(left, right, rcond=None)[0].T, atol=2e-4)


def test_columns_without_inputs_are_rounded_to_nearest() -> None:
    weight, _ = problem(3, 64)
    nothing = torch.zeros(64, 64)
    hessian = solve.damped(nothing, 0.01)
    grid = Grid("Q4_0", weight, hessian.diagonal())
    codes = solve.gptq(weight.T.contiguous(), hessian, grid)
    nearest = torch.cat([grid.nearest(weight.T[g * 32 : (g + 1) * 32], g) for g in range(2)])
    assert torch.equal(codes, nearest)
    assert torch.equal(solve.target(weight, nothing, nothing, solve.damped(nothing, 0.01)), weight)
