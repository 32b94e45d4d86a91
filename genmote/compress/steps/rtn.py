"""Round to nearest: every group of numbers by itself, as `ops/quant` stores it. The baseline; needs no text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from genmote.compress.block import Inputs, Site
from genmote.compress.steps._quantise import Quantiser
from genmote.ops import quant


@dataclass(frozen=True)
class Rtn(Quantiser):
    """The same bytes as `requantise.convert_type`."""

    calibrates: ClassVar[bool] = False

    def quantise(self, site: Site, type_name: str, inputs: Inputs | None) -> None:
        site.store(type_name, quant.quantize(type_name, site.weight.numpy()))
