"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) in llama.cpp's GGUF adapter format.

An adapter file holds, for the base's tensor NAME (out, in), the pair NAME.lora_a (rank, in) and NAME.lora_b
(out, rank): y += scale * alpha / rank * B A x. With alpha 0 the factor alpha / rank is left out.

Norms and biases that were learnt have no place in that format. In a file of the type `genmote.lora`, which llama.cpp
refuses, they stand under their own names: base + scale * (learnt - base).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from genmote.errors import ModelFileError, SpecError
from genmote.models.config import Config
from genmote.models.parts import HEAD, NORMS, OUTPUT_NORM, PARTS
from genmote.ops.layer import Adapter, Layer, Linear, Norm
from genmote.ops.protocol import Ops

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile, TensorInfo

    Update = tuple[TensorInfo, TensorInfo]  # of one matrix: down (rank, in), up (out, rank)

TYPE, TYPE_WITH_VECTORS = "lora", "genmote.lora"  # of `adapter.type`


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter, read and checked: for each of the base's matrices, by its tensor name, an update at scale 1."""

    name: str
    updates: dict[str, Adapter]
    vectors: Mapping[str, Any] = field(default_factory=dict)  # norms' and linears' own, in the base's place

    def scaled(self, tensor: str, scale: float) -> tuple[Adapter, ...]:
        """The update of one matrix at a scale, as a tuple to append; empty where there is none."""
        update = self.updates.get(tensor)
        return () if update is None or scale == 0.0 else (replace(update, scale=update.scale * scale),)


def read_lora(adapter: ModelFile, config: Config, ops: Ops) -> Lora:
    """Read an adapter file for a base of `config`; ModelFileError where it is not one, or belongs to another base."""
    alpha, updates = check_lora(adapter, config)
    found = {}
    for stem, infos in updates.items():
        down, up = (ops.matrix(info.type, (info.shape[0], info.shape[1]), adapter.read(info.name)) for info in infos)
        found[stem] = Adapter(down, up, alpha / infos[0].shape[0] if alpha else 1.0)
    vectors = {name: ops.vector(adapter.tensor(name)) for name in adapter.tensors if not _stem(name)}
    return Lora(adapter.path.name, found, vectors)


def _stem(name: str) -> str | None:
    """The base's tensor that a matrix of an adapter updates; None for a vector that stands for the base's own."""
    stem = name.removesuffix(".lora_a").removesuffix(".lora_b")
    return None if stem == name else stem


def check_lora(adapter: ModelFile, config: Config) -> tuple[float, dict[str, Update]]:
    """An adapter's alpha, and what it updates, by the base's tensor; nothing is read but the header. Raises as
    `read_lora` does."""
    name, meta = adapter.path.name, adapter.metadata
    if meta.get("general.type") != "adapter" or meta.get("adapter.type") not in (TYPE, TYPE_WITH_VECTORS):
        raise ModelFileError(
            f"{name} is not a LoRA adapter (general.type adapter, adapter.type lora); give an adapter file"
        )
    base = meta.get("general.architecture")
    if base != config.architecture:
        raise ModelFileError(
            f"{name} is an adapter for {base}: this model is {config.architecture}; use its own adapter"
        )
    alpha = meta.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, (int, float)) or not 0.0 <= alpha < 1e6:
        raise ModelFileError(f"{name}: adapter.lora.alpha = {alpha!r}: wanted a number from 0 to 1000000; wrong file")
    shapes = base_shapes(config)
    if not adapter.tensors:
        raise ModelFileError(f"{name} has no tensors: the adapter changes nothing; use another file")
    vectors = [tensor for tensor in adapter.tensors.values() if not _stem(tensor.name)]
    for tensor in vectors:
        if meta["adapter.type"] == TYPE or len(tensor.shape) != 1:
            raise ModelFileError(
                f"{name} updates {tensor.name}, which cannot be adapted in this model; train it on the block's matrices"
            )
    stems = sorted({stem for tensor in adapter.tensors if (stem := _stem(tensor))})
    return float(alpha), {stem: _check_update(adapter, stem, shapes) for stem in stems}


def base_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """The matrices that an adapter may update: tensor name → (out, in).

    A mixture of experts has them for attention alone.
    """
    shapes = {HEAD: (config.vocab_size, config.width)}
    for spec, inner in zip(config.layers, config.ffn_widths, strict=True):
        q_width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        of_block = {
            "attn_q": (q_width, config.width),
            "attn_k": (kv_width, config.width),
            "attn_v": (kv_width, config.width),
            "attn_output": (config.width, q_width),
        }
        if not config.n_experts:
            of_block |= {
                "ffn_gate": (inner, config.width),
                "ffn_up": (inner, config.width),
                "ffn_down": (config.width, inner),
            }
        shapes |= {f"blk.{spec.index}.{part}.weight": shape for part, shape in of_block.items()}
    return shapes


