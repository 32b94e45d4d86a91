"""Make a model smaller: steps that take a GGUF file and give one, in the order that a recipe lists.

A step is one module of `steps/`, found by its name. Needs PyTorch (the extra `workbench`).
"""

from __future__ import annotations

from genmote.compress.calibration import Calibration
from genmote.compress.recipe import Recipe
from genmote.compress.run import Compressed, compress

__all__ = ["Calibration", "Compressed", "Recipe", "compress"]
