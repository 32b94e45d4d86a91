"""One transformer block as a layer step sees it: its matrices by name, what flows into each, and the block to run.

The forward pass is `models/decoder.block` over the torch op set. N calibration rows: windows of T tokens, one after
another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.models.decoder import block as forward
from genmote.models.weights import is_expert
from genmote.ops import quant
from genmote.ops.layer import Layer
from genmote.ops.protocol import Rotary, Span
from genmote.ops.torch_ops import Matrix, TorchOps

Tensor = torch.Tensor
PLAIN = "F32"  # how numbers lie in the file between steps, until a step stores them otherwise


@dataclass(eq=False)
class Site:
    """One matrix of the model. `weight` (out, in) is what the block computes with, float32."""

    name: str  # the tensor's; one expert of a 3-D tensor ends in [e]
    type: str  # how it is stored
    matrix: Matrix
    raw: NDArray[np.uint8]  # the bytes of `type`
    changes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)  # for the report, JSON values

    @property
    def tensor(self) -> str:
        """The tensor's name, without the expert."""
        return self.name.partition("[")[0]

    @property
    def weight(self) -> Tensor:
        return self.matrix.weight

    def store(self, type_name: str, raw: NDArray[np.uint8]) -> None:
        """From now on the tensor is these bytes, and the block computes with what they mean."""
        shape = tuple(self.weight.shape)
        self.matrix.weight = torch.from_numpy(quant.dequantize(type_name, raw, shape))
        self.type, self.raw = quant.by_name(type_name).name, raw
        self.changes += 1

    def replace(self, weight: Tensor) -> None:
        """From now on the tensor is these plain numbers, of this shape, for later steps to store."""
        self.matrix.weight = weight.detach().float().contiguous()
        self.type, self.raw = PLAIN, self.matrix.weight.numpy().reshape(-1).view(np.uint8)
        self.changes += 1


@dataclass(eq=False)
class Vector:
    """A norm's gain or a bias, `value` (n,) float32."""

    name: str
    value: Tensor
    changes: int = 0

    def replace(self, value: Tensor) -> None:
        """In place: the block computes with these from now on."""
        self.value.copy_(value.detach())
        self.changes += 1


@dataclass(eq=False)
class Inputs:
    """What one matrix, or several that share it, multiplies on the calibration text."""

    rows: Tensor  # (N, in), from the model as the steps have left it so far
    original: Tensor | None = None  # (N, in), from the original model; None: not compared, or an expert's

    @cached_property
    def hessian(self) -> Tensor:
        """Mean of x x^T over the rows, (in, in) float32: half of the second derivative of the mean squared error of an
        output with respect to its row of weights."""
        return moment(self.rows, self.rows)

    @cached_property
    def cross(self) -> Tensor:
        """Mean of x_original x^T, (in, in) float32."""
        assert self.original is not None
        return moment(self.original, self.rows)


def moment(a: Tensor, b: Tensor) -> Tensor:
    """Mean over rows of a b^T: (N, p), (N, q) → (p, q)."""
    if not len(a):
        return torch.zeros(a.shape[1], b.shape[1])
    return a.T @ b / len(a)


