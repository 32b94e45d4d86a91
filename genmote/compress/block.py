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
from genmote.ops.layer import Layer, Norm
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
    lack: Tensor | None = None  # (N, out) what the stream that the output is added to lacks of the original's
    counts: Tensor | None = None  # (N,) how much a squared error in each row's output counts; None: all alike

    @cached_property
    def hessian(self) -> Tensor:
        """Mean of x x^T over the rows, by what they count, (in, in) float32: half of the second derivative of the mean
        squared error of an output with respect to its row of weights."""
        return self._moment(self.rows)

    @cached_property
    def cross(self) -> Tensor:
        """Mean of x_original x^T, likewise."""
        assert self.original is not None
        return self._moment(self.original)

    @cached_property
    def owed(self) -> Tensor | None:
        """Mean of (what the stream lacks) x^T, likewise, (out, in); None where `lack` is."""
        return None if self.lack is None else self._moment(self.lack)

    def _moment(self, a: Tensor) -> Tensor:
        if self.counts is not None:
            return (a * (self.counts / self.counts.sum())[:, None]).T @ self.rows
        return a.T @ self.rows / max(1, len(a))


class WatchedOps(TorchOps):
    """The torch op set, which tells `watch` of each product before it is made and `made` after, and keeps what was last
    normalised."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32, round_inputs=False)
        self.watch: Callable[[Tensor, Matrix], None] | None = None
        self.made: Callable[[Tensor, Tensor, Matrix], None] | None = None  # input, output
        self.stream: dict[int, Tensor] = {}  # by the norm's id, while a block is watched

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        if self.watch is not None:
            self.stream[id(norm)] = x
        return super().norm(x, norm)

    def product(self, x: Tensor, matrix: Matrix) -> Tensor:
        if self.watch is not None:
            self.watch(x, matrix)
        y = super().product(x, matrix)
        if self.made is not None:
            self.made(x, y, matrix)
        return y


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
        originals: dict[str, Tensor] = {}
        streams: dict[str, Tensor] = {}
        if self.original is not None:
            other = self.original

            def kept(site: Site, x: Tensor) -> None:
                originals[site.name] = x
                if (writer := other._writer(site)) is not None:
                    streams[site.name] = other.ops.stream[id(writer[0])]

            other._watched(kept)
        last: list[Inputs] = []

        def seen(site: Site, x: Tensor) -> None:
            if not last or last[0].rows is not x:
                if not torch.isfinite(x).all():
                    raise SpecError(f"{site.name}: its inputs on the calibration text are not finite numbers")
                # The original may send other rows to an expert.
                last[:] = [Inputs(x, None if is_expert(site.name) else originals.get(site.name))]
                if (writer := self._writer(site)) is not None:
                    before, post = writer
                    stream = self.ops.stream[id(before)]
                    last[0].counts = self._counts(site, x, stream, post)
                    if post is None and site.name in streams:
                        last[0].lack = streams[site.name] - stream
            visit(site, last[0])
            visited.add(site.name)
            originals.pop(site.name, None)
            streams.pop(site.name, None)

        visited: set[str] = set()
        self._watched(seen)
        for site in self.sites.values():
            if site.name not in visited:  # an expert that no row was sent to
                visit(site, Inputs(torch.zeros(0, site.weight.shape[1])))

    def _writer(self, site: Site) -> tuple[Norm, Norm | None] | None:
        """For a matrix whose product is added to the residual stream: the norm that the stream went through before,
        and the norm of the product, if it has one."""
        layer = self.layer
        if site.matrix is layer.o.matrix:
            return layer.attn_norm, layer.post_attn_norm
        if layer.down is not None and site.matrix is layer.down.matrix:
            return layer.ffn_norm, layer.post_ffn_norm
        return None

    def _counts(self, site: Site, x: Tensor, stream: Tensor, post: Norm | None) -> Tensor:
        """What the rows count where their product is added to the stream: what follows sees the stream normalised, so
        that an error is as bad as it is large beside the stream that it ends up in. A few rows (the first token's, on
        which attention leans) are a thousand times larger than all others."""
        branch = x @ site.weight.T
        if post is None:
            return 1 / (stream + branch).square().sum(1).clamp(min=1e-30)
        scale = branch.square().sum(1).clamp(min=1e-30)
        return 1 / (scale * (stream + self.ops.norm(branch, post)).square().sum(1).clamp(min=1e-30))

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
            self.ops.stream.clear()
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
