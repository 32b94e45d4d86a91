"""Take heads out of the attention parts: key-value heads with the query heads that share them.

As `prune_channels.py`, for groups of columns of `attn_output`: which go is told by the growth of the text's surprise
where the other heads' columns compensate. At least one key-value head stays in each block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genmote.compress.cut import cut_groups, whole_linears
from genmote.compress.refit import refitted
from genmote.compress.removals import removals
from genmote.compress.steps._base import ModelStep, Sight
from genmote.compress.surgeon import shared_out
from genmote.errors import SpecError
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.spec import setting


@dataclass(frozen=True)
class PruneHeads(ModelStep):
    share: float = setting("share of all key-value heads that go, with their query heads", default=0.1)
    even: bool = setting("take as many from each block, as some engines want it", default=False)

    def faults(self) -> Iterable[str]:
        if not 0 < self.share < 1:
            yield f"share={self.share}: use a share between 0 and 1, such as 0.1"

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        config = read_config(file)
        wide = next((n for n in file.tensors if n.endswith("attn_q_norm.weight")), None)
        if wide is not None and file.tensors[wide].shape != (config.head_dim,):
            raise SpecError(f"prune-heads: {wide} is a norm over all heads, which they cannot be taken out of")
        whole_linears(file, "prune-heads")
        most = sum(config.kv_heads) - config.n_layers
        units = round(self.share * sum(config.kv_heads))
        if not units:
            raise SpecError(f"share={self.share}: nothing would go; use a larger share")
        if units > most:
            raise SpecError(
                f"share={self.share}: {units} of {sum(config.kv_heads)} key-value heads are to go, and one in each of "
                f"{config.n_layers} blocks stays: at most {most} can"
            )
        size = [spec.n_heads // spec.n_kv_heads * spec.head_dim for spec in config.layers]
        found = removals(source, sight, "attn_output.weight", lambda index: size[index])
        if self.even:
            each = round(units / config.n_layers)
            gone = [min(each, heads - 1) for heads in config.kv_heads]
        else:
            gone = shared_out([list(enumerate(r.damage.tolist())) for r in found], units)
        kept = [r.without(n) for r, n in zip(found, gone, strict=True)]
        refitted(source, target, sight, lambda cut: cut_groups(file, cut, kept))
        damage = sum(float(r.damage[n]) for r, n in zip(found, gone, strict=True))
        return {"kv_heads": [len(k) for k in kept], "of": list(config.kv_heads), "expected_nats": damage}
