"""Activation-aware scaling: channels that carry much are made larger in the weights before these are rounded, and
smaller where they come from (AWQ, Lin et al. 2023, arXiv 2306.00978). The model computes the same; a later step stores
it.

A channel's factor is the mean size of its activations to a power between 0 and 1, the same for all channels of a place
(`fold.py`); tried are powers on a grid, by the mean squared error that rounding to nearest then makes at the outputs of
the matrices that read the channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch

from genmote.compress.block import Block, Inputs, Site
from genmote.compress.fold import Place, places
from genmote.compress.steps._base import LayerStep
from genmote.errors import SpecError
from genmote.ops import quant
from genmote.spec import setting

Tensor = torch.Tensor


@dataclass(frozen=True)
class Awq(LayerStep):
    """Leaves plain numbers: a step that stores them comes after it."""

    exact: ClassVar[bool] = True
    type: str = setting("tensor type that a later step will store the matrices as", default="Q4_0")
    powers: int = setting("powers above 0 that are tried", default=10)
    rows: int = setting("rows of each matrix that they are tried on", default=256)

    def faults(self) -> Iterable[str]:
        try:
            if quant.by_name(self.type).block_size == 1:
                yield f"type={self.type}: scaling gains nothing where numbers are not rounded; use one such as Q4_0"
        except SpecError as fault:
            yield str(fault)
        for name in ("powers", "rows"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: use 1 or more"

    def compress_layer(self, block: Block) -> None:
        found = places(block)
        wanted = {place.used[0].name for place in found}
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def visit(site: Site, inputs: Inputs) -> None:
            if site.name in wanted:
                seen[site.name] = inputs.hessian, inputs.rows.abs().mean(0)

        block.sweep(visit)
        for place in found:
            hessian, size = seen[place.used[0].name]
            factors, before, after = self.search(place, hessian, size)
            if after < before:
                place.fold(factors)
            for site in place.used:
                site.figures.update(error_before=before, error_after=after)

    def search(self, place: Place, hessian: Tensor, size: Tensor) -> tuple[Tensor, float, float]:
        """The best factors (channels,), and the error without any and with them, as a share of the outputs' size."""
        wide = place.spread(torch.ones(place.channels))
        # Several heads may read a channel: its size is their mean.
        own = size.reshape(-1) if len(wide) == place.channels else _mean_of(place, size)
        own = torch.where(own > 0, own, own[own > 0].mean() if (own > 0).any() else 1.0)  # a dead channel stays average
        best = torch.ones(place.channels)
        before = after = self.error(place, best, hessian)
        for step in range(1, self.powers + 1):
            factors = own ** (step / self.powers)
            factors = factors / (factors.max() * factors.min()).sqrt()
            try:
                now = self.error(place, factors, hessian)
            except SpecError:  # numbers as large as that the type cannot hold
                break
            if now < after:
                best, after = factors, now
        return best, before, after

    def error(self, place: Place, factors: Tensor, hessian: Tensor) -> float:
        wide = place.spread(factors)
        lost = whole = 0.0
        for site in place.used:
            rows = site.weight[:: max(1, -(-len(site.weight) // self.rows))]
            kind = quant.fallback(self.type, rows.shape[1])
            if quant.by_name(kind).block_size == 1:
                continue
            scaled = (rows * wide).numpy()
            stored = torch.from_numpy(quant.dequantize(kind, quant.quantize(kind, scaled), scaled.shape)) / wide
            lost += float(((stored - rows) @ hessian * (stored - rows)).sum())
            whole += float((rows @ hessian * rows).sum())
        return lost / max(whole, 1e-30)


def _mean_of(place: Place, size: Tensor) -> Tensor:
    """Means over the columns that read each channel."""
    channel = place.spread(torch.arange(place.channels, dtype=torch.float32)).long()
    total = torch.zeros(place.channels).index_add(0, channel, size)
    return total / torch.bincount(channel, minlength=place.channels)