class WatchedOps(TorchOps):
    """The torch op set, which tells `watch` of each product before it is made."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32, round_inputs=False)
        self.watch: Callable[[Tensor, Matrix], None] | None = None

    def product(self, x: Tensor, matrix: Matrix) -> Tensor:
        if self.watch is not None:
            self.watch(x, matrix)
        return super().product(x, matrix)


@dataclass(eq=False)
class Rows:
    """How rows lie in windows, and their rotations (of all windows; each window's are the same)."""

    length: int
    tables: list[Rotary]

    def rotary(self, layer: Layer, rows: int) -> Rotary | None:
        if layer.spec.rope < 0:
            return None
        table = self.tables[layer.spec.rope]
        return Rotary(table.cos[:rows], table.sin[:rows])


@dataclass(eq=False)
class Block:
    """A block, and the states (N, D) that the calibration text has when it comes to it."""

    index: int
    layer: Layer
    sites: dict[str, Site]  # in the order of the forward pass within each half
    vectors: dict[str, Vector]
    ops: WatchedOps
    rows: Rows | None = None
    x: Tensor | None = None  # (N, D) after the blocks before, as the steps have left them; None: not calibrating
    original: Block | None = None  # the original model's block with the original's states, where the step compares
    _output: tuple[int, Tensor] | None = None

    def run(self, x: Tensor) -> Tensor:
        """The block's output for states (n windows of T rows, D), differentiable in `Matrix.weight` and x."""
        assert self.rows is not None
        length = self.rows.length
        shape = (self.index + 1, self.layer.spec.n_kv_heads, self.layer.spec.head_dim)
        spans = [Span(self.ops.cache(*shape, length), number * length, length) for number in range(len(x) // length)]
        output: Tensor = forward(self.ops, x, self.layer, self.rows.rotary(self.layer, len(x)), spans)
        return output

    def sweep(self, visit: Callable[[Site, Inputs], None]) -> None:
        """Run the block over all rows; before a matrix multiplies, `visit(site, inputs)` may give it new weights, which
        what comes after it sees. Matrices that share an input are given the same `Inputs`."""
        assert self.x is not None
        originals: dict[str, Tensor] = {}
        if self.original is not None:
            self.original._watched(lambda site, x: originals.__setitem__(site.name, x))
        last: list[Inputs] = []

        def seen(site: Site, x: Tensor) -> None:
            if not last or last[0].rows is not x:
                if not torch.isfinite(x).all():
                    raise SpecError(f"{site.name}: its inputs on the calibration text are not finite numbers")
                # The original may send other rows to an expert.
                last[:] = [Inputs(x, None if is_expert(site.name) else originals.get(site.name))]
            visit(site, last[0])
            visited.add(site.name)
            originals.pop(site.name, None)

        visited: set[str] = set()
        self._watched(seen)
        for site in self.sites.values():
            if site.name not in visited:  # an expert that no row was sent to
                visit(site, Inputs(torch.zeros(0, site.weight.shape[1])))

    def output(self) -> Tensor:
        """The block's output (N, D) on the calibration text, with the weights as they now are."""
        assert self.x is not None
        if self._output is None or self._output[0] != self._changes():
            self._output = self._changes(), self.run(self.x)
        return self._output[1]

    def _watched(self, told: Callable[[Site, Tensor], None]) -> None:
        """Run the block over all rows, telling of each product, and keep the output."""
        by_matrix = {id(site.matrix): site for site in self.sites.values()}
        self.ops.watch = lambda x, matrix: told(by_matrix[id(matrix)], x)
        try:
            assert self.x is not None
            output = self.run(self.x)
        finally:
            self.ops.watch = None
        self._output = self._changes(), output

    def _changes(self) -> int:
        return sum(x.changes for x in self.sites.values()) + sum(x.changes for x in self.vectors.values())


@dataclass(eq=False)
class Head:
    """The matrix that makes the logits, with the normalised final states of the model as its inputs."""

    site: Site
    inputs: Inputs | None  # None: the step does not calibrate


def joined(sites: Iterable[Site]) -> list[tuple[str, str, tuple[int, ...], list[NDArray[np.uint8]]]]:
    """Tensors of sites as `write_gguf` takes them: experts of one type and shape become one 3-D tensor again, others
    tensors of their own (docs/formats.md)."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.tensor, []).append(site)
    found = []
    for name, members in groups.items():
        kinds = {(site.type, tuple(site.weight.shape)) for site in members}
        if members[0].name == name:
            found.append((name, members[0].type, tuple(members[0].weight.shape), [members[0].raw]))
        elif len(kinds) == 1:
            type_name, shape = next(iter(kinds))
            found.append((name, type_name, (len(members), *shape), [site.raw for site in members]))
        else:
            for expert, site in enumerate(members):
                own = name.replace("_exps.weight", f".{expert}.weight")
                found.append((own, site.type, tuple(site.weight.shape), [site.raw]))
    return found
