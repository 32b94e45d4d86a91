"""What each block loses when parts of it go: heads, or feed-forward channels, in the order in which they go best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from genmote.compress.block import Block, Inputs, Site
from genmote.compress.fisher import output_moments
from genmote.compress.layers import Model, moved
from genmote.compress.steps._base import Sight
from genmote.compress.surgeon import Removal, removal, root
from genmote.home import atomic_write
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile


def removals(source: Path, sight: Sight, suffix: str, size: Callable[[int], int], at_once: int = 1) -> list[Removal]:
    """For each block the order in which groups of `size(block)` input columns of its matrix `suffix` go, all but one,
    and what that costs in nats a token. What is done is kept in the step's folder."""
    assert sight.windows is not None
    sight.folder.mkdir(parents=True, exist_ok=True)
    count = read_config(ModelFile.open(source)).n_layers
    paths = [sight.folder / f"removal-{index:04}.npz" for index in range(count)]
    if not all(path.exists() for path in paths):
        gradients = output_moments(source, sight.windows, lambda name: name.endswith(suffix), sight.progress)
        for block in through(source, sight, "measuring blocks"):
            index, path = block.index, paths[block.index]

            def visit(site: Site, inputs: Inputs, index: int = index, path: Path = path) -> None:
                if site.name.endswith(suffix) and not path.exists():
                    width = size(index)
                    weight = root(gradients[site.name]) @ site.weight.double()
                    groups = weight.shape[1] // width
                    _save(path, removal(weight, inputs.hessian, groups - 1, size=width, at_once=at_once))

            block.sweep(visit)
    return [_load(path) for path in paths]


def through(source: Path, sight: Sight, title: str) -> Iterator[Block]:
    """The blocks one after another, with the calibration text's states as the blocks before have left them."""
    assert sight.windows is not None
    model = Model(ModelFile.open(source))
    count = model.config.n_layers
    states = model.states(sight.windows)
    for index in range(count):
        sight.progress(title, index, count)
        block = model.block(index, states)
        yield block
        states = moved(block)
    sight.progress(title, count, count)


def _save(path: Path, found: Removal) -> None:
    with atomic_write(path) as out:
        np.savez(out, order=found.order.numpy(), damage=found.damage.numpy(), groups=found.groups)


def _load(path: Path) -> Removal:
    with np.load(path, allow_pickle=False) as found:
        return Removal(torch.from_numpy(found["order"]), torch.from_numpy(found["damage"]), int(found["groups"]))
