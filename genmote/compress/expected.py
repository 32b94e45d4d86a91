"""What it costs to store a matrix with fewer bits, to second order: the Fisher information's weight of the error.

A layer y = W x that is stored with the error E adds to the KL divergence of the model's next token, in nats a token,

    1/2 mean of (g^T E x)^2  ~  1/2 sum_r s_r (E M E^T)_rr,    M = mean of |g|^2 x x^T,    s_r = mean of g_r^2 / |g|^2's

where g = d log p(t) / d y with t drawn from the model itself: the Fisher information as Kronecker factors (Martens and
Grosse 2015, arXiv 1503.05671), the outputs' one held to its diagonal. Other than there, rows x weigh as much as their
gradients do: those of a text's first token are often the largest of all, and matter least. Damages of different layers
have one unit and add up. No PyTorch here: this runs on other machines, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.ops import quant

Floats = NDArray[np.float32]
DAMPING = 0.01  # share of the mean diagonal that GPTQ adds to H
ROWS = 128  # of a matrix that are tried; the rest are taken to be like them


@dataclass(frozen=True)
class Sample:
    """Some rows of a matrix, and what their errors weigh."""

    rows: Floats  # (n, in)
    gains: Floats  # (n,): s_r, times the rows that each stands for
    weighted: Floats  # (in, in): M
    hessian: Floats  # (in, in): mean of x x^T, up to a factor: what a quantiser sees
    types: Sequence[str]
    shown: Floats | None = None  # (n,): how often a row is looked up as an embedding, times `gains`' factor
    looked_up: Floats | None = None  # (in,): the g of an embedding's numbers


def sample(gains: Floats, most: int = ROWS) -> tuple[NDArray[np.int64], Floats]:
    """Rows to try, and how many each stands for: half of them those that weigh most, half spread over the others.

    >>> sample(np.array([1.0, 9.0, 2.0], np.float32))
    (array([0, 1, 2]), array([1., 1., 1.], dtype=float32))
    """
    if len(gains) <= most:
        return np.arange(len(gains)), np.ones(len(gains), np.float32)
    order = np.argsort(-gains, kind="stable")
    rest = order[most // 2 :]
    spread = rest[((np.arange(most - most // 2) + 0.5) * len(rest) / (most - most // 2)).astype(int)]
    factors = np.ones(most, np.float32)
    factors[most // 2 :] = len(rest) / len(spread)
    return np.concatenate([order[: most // 2], spread]), factors


def damages(job: Sample) -> list[tuple[float, float]]:
    """Expected damage of each of the job's types: rounded to nearest, and by a quantiser that makes up for errors in
    the columns to come, as GPTQ does."""
    left = conditional(job.hessian, job.weighted)
    found = []
    for name in job.types:
        error = quant.dequantize(name, quant.quantize(name, job.rows), job.rows.shape) - job.rows
        found.append((damage(job, error), damage(job, error, left)))
    return found


def damage(job: Sample, error: Floats, left: Floats | None = None) -> float:
    """Damage of errors (n, in) of the sampled rows; `left`: see `conditional`."""
    each = ((error @ job.weighted) * error).sum(1) if left is None else np.square(error) @ left
    total = 0.5 * float(each @ job.gains)
    if job.shown is not None and job.looked_up is not None:
        total += 0.5 * float(job.shown @ (np.square(error) @ job.looked_up))
    return total


def conditional(hessian: Floats, weighted: Floats) -> Floats:
    """What the error of rounding each column weighs, (in,), where the columns to come make up for it, the heaviest
    column first (GPTQ, Frantar et al. 2022, arXiv 2210.17323).

    With H^-1 = U^T U in that order, the rounding error d of column j leaves the error d U_j / U_jj in the row.
    """
    diagonal = np.diag(hessian).astype(np.float64)
    order = np.argsort(-diagonal, kind="stable")
    damped = hessian[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices(len(damped))] += DAMPING * diagonal.mean() + 1e-12
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    through = upper / np.diag(upper)[:, None]
    left = np.empty(len(order), np.float32)
    left[order] = ((through @ weighted[np.ix_(order, order)]) * through).sum(1)
    return left
