"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) in llama.cpp's GGUF adapter format.

An adapter file holds, for the base's tensor NAME (out, in), the pair NAME.lora_a (rank, in) and NAME.lora_b
(out, rank): y += scale * alpha / rank * B A x. With alpha 0 the factor alpha / rank is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from genmote.errors import ModelFileError, SpecError
from genmote.models.config import Config
from genmote.ops.layer import Adapter, Layer, Linear
from genmote.ops.protocol import Ops

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile, TensorInfo

    Update = tuple[TensorInfo, TensorInfo]  # of one matrix: down (rank, in), up (out, rank)

PARTS = {  # the field of `Layer` that each of a block's tensors fills
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
HEAD = "output.weight"


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter, read and checked: for each of the base's matrices, by its tensor name, an update at scale 1."""

    name: str
    updates: dict[str, Adapter]

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
    return Lora(adapter.path.name, found)


def check_lora(adapter: ModelFile, config: Config) -> tuple[float, dict[str, Update]]:
    """An adapter's alpha, and what it updates, by the base's tensor; nothing is read but the header. Raises as
    `read_lora` does."""
    name, meta = adapter.path.name, adapter.metadata
    if meta.get("general.type") != "adapter" or meta.get("adapter.type") != "lora":
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
    stems = sorted({tensor.removesuffix(".lora_a").removesuffix(".lora_b") for tensor in adapter.tensors})
    if not stems:
        raise ModelFileError(f"{name} has no tensors: the adapter changes nothing; use another file")
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


class AdaptedWeights:
    """A `WeightSource` with adapters attached to another's; the base's layers stay as they are.

    `adapters`: pairs of an adapter and its scale. To detach, go back to the base.
    """

    def __init__(self, base: Any, adapters: Sequence[tuple[Lora, float]]) -> None:
        for lora, scale in adapters:
            if not -1e3 <= scale <= 1e3:
                raise SpecError(f"scale {scale} for adapter {lora.name}: wanted a number from -1000 to 1000")
        self.base, self.adapters = base, tuple(adapters)
        self.embedding = base.embedding
        self.position_embedding = base.position_embedding
        self.output_norm = base.output_norm
        self.head: Linear = self._adapt(base.head, HEAD)
        self.layers: list[Layer] = [self._layer(layer) for layer in base.layers]

    def _layer(self, layer: Layer) -> Layer:
        parts: dict[str, Any] = {}
        for part, field in PARTS.items():
            linear = getattr(layer, field)
            adapted = self._adapt(linear, f"blk.{layer.spec.index}.{part}.weight")
            if adapted is not linear:
                parts[field] = adapted
        return replace(layer, **parts, fused=None) if parts else layer

    def _adapt(self, linear: Any, tensor: str) -> Any:
        extra = tuple(adapter for lora, scale in self.adapters for adapter in lora.scaled(tensor, scale))
        if extra and linear is None:
            raise ModelFileError(f"an adapter updates {tensor}, which this model does not have; use its own adapter")
        return replace(linear, adapters=linear.adapters + extra) if extra else linear


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
