"""A stored matrix that learns: each code is the rounding of a real number, each scale a multiple of what it was.

A code's real number counts in levels. It begins where the weight before rounding lies between them, so that one whose
weight lay half-way moves first; but where another code than the nearest is stored, that was to make good an error
elsewhere, and it begins at that code. The gradient passes the rounding unchanged (Bengio et al. 2013, arXiv 1308.3432),
so what the text is run through is at each step what the file would store; as in SignRound (Cheng et al. 2023, arXiv
2309.05516), but learnt from what the whole model says. With the codes frozen, the scales alone: EfficientQAT's second
phase (Chen et al. 2024, arXiv 2407.11062).
"""

from __future__ import annotations

import torch

from genmote.compress.block import Site, Vector
from genmote.compress.grid import half, storable
from genmote.compress.stored import Stored

Tensor = torch.Tensor
EDGE = 0.49  # how far from its code a number may begin
# What one unit of a parameter stands for, as Adam moves all alike: levels, shares of a scale. At a rate of 5e-5 a code
# moves by 0.003 of a level and a scale by 0.00025 of itself in a step; much larger steps undo what GPTQ has done.
PLACE, UNIT = 60.0, 5.0


class Gain:
    """A norm's gain or a bias that learns, by shares of its size."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        self._start, size = vector.value.clone(), vector.value.abs()
        self._size = size.clamp(min=float(size.mean()))
        self.parameters = [torch.zeros_like(self._start)]
        self.vector.value.requires_grad_()

    def gather(self) -> None:
        """Give the parameters the gradient that the vector got."""
        gradient, self.vector.value.grad = self.vector.value.grad, None
        if gradient is not None:
            self.parameters[0].grad = gradient * self._size

    @torch.no_grad()
    def put(self) -> None:
        """The block computes with what would now be stored."""
        self.vector.value.copy_(self._start + UNIT * self.parameters[0] * self._size)


class Latent:
    """One matrix's parameters: where its codes lie, and by what its scales and offsets have changed."""

    def __init__(self, site: Site, near: Tensor | None, *, codes: bool) -> None:
        """`near` (rows, cols): the weights before rounding, if they are known; `codes`: whether codes learn too."""
        self.stored = stored = Stored(site)
        self._unit, self._base = stored.unit, stored.base
        self._size = stored.unit.abs() if stored.base is None else torch.maximum(stored.unit.abs(), stored.base.abs())
        self.units = torch.zeros_like(stored.unit)
        self.bases = None if stored.base is None else torch.zeros_like(stored.base)
        self.places: Tensor | None = None
        if codes:
            self._levels = torch.from_numpy(stored.layout.levels.astype("float32"))
            index = torch.searchsorted(self._levels, stored.codes.float()).float()
            start = index if near is None else self._between(near)
            self.places = torch.where((start - index).abs() <= EDGE, start, index) / PLACE
        self.put()

    @property
    def parameters(self) -> list[Tensor]:
        return [part for part in (self.units, self.bases, self.places) if part is not None]

    def gather(self) -> None:
        """Give the parameters the gradients that the matrix got."""
        weight = self.stored.site.weight
        gradient, weight.grad = weight.grad, None
        if gradient is None:  # an expert that no token was sent to
            return
        unit, base = self.stored.slopes(gradient)
        self.units.grad = unit * self._unit.abs()
        if self.bases is not None and base is not None:
            self.bases.grad = base * self._size
        if self.places is not None:
            groups = gradient.view(self.stored.rows, -1, self.stored.layout.group)
            self.places.grad = groups.mul_(self.stored.scale()[:, :, None]).view(gradient.shape)

    @torch.no_grad()
    def put(self) -> None:
        """The site computes with what would now be stored, and collects a gradient."""
        stored = self.stored
        stored.unit = storable(stored.layout, self._unit + UNIT * self.units * self._unit.abs())
        if self.bases is not None and self._base is not None:
            stored.base = half(self._base + UNIT * self.bases * self._size)
        if self.places is not None:
            index = (self.places * PLACE).round_().clamp_(0, len(self._levels) - 1)
            stored.codes = self._levels[index.to(torch.int32)].to(torch.int8)
        stored.site.matrix.weight = stored.values().requires_grad_()

    def _between(self, near: Tensor) -> Tensor:
        """Where numbers lie between the levels, in levels: 2.5 is half-way from the third to the fourth."""
        stored = self.stored
        groups = near.reshape(stored.rows, -1, stored.layout.group)
        if (offset := stored.offset()) is not None:
            groups = groups - offset[:, :, None]
        scale = stored.scale()[:, :, None]
        x = torch.where(scale == 0, 0.0, groups / torch.where(scale == 0, 1.0, scale)).reshape(near.shape)
        right = torch.searchsorted(self._levels, x.contiguous()).clamp(1, len(self._levels) - 1)
        low, high = self._levels[right - 1], self._levels[right]
        return right - 1 + (x - low) / (high - low)
