"""A whole model in memory over the torch op set, differentiable: for steps that need the text's gradient."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.compress.block import Block, Site, WatchedOps
from genmote.compress.layers import Ends, Model
from genmote.models.gguf import ModelFile

Tensor = torch.Tensor


class Whole:
    """All blocks of a model file as floats, the norm after them and the matrix that makes the logits. The embedding
    stays as the file has it; everything else may be given gradients."""

    def __init__(self, path: Path, ops: WatchedOps | None = None) -> None:
        self.model = Model(ModelFile.open(path))
        self.model.ops = ops = ops or self.model.ops
        self.config, self.ops = self.model.config, ops
        self.blocks: list[Block] = [self.model.block(index, None) for index in range(self.config.n_layers)]
        self.norm = Ends(self.model).output_norm
        self.head: Site = self.model.site(self.model.head_name)

    def states(self, windows: NDArray[np.int32]) -> Iterator[Tensor]:
        """The states (n * T, D) of token ids (n, T) before the first block and after each; the caller may change
        nothing of them. A graph is kept where gradients are on."""
        x = self.model.states(windows)
        if torch.is_grad_enabled():
            x.requires_grad_()
        yield x
        for block in self.blocks:
            block.rows = self.model.rows
            x = block.run(x)
            yield x

    def final(self, windows: NDArray[np.int32]) -> Tensor:
        """What the output matrix multiplies, (n * T, D)."""
        *_, x = self.states(windows)
        final: Tensor = self.ops.norm(x, self.norm)
        return final

    def logits(self, final: Tensor) -> Tensor:
        """(n, D) → (n, V)."""
        found = final @ self.head.weight.T
        cap = self.config.logit_cap
        capped: Tensor = self.ops.soft_cap(found, cap) if cap else found
        return capped
