"""What the steps share that store matrices as another tensor type: which type each matrix gets."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from genmote.compress.block import Block, Head, Inputs, Site
from genmote.compress.steps._base import LayerStep
from genmote.errors import SpecError
from genmote.models.requantise import KEPT
from genmote.ops import quant
from genmote.spec import setting

KEEP = "keep"


@dataclass(frozen=True)
class Quantiser(LayerStep):
    """A layer step that stores each linear layer's matrix; a member writes `quantise`."""

    type: str = setting("tensor type of the linear layers", default="Q4_0")
    head_type: str = setting("tensor type of the matrix that makes the logits, or keep", default=KEEP)
    types: tuple[str, ...] = setting("PATTERN=TYPE: a type for some matrices, the last that fits counts", default=())

    def faults(self) -> Iterable[str]:
        for rule in self.types:
            if "=" not in rule:
                yield f"types={rule!r}: write PATTERN=TYPE, such as blk.*.attn_v.weight=Q5_0"
        named = [self.type, self.head_type, *(rule.rpartition("=")[2] for rule in self.types if "=" in rule)]
        for name in named:
            if name.lower() == KEEP:
                continue
            try:
                if not quant.by_name(name).codec:
                    yield f"{name}: weights cannot be stored so; use one of {', '.join(quant.codec_names())}"
            except SpecError as fault:
                yield str(fault)

    def type_of(self, name: str, cols: int, now: str) -> str:
        """The type for a matrix with rows of `cols` numbers that is stored as `now`; one that these rows do not fit
        gives way to the nearest that they do.

        >>> Quantiser(type="Q4_K", types=("*attn_v*=Q6_K",)).type_of("blk.0.attn_v.weight", 512, "F16")
        'Q6_K'
        """
        wanted = self.head_type if name in ("output.weight", "token_embd.weight") else self.type
        for rule in self.types:
            pattern, _, type_name = rule.rpartition("=")
            if fnmatch.fnmatchcase(name, pattern):
                wanted = type_name
        if wanted.lower() == KEEP or name.endswith(KEPT):
            return now
        return quant.fallback(wanted, cols)

    def wants_head(self, name: str) -> bool:
        # With a width that every type takes: whether the name is to be kept, not how.
        return self.type_of(name, 256, KEEP) != KEEP

    def compress_head(self, head: Head) -> None:
        self._visit(head.site, head.inputs if self.calibrates else None)

    def compress_layer(self, block: Block) -> None:
        if self.calibrates:
            block.sweep(self._visit)
        else:
            for site in block.sites.values():
                self._visit(site, None)

    def _visit(self, site: Site, inputs: Inputs | None) -> None:
        wanted = self.type_of(site.tensor, site.weight.shape[1], site.type)
        if wanted == site.type:
            return
        if quant.by_name(wanted).block_size > 1:
            self.quantise(site, wanted, inputs)
        else:  # plain numbers: there is no choice
            site.store(wanted, quant.quantize(wanted, site.weight.numpy()))

    def quantise(self, site: Site, type_name: str, inputs: Inputs | None) -> None:
        """Store the site's weight as `type_name`, a type with codes and scales (`Site.store`)."""
        raise NotImplementedError
