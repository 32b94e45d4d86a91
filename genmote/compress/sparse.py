"""Zeros for single weights of a matrix: which go, and what the others then become.

- `magnitude`: the smallest.
- `wanda`: in each row those of the smallest product with their input's size (Sun et al. 2023, arXiv 2306.11695).
- `sparsegpt`: those whose loss costs least when the columns after them compensate, which these then do (Frantar &
  Alistarh 2023, arXiv 2301.00774).

N:M means that of each M neighbours in a row N stay.
"""

from __future__ import annotations

import re

import torch

from genmote.compress.surgeon import inverted

Tensor = torch.Tensor
BLOCK = 128  # columns among which sparsegpt chooses at once
SPARSE = 0.05  # a matrix with at least this share of zeros was pruned: they stay zeros
PATTERN = re.compile(r"(\d+):(\d+)")


def neighbours(pattern: str) -> tuple[int, int] | None:
    """N and M of "N:M"; None for anything else.

    >>> neighbours("2:4"), neighbours("4:2")
    ((2, 4), None)
    """
    found = PATTERN.fullmatch(pattern)
    stay, of = (int(found[1]), int(found[2])) if found else (0, 0)
    return (stay, of) if 0 < stay < of else None


def lowest(scores: Tensor, share: float, pattern: tuple[int, int] | None) -> Tensor:
    """Which of the scores (rows, cols) are the lowest: this share of all of them, or by a pattern."""
    if pattern is not None:
        stay, of = pattern
        parts = scores.reshape(len(scores), -1, of)
        order = torch.argsort(parts, dim=2, stable=True)[..., : of - stay]
        return torch.zeros_like(parts, dtype=torch.bool).scatter_(2, order, True).reshape(scores.shape)
    order = torch.argsort(scores.reshape(-1), stable=True)[: round(share * scores.numel())]
    return torch.zeros(scores.numel(), dtype=torch.bool).index_fill_(0, order, True).reshape(scores.shape)


def pruned(weight: Tensor) -> Tensor | None:
    """Where a matrix's zeros are, if there are so many that it was pruned; None otherwise."""
    zeros = weight == 0
    return zeros if float(zeros.float().mean()) >= SPARSE else None


def magnitude(weight: Tensor, share: float, pattern: tuple[int, int] | None) -> Tensor:
    """`weight` (out, in) with zeros."""
    return weight.masked_fill(lowest(weight.abs(), share, pattern), 0.0)


def wanda(weight: Tensor, hessian: Tensor, share: float, pattern: tuple[int, int] | None) -> Tensor:
    """`weight` (out, in) with zeros, as many in each row; `hessian` (in, in): mean of x x^T."""
    scores = weight.abs() * hessian.diagonal().sqrt()
    if pattern is not None:
        return weight.masked_fill(lowest(scores, share, pattern), 0.0)
    order = torch.argsort(scores, dim=1, stable=True)[:, : round(share * weight.shape[1])]
    return weight.scatter(1, order, 0.0)


def sparsegpt(weight: Tensor, hessian: Tensor, share: float, pattern: tuple[int, int] | None, damp: float) -> Tensor:
    """`weight` (out, in) with zeros, and the weights after them changed to make these good; float32."""
    upper = torch.linalg.cholesky(inverted(hessian, damp), upper=True)  # H^-1 = U^T U
    w = weight.double().clone()
    cols = w.shape[1]
    # A choice may not be cut in two by the end of a block.
    block = BLOCK if pattern is None else max(1, BLOCK // pattern[1]) * pattern[1]
    for start in range(0, cols, block):
        end = min(start + block, cols)
        # What a weight costs: w^2 / (2 [H^-1]jj), H being that of the columns from j on; U_jj^2 is that of its inverse.
        costs = (w[:, start:end] / upper.diagonal()[start:end]).square()
        gone = lowest(costs, share, pattern)
        errors = torch.zeros_like(w[:, start:end])
        for i in range(start, end):
            at = i - start
            errors[:, at] = torch.where(gone[:, at], w[:, i] / upper[i, i], 0.0)
            w[:, i:end] -= errors[:, at, None] * upper[i, i:end]
            w[:, i] = w[:, i].masked_fill(gone[:, at], 0.0)
        w[:, end:] -= errors @ upper[start:end, end:]
    return w.float()
