"""A model file over the torch op set, as it is trained: its matrices as floats, or in the types that the file has.

Roundings of the engine's forward pass (inputs to 8 bits, keys and values to float16) are left out. Rows are whole
texts, one after another, without caches. N rows of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.parts import HEAD
from genmote.models.weights import GgufWeights
from genmote.ops.layer import Layer
from genmote.ops.protocol import Span
from genmote.ops.torch_ops import Matrix, TorchOps
from genmote.ops.torch_quant import dequantize_into

Tensor = torch.Tensor
TABLE = "token_embd.weight"
BLOCK = 1 << 20  # numbers of a packed matrix that are floats at a time


@dataclass(eq=False)
class Packed:
    """A weight (out, in) as its file stores it, `raw` (bytes,): floats are made of some rows at a time, and let go."""

    type: str
    shape: tuple[int, int]
    raw: Tensor

    def rows(self, raw: Tensor) -> Tensor:
        """Some whole rows' bytes as numbers (rows, in)."""
        cols = self.shape[1]
        found = torch.empty(raw.numel() * self.shape[0] // self.raw.numel(), cols)
        dequantize_into(self.type, raw.reshape(-1), found.view(-1))
        return found

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Numbers of some rows after another, and which rows these are."""
        out, cols = self.shape
        by_row = self.raw.view(out, -1)
        step = max(1, BLOCK // cols)
        for start in range(0, out, step):
            part = slice(start, min(out, start + step))
            yield part, self.rows(by_row[part])


class End(Matrix):
    """The embedding or the output matrix, which may be one: what its uses add to its gradient is added in place, and
    the gradient is whole when the pass is over."""


class WorkbenchOps(TorchOps):
    """The torch op set for training."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32, round_inputs=False)

    def embed(self, table: Any, tokens: NDArray[np.int32]) -> Tensor:
        rows = torch.as_tensor(tokens, dtype=torch.long)
        if isinstance(table, Packed):
            return table.rows(table.raw.view(table.shape[0], -1)[rows])
        return _Looked.apply(table.weight, rows)  # type: ignore[no-any-return, no-untyped-call]

    def product(self, x: Tensor, matrix: Any) -> Tensor:
        if isinstance(matrix, Packed):
            return _PackedProduct.apply(x, matrix)  # type: ignore[no-any-return, no-untyped-call]
        if isinstance(matrix, End):
            return _Gathered.apply(x, matrix.weight)  # type: ignore[no-any-return, no-untyped-call]
        return super().product(x, matrix)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], layer: Layer) -> Tensor:
        parts = []
        for span in spans:
            rows = slice(span.start, span.start + span.count)
            parts.append(self._attend_span(q[rows], k[rows], v[rows], layer))
        return torch.cat(parts)


def _gather(weight: Tensor) -> Tensor:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class _Gathered(torch.autograd.Function):
    """y = x W^T; the gradient of W is added in place, so that many products take the memory of one gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            _gather(weight).addmm_(dy.T, x)
        return dy @ weight, None


class _Looked(torch.autograd.Function):
    """Rows of a table, whose gradient is added in place."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(table, rows)
        return table[rows]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        table, rows = ctx.saved_tensors
        _gather(table).index_add_(0, rows, dy)
        return None, None


class _PackedProduct(torch.autograd.Function):
    """y = x W^T, W made floats a block at a time, on the way back once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Packed) -> Tensor:
        ctx.matrix = matrix
        y = x.new_empty(len(x), matrix.shape[0])
        for rows, numbers in matrix.blocks():
            y[:, rows] = x @ numbers.T
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx = dy.new_zeros(len(dy), ctx.matrix.shape[1])
        for rows, numbers in ctx.matrix.blocks():
            dx.addmm_(dy[:, rows], numbers)
        return dx, None


class Model:
    """A model file's weights for `ops`. `matrices` and `vectors` are its tensors by their names in the file (one expert
    of a tensor of three dimensions ends in [e])."""

    def __init__(self, file: ModelFile, ops: WorkbenchOps, *, packed: bool) -> None:
        """`packed`: matrices stay in the file's types."""
        self.file, self.ops, self.packed = file, ops, packed
        self.matrices: dict[str, Matrix | Packed] = {}
        self.weights = GgufWeights(file, ops, self._load)
        self.config = self.weights.config

    def _load(self, name: str, info: TensorInfo) -> Matrix | Packed:
        out, cols = int(info.shape[-2]), int(info.shape[-1])
        raw = self.file.read(info.name)
        if name.endswith("]"):
            raw = raw.reshape(info.shape[0], -1)[int(name.rpartition("[")[2][:-1])].copy()
        packed = Packed(info.type, (out, cols), torch.from_numpy(raw))
        found: Matrix | Packed = packed
        if not self.packed:
            weight = torch.empty(out, cols)
            for rows, numbers in packed.blocks():
                weight[rows] = numbers
            found = (End if name in (TABLE, HEAD) else Matrix)(weight, False)
        self.matrices[name] = found
        return found
