"""Zeros for single weights, wherever they are missed least (`sparse.py`).

The matrices keep their shapes and are stored as before: a dense engine reads and multiplies the zeros like any number,
so that the file is no smaller and runs no faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from genmote.compress import sparse
from genmote.compress.block import Block, Inputs, Site
from genmote.compress.steps._base import LayerStep
from genmote.compress.surgeon import factored
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.requantise import KEPT
from genmote.spec import setting


@dataclass(frozen=True)
class Prune(LayerStep):
    note: ClassVar[str] = (
        "zeros stay in dense matrices: they make the file no smaller and the engine no faster; prune-channels, "
        "prune-heads and prune-layers do"
    )

    method: Literal["magnitude", "wanda", "sparsegpt"] = setting("how weights are chosen", default="sparsegpt")
    share: float = setting("share of each matrix's weights that become zero", default=0.5)
    pattern: str = setting("N:M: of each M neighbours N stay, such as 2:4, instead of a share", default="")
    damp: float = setting("share of the inputs' mean square that is added to each", default=0.01)

    def faults(self) -> Iterable[str]:
        if not 0 < self.share < 1:
            yield f"share={self.share}: use a share between 0 and 1, such as 0.5"
        if self.pattern and sparse.neighbours(self.pattern) is None:
            yield f"pattern={self.pattern!r}: write N:M with N below M, such as 2:4"
        if not 0 < self.damp < math.inf:
            yield f"damp={self.damp:g}: use more than 0, such as 0.01"

    def begin(self, model: ModelFile) -> Iterable[str]:
        yield from super().begin(model)
        if (pattern := sparse.neighbours(self.pattern)) is None:
            return
        for name, info in model.tensors.items():
            matrix = name.startswith("blk.") and len(info.shape) > 1 and not name.endswith(KEPT)
            if matrix and info.shape[-1] % pattern[1]:
                raise SpecError(f"pattern={self.pattern}: {name} has rows of {info.shape[-1]}, no multiple")

    def compress_layer(self, block: Block) -> None:
        block.sweep(self._visit)

    def _visit(self, site: Site, inputs: Inputs) -> None:
        if site.tensor.endswith(KEPT):
            return
        before, pattern = site.weight, sparse.neighbours(self.pattern)
        if self.method == "magnitude":
            after = sparse.magnitude(before, self.share, pattern)
        elif self.method == "wanda":
            after = sparse.wanda(before, inputs.hessian, self.share, pattern)
        else:
            with factored(site.name, self.damp):
                after = sparse.sparsegpt(before, inputs.hessian, self.share, pattern, self.damp)
        change = after - before
        site.replace(after)
        own = float((before @ inputs.hessian * before).sum())
        site.figures["zeros"] = float((after == 0).float().mean())
        site.figures["error"] = float((change @ inputs.hessian * change).sum()) / max(own, 1e-30)
