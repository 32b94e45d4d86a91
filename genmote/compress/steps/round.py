"""Learned rounding: which way each number is rounded, and by which scales, learnt from what the whole model then says.

A step such as `gptq` has stored the matrices; this one goes on from its codes (`latent.py`), taught by the original as
in `distill`. A block's own error does not tell what it does to the next token; the whole model's words do.
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

    train: Part = setting("what learns: codes and scales, or scales alone", default="codes")

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.train not in ("codes", "scales"):
            yield f"train={self.train}: round learns codes or scales; for weights, norms and adapters there is distill"
