"""What of a model learns: its blocks' weights, its norms and biases alone, low-rank updates that are added in the end,
or the codes and scales that it is stored in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from genmote.compress import sparse
from genmote.compress.block import Block, Site, Vector
from genmote.compress.latent import Gain, Latent
from genmote.compress.layers import save, write
from genmote.compress.whole import Whole
from genmote.errors import SpecError
from genmote.fetch import Progress
from genmote.models.gguf import ModelFile
from genmote.ops import quant
from genmote.ops.layer import Adapter, Linear
from genmote.ops.torch_ops import Matrix

Tensor = torch.Tensor
Part = Literal["all", "norms", "adapters", "codes", "scales"]
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
SCALE = 2.0  # of the adapters' updates


class Pupil:
    """A whole model, the tensors of it that learn (`parameters`), and how they become a file again."""

    def __init__(self, source: Path, before: ModelFile, part: Part, rank: int, seed: int) -> None:
        """`before`: where the weights are that were rounded to what `source` stores, if it stores some in codes."""
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
        self.latents: list[Latent] = []
        self.learners: list[Latent | Gain] = []  # the same, and the vectors
        if part in ("codes", "scales"):
            stored = [site for block in self.whole.blocks for site in block.sites.values() if _coded(site)]
            if not stored:
                raise SpecError(
                    f"train={part}: no matrix is stored in codes; a step such as gptq comes before this one"
                )
            self.latents = [Latent(site, _unrounded(site, before), codes=part == "codes") for site in stored]
            self.learners = [*self.latents, *(Gain(vector) for vector in self.vectors)]
        self.zeros: list[tuple[Tensor, Tensor]] = []
        for site in self.sites:
            if (zeros := sparse.pruned(site.weight)) is not None:
                self.zeros.append((site.weight, zeros))
        self.parameters: list[Tensor] = [
            *(site.weight for site in self.sites),
            *(matrix.weight for _, adapter in self.adapters for matrix in (adapter.down, adapter.up)),
            *(parameter for learner in self.learners for parameter in learner.parameters),
            *(vector.value for vector in self.vectors if not self.learners),
        ]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def gather(self) -> None:
        """To be called before a step: each parameter has its gradient then."""
        for learner in self.learners:
            learner.gather()

    @torch.no_grad()
    def settle(self) -> None:
        """To be called after a step: the model is what the parameters say."""
        for weight, zeros in self.zeros:
            weight.masked_fill_(zeros, 0.0)
        for learner in self.learners:
            learner.put()

    @torch.no_grad()
    def write(self, target: Path, between: Path, progress: Progress) -> None:
        """The model file with what was learned; `between` is a file for that alone."""
        for parameter in (*self.parameters, *(vector.value for vector in self.vectors)):
            parameter.requires_grad_(False)
        for site in self.sites:
            site.replace(site.weight)
        for latent in self.latents:
            latent.stored.store()
        for site, adapter in self.adapters:
            learned = site.weight + adapter.scale * adapter.up.weight @ adapter.down.weight
            zeros = sparse.pruned(site.weight)
            site.replace(learned if zeros is None else learned.masked_fill(zeros, 0.0))
        for vector in self.vectors:
            vector.replace(vector.value)
        model = self.whole.model
        save(between, [site for block in self.whole.blocks for site in block.sites.values()], self.vectors)
        model.overlay(between)
        write(target, model.file, progress)


def _coded(site: Site) -> bool:
    return quant.by_name(site.type).block_size > 1


def _unrounded(site: Site, before: ModelFile) -> Tensor | None:
    """The matrix before it was rounded, if it is known: one of this name and shape, or an expert of such a tensor."""
    shape = tuple(site.weight.shape)
    name, _, expert = site.name.partition("[")
    info = before.tensors.get(name)
    if info is None or tuple(info.shape[-2:]) != shape or (len(info.shape) > 2) != bool(expert):
        return None
    if not expert:
        return torch.from_numpy(before.tensor(name))
    raw = before.raw(name).reshape(info.shape[0], -1)[int(expert[:-1])]
    return torch.from_numpy(quant.dequantize(info.type, raw, shape))


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
