"""What of a model learns: its blocks' weights, its norms and biases alone, or low-rank updates, added in the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from genmote.compress.block import Block, Site, Vector
from genmote.compress.layers import save, write
from genmote.compress.whole import Whole
from genmote.fetch import Progress
from genmote.ops.layer import Adapter, Linear
from genmote.ops.torch_ops import Matrix

Tensor = torch.Tensor
Part = Literal["all", "norms", "adapters"]
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
SPARSE = 0.05  # a matrix with at least this share of zeros was pruned: they stay zeros
SCALE = 2.0  # of the adapters' updates


class Pupil:
    """A whole model, the tensors of it that learn (`parameters`), and how they become a file again."""

    def __init__(self, source: Path, part: Part, rank: int, seed: int) -> None:
        self.whole = Whole(source)
        self.vectors = [vector for block in self.whole.blocks for vector in block.vectors.values()]
        self.vectors.append(Vector("output_norm.weight", self.whole.norm.gain))
        if self.whole.norm.bias is not None:
            self.vectors.append(Vector("output_norm.bias", self.whole.norm.bias))
        self.sites: list[Site] = []
        self.adapters: list[tuple[Site, Adapter]] = []
        if part == "all":
            self.sites = [site for block in self.whole.blocks for site in block.sites.values()]
        if part == "adapters":
            draw = torch.Generator().manual_seed(seed)
            self.adapters = [found for block in self.whole.blocks for found in _adapted(block, rank, draw)]
        self.zeros: list[tuple[Tensor, Tensor]] = []
        for site in self.sites:
            stays = site.weight != 0
            if float(stays.float().mean()) <= 1 - SPARSE:
                self.zeros.append((site.weight, stays))
        self.parameters: list[Tensor] = [
            *(site.weight for site in self.sites),
            *(matrix.weight for _, adapter in self.adapters for matrix in (adapter.down, adapter.up)),
            *(vector.value for vector in self.vectors),
        ]
        for parameter in self.parameters:
            parameter.requires_grad_()

    @torch.no_grad()
    def keep_zeros(self) -> None:
        """To be called after a step."""
        for weight, stays in self.zeros:
            weight *= stays

    @torch.no_grad()
    def write(self, target: Path, between: Path, progress: Progress) -> None:
        """The model file with what was learned; `between` is a file for that alone."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        for site in self.sites:
            site.replace(site.weight)
        for site, adapter in self.adapters:
            site.replace(site.weight + adapter.scale * adapter.up.weight @ adapter.down.weight)
        for vector in self.vectors:
            vector.replace(vector.value)
        model = self.whole.model
        save(between, [site for block in self.whole.blocks for site in block.sites.values()], self.vectors)
        model.overlay(between)
        write(target, model.file, progress)


def _adapted(block: Block, rank: int, draw: torch.Generator) -> Iterator[tuple[Site, Adapter]]:
    """Give the block's whole linears adapters that change nothing yet."""
    by_matrix = {id(site.matrix): site for site in block.sites.values()}
    for name in LINEARS:
        linear: Linear | None = getattr(block.layer, name)
        if linear is None or linear.down is not None:
            continue
        out, cols = linear.matrix.shape
        down = Matrix(torch.randn(rank, cols, generator=draw) / cols**0.5, False)
        adapter = Adapter(down, Matrix(torch.zeros(out, rank), False), SCALE)
        setattr(block.layer, name, replace(linear, adapters=(*linear.adapters, adapter)))
        yield by_matrix[id(linear.matrix)], adapter
