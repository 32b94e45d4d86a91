"""What smaller shapes of a model cost, measured on calibration text, and the steps that make those that were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from genmote.compress.low_rank import ranks
from genmote.compress.shapes import UNIT, Costs, Settled, Shapes, ladder, two
from genmote.compress.steps import low_rank, prune_channels, prune_heads
from genmote.compress.steps._base import ModelStep, Sight
from genmote.errors import SpecError
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile


def measure(source: ModelFile, kinds: Sequence[str], sight: Sight) -> Shapes:
    """What smaller shapes of `source` cost on the text of `sight`; what is done is kept in folders of its folder."""
    config, path = read_config(source), source.path
    if "channels" in kinds:
        prune_channels.check(source, config)
    if "heads" in kinds:
        prune_heads.check(source, config)
        if max(config.kv_heads) == 1:
            raise SpecError("shapes: heads: each block has one key-value head, which stays; leave heads out")

    def own(kind: str) -> Sight:
        return replace(sight, folder=sight.folder / kind)

    channels: dict[int, Costs] = {}
    heads: dict[int, Costs] = {}
    thin: dict[str, Costs] = {}
    if "channels" in kinds:
        for index, removal in enumerate(prune_channels.PruneChannels().measure(path, own("channels"))):
            whole = config.ffn_widths[index]
            channels[index] = {n: float(removal.damage[whole - n]) for n in [whole, *ladder(whole)]}
        if all(len(costs) == 1 for costs in channels.values()):
            raise SpecError(
                f"shapes: channels: of {max(config.ffn_widths)} in a block no multiple of {UNIT} is left that is "
                f"smaller and a quarter at least; leave channels out"
            )
    if "heads" in kinds:
        for index, removal in enumerate(prune_heads.PruneHeads().measure(path, own("heads"))):
            whole = config.kv_heads[index]
            heads[index] = {n: float(removal.damage[whole - n]) for n in range(whole, 0, -1)}
    if "ranks" in kinds:
        folder = own("ranks")
        folder.folder.mkdir(parents=True, exist_ok=True)
        for name, costs in low_rank.LowRank(multiple=UNIT).measure(path, folder).items():
            each = dict(zip(ranks(*two(source.tensors[name]), UNIT), costs, strict=True))
            some = ladder(max(each) + 1) if each else []
            thin[name] = {rank: each[rank] for rank in some}
        if not any(thin.values()):
            raise SpecError(
                f"shapes: ranks: no matrix is smaller as two of a rank that is a multiple of {UNIT}; leave ranks out"
            )
    return Shapes(channels, heads, thin)


def steps(what: Settled) -> dict[str, ModelStep]:
    """The steps that make these shapes, by kind, in their order."""
    rules = {kind: tuple(f"{name}={n}" for name, n in each.items()) for kind, each in what.shapes().items()}
    found: dict[str, ModelStep] = {}
    if what.heads:
        found["heads"] = prune_heads.PruneHeads(heads=rules["heads"])
    if what.channels:
        found["channels"] = prune_channels.PruneChannels(widths=rules["channels"])
    if what.ranks:
        found["ranks"] = low_rank.LowRank(ranks=rules["ranks"])
    return found
