"""Fewer bits for the experts that matter less: which they are on a text, and a model file that stores them so.

An expert matters as much as the model's states would change: the squared difference between what it answers and what
it would answer in fewer bits, times the square of its weight in the mixture, summed over the rows of a calibration text
that chose it. One that is seldom chosen, seldom heavy, or hardly changed by rounding, matters little. Choosing bits
expert by expert, by measuring: Yi et al. 2023, EdgeMoE (arXiv 2308.14352). The file is another model, and says so in
its metadata: text and perplexity change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import Progress, Tensor, check_target, write_gguf
from genmote.models.weights import GgufWeights
from genmote.ops import quant
from genmote.ops.layer import Experts, Layer, Linear
from genmote.ops.protocol import Ops, Span

Float32 = NDArray[np.float32]
PARTS = ("gate", "up", "down")
MOST_TOKENS = 8192  # of a text that is measured on: more of it changes little in the order of the experts


@dataclass(frozen=True)
class Fewer:
    """What `convert` has done: how many of the experts have fewer bits now, and on how many tokens it was decided."""

    type: str
    lowered: int
    experts: int
    tokens: int


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    type: str,
    share: float,
    text: str,
    ops: Ops,
    *,
    progress: Progress | None = None,
) -> Fewer:
    """Write the model in `source` to `target` with that share of its experts, those that change least on the text,
    stored as `type`.

    Raises SpecError for a share outside 0 to 1, a model without experts or with experts in fewer bits already, a type
    that has no fewer bits than they have, and a text of less than a window; ModelFileError for a damaged model;
    UserError where the target is the source.
    """
    from genmote.models.tokenizer import load_tokenizer

    model = ModelFile.open(source)
    check_target(target, model.path)
    kind = _fewer_bits(model, type)
    _check_share(share)
    tokens = load_tokenizer(model).encode(text)[:MOST_TOKENS]
    change = changes(model, ops, tokens, kind, progress=progress)
    return Fewer(kind, store_fewer(model, target, change, kind, share), change.size, len(tokens))


def _fewer_bits(model: ModelFile, type: str) -> str:
    """The type's name, if it has fewer bits than any of the model's experts."""
    kind = quant.by_name(type)
    if "genmote.experts.fewer_bits.type" in model.metadata:
        raise SpecError(f"{model.path.name}: experts are stored in fewer bits already; give the model it was made of")
    stored = {info.type for name, info in model.tensors.items() if name.endswith("_exps.weight")}
    if not stored:
        raise SpecError(f"{model.path.name}: a model without experts; give a mixture, or --type for all matrices")
    least = min((quant.by_name(each) for each in stored), key=lambda each: each.bits_per_weight)
    fewer = [name for name in quant.codec_names() if quant.by_name(name).bits_per_weight < least.bits_per_weight]
    if kind.name not in fewer:
        raise SpecError(
            f"expert type {kind.name}: the experts are stored as {least.name}; use one of fewer bits"
            + (f": {', '.join(fewer)}" if fewer else ", of which there is none")
        )
    return kind.name


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise SpecError(f"share={share}: wanted 0 to 1, the share of the experts that get fewer bits")


@dataclass
class Listener:
    """One layer's `ExpertSource` that has all experts and sums up what fewer bits would change."""

    experts: Experts
    lower: Callable[[int], tuple[Any, Any, Any]]  # an expert's matrices in fewer bits
    apply: Callable[[Float32, tuple[Any, Any, Any]], Float32]
    change: NDArray[np.float64]  # (E,)
    shares: Float32 | None = None  # what the router gave for the rows to come

    def hear(self, shares: Float32) -> Float32:
        self.shares = shares
        return shares

    def expect(self, x: Float32) -> None:
        pass

    def take(self, x: Float32, chosen: NDArray[np.int64]) -> Iterator[list[tuple[int, tuple[Any, Any, Any]]]]:
        assert self.shares is not None
        weights = np.take_along_axis(self.shares, chosen, axis=1)
        if self.experts.normalise:
            weights = weights / weights.sum(axis=1, keepdims=True)
        for expert in np.unique(chosen).tolist():
            rows, places = np.nonzero(chosen == expert)
            whole = self.experts.gate[expert], self.experts.up[expert], self.experts.down[expert]
            off = self.apply(x[rows], whole).astype(np.float64) - self.apply(x[rows], self.lower(expert))
            self.change[expert] += float(np.sum(weights[rows, places] ** 2 * np.square(off).sum(axis=1)))
            yield [(expert, whole)]


