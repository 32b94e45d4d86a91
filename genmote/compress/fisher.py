"""How much a text's surprise minds an error in what a matrix puts out: second moments of gradients.

On text that the model itself has drawn, the mean of g g^T, with g the gradient of a text's surprise with respect to an
output row, is the Fisher information: an error e of that row costs e^T (mean of g g^T) e / 2 nats of KL divergence
(Martens 2020, arXiv 1412.1193). On other text it is the usual stand-in for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from genmote.compress import calibration
from genmote.compress.block import WatchedOps
from genmote.compress.whole import Whole
from genmote.errors import SpecError
from genmote.fetch import Progress
from genmote.ops.torch_ops import Matrix

Tensor = torch.Tensor
ROWS = 1024  # rows that one backward pass takes, at least a window
UNASKED = -1
MOST = 1 << 14  # rows in all: a backward pass takes as long as two others


class OutputOps(WatchedOps):
    """The torch op set, which tells of the gradients of the products of some matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[int, Callable[[Tensor], None]] = {}  # by the matrix's id

    def product(self, x: Tensor, matrix: Matrix) -> Tensor:
        y = super().product(x, matrix)
        told = self.told.get(id(matrix))
        if told is not None and y.requires_grad:
            y.register_hook(told)  # type: ignore[no-untyped-call]
        return y


def output_moments(
    source: Path,
    windows: NDArray[np.int32],
    wanted: Callable[[str], bool],
    progress: Progress,
    *,
    diagonal: bool = False,
) -> dict[str, Tensor]:
    """Mean over the rows of token ids (n, T), at most `MOST` of them, of g g^T, (out, out) float64, or of its diagonal
    (out,) alone, of each matrix of a block whose name is wanted. Takes the whole model in memory, as floats."""
    ops = OutputOps()
    whole = Whole(source, ops)
    found: dict[str, Tensor] = {}

    def watch(name: str, out: int, matrix: Matrix) -> None:
        moments = found[name] = torch.zeros(out if diagonal else (out, out), dtype=torch.float64)

        def add(g: Tensor) -> None:
            moments.add_(g.square().sum(dim=0) if diagonal else g.T @ g)

        ops.told[id(matrix)] = add

    for block in whole.blocks:
        for name, site in block.sites.items():
            if wanted(name):
                watch(name, site.weight.shape[0], site.matrix)
    windows = windows[: max(1, MOST // windows.shape[1])]
    count, length = windows.shape[:2]
    each = max(1, ROWS // length)
    for start in range(0, count, each):
        progress("measuring the gradient", start, count)
        some = windows[start : start + each]
        surprise(whole, some).backward()  # type: ignore[no-untyped-call]
    progress("measuring the gradient", count, count)
    rows = count * length
    for name, moments in found.items():
        if not torch.isfinite(moments).all():
            raise SpecError(f"{name}: the text's gradient is not finite; the model is damaged")
        moments /= rows
    return found


def surprise(whole: Whole, windows: NDArray[np.int32]) -> Tensor:
    """Sum over the tokens of windows (n, T), but each one's first, of -log probability; of windows (n, T, A) over
    those that were asked for, where any are."""
    ids, asks = calibration.ids(windows), windows[:, :-1].reshape(*windows[:, :-1].shape[:2], -1)[..., 1:]
    final = whole.final(windows).reshape(*ids.shape, -1)[:, :-1].flatten(0, 1)
    targets = torch.as_tensor(ids[:, 1:].reshape(-1).astype(np.int64))
    if (asks >= 0).any():
        targets[torch.as_tensor((asks < 0).all(axis=-1).reshape(-1))] = UNASKED
    loss: Tensor = F.cross_entropy(whole.logits(final), targets, reduction="sum", ignore_index=UNASKED)
    return loss
