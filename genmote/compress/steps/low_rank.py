"""Each linear layer as two thin matrices, of the ranks that lose least together (`../low_rank.py`).

The engine runs them as two products. A matrix of which much would have to go before anything is saved stays whole.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genmote.compress.block import Inputs, Site
from genmote.compress.cut import factor_names
from genmote.compress.fisher import output_moments
from genmote.compress.low_rank import Spectrum, ranks, spectrum
from genmote.compress.removals import through
from genmote.compress.steps import _named
from genmote.compress.steps._base import ModelStep, Sight
from genmote.compress.surgeon import factored, shared_out
from genmote.errors import SpecError
from genmote.home import atomic_write
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import Tensor, write_gguf
from genmote.models.weights import is_expert
from genmote.spec import setting

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class LowRank(ModelStep):
    share: float = setting("share of the linear layers' numbers that go", default=0.2)
    multiple: int = setting("each rank is a multiple of this; tensor types want 32", default=32)
    only: str = setting("pattern of the tensors that may become two, such as *ffn*", default="*")
    damp: float = setting("share of the inputs' mean square that is added to each", default=0.01)
    ranks: tuple[str, ...] = setting(
        "TENSOR=RANK: the matrices that become two, such as blk.3.attn_q.weight=96; others stay whole, and share, "
        "multiple and only say nothing",
        default=(),
    )

    def faults(self) -> Iterable[str]:
        if not 0 < self.share < 1:
            yield f"share={self.share}: use a share between 0 and 1, such as 0.2"
        if self.multiple < 1:
            yield f"multiple={self.multiple}: use 1 or more"
        if not 0 < self.damp < math.inf:
            yield f"damp={self.damp:g}: use more than 0, such as 0.01"
        yield from _named.faults("ranks", self.ranks, "blk.3.attn_q.weight=96")

    def begin(self, model: ModelFile) -> Iterable[str]:
        yield from super().begin(model)
        if self.ranks:
            self._named(model)
        else:
            self._goal(model)

    def compress_model(self, source: Path, target: Path, sight: Sight) -> dict[str, Any]:
        file = ModelFile.open(source)
        gradients = self._gradients(source, sight)
        if self.ranks:
            chosen = self._named(file)
        else:
            chosen = self._ranks(file, self._damages(source, sight, gradients))
        paths = self._factors(source, sight, gradients, chosen)
        factors = [ModelFile.open(path) for path in paths]
        made = {info.name: part for part in factors for info in part.tensors.values()}
        tensors: list[Tensor] = []
        for info in file.tensors.values():
            for name, of in (
                [(n, made[n]) for n in factor_names(info.name)] if info.name in chosen else [(info.name, file)]
            ):
                tensors.append((name, of.tensors[name].type, of.tensors[name].shape, of.raw(name)))
        write_gguf(target, file.typed_metadata(), tensors, progress=sight.progress)
        return {"ranks": chosen}

    def measure(self, source: Path, sight: Sight) -> dict[str, list[float]]:
        """Of each matrix that may become two: nats a token for each of its `ranks`."""
        return self._damages(source, sight, self._gradients(source, sight))

    def _named(self, file: ModelFile) -> dict[str, int]:
        """The ranks that are named, each low enough that two factors are smaller."""
        most = {}
        for name, info in file.tensors.items():
            if linear(name):
                out, cols = info.shape
                most[name] = (out * cols - 1) // (out + cols)
        return _named.bounded("ranks", self.ranks, most, "ranks")

    def _goal(self, file: ModelFile) -> int:
        """How many numbers go."""
        total = most = 0
        for name, info in file.tensors.items():
            if self._may(name):
                out, cols = info.shape
                total += out * cols
                most += max((out * cols - rank * (out + cols) for rank in ranks(out, cols, self.multiple)), default=0)
        if not total:
            raise SpecError(f"only={self.only!r}: fits no linear layer of a block; try *ffn* or *attn*")
        goal = round(self.share * total)
        if goal > most:
            raise SpecError(
                f"share={self.share}: with multiple={self.multiple} at most {most / total:.3f} of the numbers can go"
            )
        return goal

    def _gradients(self, source: Path, sight: Sight) -> dict[str, Any]:
        """Of each matrix that may go: the mean square of its outputs' gradients (out,)."""
        assert sight.windows is not None
        path = sight.folder / "gradients.npz"
        if not path.exists():
            found = output_moments(source, sight.windows, self._may, sight.progress, diagonal=True)
            with atomic_write(path) as out:
                np.savez(out, **{name: values.numpy() for name, values in found.items()})  # type: ignore[arg-type]
        with np.load(path, allow_pickle=False) as stored:
            return {name: torch.from_numpy(stored[name]) for name in stored.files}

    def _may(self, name: str) -> bool:
        if self.ranks:
            return name in _named.numbers(self.ranks)
        return linear(name) and fnmatch.fnmatchcase(name, self.only)

    def _damages(self, source: Path, sight: Sight, gradients: dict[str, Any]) -> dict[str, list[float]]:
        """Of each matrix: nats a token for each of its `ranks`."""
        path = sight.folder / "damages.json"
        if not path.exists():
            found: dict[str, list[float]] = {}

            def visit(site: Site, inputs: Inputs) -> None:
                if site.name in gradients:
                    costs = self._spectrum(site, inputs, gradients).damage
                    out, cols = site.weight.shape
                    each = ranks(out, cols, self.multiple)
                    found[site.name] = [float(costs[len(costs) - 1 - rank]) for rank in each]

            for block in through(source, sight, "measuring ranks"):
                block.sweep(visit)
            with atomic_write(path, "w") as out:
                out.write(json.dumps(found))
        stored: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
        return stored

    def _spectrum(self, site: Site, inputs: Inputs, gradients: dict[str, Any]) -> Spectrum:
        with factored(site.name, self.damp):
            return spectrum(site.weight, inputs.hessian, gradients[site.name], self.damp)

    def _ranks(self, file: ModelFile, damages: dict[str, list[float]]) -> dict[str, int]:
        """The rank of each matrix that does not stay whole."""
        curves, options = [], []
        for name, costs in damages.items():
            out, cols = file.tensors[name].shape
            options.append([0, *ranks(out, cols, self.multiple)])  # 0: whole
            saved = [out * cols - rank * (out + cols) for rank in options[-1][1:]]
            curves.append([(0, 0.0), *zip(saved, costs, strict=True)])
        taken = shared_out(curves, self._goal(file))
        return {name: choice[n] for name, choice, n in zip(damages, options, taken, strict=True) if n}

    def _factors(self, source: Path, sight: Sight, gradients: dict[str, Any], chosen: dict[str, int]) -> list[Path]:
        """Files of each block's factors, made with the inputs that the blocks before leave."""
        paths: list[Path] = []
        for block in through(source, sight, "making factors"):
            path = sight.folder / f"factors-{block.index:04}.gguf"
            made: list[Tensor] = []

            def visit(site: Site, inputs: Inputs, made: list[Tensor] = made) -> None:
                if site.name in chosen:
                    a, b = self._spectrum(site, inputs, gradients).factors(chosen[site.name])
                    for name, factor in zip(factor_names(site.name), (a, b), strict=True):
                        made.append((name, "F32", tuple(factor.shape), factor.numpy()))
                    site.replace(b @ a)

            if path.exists():
                of = ModelFile.open(path)
                for site in block.sites.values():
                    if site.name in chosen:
                        a, b = (torch.from_numpy(of.tensor(name)) for name in factor_names(site.name))
                        site.replace(b @ a)
            else:
                block.sweep(visit)
                write_gguf(path, {}, made)
            paths.append(path)
        return paths


def linear(name: str) -> bool:
    """Whether a tensor is a matrix of a block that may become two."""
    part = name.split(".")[2] if name.startswith("blk.") and name.endswith(".weight") else ""
    return part in LINEARS and not is_expert(name)
