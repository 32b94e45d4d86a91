"""Adapters of low rank (Hu et al. 2021, arXiv 2106.09685) over the torch op set: what `lora` and its kin share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.lora import base_shapes
from genmote.models.parts import HEAD
from genmote.ops.torch_ops import Matrix
from genmote.tune.learnt import Learnt, fresh, go_on
from genmote.tune.settings import BIASES_PART, NORMS_PART, Tuning
from genmote.tune.workbench._base import Method, Shapes
from genmote.tune.workbench._model import Model

Tensor = torch.Tensor


class Adapted(Learnt):
    """The base with adapters whose numbers are tensors."""

    def _matrix(self, numbers: Any) -> Matrix:
        return Matrix(numbers, False)


@dataclass(frozen=True)
class Adapters(Method):
    """Methods that learn adapters, and the norms and biases that `on` names."""

    rate: ClassVar[float] = 5e-4
    adapts: ClassVar[bool] = True
    writes: ClassVar[str] = "adapter"

    def shapes(self, file: ModelFile, tuning: Tuning) -> Shapes:
        found: dict[str, tuple[int, ...]] = {}
        for tensor, (out, cols) in base_shapes(read_config(file)).items():
            there = tensor in file.tensors or tensor.replace(".weight", "_a.weight") in file.tensors
            if (there or tensor == HEAD) and tuning.learns(tensor):
                found |= {f"{tensor}.lora_a": (tuning.rank, cols), f"{tensor}.lora_b": (out, tuning.rank)}
        for name, info in file.tensors.items():
            part = NORMS_PART if "norm" in name else BIASES_PART
            if len(info.shape) == 1 and part in tuning.parts:
                found[name] = tuple(info.shape)
        return found

    def prepare(self, model: Model, tuning: Tuning) -> tuple[Any, dict[str, Tensor]]:
        numbers = fresh(model.weights, model.config, tuning)
        if tuning.base is not None:
            go_on(numbers, tuning.base, model.config, self.factor(tuning))
        tensors = {name: torch.from_numpy(array) for name, array in numbers.items()}
        return self.adapted(model, tensors, self.factor(tuning) * tuning.rank), tensors

    def adapted(self, model: Model, tensors: dict[str, Tensor], alpha: float) -> Any:
        """The model with the adapters, each of which counts `alpha` by its rank."""
        return Adapted(model.weights, model.ops, tensors, alpha)  # type: ignore[arg-type]
