"""What the steps share that store matrices as another tensor type: which type each matrix gets."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from genmote.compress import sparse
from genmote.compress.block import Block, Head, Inputs, Site
from genmote.compress.grid import has_zero
from genmote.compress.steps._base import LayerStep
from genmote.errors import SpecError
from genmote.models.config import is_tied
from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.requantise import KEPT
from genmote.ops import quant
from genmote.spec import setting

KEEP, TABLE = "keep", "token_embd.weight"
PIECE = 1 << 20  # numbers of a matrix that tell whether it was pruned


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
        wanted = self.ruled(name) or self.default(name)
        if wanted.lower() == KEEP or name.endswith(KEPT):
            return now
        return quant.fallback(wanted, cols)

    def default(self, name: str) -> str:
        """The type, or keep, of a matrix that no rule fits."""
        return self.head_type if name in ("output.weight", TABLE) else self.type

    def ruled(self, name: str) -> str | None:
        """What the last of `types` that fits says of a tensor."""
        found = None
        for rule in self.types:
            pattern, _, type_name = rule.rpartition("=")
            if fnmatch.fnmatchcase(name, pattern):
                found = type_name
        return found

    def begin(self, model: ModelFile) -> Iterable[str]:
        yield from super().begin(model)
        matrices = [
            info
            for name, info in model.tensors.items()
            if len(info.shape) > 1 and name.endswith(".weight") and not name.endswith(KEPT)
        ]
        patterns = [rule.rpartition("=")[0] for rule in self.types]
        idle = [p for p in patterns if not any(fnmatch.fnmatchcase(info.name, p) for info in matrices)]
        if idle:
            known = [
                info.name for info in matrices if not info.name.startswith("blk.") or info.name.startswith("blk.0.")
            ]
            raise SpecError(f"types: no matrix fits {', '.join(idle)}; this model's are such as {', '.join(known)}")
        lookup = not is_tied(model.tensors)  # the embedding is looked up in alone
        if lookup and self.calibrates and self.table_type(model.tensors[TABLE]) != model.tensors[TABLE].type:
            yield f"{TABLE} is looked up in, not multiplied: it is rounded to the nearest"
        wanted = {
            info: self.ruled(info.name) or (KEEP if lookup and info.name == TABLE else self.default(info.name))
            for info in matrices
        }
        stored = {info: kind for info, kind in wanted.items() if kind.lower() != KEEP}
        yield from _given_way(stored)
        yield from _filled(model, {info: quant.fallback(kind, info.shape[-1]) for info, kind in stored.items()})

    def table_type(self, info: TensorInfo) -> str:
        wanted = self.ruled(info.name) or KEEP
        return info.type if wanted.lower() == KEEP else quant.fallback(wanted, info.shape[-1])

    def wants_head(self, name: str) -> bool:
        # With a width that every type takes: whether the name is to be kept, not how.
        return self.type_of(name, 256, KEEP) != KEEP

    def compress_head(self, head: Head) -> None:
        self._visit(head.site, head.inputs if self.calibrates else None)

    def changes(self, info: TensorInfo) -> bool:
        return len(info.shape) > 1 and self.type_of(info.name, info.shape[-1], info.type) != info.type

    def compress_layer(self, block: Block) -> None:
        sites = block.sites.values()
        if all(self.type_of(site.tensor, site.weight.shape[1], site.type) == site.type for site in sites):
            return
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


def _given_way(wanted: Mapping[TensorInfo, str]) -> Iterable[str]:
    """A line for each type that gives way to another in some matrices."""
    found: dict[tuple[str, str], list[int]] = {}
    for info, name in wanted.items():
        kind, stored = quant.by_name(name).name, quant.fallback(name, info.shape[-1])
        if stored != kind:
            found.setdefault((kind, stored), []).append(info.shape[-1])
    for (kind, stored), cols in found.items():
        count = "1 matrix has" if len(cols) == 1 else f"{len(cols)} matrices have"
        each = " or ".join(map(str, sorted(set(cols))))
        fits = f"{kind}'s blocks of {quant.by_name(kind).block_size} do not fit"
        yield f"{count} rows of {each} numbers, which {fits}: stored as {stored}"


def zeros(site: Site) -> torch.Tensor | None:
    """Where a pruned matrix (out, in) has its zeros; None for one that was not. Where numbers are stored in codes, some
    of these are zero anyway."""
    return sparse.pruned(site.weight) if quant.by_name(site.type).block_size == 1 else None


def _filled(model: ModelFile, types: Mapping[TensorInfo, str]) -> Iterable[str]:
    """A line for each type that cannot store the zeros of pruned matrices."""
    found: dict[str, int] = {}
    for info, kind in types.items():
        if has_zero(kind) or quant.by_name(info.type).block_size > 1:
            continue
        rows = model.raw(info.name).reshape(math.prod(info.shape[:-1]), -1)[: max(1, PIECE // info.shape[-1])]
        numbers = quant.dequantize(info.type, rows.reshape(-1), (len(rows), info.shape[-1]))
        if sparse.pruned(torch.from_numpy(numbers)) is not None:
            found[kind] = found.get(kind, 0) + 1
    for kind, count in found.items():
        whose = "1 pruned matrix" if count == 1 else f"{count} pruned matrices"
        yield f"{kind} has no exact zero: those of {whose} become small numbers (Q4_0, for one, keeps zeros)"
