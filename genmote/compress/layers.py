"""Takes a layer step through a model file, one block in memory at a time.

Each finished block is a small GGUF file in the step's folder, so that a run that was killed goes on where it was; the
calibration text's states are then carried through the finished blocks again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genmote import registry
from genmote.compress.block import Block, Head, Inputs, Rows, Site, Vector, WatchedOps, joined
from genmote.compress.steps._base import LayerStep
from genmote.errors import GenmoteError, ModelFileError, SpecError
from genmote.fetch import Progress
from genmote.models.config import FAMILIES, read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.gguf_write import write_gguf
from genmote.models.requantise import FILE_TYPES, Pieces
from genmote.models.weights import Tensors
from genmote.ops import quant
from genmote.ops.layer import Linear, Norm
from genmote.ops.protocol import Span
from genmote.ops.torch_ops import Matrix

Tokens = NDArray[np.int32]
FIGURES = "genmote.compress.figures"  # in a finished block's file
BLOCK = re.compile(r"blk\.\d+\.")
EXPERT = re.compile(r"(blk\.\d+\.\w+)\.\d+\.weight")
TABLE, HEAD = "token_embd.weight", "output.weight"


def compress_layers(
    step: LayerStep,
    source: Path,
    target: Path,
    folder: Path,
    *,
    windows: Tokens | None = None,
    original: Path | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Write `target`, whole or not at all; returns figures of each tensor. `windows`: calibration text (N, T);
    `original`: the model that `Block.original` shows, where the step compares."""
    model = Model(ModelFile.open(source))
    other = Model(ModelFile.open(original)) if original is not None and windows is not None and step.compares else None
    changing = [
        int(name.split(".")[1]) for name, info in model.file.tensors.items() if BLOCK.match(name) and step.changes(info)
    ]
    # Blocks after the last that changes are not even read.
    count = min(max(changing, default=-1) + 1, model.config.n_layers)
    title = f"{type(step).__name__.lower()}: blocks"
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}

    table = model.file.tensors[TABLE]
    if model.head_name != TABLE and (kind := step.table_type(table)) != table.type:
        path = folder / "table.gguf"
        if not path.exists():
            stored = Pieces(model.file.base, table, kind)
            write_gguf(path, {FIGURES: json.dumps({TABLE: {"type": kind}})}, [(TABLE, kind, table.shape, stored)])
        figures |= model.overlay(path)

    if step.wants_head(model.head_name):
        path = folder / "head.gguf"
        if not path.exists():
            site = model.site(model.head_name)
            step.compress_head(Head(site, None if windows is None else Inputs(model.final_states(windows, progress))))
            save(path, [site], [])
        figures |= model.overlay(path)

    states = None if windows is None or not count else model.states(windows)
    other_states = None if other is None or states is None or windows is None else other.states(windows)
    for index in range(count):
        progress(title, index, count)
        path = folder / f"block-{index:04}.gguf"
        if here := path.exists():
            figures |= model.overlay(path)
        block = model.block(index, states)
        block.original = None if other is None else other.block(index, other_states)
        if not here:
            step.compress_layer(block)
            save(path, block.sites.values(), block.vectors.values())
            figures |= model.overlay(path)
        if states is not None:
            states = moved(block)  # after the last block too: it must not end in what is no number
            other_states = None if block.original is None or index + 1 == count else moved(block.original)
        del block  # with the states before it, before the next one is read
    progress(title, count, count)
    write(target, model.file, progress)
    return figures


def save(path: Path, sites: Iterable[Site], vectors: Iterable[Vector]) -> None:
    """What a step changed, as a GGUF file that is there only when whole."""
    parts = list(sites)
    changed = {site.tensor for site in parts if site.changes}
    tensors = joined(site for site in parts if site.tensor in changed)
    tensors += [(v.name, "F32", tuple(v.value.shape), [v.value.numpy()]) for v in vectors if v.changes]
    figures = {site.name: {"type": site.type, **site.figures} for site in parts if site.changes}
    write_gguf(path, {FIGURES: json.dumps(figures)}, tensors)


def write(target: Path, file: Overlaid, progress: Progress | None = None) -> None:
    """A whole model file of what `file` now says."""
    metadata = file.base.typed_metadata()
    sizes: dict[str, int] = {}
    for info in file.tensors.values():
        sizes[info.type] = sizes.get(info.type, 0) + int(np.prod(info.shape))
    most = max(sizes, key=lambda name: sizes[name])
    if most in FILE_TYPES:
        metadata["general.file_type"] = np.uint32(FILE_TYPES[most])
    tensors = [(info.name, info.type, info.shape, file.raw(info.name)) for info in file.tensors.values()]
    write_gguf(target, metadata, tensors, progress=progress)


def moved(block: Block) -> torch.Tensor:
    states: torch.Tensor = block.output().detach()
    if not torch.isfinite(states).all():
        raise SpecError(
            f"block {block.index}: the calibration text's states are not finite numbers; the model is damaged, or an "
            "earlier step broke it"
        )
    return states


