"""Codes and scales of one matrix that make its outputs, not its numbers, come out right.

A matrix W (rows, cols) whose inputs have the second moment H (cols, cols) is stored as Q. Each row's mean squared error
at the output is e H e^T, e the row of Q - W. Three ways to make it small:

- `gptq`: round column after column; each column's error is made good in the columns that are still to come (GPTQ,
  Frantar et al. 2022, arXiv 2210.17323, with act-order and static groups).
- `descend`: then change one code after the other to what is best given all others, and each group's scale and offset
  likewise (coordinate descent; QuantEase, Behdin et al. 2023, arXiv 2309.01885): the error only falls.
- `target`: aim not at W but at what makes good what the layers before have spoilt.

Weights that are `gone`, (cols, rows), are held at zero, which is on the grid (`has_zero`), and made good by the others.

Factors of H are computed in float64, the rest is float32. All are transposed, (cols, rows), as in `grid.py`.
"""

from __future__ import annotations

import torch

from genmote.compress.grid import Grid

Tensor = torch.Tensor
BLOCK = 128  # columns whose errors go to the columns after them at once


def damped(hessian: Tensor, damp: float, ridge: float = 0.0) -> Tensor:
    """H with `damp` times its mean diagonal and `ridge` times its diagonal added to the diagonal; with ones where
    nothing ever came in.

    The ridge tells how far what is off the diagonal is believed: of some ten thousand rows of one kind of text many
    correlations are chance, or that text's alone (shrinkage to the diagonal: Schäfer and
    Strimmer 2005, doi 10.2202/1544-6115.1175)."""
    diagonal = hessian.diagonal()
    add = damp * float(diagonal.mean())
    return hessian + torch.diag(ridge * diagonal + (add if add > 0 else 1.0))


def target(weight: Tensor, hessian: Tensor, cross: Tensor, h: Tensor, owed: Tensor | None = None) -> Tensor:
    """The matrix that makes of the inputs at hand what `weight` (rows, cols) made of the original's, and what else the
    output is `owed`: least squares with `cross` the mean of x_original x^T and `owed` (rows, cols) that of the further
    output and x, held to `weight` by what the damped `h` has more than `hessian`."""
    h = h.double()
    add = (h - hessian.double()).diagonal()
    wanted = weight.double() @ (cross.double() + torch.diag(add))
    if owed is not None:
        wanted += owed.double()
    found: Tensor = torch.linalg.solve(h, wanted.T).T.float()
    return found


def gptq(weight_t: Tensor, hessian: Tensor, grid: Grid, gone: Tensor | None = None) -> Tensor:
    """Levels (cols, rows) for a matrix (cols, rows) and a damped hessian, on the scales of `grid`."""
    order = torch.argsort(hessian.diagonal(), descending=True)
    h = hessian[order][:, order].double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).float()  # H^-1 = U^T U
    left = weight_t[order].clone()  # what each column would have to be, given the errors so far
    codes = torch.empty_like(left)
    groups = (order // grid.group).tolist()
    held = None if gone is None else gone[order]
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = torch.empty(end - start, left.shape[1])
        for i in range(start, end):
            codes[i] = grid.nearest(left[i], groups[i])
            if held is not None:
                codes[i].masked_fill_(held[i], 0.0)
            error = (left[i] - grid.value(codes[i], groups[i])) / upper[i, i]
            left[i + 1 : end].addr_(upper[i, i + 1 : end], error, alpha=-1)
            errors[i - start] = error
        left[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    found = torch.empty_like(codes)
    found[order] = codes
    return found


def values(codes: Tensor, grid: Grid) -> Tensor:
    """The matrix (cols, rows) that levels stand for."""
    size = grid.group
    return torch.cat([grid.value(codes[g * size : (g + 1) * size], g) for g in range(len(grid.scale))])


def descend(
    weight_t: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, sweeps: int, gone: Tensor | None = None
) -> None:
    """Change codes and scales in place, `sweeps` times over all columns; the error never grows but by rounding."""
    size = grid.group
    slope = hessian @ (values(codes, grid) - weight_t)  # H e^T, half of the error's derivative
    for _ in range(sweeps):
        if grid.factor is not None:
            for block in range(len(grid.unit)):
                _refit_block(grid, block, codes, hessian, slope)
        for group in range(len(grid.scale)):
            own = slice(group * size, (group + 1) * size)
            before = grid.value(codes[own], group)
            h = hessian[own, own]
            local = slope[own].clone()
            local += h @ (_refit(grid, group, codes[own], h, local) - before)
            local *= grid.inverse[group]  # in levels, as the codes are
            curves = h.diagonal().tolist()
            held = [None] * size if gone is None else gone[own]
            for now, row, line, curve, still in zip(codes[own], local, h, curves, held, strict=True):
                best = grid.level(torch.sub(now, row, alpha=1 / curve))
                if still is not None:
                    best.masked_fill_(still, 0.0)
                local.addr_(line, best - now)
                now.copy_(best)
            slope.addmm_(hessian[:, own], grid.value(codes[own], group) - before)


def _refit(grid: Grid, group: int, codes: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    """The group's best scale, then its best offset, given its codes (size, rows) and everything else; its numbers."""
    before = grid.value(codes, group)
    grid.move(group, scale=grid.scale[group] + _step(codes, h, slope))
    if grid.offset is not None:
        slope = slope + h @ (grid.value(codes, group) - before)
        grid.move(group, offset=grid.offset[group] + _step(torch.ones_like(codes), h, slope))
    return grid.value(codes, group)


def _refit_block(grid: Grid, block: int, codes: Tensor, hessian: Tensor, slope: Tensor) -> None:
    """Likewise what a block's scales, and its offsets, are multiples of; `slope` of all columns follows."""
    assert grid.factor is not None
    own = slice(block * grid.block, (block + 1) * grid.block)
    groups = slice(block * grid.block // grid.group, (block + 1) * grid.block // grid.group)
    h = hessian[own, own]
    for factor, unit in ((grid.factor, "unit"), (grid.base_factor, "base")):
        stored = grid.unit if unit == "unit" else grid.base
        if factor is None or stored is None:
            return
        along = factor[groups].repeat_interleave(grid.group, dim=0)
        along = along * codes[own] if unit == "unit" else -along
        before = stored[block].clone()
        grid.move_block(block, **{unit: before + _step(along, h, slope[own])})
        slope.addmm_(hessian[:, own], along * (stored[block] - before))


def _step(along: Tensor, h: Tensor, slope: Tensor) -> Tensor:
    """How far to go along a direction (n, rows) in a row's numbers for the least error; 0 where it leads nowhere."""
    curve = (along * (h @ along)).sum(0)
    return torch.where(curve > 0, -(along * slope).sum(0) / curve.clamp(min=1e-30), 0.0)


def error(weight_t: Tensor, hessian: Tensor, codes: Tensor, grid: Grid) -> float:
    """Mean squared error at the outputs, summed over them, as a share of the mean square of those that `weight_t`, the
    matrix that is aimed at, makes; both by the hessian given, its damping with it."""
    return mean_square(values(codes, grid) - weight_t, hessian) / max(mean_square(weight_t, hessian), 1e-30)


def mean_square(weight_t: Tensor, hessian: Tensor) -> float:
    """Of the outputs of a matrix (cols, rows), summed over them."""
    return float((weight_t * (hessian @ weight_t)).sum())
