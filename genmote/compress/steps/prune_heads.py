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
from genmote.compress.steps import _named
from genmote.compress.steps._base import ModelStep, Sight
from genmote.compress.surgeon import Removal, shared_out
from genmote.errors import SpecError
from genmote.models.config import Config, read_config
from genmote.models.gguf import ModelFile
from genmote.spec import setting


@dataclass(frozen=True)
class PruneHeads(ModelStep):
    share: float = setting("share of all key-value heads that go, with their query heads", default=0.1)
    even: bool = setting("take as many from each block, as some engines want it", default=False)
    heads: tuple[str, ...] = setting(
        "BLOCK=HEADS: key-value heads that some blocks keep, such as blk.0=2; others stay whole, and share and even "
        "say nothing",
        default=(),
    )

    def faults(self) -> Iterable[str]:
        if not 0 < self.share < 1:
            yield f"share={self.share}: use a share between 0 and 1, such as 0.1"
        yield from _named.faults("heads", self.heads, "blk.0=2")

    def begin(self, model: ModelFile) -> Iterable[str]:
        yield from super().begin(model)
        config = read_config(model)
        check(model, config)
        if self.heads:
            self._named(config)
        else:
            self._units(config)

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        config = read_config(file)
        found = self.measure(source, sight)
        gone = self._named(config) if self.heads else self._gone(config, found)
        kept = [r.without(n) for r, n in zip(found, gone, strict=True)]
        refitted(source, target, sight, lambda cut: cut_groups(file, cut, kept))
        damage = sum(float(r.damage[n]) for r, n in zip(found, gone, strict=True))
        return {"kv_heads": [len(k) for k in kept], "of": list(config.kv_heads), "expected_nats": damage}

    def measure(self, source: Path, sight: Sight) -> list[Removal]:
        """In which order each block's key-value heads go, and what that costs."""
        layers = read_config(ModelFile.open(source)).layers
        size = [spec.n_heads // spec.n_kv_heads * spec.head_dim for spec in layers]
        return removals(source, sight, "attn_output.weight", lambda index: size[index])

    def _named(self, config: Config) -> list[int]:
        """How many key-value heads of each block go where it is said what some keep."""
        whole = {f"blk.{index}": heads for index, heads in enumerate(config.kv_heads)}
        left = whole | _named.bounded("heads", self.heads, whole, "key-value heads")
        return [old - new for old, new in zip(config.kv_heads, left.values(), strict=True)]

    def _units(self, config: Config) -> int:
        """How many key-value heads go."""
        most = sum(config.kv_heads) - config.n_layers
        units = round(self.share * sum(config.kv_heads))
        if not units:
            raise SpecError(f"share={self.share}: nothing would go; use a larger share")
        if units > most:
            raise SpecError(
                f"share={self.share}: {units} of {sum(config.kv_heads)} key-value heads are to go, and one in each of "
                f"{config.n_layers} blocks stays: at most {most} can"
            )
        return units

    def _gone(self, config: Config, found: list[Removal]) -> list[int]:
        units = self._units(config)
        if self.even:
            each = round(units / config.n_layers)
            return [min(each, heads - 1) for heads in config.kv_heads]
        return shared_out([list(enumerate(r.damage.tolist())) for r in found], units)


def check(file: ModelFile, config: Config) -> None:
    """SpecError for a model whose heads cannot be taken out."""
    wide = next((n for n in file.tensors if n.endswith("attn_q_norm.weight")), None)
    if wide is not None and file.tensors[wide].shape != (config.head_dim,):
        raise SpecError(f"prune-heads: {wide} is a norm over all heads, which they cannot be taken out of")
    whole_linears(file, "prune-heads")