class Overlaid:
    """A model file, some of whose tensors are taken out of others; as much of `ModelFile` as `Tensors` needs."""

    def __init__(self, base: ModelFile) -> None:
        self.base, self.path, self.architecture = base, base.path, base.architecture
        self.tensors: dict[str, TensorInfo] = dict(base.tensors)
        self._from: dict[str, ModelFile] = {}

    def overlay(self, file: ModelFile) -> None:
        for name, info in file.tensors.items():
            self.tensors[name] = info
            self._from[name] = file
            if expert := EXPERT.fullmatch(name):  # it has a tensor of its own now
                self.tensors.pop(f"{expert[1]}_exps.weight", None)

    def raw(self, name: str) -> NDArray[np.uint8]:
        return self._from.get(name, self.base).raw(name)

    def tensor(self, name: str) -> NDArray[np.float32]:
        return self._from.get(name, self.base).tensor(name)


class Table:
    """Rows of a stored matrix, without making all of it floats: stands where the op set has a `Matrix`."""

    def __init__(self, file: Overlaid, name: str) -> None:
        self._file, self._info = file, file.tensors[name]

    @property
    def weight(self) -> Table:
        return self

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        info = self._info
        found = quant.dequantize_rows(info.type, self._file.raw(info.name), info.shape, index.numpy())
        return torch.from_numpy(found)


class Ends:
    """What of a model is not its blocks, as a decoder's weights."""

    layers = ()

    def __init__(self, model: Model) -> None:
        file, config = model.file, model.config
        self.embedding = Table(file, TABLE)
        self.position_embedding = None if config.ropes else Table(file, "position_embd.weight")
        tensors = Tensors(file, model.ops)
        centre = "output_norm.bias" in file.tensors
        self.output_norm: Norm = tensors.norm("output_norm", config.width, config.eps, centre=centre)
        self.head = Linear(self.embedding)


class Model:
    """A model file, block by block, for the torch op set."""

    def __init__(self, file: ModelFile) -> None:
        self.config = read_config(file)
        self.file, self.ops = Overlaid(file), WatchedOps()
        self.head_name = HEAD if HEAD in file.tensors else TABLE
        self._family = registry.load(FAMILIES, self.config.architecture, what="model family", error=ModelFileError)
        self.rows: Rows | None = None

    def overlay(self, path: Path) -> dict[str, Any]:
        """From now on tensors that the file at `path` has are taken from it; returns its figures."""
        try:
            file = ModelFile.open(path)
            figures: dict[str, Any] = json.loads(file.metadata[FIGURES])
        except (GenmoteError, KeyError, ValueError):
            raise SpecError(f"{path}: is damaged; remove it, and the step goes on from there") from None
        self.file.overlay(file)
        return figures

    def site(self, name: str) -> Site:
        """A matrix that is no block's."""
        return self._site(name, self.file.tensors[name])

    def _site(self, name: str, info: TensorInfo) -> Site:
        shape = (int(info.shape[-2]), int(info.shape[-1]))
        raw = self.file.raw(info.name)
        if name.endswith("]"):
            raw = raw.reshape(info.shape[0], -1)[int(name.rpartition("[")[2][:-1])]
        return Site(name, info.type, Matrix(self.ops.matrix(info.type, shape, raw).weight, False), raw)

    def block(self, index: int, x: torch.Tensor | None) -> Block:
        """Block `index`, which the states x (N, D) come to."""
        sites: dict[str, Site] = {}

        def load(name: str, info: TensorInfo) -> Matrix:
            sites[name] = self._site(name, info)
            return sites[name].matrix

        tensors = NamedVectors(self.file, self.ops, load)
        layer = self._family.layer(tensors, self.config, index)
        return Block(index, layer, sites, tensors.vectors, self.ops, self.rows, x)

    def states(self, windows: Tokens) -> torch.Tensor:
        """What the first block is given for token ids (n, T) or (n, T, A): (n * T, D)."""
        count, length = windows.shape[:2]
        decoder = Decoder(self.config, Ends(self), self.ops)
        cache = self.ops.cache(0, 1, self.config.head_dim, length)
        x: torch.Tensor
        x, tables = decoder.start(
            windows.reshape(count * length, -1), [Span(cache, n * length, length) for n in range(count)]
        )
        self.rows = Rows(length, tables)
        return x

    def final_states(self, windows: Tokens, progress: Progress) -> torch.Tensor:
        """What the output matrix multiplies, (n * T, D)."""
        x = self.states(windows)
        for index in range(self.config.n_layers):
            progress("reading the text", index, self.config.n_layers)
            x = moved(self.block(index, x))
        progress("reading the text", self.config.n_layers, self.config.n_layers)
        final: torch.Tensor = self.ops.norm(x, Ends(self).output_norm)
        return final


class NamedVectors(Tensors):
    """Keeps the vectors that a block is made of by their names."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.vectors: dict[str, Vector] = {}

    def vector(self, name: str, length: int) -> Any:
        value = super().vector(name, length)
        self.vectors[name] = Vector(name, value)
        return value
