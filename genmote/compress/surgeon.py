"""Which inputs of a matrix can best be done without, and what the weights of the others must then become.

The optimal brain surgeon (Hassibi & Stork 1993) for whole columns, as in ZipLM (Kurtic et al. 2023, arXiv 2302.04089).
For y = W x a change of the weights costs tr(D H D^T) / 2, with H = mean of x x^T. Where W stands for L^T W, with
L L^T = mean of g g^T and g the gradient of a text's surprise with respect to y, that is the expected growth of
the surprise in nats a row (K-FAC: Martens & Grosse 2015, arXiv 1503.05671), which may be compared between layers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.errors import SpecError

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Removal:
    """Groups of columns in the order in which they go; `damage[n]` is what it costs that the first n are gone."""

    order: Tensor  # (count,) numbers of groups
    damage: Tensor  # (count + 1,) float64, from 0
    groups: int  # before any goes

    def without(self, count: int) -> NDArray[np.int64]:
        """Numbers of the groups that are left when the first `count` are gone, rising."""
        return np.setdiff1d(np.arange(self.groups), self.order[:count].numpy())


def removal(
    weight: Tensor, hessian: Tensor, count: int, *, size: int = 1, at_once: int = 1, damp: float = 0.01
) -> Removal:
    """Which `count` groups of `size` neighbouring columns of `weight` (out, in) go first, greedily: the cheapest when
    the others' weights compensate. `at_once`: how many groups are chosen between two looks at what is left. `damp`:
    share of H's mean diagonal that is added to it.
    """
    groups = weight.shape[1] // size
    if not 0 <= count < groups:
        raise SpecError(f"{count} of {groups} groups of columns to remove: leave at least one")
    w, inverse = weight.double(), inverted(hessian, damp)
    left = torch.arange(groups)  # the groups that w and inverse still have, in their order
    order: list[Tensor] = []
    damage = [torch.zeros((), dtype=torch.float64)]
    while count > sum(map(len, order)):
        n = min(at_once, count - sum(map(len, order)))
        go = torch.argsort(_scores(w, inverse, size), stable=True)[:n]
        columns = (go[:, None] * size + torch.arange(size)).reshape(-1)
        stay = torch.ones(len(left) * size, dtype=torch.bool)
        stay[columns] = False
        gone = w[:, columns]  # (out, n * size)
        factor = torch.linalg.cholesky(inverse[columns][:, columns])
        # Block elimination: W -= W_b B^-1 P_b, P -= P_b^T B^-1 P_b with B = P_bb, P the inverse of H.
        half = torch.linalg.solve_triangular(factor, inverse[columns][:, stay], upper=False)
        moved = torch.linalg.solve_triangular(factor, gone.T, upper=False)  # (n * size, out)
        w = w[:, stay] - moved.T @ half
        inverse = inverse[stay][:, stay] - half.T @ half
        each = moved.square().sum(dim=1).reshape(n, size).sum(dim=1) / 2
        damage += list(damage[-1] + each.cumsum(0))
        order.append(left[go])
        left = left[stay[::size]]
    return Removal(torch.cat(order) if order else left[:0], torch.stack(damage), groups)


def _scores(w: Tensor, inverse: Tensor, size: int) -> Tensor:
    """What the removal of each group alone costs."""
    if size == 1:
        costs: Tensor = w.square().sum(dim=0) / inverse.diagonal()
        return costs
    groups = w.shape[1] // size
    blocks = inverse.reshape(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (n, size, size)
    own = w.reshape(-1, groups, size).permute(1, 2, 0)  # (n, size, out)
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), own, upper=False)
    each: Tensor = half.square().sum(dim=(1, 2))
    return each


def inverted(hessian: Tensor, damp: float) -> Tensor:
    """(H + damp * mean diagonal)^-1, float64; dead inputs (zero everywhere) get that diagonal too."""
    return torch.cholesky_inverse(torch.linalg.cholesky(damped(hessian, damp)))


@contextlib.contextmanager
def factored(name: str, damp: float) -> Iterator[None]:
    """SpecError where what is done inside finds that a second moment of the inputs of `name` has no factors."""
    try:
        yield
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it is there, but not in its __all__
        raise SpecError(
            f"{name}: damp={damp:g} is too little for its inputs on the calibration text; raise it, such as to "
            f"{10 * damp:g}"
        ) from None


def damped(hessian: Tensor, damp: float) -> Tensor:
    """H + damp * mean diagonal, float64, positive definite also where all inputs are dead."""
    wide = hessian.double()
    mean = wide.diagonal().mean()
    if not torch.isfinite(mean):
        raise SpecError("the inputs on the calibration text are not finite numbers")
    return wide + torch.eye(len(wide), dtype=torch.float64) * (damp * mean + 1e-12)


def fitted(weight: Tensor, hessian: Tensor, target: Tensor, damp: float = 0.01) -> Tensor:
    """The weights W that make W x nearest to a target y in the mean square, (out, in) float32; `target` is the mean of
    y x^T, (out, in). `damp` draws them to `weight`, as if H had that much more of its mean diagonal."""
    missing = target.double() - weight.double() @ hessian.double()
    found: Tensor = weight.double() + torch.linalg.solve(damped(hessian, damp), missing, left=False)
    return found.float()


def root(moments: Tensor, damp: float = 1e-4) -> Tensor:
    """L^T with L L^T = the moments (n, n) of gradients: what weights are multiplied by from the left."""
    factor: Tensor = torch.linalg.cholesky(damped(moments, damp))
    return factor.T


def shared_out(curves: Sequence[Sequence[tuple[int, float]]], goal: int) -> list[int]:
    """Which point of each curve to take, so that together they save `goal` and cost little. `curves[l]`: what layer l
    may save, rising from 0, and what that costs.

    The best where each next unit costs a layer no less than the last; in general it costs no more than the best that
    saves as much as the steep end of the last step taken.
    """
    steps = []
    for layer, curve in enumerate(curves):
        corners = _lower_hull(curve)
        for start, end in itertools.pairwise(corners):
            (saved, cost), (more, dearer) = curve[start], curve[end]
            steps.append(((dearer - cost) / (more - saved), layer, start, end))
    taken, missing = [0] * len(curves), goal
    for _, layer, start, end in sorted(steps):
        if missing <= 0:
            break
        base = curves[layer][start][0]
        enough = [n for n in range(start + 1, end + 1) if curves[layer][n][0] - base >= missing] or [end]
        taken[layer] = min(enough, key=lambda n: curves[layer][n][1])
        missing -= curves[layer][taken[layer]][0] - base
    if missing > 0:
        raise SpecError(f"{goal} are to go, the layers can give up {goal - missing}")
    return taken


def _lower_hull(curve: Sequence[tuple[int, float]]) -> list[int]:
    """Numbers of the points that a string drawn tight below the curve touches, in their order."""
    corners: list[int] = []
    for n, (x, y) in enumerate(curve):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = curve[corners[-2]], curve[corners[-1]]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append(n)
    return corners
