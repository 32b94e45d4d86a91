"""After a cut: the matrices that write to the residual stream learn again what the original wrote, by least squares.

Block after block, with the inputs that the cut model has there and what its states lack of the original's, so that what
was lost before is made good as far as a linear map can (as in SlimGPT, Ling et al. 2024, arXiv 2412.18110, and FLAP, An
et al. 2023, arXiv 2312.11983).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from genmote.compress.block import Block, Inputs, Site
from genmote.compress.cut import OUTPUTS
from genmote.compress.layers import compress_layers
from genmote.compress.steps._base import LayerStep, Sight
from genmote.compress.surgeon import fitted
from genmote.spec import setting


@dataclass(frozen=True)
class Refit(LayerStep):
    """Fits the two matrices of each block that add to the states, so that these come near the original's."""

    compares: ClassVar[bool] = True

    damp: float = setting("share of the inputs' mean square that draws weights to what they are", default=0.01)

    def compress_layer(self, block: Block) -> None:
        other = block.original
        assert other is not None

        def visit(site: Site, inputs: Inputs) -> None:
            if site.name.endswith(OUTPUTS) and inputs.original is not None and len(inputs.rows):
                target = other.sites[site.name].weight @ inputs.cross
                target = target if inputs.owed is None else target + inputs.owed
                site.replace(fitted(site.weight, inputs.hessian, target, self.damp))

        block.sweep(visit)


def refitted(source: Path, target: Path, sight: Sight, cut: Callable[[Path], None]) -> None:
    """Write `target`: what `cut` writes of `source`, fitted to `source`'s outputs block by block."""
    between = sight.folder / "cut.gguf"
    if not between.exists():
        cut(between)
    folder = sight.folder / "refit"
    compress_layers(Refit(), between, target, folder, windows=sight.windows, original=source, progress=sight.progress)
