"""Where a change of a block's channels can be folded into the matrices on both sides, so that the block computes the
same: factors c for channels that are divided by c where they are made and multiplied by c where they are used.

Places: a norm's gain and the matrices that read it; the rows of v and the columns of o; the rows of up and the columns
of down. What has no such place (experts, a GELU without a gate, readers of low rank) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from genmote.compress.block import Block, Site, Vector
from genmote.ops.layer import Linear, Norm

Tensor = torch.Tensor


@dataclass(frozen=True)
class Place:
    """`made`: what makes the channels (a matrix's rows, vectors); `used`: matrices whose columns read them. `spread`
    takes factors of the channels that are made to those of the columns: several heads read one of v."""

    name: str
    made: tuple[Site | Vector, ...]
    used: tuple[Site, ...]
    channels: int
    spread: Callable[[Tensor], Tensor]

    def fold(self, factors: Tensor) -> None:
        """Divide the channels by factors (channels,) and multiply where they are read."""
        for part in self.made:
            if isinstance(part, Vector):
                part.replace(part.value / factors)
            else:
                part.replace(part.weight / factors[:, None])
        wide = self.spread(factors)
        for site in self.used:
            site.replace(site.weight * wide)


def places(block: Block) -> list[Place]:
    """The block's, in the order of the forward pass."""
    layer, spec = block.layer, block.layer.spec
    site_of = {id(site.matrix): site for site in block.sites.values()}
    vector_of = {id(vector.value): vector for vector in block.vectors.values()}

    def norm(found: Norm) -> tuple[Vector, ...]:
        return tuple(vector_of[id(part)] for part in (found.gain, found.bias) if part is not None)

    def linear(found: Linear) -> tuple[Site | Vector, ...]:
        bias = () if found.bias is None else (vector_of[id(found.bias)],)
        return site_of[id(found.matrix)], *bias

    def sites(*found: Linear) -> tuple[Site, ...]:
        return tuple(site_of[id(one.matrix)] for one in found)

    def per_head(factors: Tensor) -> Tensor:
        heads = factors.reshape(spec.n_kv_heads, 1, spec.head_dim)
        return heads.expand(-1, spec.n_heads // spec.n_kv_heads, -1).reshape(-1)

    def same(factors: Tensor) -> Tensor:
        return factors

    def whole(*readers: Linear) -> bool:
        return all(reader.down is None for reader in readers)  # of two thin matrices the inner one reads the channels

    width = layer.attn_norm.gain.shape[0]
    found = []
    if whole(layer.q, layer.k, layer.v):
        found.append(Place("attn_norm", norm(layer.attn_norm), sites(layer.q, layer.k, layer.v), width, same))
    if whole(layer.o):
        found.append(Place("v", linear(layer.v), sites(layer.o), spec.n_kv_heads * spec.head_dim, per_head))
    if layer.up is not None and layer.down is not None:
        readers = [layer.up] if layer.gate is None else [layer.gate, layer.up]
        if whole(*readers):
            found.append(Place("ffn_norm", norm(layer.ffn_norm), sites(*readers), width, same))
        # relu(x / c) is relu(x) / c for c above 0; a gate leaves up as it is.
        if whole(layer.down) and (layer.gate is not None or spec.activation == "relu"):
            found.append(Place("up", linear(layer.up), sites(layer.down), layer.up.matrix.shape[0], same))
    return found