def changes(
    model: ModelFile,
    ops: Ops,
    tokens: Sequence[int],
    type: str,
    *,
    window: int = 256,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """What each expert would change in the model's states if it were stored as `type`: (L, E), summed over whole
    windows of the text. SpecError for a model without experts, and for a text that is shorter than a window."""
    weights = GgufWeights(model, ops)
    config = weights.config
    if not config.n_experts or len(tokens) < window:
        what = f"a text of {len(tokens)} tokens: wanted {window}" if config.n_experts else "a model without experts"
        raise SpecError(f"{what}; give a mixture and some thousand tokens of the text that it is for")
    found = np.zeros((config.n_layers, config.n_experts))
    for index, layer in enumerate(weights.layers):
        layer.experts = _listening(model, ops, index, layer, type, found[index])
    decoder = Decoder(config, weights, ops)
    count = len(tokens) // window
    for number in range(count):
        if progress is not None:
            progress("windows by which experts are measured", number, count)
        part = tokens[number * window : (number + 1) * window]
        decoder.forward(part, [Span(decoder.cache(window), 0, window)], logits=None)
    if progress is not None:
        progress("windows by which experts are measured", count, count)
    return found


def _listening(model: ModelFile, ops: Ops, index: int, layer: Layer, type: str, change: NDArray[np.float64]) -> Experts:
    experts = layer.experts
    assert experts is not None

    def lower(expert: int) -> tuple[Any, Any, Any]:
        made = [_matrix(model, index, part, expert) for part in PARTS]
        gate, up, down = (ops.matrix(type, each.shape, quant.quantize(type, each)) for each in made)
        return gate, up, down

    def apply(x: Float32, matrices: tuple[Any, Any, Any]) -> Float32:
        gate, up, down = map(Linear, matrices)
        inner = ops.glu(ops.linear(x, gate), ops.linear(x, up), layer.spec.activation)
        return ops.numpy(ops.linear(inner, down))

    listener = Listener(experts, lower, apply, change)
    return replace(experts, source=listener, routing=listener.hear)


def store_fewer(
    model: ModelFile, path: str | os.PathLike[str], change: NDArray[np.float64], type: str, share: float
) -> int:
    """Write the model with that share of its experts, those of the least change, stored as `type`; gives how many.

    Layers with such experts have a tensor for each expert (docs/formats.md); everything else is copied as it is.
    SpecError for a share outside 0 to 1.
    """
    _check_share(share)
    count = round(share * change.size)
    lowered = {divmod(int(flat), change.shape[1]) for flat in np.argsort(change, axis=None, kind="stable")[:count]}
    tensors: list[Tensor] = []
    for name, info in model.tensors.items():
        layer = int(name.split(".")[1]) if "_exps.weight" in name else -1
        if not any(at == layer for at, _ in lowered):
            tensors.append((name, info.type, info.shape, model.raw(name)))
            continue
        part = name.split("ffn_")[1].removesuffix("_exps.weight")
        raw = model.raw(name).reshape(info.shape[0], -1)
        for expert in range(info.shape[0]):
            low = (layer, expert) in lowered
            data = quant.quantize(type, _matrix(model, layer, part, expert)) if low else raw[expert]
            tensors.append(
                (f"blk.{layer}.ffn_{part}.{expert}.weight", type if low else info.type, info.shape[1:], data)
            )
    told = {"genmote.experts.fewer_bits.type": type, "genmote.experts.fewer_bits.count": count}
    write_gguf(Path(path), model.typed_metadata() | told, tensors)
    return count


def _matrix(model: ModelFile, layer: int, part: str, expert: int) -> Float32:
    """One expert's matrix in float32."""
    info = model.tensors[f"blk.{layer}.ffn_{part}_exps.weight"]
    raw = model.raw(info.name).reshape(info.shape[0], -1)[expert]
    return quant.dequantize(info.type, raw, info.shape[1:])
