"""Learned rounding: which way each number is rounded, and by which scales, learnt from what the whole model then says.

A step such as `gptq` has stored the matrices; this one goes on from its codes (`latent.py`), taught by the original as
in `distill`. Learned rounding mostly goes by a block's own error (AutoRound, Cheng et al. 2023, arXiv 2309.05516), as
the coordinate descent of `gptq` does already; what an error does to the next token, only the whole model tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from genmote.compress.pupil import Part
from genmote.compress.steps.distill import Distill
from genmote.spec import setting


@dataclass(frozen=True)
class Round(Distill):
    """`Distill` of codes and scales; not a byte is added."""

    tokens: int = setting("tokens to learn from", default=65_536)
    train: Part = setting("what learns: codes and scales, or scales alone", default="codes")
    rate: float = setting("Adam's learning rate at its highest; a code moves by sixty of it in levels", default=5e-5)
    batch: int = setting("windows of a step", default=4)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.train not in ("codes", "scales"):
            yield f"train={self.train}: round learns codes or scales; for weights, norms and adapters there is distill"
