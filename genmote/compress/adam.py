"""Adam with its two averages in bfloat16: four bytes for each number that is trained instead of eight.

Kingma & Ba 2015 (arXiv 1412.6980), with the second average's memory short enough (0.95) that what is added to it in a
step is more than bfloat16 rounds away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Tensor = torch.Tensor


class Adam:
    """Steps on float32 parameters, in place, from their `grad`, which it empties."""

    def __init__(self, parameters: Sequence[Tensor], *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-12):
        self.parameters, self.betas, self.eps = list(parameters), betas, eps
        self.steps = 0
        self.first = [torch.zeros_like(p, dtype=torch.bfloat16) for p in self.parameters]
        self.second = [torch.zeros_like(p, dtype=torch.bfloat16) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate: float, longest: float = 1.0) -> float:
        """One step; a gradient longer than `longest` is shortened to it. Returns the gradient's length."""
        self.steps += 1
        b1, b2 = self.betas
        length: float = sum(float(p.grad.square().sum()) for p in self.parameters if p.grad is not None) ** 0.5
        shrink = min(1.0, longest / max(length, 1e-30))
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            g = p.grad.mul_(shrink)
            first = m.float().lerp_(g, 1 - b1)
            second = v.float().mul_(b2).addcmul_(g, g, value=1 - b2)
            m.copy_(first)
            v.copy_(second)
            scale = second.div_(1 - b2**self.steps).sqrt_().add_(self.eps)
            p.addcdiv_(first, scale, value=-rate / (1 - b1**self.steps))
            p.grad = None
        return length

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"steps": self.steps, "parameters": self.parameters, "first": self.first, "second": self.second}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for mine, name in ((self.parameters, "parameters"), (self.first, "first"), (self.second, "second")):
            for old, new in zip(mine, state[name], strict=True):
                old.copy_(new)
