"""What every method stands on: a member of this folder is a frozen dataclass whose fields are its settings.

A method says what learns (`learns`), of that what learns in a step (`active`), how a gradient moves it (`update`), and
what that takes (`state_bytes`). Numbers are float32 tensors by the names of their tensors in the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from genmote.errors import SpecError
from genmote.models.config import is_tied
from genmote.models.gguf import ModelFile
from genmote.models.parts import HEAD
from genmote.ops.exact import Float32
from genmote.ops.torch_ops import Matrix
from genmote.tune.learnt import linears_of, norms_of
from genmote.tune.settings import BIASES_PART, HEAD_PART, NORMS_PART, Tuning
from genmote.tune.workbench._model import TABLE, Model, WorkbenchOps

Tensor = torch.Tensor
State = dict[str, Any]  # arrays by name, which a run keeps
Shapes = dict[str, tuple[int, ...]]
BETAS, EPS = (0.9, 0.999), 1e-8
ENDS = -1  # the block of what is no layer's: embedding, output matrix, last norm


@dataclass(frozen=True)
class Method:
    """The base of all."""

    rate: ClassVar[float]  # the highest learning rate, unless another is asked for
    strength: ClassVar[int]  # among those that a budget chooses from, the highest that fits; 0: it is not chosen
    learnt: ClassVar[str]  # what learns, in words
    adapts: ClassVar[bool] = False  # what is learnt is an adapter, and the weights stay
    writes: ClassVar[str] = "model"  # or "adapter"
    packed: ClassVar[bool] = False  # the base stays in the file's types
    keeps_products: ClassVar[bool] = False  # what a matrix gives is kept until the way back
    applies_at_once: ClassVar[bool] = False  # a gradient is applied as it comes, also in one of several passes
    ops: ClassVar[type[WorkbenchOps]] = WorkbenchOps

    def faults(self) -> Iterable[str]:
        """What is wrong with the settings' values."""
        return ()

    def factor(self, tuning: Tuning) -> float:
        """What an adapter's update counts."""
        return tuning.factor

    def shapes(self, file: ModelFile, tuning: Tuning) -> Shapes:
        """What learns, by its name, out of the file's header."""
        raise NotImplementedError

    def prepare(self, model: Model, tuning: Tuning) -> tuple[Any, dict[str, Tensor]]:
        """The weights to compute with (a `WeightSource`), and what learns of them. Raises SpecError where the model has
        nothing of what is asked for."""
        raise NotImplementedError

    def active(self, names: Sequence[str], tuning: Tuning, step: int) -> Iterable[str]:
        """Those that learn in step number `step`, the first is 1."""
        return names

    def most_active(self, shapes: Shapes, tuning: Tuning) -> Shapes:
        """Of what learns, the most that learns in one step."""
        return shapes

    def state_bytes(self, shape: tuple[int, ...]) -> int:
        """What is kept of an array beside it, from step to step."""
        return 8 * math.prod(shape)

    def working_bytes(self, shape: tuple[int, ...]) -> int:
        """What an update of it takes for a moment."""
        return 0

    def update(self, numbers: Tensor, gradient: Tensor, state: State, rate: float, decay: float) -> None:
        """One step of one array, in place; `state` is empty at first, and keeps NumPy arrays."""
        adamw(numbers, gradient, state, rate, decay)

    def matrix(self, model: Model, learnt: Mapping[str, Tensor], tuning: Tuning, name: str) -> Float32 | None:
        """A tensor of the file (or one expert of it) as it is to be written, None where it is as it was: of methods
        that write a model."""
        found = learnt.get(name)
        return None if found is None else found.detach().numpy()


def adamw(numbers: Tensor, gradient: Tensor, state: State, rate: float, decay: float) -> None:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), in place; the state is two averages and a count."""
    direction = adam(gradient, state)
    if decay:
        numbers.mul_(1 - rate * decay)
    numbers.add_(direction, alpha=-rate)


def adam(gradient: Tensor, state: State) -> Tensor:
    """Adam's direction for a gradient (Kingma & Ba 2015, arXiv 1412.6980), in the gradient's memory."""
    if not state:
        state["first"] = np.zeros(gradient.shape, np.float32)
        state["second"] = np.zeros(gradient.shape, np.float32)
        state["count"] = np.zeros((), np.int64)
    first, second = torch.from_numpy(state["first"]), torch.from_numpy(state["second"])
    state["count"] += 1
    count = int(state["count"])
    b1, b2 = BETAS
    first.lerp_(gradient, 1 - b1)
    second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    torch.sqrt(second, out=gradient)
    gradient.div_(math.sqrt(1 - b2**count)).add_(EPS)
    return torch.div(first, gradient, out=gradient).div_(1 - b1**count)


def block_of(name: str) -> int:
    """The layer that a tensor is of, or `ENDS`.

    >>> block_of("blk.3.attn_q.weight"), block_of("token_embd.weight")
    (3, -1)
    """
    return int(name.split(".")[1]) if name.startswith("blk.") else ENDS


def largest_blocks(shapes: Shapes, count: int) -> Shapes:
    """What is in the `count` blocks with the most numbers."""
    sizes = Counter[int]()
    for name, shape in shapes.items():
        sizes[block_of(name)] += math.prod(shape)
    chosen = {block for block, _ in sizes.most_common(count)}
    return {name: shape for name, shape in shapes.items() if block_of(name) in chosen}


def learns(name: str, dimensions: int, tied: bool, tuning: Tuning) -> bool:
    """Whether a tensor of the file learns where the weights do: with `on=all` every one, otherwise what is named."""
    parts = tuning.parts
    if "all" in parts:
        return not name.startswith("rope_freqs")
    if dimensions == 1:
        return (NORMS_PART if "norm" in name else BIASES_PART) in parts
    if block_of(name) == ENDS:
        return HEAD_PART in parts and name == (TABLE if tied else HEAD)
    return tuning.learns(name)


@dataclass(frozen=True)
class Whole(Method):
    """Methods that learn the model's own numbers, and write a whole model."""

    def shapes(self, file: ModelFile, tuning: Tuning) -> Shapes:
        tied = is_tied(file.tensors)
        return {
            name: tuple(info.shape)
            for name, info in file.tensors.items()
            if learns(name, len(info.shape), tied, tuning)
        }

    def prepare(self, model: Model, tuning: Tuning) -> tuple[Any, dict[str, Tensor]]:
        tied = is_tied(model.file.tensors)
        found = {name: matrix.weight for name, matrix in model.matrices.items() if isinstance(matrix, Matrix)}
        found |= vectors(model.weights)
        found = {name: x for name, x in found.items() if learns(name, x.ndim, tied, tuning)}
        if not found:
            raise SpecError(f"on={tuning.on}: this {model.config.architecture} model has none of these; use all")
        return model.weights, found


def vectors(weights: Any) -> dict[str, Tensor]:
    """A model's norms and biases by their tensors' names."""
    found: dict[str, Tensor | None] = {}
    for name, norm in norms_of(weights).items():
        found |= {f"{name}.weight": norm.gain, f"{name}.bias": norm.bias}
    for name, linear in linears_of(weights).items():
        found[name.removesuffix("weight") + "bias"] = linear.bias
    return {name: vector for name, vector in found.items() if vector is not None}
