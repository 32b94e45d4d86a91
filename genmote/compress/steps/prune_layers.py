"""Take whole blocks out, those that the model misses least.

Greedily, measured anew after each: of the blocks that turn their states least (ShortGPT, Men et al. 2024, arXiv
2403.03853) `candidates` are left out one by one, and the one without which the model's distribution moves least from
the original's (KL divergence) goes. Then the blocks that are left are fitted to what the original's states were where
they end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmote.compress.block import Block, Inputs, Site
from genmote.compress.cut import cut_blocks
from genmote.compress.layers import Model, moved, save, write
from genmote.compress.steps._base import ModelStep, Sight
from genmote.compress.surgeon import factored, fitted
from genmote.compress.whole import Whole
from genmote.errors import SpecError
from genmote.fetch import Progress
from genmote.home import atomic_write
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.spec import setting

Tensor = torch.Tensor
ROWS = 256  # logits of so many rows are in memory at once


@dataclass(frozen=True)
class PruneLayers(ModelStep):
    share: float = setting("share of the blocks that go", default=0.1)
    candidates: int = setting("blocks that are tried for each that goes", default=8)
    windows: int = setting("windows of the calibration text that are measured on", default=4)
    damp: float = setting("share of the inputs' mean square that draws fitted weights to what they are", default=0.01)

    def faults(self) -> Iterable[str]:
        if not 0 < self.share < 1:
            yield f"share={self.share}: use a share between 0 and 1, such as 0.1"
        for name in ("candidates", "windows"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}: use 1 or more"
        if not 0 < self.damp < math.inf:
            yield f"damp={self.damp:g}: use more than 0, such as 0.01"

    def begin(self, model: ModelFile) -> Iterable[str]:
        yield from super().begin(model)
        count, goal = self._counts(model)
        if not 0 < goal < count:
            raise SpecError(f"share={self.share}: {goal} of {count} blocks would go; at least one goes and one stays")

    def _counts(self, file: ModelFile) -> tuple[int, int]:
        """How many blocks there are, and how many go."""
        count = read_config(file).n_layers
        return count, round(self.share * count)

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        count, goal = self._counts(file)
        assert sight.windows is not None
        gone, damage = self._chosen(source, sight, goal)
        kept = np.setdiff1d(np.arange(count), gone)
        cut = sight.folder / "cut.gguf"
        cut_blocks(file, cut, kept)
        fit(source, cut, kept, sight.windows, self.damp, target, sight)
        return {"gone": gone, "of": count, "kl": damage}

    def _chosen(self, source: Path, sight: Sight, goal: int) -> tuple[list[int], list[float]]:
        """The blocks that go, in their order, and the divergence in nats a token after each."""
        assert sight.windows is not None
        path = sight.folder / "gone.json"
        gone, damage = json.loads(path.read_text(encoding="utf-8")) if path.exists() else ([], [])
        if len(gone) < goal:
            lost = Lost(Whole(source), sight.windows[: self.windows], sight.progress)
            while len(gone) < goal:
                found = lost.cheapest(gone, self.candidates)
                gone, damage = [*gone, found[0]], [*damage, found[1]]
                with atomic_write(path, "w") as out:
                    out.write(json.dumps([gone, damage]))
        return gone, damage


class Lost:
    """What a model loses without some of its blocks."""

    @torch.no_grad()
    def __init__(self, whole: Whole, windows: NDArray[np.int32], progress: Progress) -> None:
        self.whole, self.windows, self.progress = whole, windows, progress
        self.wanted = whole.final(windows)

    @torch.no_grad()
    def cheapest(self, gone: Sequence[int], candidates: int) -> tuple[int, float]:
        """Which block to leave out next, and the divergence in nats a token without it and those that are gone."""
        at = {}  # the states that each block still there is given
        turns = []
        x = self.whole.model.states(self.windows)
        for index, block in enumerate(self.whole.blocks):
            if index in gone:
                continue
            block.rows, at[index] = self.whole.model.rows, x
            y = block.run(x)
            turns.append((float((1 - torch.cosine_similarity(x, y)).mean()), index))
            x = y
        tried = sorted(index for _, index in sorted(turns)[:candidates])
        costs = []
        for number, index in enumerate(tried):
            self.progress(f"without {len(gone) + 1} blocks", number, len(tried))
            x = at[index]
            for later in at:
                if later > index:
                    x = self.whole.blocks[later].run(x)
            costs.append((self.divergence(x), index))
        self.progress(f"without {len(gone) + 1} blocks", len(tried), len(tried))
        cost, index = min(costs)
        return index, cost

    def divergence(self, states: Tensor) -> float:
        """Mean KL divergence from the whole model, of the states (N, D) after the last block."""
        whole = self.whole
        final, total = whole.ops.norm(states, whole.norm), 0.0
        for start in range(0, len(final), ROWS):
            rows = slice(start, start + ROWS)
            p, q = (torch.log_softmax(whole.logits(x[rows]), dim=1) for x in (self.wanted, final))
            total += float((p.exp() * (p - q)).sum())
        return total / len(final)


@torch.no_grad()
def fit(
    source: Path,
    cut: Path,
    kept: NDArray[np.int64],
    windows: NDArray[np.int32],
    damp: float,
    target: Path,
    sight: Sight,
) -> None:
    """Write `target`: the blocks of `cut`, which were the `kept` ones of `source`, with each `ffn_down` fitted so that
    the states come near to those before the next block that is kept."""
    ours, theirs = Model(ModelFile.open(cut)), Model(ModelFile.open(source))
    x, wanted = ours.states(windows), theirs.states(windows)
    ends = [*kept[1:], theirs.config.n_layers]
    sites: list[Site] = []
    for index, (first, end) in enumerate(zip(kept, ends, strict=True)):
        sight.progress("fitting blocks", index, len(kept))
        for number in range(0 if index == 0 else first, end):
            wanted = moved(theirs.block(number, wanted))
        block = ours.block(index, x)
        _fit_down(block, wanted, damp)
        sites += block.sites.values()
        x = moved(block)
    sight.progress("fitting blocks", len(kept), len(kept))
    save(sight.folder / "fitted.gguf", sites, [])
    ours.overlay(sight.folder / "fitted.gguf")
    write(target, ours.file, sight.progress)


def _fit_down(block: Block, wanted: Tensor, damp: float) -> None:
    """Fit `ffn_down` so that the block's output is near the states `wanted` (N, D)."""
    down = block.layer.down
    if down is None or block.layer.post_ffn_norm is not None:
        return  # experts, or a norm after the matrix: what is added is no linear map of its weights

    def visit(site: Site, inputs: Inputs) -> None:
        if site.matrix is down.matrix:
            made = block.ops.stream[id(block.layer.ffn_norm)] + inputs.rows @ site.weight.T
            inputs.lack = wanted - (made if down.bias is None else made + down.bias)
            assert inputs.owed is not None
            target = site.weight @ inputs.hessian + inputs.owed
            with factored(site.name, damp):
                site.replace(fitted(site.weight, inputs.hessian, target, damp))

    block.sweep(visit)
