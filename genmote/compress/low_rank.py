"""A matrix as the product of two thin ones: the nearest of its rank where it matters.

Truncation-aware whitening (SVD-LLM, Wang et al. 2024, arXiv 2403.07378): with S S^T the mean of x x^T the squared
singular values of W S are what each direction adds to the mean square of W x, so that dropping the smallest loses
least. Outputs are weighed, too: by the root of the mean of g^2, g the gradient of the text's surprise with respect to
each. Half the squared singular values are then nats a token (`surgeon.py`), which compares layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from genmote.compress.surgeon import damped

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A matrix in its directions, the most important first; `damage[n]`: nats a token in the last n directions."""

    left: Tensor  # (out, k) float64
    right: Tensor  # (k, in)
    damage: Tensor  # (k + 1,), from 0

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """a (rank, in) and b (out, rank), float32: b a is the nearest matrix of this rank."""
        return self.right[:rank].float().contiguous(), self.left[:, :rank].float().contiguous()


def spectrum(weight: Tensor, hessian: Tensor, gradients: Tensor, damp: float) -> Spectrum:
    """Of `weight` (out, in), for the second moments of its inputs (in, in) and of its outputs' gradients (out,)."""
    squares = gradients.double()
    size = (squares + 1e-4 * squares.mean() + 1e-12).sqrt()[:, None]  # an output without any gradient has a size too
    white = torch.linalg.cholesky(damped(hessian, damp))  # S
    u, s, vt = torch.linalg.svd(size * weight.double() @ white, full_matrices=False)
    half = s.sqrt()
    left = u * half / size
    right = torch.linalg.solve_triangular(white, half[:, None] * vt, upper=False, left=False)
    lost = torch.cat([torch.zeros(1, dtype=s.dtype), s.flip(0).square().cumsum(0) / 2])
    return Spectrum(left, right, lost)


def ranks(out: int, cols: int, multiple: int) -> list[int]:
    """The ranks at which two factors are smaller than the matrix (out, cols), from the highest down.

    >>> ranks(64, 64, 8)
    [24, 16, 8]
    """
    most = (out * cols - 1) // (out + cols)
    return list(range(most // multiple * multiple, 0, -multiple))
