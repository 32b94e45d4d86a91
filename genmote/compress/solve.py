"""Codes and scales of one matrix that make its outputs, not its numbers, come out right.

A matrix W (rows, cols) whose inputs have the second moment H (cols, cols) is stored as Q. Each row's mean squared error
at the output is e H e^T, e the row of Q - W. Three ways to make it small:

- `gptq`: round column after column; each column's error is made good in the columns that are still to come (GPTQ,
  Frantar et al. 2022, arXiv 2210.17323, with act-order and static groups).
- `descend`: then change one code after the other to what is best given all others, and each group's scale and offset
  likewise (coordinate descent; QuantEase, Behdin et al. 2023, arXiv 2309.01885): the error only falls.
- `target`: aim not at W but at what makes good what the layers before have spoilt.

Factors of H are computed in float64, the rest is float32. All are transposed, (cols, rows), as in `grid.py`.
"""

from __future__ import annotations

import torch

from genmote.compress.grid import Grid

Tensor = torch.Tensor
BLOCK = 128  # columns whose errors go to the columns after them at once


def damped(hessian: Tensor, damp: float) -> Tensor:
    """H with `damp` times its mean diagonal added to the diagonal; with ones where nothing ever came in."""
    diagonal = hessian.diagonal()
    add = damp * float(diagonal.mean())
    return hessian + torch.diag(torch.full_like(diagonal, add if add > 0 else 1.0))


def target(weight: Tensor, hessian: Tensor, cross: Tensor, damp: float, owed: Tensor | None = None) -> Tensor:
    """The matrix that makes of the inputs at hand what `weight` (rows, cols) made of the original's, and what else the
    output is `owed`: least squares with `cross` the mean of x_original x^T and `owed` (rows, cols) that of the further
    output and x, held to `weight` by the damping."""
    h = damped(hessian, damp).double()
    add = (h - hessian.double()).diagonal()
    wanted = weight.double() @ (cross.double() + torch.diag(add))
    if owed is not None:
        wanted += owed.double()
    found: Tensor = torch.linalg.solve(h, wanted.T).T.float()
    return found


def gptq(weight_t: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """Levels (cols, rows) for a matrix (cols, rows) and a damped hessian, on the scales of `grid`."""
    order = torch.argsort(hessian.diagonal(), descending=True)
    h = hessian[order][:, order].double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True).float()  # H^-1 = U^T U
    left = weight_t[order].clone()  # what each column would have to be, given the errors so far
    codes = torch.empty_like(left)
    groups = (order // grid.group).tolist()
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = torch.empty(end - start, left.shape[1])
        for i in range(start, end):
            codes[i] = grid.nearest(left[i], groups[i])
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


def descend(weight_t: Tensor, hessian: Tensor, grid: Grid, codes: Tensor, sweeps: int) -> None:
    """Change codes and scales in place, `sweeps` times over all columns; the error never grows but by rounding."""
    size = grid.group
    slope = hessian @ (values(codes, grid) - weight_t)  # H e^T, half of the error's derivative
    for _ in range(sweeps):
        for group in range(len(grid.scale)):
            own = slice(group * size, (group + 1) * size)
            before = grid.value(codes[own], group)
            h = hessian[own, own]
            local = slope[own].clone()
            _rescale(grid, group, codes[own], h, local)
            for i in range(size):
                at = group * size + i
                now = grid.value(codes[at], group)
                codes[at] = grid.nearest(now - local[i] / h[i, i], group)
                local.addr_(h[i], grid.value(codes[at], group) - now)
            slope.addmm_(hessian[:, own], grid.value(codes[own], group) - before)


def _rescale(grid: Grid, group: int, codes: Tensor, h: Tensor, local: Tensor) -> None:
    """The group's best scale, then its best offset, given its codes and everything else; `local` follows."""
    for which in ("scale", "offset"):
        if which == "offset" and grid.offset is None:
            return
        along = codes if which == "scale" else torch.ones_like(codes)
        stored = grid.scale if which == "scale" else grid.offset
        assert stored is not None
        through = h @ along  # (size, rows)
        curve = (along * through).sum(0)
        step = torch.where(curve > 0, -(along * local).sum(0) / curve.clamp(min=1e-30), 0.0)
        before = stored[group].clone()
        grid.move(group, **{which: before + step})
        local += through * (stored[group] - before)


def error(weight_t: Tensor, hessian: Tensor, codes: Tensor, grid: Grid) -> float:
    """Mean squared error at the outputs, summed over them, as a share of the outputs' mean square."""
    e = values(codes, grid) - weight_t
    whole = float((weight_t * (hessian @ weight_t)).sum())
    return float((e * (hessian @ e)).sum()) / max(whole, 1e-30)
