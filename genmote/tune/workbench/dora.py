"""Weights as a direction and a length for each output: the direction learns by an adapter, the length as it is (DoRA:
Liu et al. 2024, arXiv 2402.09353).

y = m * (W + s B A) x / |W + s B A|, the norm of each row of the matrix; its gradient does not go through the norm
(their section 4.3). Lengths have no place in llama.cpp's adapter format, so that a whole model is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.ops.exact import Float32
from genmote.ops.layer import Linear
from genmote.tune.settings import Tuning
from genmote.tune.workbench._adapters import Adapted, Adapters
from genmote.tune.workbench._base import Shapes
from genmote.tune.workbench._model import Model, WorkbenchOps

Tensor = torch.Tensor
LENGTH = ".length"  # (out,), after a matrix's name


@dataclass(frozen=True)
class Stretched(Linear):
    """A linear whose last adapter is DoRA's, with the length of each output's weights."""

    length: Tensor | None = None


class DoraOps(WorkbenchOps):
    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        if not isinstance(weight, Stretched):
            return super().linear(x, weight)
        factor = weight.length / row_lengths(weight)  # type: ignore[arg-type, operator]
        y = super().linear(x, replace(weight, bias=None)) * factor
        return y if weight.bias is None else y + weight.bias


@torch.no_grad()
def row_lengths(weight: Linear) -> Tensor:
    """|W + s B A| of each row, (out,), without the sum."""
    w, adapter = weight.matrix.weight, weight.adapters[-1]
    down, up, scale = adapter.down.weight, adapter.up.weight, adapter.scale
    crossed = ((w @ down.T) * up).sum(1)
    own = ((up @ (down @ down.T)) * up).sum(1)
    squares: Tensor = torch.linalg.vector_norm(w, dim=1).square() + 2 * scale * crossed + scale * scale * own
    return squares.clamp(min=0).sqrt()


class _Stretched(Adapted):
    def _linear(self, linear: Linear, tensor: str) -> Linear:
        found = super()._linear(linear, tensor)
        length: Any = self.numbers.get(tensor + LENGTH)
        return found if length is None else Stretched(**vars(found), length=length)


@dataclass(frozen=True)
class Dora(Adapters):
    strength: ClassVar[int] = 30
    learnt: ClassVar[str] = "adapters and the lengths of weights"
    writes: ClassVar[str] = "model"
    keeps_products: ClassVar[bool] = True
    ops: ClassVar[type[WorkbenchOps]] = DoraOps

    def shapes(self, file: ModelFile, tuning: Tuning) -> Shapes:
        found = super().shapes(file, tuning)
        for name in [name for name in found if name.endswith(".lora_b")]:
            found[name.removesuffix(".lora_b") + LENGTH] = found[name][:1]
        return found

    def adapted(self, model: Model, tensors: dict[str, Tensor], alpha: float) -> Any:
        for name in [name.removesuffix(".lora_b") for name in tensors if name.endswith(".lora_b")]:
            matrix = model.matrices.get(name)
            if matrix is None:
                raise SpecError(f"method=dora: {name} is of low rank, or the embedding itself; use --method lora")
            tensors[name + LENGTH] = torch.linalg.vector_norm(matrix.weight, dim=1)  # type: ignore[union-attr]
        return _Stretched(model.weights, model.ops, tensors, alpha)  # type: ignore[arg-type]

    def matrix(self, model: Model, learnt: Mapping[str, Tensor], tuning: Tuning, name: str) -> Float32 | None:
        if name + LENGTH not in learnt:
            return super().matrix(model, learnt, tuning, name)
        down, up, length = (learnt[f"{name}.{part}"].detach() for part in ("lora_a", "lora_b", "length"))
        whole = model.matrices[name].weight.addmm(up, down, alpha=self.factor(tuning))  # type: ignore[union-attr]
        found: Float32 = (whole * (length / torch.linalg.vector_norm(whole, dim=1))[:, None]).numpy()
        return found
