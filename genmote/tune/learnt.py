"""The numbers that are learnt, and the model with them: an adapter for each matrix, and norms and biases of its own.

The numbers are plain arrays by name (as `models.backward.Give` tells them), changed in place. A layer's are made into
the op set's matrices when the layer is asked for, so that memory holds them twice for one layer only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload
from zlib import crc32

import numpy as np

from genmote.errors import SpecError
from genmote.models.config import Config
from genmote.models.gguf import ModelFile
from genmote.models.lora import base_shapes, check_lora
from genmote.models.parts import HEAD, NORMS, OUTPUT_NORM, PARTS
from genmote.ops.exact import Float32
from genmote.ops.layer import Adapter, Layer, Linear, Norm
from genmote.ops.protocol import Ops
from genmote.tune.settings import BIASES_PART, NORMS_PART, Tuning

Numbers = dict[str, Float32]


def fresh(weights: Any, config: Config, tuning: Tuning) -> Numbers:
    """What is learnt, as it begins: an adapter that changes nothing (`lora_a` drawn evenly within 1 / sqrt(in), as is
    usual, `lora_b` zero), and the base's own norms and biases. SpecError where the model has nothing of what is asked
    for."""
    numbers: Numbers = {}
    linears = linears_of(weights)
    for tensor, (out, cols) in base_shapes(config).items():
        if tensor not in linears or not tuning.learns(tensor):
            continue
        draw = np.random.default_rng([tuning.seed, 1, crc32(tensor.encode())])
        bound = cols**-0.5
        numbers[f"{tensor}.lora_a"] = draw.uniform(-bound, bound, (tuning.rank, cols)).astype(np.float32)
        numbers[f"{tensor}.lora_b"] = np.zeros((out, tuning.rank), np.float32)
    if NORMS_PART in tuning.parts:
        for name, norm in norms_of(weights).items():
            numbers[f"{name}.weight"] = np.asarray(norm.gain).astype(np.float32)
            if norm.bias is not None:
                numbers[f"{name}.bias"] = np.asarray(norm.bias).astype(np.float32)
    if BIASES_PART in tuning.parts:
        for tensor, linear in linears.items():
            if linear.bias is not None:
                numbers[tensor.removesuffix("weight") + "bias"] = np.asarray(linear.bias).astype(np.float32)
    if not numbers:
        raise SpecError(f"on={tuning.on}: this {config.architecture} model has none of these; use all, or norms")
    return numbers


def go_on(numbers: Numbers, path: str | os.PathLike[str], config: Config, factor: float) -> None:
    """Begin with the numbers of an adapter file instead of fresh ones. SpecError where it learns something else, or
    with another rank; ModelFileError where it is no adapter of this model's."""
    file = ModelFile.open(path)
    alpha, _ = check_lora(file, config)
    shapes = {name: tuple(info.shape) for name, info in file.tensors.items()}
    wanted = {name: array.shape for name, array in numbers.items()}
    if shapes != wanted:
        one = sorted(set(shapes.items()) ^ set(wanted.items()))[0][0]
        raise SpecError(
            f"{file.path.name} is of other matrices or another rank ({one}): it is gone on from with the --on and "
            "--rank that it was made with"
        )
    for name, array in numbers.items():
        array[...] = file.tensor(name)
        if name.endswith(".lora_b"):
            array *= np.float32((alpha / array.shape[1] if alpha else 1.0) / factor)  # what it counts stays the same


def linears_of(weights: Any) -> dict[str, Linear]:
    """A model's linears that may have an adapter, by their tensors' names."""
    found = {HEAD: weights.head}
    for layer in weights.layers:
        for part, field in PARTS.items():
            if getattr(layer, field) is not None:
                found[f"blk.{layer.spec.index}.{part}.weight"] = getattr(layer, field)
    return found


def norms_of(weights: Any) -> dict[str, Norm]:
    """A model's norms by their tensors' names, without the `.weight`."""
    found = {OUTPUT_NORM: weights.output_norm}
    for layer in weights.layers:
        for part, field in NORMS.items():
            if getattr(layer, field) is not None:
                found[f"blk.{layer.spec.index}.{part}"] = getattr(layer, field)
    return found


class Learnt:
    """A `WeightSource`: another's weights with what is learnt. An adapter of these numbers is its linear's last."""

    def __init__(self, base: Any, ops: Ops, numbers: Mapping[str, Float32], alpha: float) -> None:
        """An adapter counts `alpha` by its own rank, as in its file."""
        self.base, self.ops, self.numbers, self.alpha = base, ops, numbers, alpha
        self.embedding = base.embedding
        self.position_embedding = base.position_embedding
        self.layers = _Layers(self)

    @property
    def output_norm(self) -> Norm:
        return self._norm(self.base.output_norm, OUTPUT_NORM)

    @property
    def head(self) -> Linear:
        return self._linear(self.base.head, HEAD)

    def layer(self, layer: Layer) -> Layer:
        """One of the base's layers with what is learnt of it."""
        block, changed = f"blk.{layer.spec.index}", dict[str, Any]()
        for part, field in PARTS.items():
            if (linear := getattr(layer, field)) is not None:
                changed[field] = self._linear(linear, f"{block}.{part}.weight")
        for part, field in NORMS.items():
            if (norm := getattr(layer, field)) is not None:
                changed[field] = self._norm(norm, f"{block}.{part}")
        return replace(layer, **changed, fused=None)

    def _linear(self, linear: Linear, tensor: str) -> Linear:
        bias = self.numbers.get(tensor.removesuffix("weight") + "bias", linear.bias)
        if f"{tensor}.lora_a" not in self.numbers:
            return replace(linear, bias=bias)
        down, up = (self._matrix(self.numbers[f"{tensor}.lora_{part}"]) for part in "ab")
        return replace(linear, bias=bias, adapters=(*linear.adapters, Adapter(down, up, self.alpha / down.shape[0])))

    def _matrix(self, numbers: Float32) -> Any:
        rows, cols = numbers.shape
        return self.ops.matrix("F32", (rows, cols), np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))

    def _norm(self, norm: Norm, name: str) -> Norm:
        numbers = self.numbers
        return replace(norm, gain=numbers.get(f"{name}.weight", norm.gain), bias=numbers.get(f"{name}.bias", norm.bias))


class _Layers(Sequence[Layer]):
    def __init__(self, of: Learnt) -> None:
        self._of = of

    def __len__(self) -> int:
        return len(self._of.base.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Layer]: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequence[Layer]:
        found = self._of.base.layers[index]
        return [self._of.layer(layer) for layer in found] if isinstance(index, slice) else self._of.layer(found)

    def __iter__(self) -> Iterator[Layer]:
        return (self._of.layer(layer) for layer in self._of.base.layers)