def check_scale(scale: float, name: str) -> None:
    """Raise SpecError for what no adapter counts."""
    if not -1e3 <= scale <= 1e3:
        raise SpecError(f"scale {scale} for adapter {name}: wanted a number from -1000 to 1000")


class AdaptedWeights:
    """A `WeightSource` with adapters attached to another's; the base's layers stay as they are.

    `adapters`: pairs of an adapter and its scale. To detach, go back to the base.
    """

    def __init__(self, base: Any, adapters: Sequence[tuple[Lora, float]]) -> None:
        for lora, scale in adapters:
            check_scale(scale, lora.name)
        self.base, self.adapters = base, tuple(adapters)
        self._asked: set[str] = set()  # names of the base's vectors
        self.embedding = base.embedding
        self.position_embedding = base.position_embedding
        self.output_norm: Norm = self._norm(base.output_norm, OUTPUT_NORM)
        self.head: Linear = self._adapt(base.head, HEAD)
        self.layers: list[Layer] = [self._layer(layer) for layer in base.layers]
        for lora, _ in self.adapters:
            if strange := sorted(set(lora.vectors) - self._asked):
                raise ModelFileError(
                    f"{lora.name} updates {strange[0]}, which this model does not have; use its own adapter"
                )

    def _layer(self, layer: Layer) -> Layer:
        parts: dict[str, Any] = {}
        block = f"blk.{layer.spec.index}"
        for part, place in PARTS.items():
            linear = getattr(layer, place)
            adapted = self._adapt(linear, f"{block}.{part}.weight")
            if adapted is not linear:
                parts[place] = adapted
        for part, place in NORMS.items():
            norm = getattr(layer, place)
            adapted = self._norm(norm, f"{block}.{part}")
            if adapted is not norm:
                parts[place] = adapted
        return replace(layer, **parts, fused=None) if parts else layer

    def _adapt(self, linear: Any, tensor: str) -> Any:
        extra = tuple(adapter for lora, scale in self.adapters for adapter in lora.scaled(tensor, scale))
        if extra and linear is None:
            raise ModelFileError(f"an adapter updates {tensor}, which this model does not have; use its own adapter")
        linear = replace(linear, adapters=linear.adapters + extra) if extra else linear
        bias = self._vector(None if linear is None else linear.bias, tensor.removesuffix("weight") + "bias")
        return linear if linear is None or bias is linear.bias else replace(linear, bias=bias)

    def _norm(self, norm: Any, name: str) -> Any:
        gain = self._vector(None if norm is None else norm.gain, f"{name}.weight")
        bias = self._vector(None if norm is None else norm.bias, f"{name}.bias")
        changed = norm is not None and (gain is not norm.gain or bias is not norm.bias)
        return replace(norm, gain=gain, bias=bias) if changed else norm

    def _vector(self, own: Any, name: str) -> Any:
        """One of the base's vectors with what adapters have learnt of it: itself where they have nothing."""
        if own is None:
            return None
        self._asked.add(name)
        found = own
        for lora, scale in self.adapters:
            if (learnt := lora.vectors.get(name)) is None or scale == 0.0:
                continue
            if tuple(learnt.shape) != tuple(own.shape):
                has = f"{tuple(own.shape)}, not {tuple(learnt.shape)}"
                raise ModelFileError(
                    f"{lora.name} updates {name}, which this model has in shape {has}; use its own adapter"
                )
            found = learnt if scale == 1.0 and found is own else found + scale * (learnt - own)
        return found


def _check_update(adapter: ModelFile, stem: str, shapes: dict[str, tuple[int, int]]) -> Update:
    name = adapter.path.name
    if stem not in shapes:
        raise ModelFileError(
            f"{name} updates {stem}, which cannot be adapted in this model; train it on the block's matrices"
        )
    infos = [adapter.tensors.get(f"{stem}.{part}") for part in ("lora_a", "lora_b")]
    down, up = infos
    if down is None or up is None:
        raise ModelFileError(f"{name} has only one of {stem}.lora_a and {stem}.lora_b; the file is damaged")
    out, cols = shapes[stem]
    rank = down.shape[0]
    if tuple(down.shape) != (rank, cols) or tuple(up.shape) != (out, rank) or rank < 1:
        raise ModelFileError(
            f"{name}: {stem}.lora_a {tuple(down.shape)} and lora_b {tuple(up.shape)} do not fit "
            f"the model's {(out, cols)}; use the adapter's own base"
        )
    return down, up
