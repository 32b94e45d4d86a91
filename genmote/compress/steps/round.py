"""Learned rounding: which way each number is rounded, and by which scales, learnt from what the whole block then gives.

The matrices are first stored as `gptq` does. Then codes and scales of all of a block's matrices, and its norms, learn
together (`latent.py`), by descent on the squared difference between the block's output and the original model's, each
block's input being what the compressed blocks before it make: learned rounding as in AutoRound (Cheng et al. 2023,
arXiv 2309.05516), of whole blocks as in BRECQ (Li et al. 2021, arXiv 2102.05426). A token's error counts as a share of
its output's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from genmote.compress.adam import Adam
from genmote.compress.block import Block
from genmote.compress.latent import Gain, Latent
from genmote.compress.steps.gptq import Gptq
from genmote.errors import SpecError
from genmote.ops import quant
from genmote.spec import setting

Tensor = torch.Tensor
CHECKS = 4  # times that the held windows are looked at


@dataclass(frozen=True)
class Round(Gptq):
    """Keeps the best that it saw on windows which it does not learn from, so never worse than `gptq` there."""

    steps: int = setting("steps of learning in each block, each on one window of the text", default=200)
    rate: float = setting(
        "levels that a code's place moves by in the first step, scales a hundredth of 5", default=0.002
    )
    held: int = setting("windows of the text that are kept to judge by", default=4)
    seed: int = setting("number that fixes the order of the windows", default=0)

    @property
    def compares(self) -> bool:
        return True

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        for name in ("steps", "held"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: use 1 or more"
        if not 0 < self.rate < 0.1:
            yield f"rate={self.rate:g}: use more than 0 and less than 0.1"

    def compress_layer(self, block: Block) -> None:
        near = {name: site.weight for name, site in block.sites.items()}
        super().compress_layer(block)
        learns = [site for site in block.sites.values() if site.changes and quant.by_name(site.type).block_size > 1]
        if not learns:
            return
        latents = [Latent(site, near[site.name], codes=True) for site in learns]
        gains = [Gain(vector) for vector in block.vectors.values()]
        before, after = self._learn(block, latents, gains)
        for latent in latents:
            latent.stored.store()
            latent.stored.site.figures.update(block_error_before=before, block_error_after=after)
        for gain in gains:
            gain.keep()

    def _learn(self, block: Block, latents: list[Latent], gains: list[Gain]) -> tuple[float, float]:
        """Mean squared error of the output on the held windows, as a share of its size, before and after."""
        assert block.x is not None and block.original is not None and block.rows is not None
        x = block.x.reshape(-1, block.rows.length, block.x.shape[1])  # (windows, T, D)
        wanted = block.original.output().detach().reshape(x.shape)
        count = len(x) - self.held
        if count < 1:
            raise SpecError(f"{len(x)} windows of text, of which {self.held} are to judge by: use more windows")
        counts = 1 / wanted.square().sum(-1).clamp(min=1e-30)  # (windows, T)
        learners: list[Latent | Gain] = [*latents, *gains]
        parameters = [parameter for learner in learners for parameter in learner.parameters]
        adam = Adam(parameters)

        def loss(number: int) -> Tensor:
            error = (block.run(x[number]) - wanted[number]).square().sum(-1)
            return (error * counts[number]).mean()

        @torch.no_grad()
        def judge() -> float:
            return sum(float(loss(number)) for number in range(count, len(x))) / self.held

        before = best = judge()
        kept = [parameter.clone() for parameter in parameters]
        draw = torch.Generator().manual_seed(self.seed)
        order = torch.cat([torch.randperm(count, generator=draw) for _ in range(-(-self.steps // count))])
        for step in range(self.steps):
            loss(int(order[step])).backward()  # type: ignore[no-untyped-call]
            for learner in learners:
                learner.gather()
            adam.step(self.rate * (1 - step / self.steps), longest=math.inf)
            for learner in learners:
                learner.put()
            if (step + 1) % -(-self.steps // CHECKS) == 0 or step + 1 == self.steps:
                now = judge()
                if now < best:
                    best, kept = now, [parameter.clone() for parameter in parameters]
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
        for learner in learners:
            learner.put()
        return before, best
