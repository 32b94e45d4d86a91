"""A generator while it is trained: the decoder over PyTorch, many sequences of one length at a time.

Tokens that stand for numbers get their embeddings, and the rows of the output matrix, in two parts: one that is free,
and one that is a smooth function of the number, a sum of cosines whose weights are learnt. What is seen of one bin so
holds for the bins beside it, and the little data that a device has goes further. A file has the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from genmote.compress.block import Block, Rows, Vector, WatchedOps
from genmote.compress.layers import Model
from genmote.generator.layout import Layout
from genmote.models.decoder import block as forward
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.ops.layer import Layer
from genmote.ops.protocol import Span

Tensor = torch.Tensor
WAVES = 32  # cosines, the longest a half wave over the range
EMBEDDING, HEAD, NORM = "token_embd.weight", "output.weight", "output_norm.weight"


class BatchOps(WatchedOps):
    """The torch op set for sequences of one length, each from its beginning: attention in one call, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = 0.0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], layer: Layer) -> Tensor:
        count, spec = len(spans), layer.spec
        groups = spec.n_heads // spec.n_kv_heads
        q, k, v = (x.reshape(count, len(x) // count, x.shape[1], x.shape[2]).transpose(1, 2) for x in (q, k, v))
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale)
        return found.transpose(1, 2).reshape(-1, spec.n_heads * spec.head_dim)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + (F.dropout(b, self.dropout) if self.dropout else b)


class Table(torch.nn.Module):
    """Rows (V, D): `free`, and for tokens whose neighbours are alike a smooth part."""

    def __init__(self, values: NDArray[np.float32], ranges: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.free = torch.nn.Parameter(torch.from_numpy(values.copy()))
        self.ranges = [(start, stop) for start, stop in ranges if stop - start > 4]
        self.smooth = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(len(waves(stop - start)[0]), values.shape[1])) for start, stop in self.ranges
        )
        self.bases = [torch.from_numpy(waves(stop - start)) for start, stop in self.ranges]

    def rows(self) -> Tensor:
        parts, at = [], 0
        for (start, stop), base, weights in zip(self.ranges, self.bases, self.smooth, strict=True):
            parts += [self.free[at:start], self.free[start:stop] + base @ weights]
            at = stop
        return torch.cat([*parts, self.free[at:]])


def waves(count: int) -> NDArray[np.float32]:
    """(count, K) cosines over `count` places, short ones smaller.

    >>> waves(8).shape
    (8, 4)
    """
    most = max(1, min(WAVES, count // 2))
    at = (np.arange(count) + 0.5) / count
    wave = np.arange(most)
    return (np.cos(math.pi * at[:, None] * wave) / (1 + wave / 4)).astype(np.float32)


class Network:
    """What a model file holds, as parameters."""

    def __init__(self, path: Path, layout: Layout) -> None:
        file = ModelFile.open(path)
        self.layout, self.metadata = layout, file.typed_metadata()
        model = Model(file)
        self.ops = model.ops = BatchOps()
        self.model, self.config = model, model.config
        self.blocks: list[Block] = [model.block(index, None) for index in range(self.config.n_layers)]
        self.norm = Vector(NORM, torch.from_numpy(file.tensor(NORM).copy()))
        self.embedding = Table(file.tensor(EMBEDDING), layout.ranges())
        self.head = Table(file.tensor(HEAD), layout.ranges())
        self.matrices = [site for block in self.blocks for site in block.sites.values()]
        self.vectors = [vector for block in self.blocks for vector in block.vectors.values()] + [self.norm]
        self.tables = [*self.embedding.parameters(), *self.head.parameters()]
        for parameter in self.parameters():
            parameter.requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [*(site.weight for site in self.matrices), *(vector.value for vector in self.vectors), *self.tables]

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """Parameters as an optimiser takes them: matrices decay, norms and tables do not."""
        others = [*(vector.value for vector in self.vectors), *self.tables]
        return [
            {"params": [site.weight for site in self.matrices], "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
        ]

    def states(self, tokens: Tensor, asks: Tensor) -> Tensor:
        """(B, T) tokens and (B, T, ASKS) asks of the tokens after them → (B * T, D), normalised."""
        count, length = tokens.shape
        table = self.embedding.rows()
        x = F.embedding(tokens, table)
        for n in range(asks.shape[2]):
            ask = asks[:, :, n]
            if bool((ask >= 0).any()):
                x = x + F.embedding(ask.clamp(min=0), table) * (ask >= 0).unsqueeze(-1)
        x = x.reshape(count * length, -1)
        shape = (1, 1, self.config.head_dim)
        spans = [Span(self.ops.cache(*shape, length), n * length, length) for n in range(count)]
        rope = self.config.ropes[0]
        positions = np.tile(np.arange(length, dtype=np.int32), count)
        rotary = Rows(length, [self.ops.rotary(positions, rope.inv_freq, rope.scale)])
        for block in self.blocks:
            x = forward(self.ops, x, block.layer, rotary.rotary(block.layer, len(x)), spans)
        y = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.config.eps) * self.norm.value
        return y

    def losses(self, tokens: Tensor, asks: Tensor, targets: Tensor) -> Tensor:
        """Nats of each target (B, T); 0 where it is -1."""
        states = self.states(tokens, asks)
        flat = targets.reshape(-1)
        wanted = flat >= 0
        logits = states[wanted] @ self.head.rows().T
        found = torch.zeros(len(flat)).masked_scatter(wanted, F.cross_entropy(logits, flat[wanted], reduction="none"))
        return found.reshape(targets.shape)

    @torch.no_grad()
    def write(self, path: Path, metadata: dict[str, Any], type_name: str) -> None:
        """A model file, whole or not at all, with the matrices stored as `type_name`."""
        from genmote.ops import quant

        tensors: list[Any] = []
        for name, table in ((EMBEDDING, self.embedding), (HEAD, self.head)):
            tensors.append(_stored(quant, name, type_name, table.rows()))
        tensors.append((NORM, "F32", tuple(self.norm.value.shape), self.norm.value.detach().numpy()))
        for site in self.matrices:
            tensors.append(_stored(quant, site.name, type_name, site.weight))
        for vector in self.vectors[:-1]:
            tensors.append((vector.name, "F32", tuple(vector.value.shape), vector.value.detach().numpy()))
        write_gguf(path, metadata, tensors)


def _stored(quant: Any, name: str, type_name: str, weight: Tensor) -> tuple[str, str, tuple[int, ...], Any]:
    values = weight.detach().float().contiguous().numpy()
    return name, type_name, tuple(values.shape), quant.quantize(type_name, values)
