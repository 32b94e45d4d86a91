"""What a model computes with, read from a GGUF file's metadata and checked: every wrong value is a ModelFileError."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from genmote import registry
from genmote.errors import ModelFileError
from genmote.models.rope import RopeTable, rope_table
from genmote.ops.layer import Activation, LayerSpec

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile

FAMILIES = "genmote.models.families"
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Config:
    """A model's constants. `layers[i]` says what block i computes, `ropes` holds the rotary tables that it names."""

    architecture: str
    width: int  # D
    vocab_size: int  # V
    context_length: int  # tokens that the model was trained for
    layers: tuple[LayerSpec, ...]
    ffn_widths: tuple[int, ...]  # F of each block; of one expert where there are experts
    ropes: tuple[RopeTable, ...] = ()
    eps: float = 1e-5
    embedding_scale: float = 1.0
    logit_cap: float = 0.0  # logits = cap * tanh(logits / cap); 0: none
    n_experts: int = 0
    n_experts_used: int = 0
    normalise_experts: bool = False

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def heads(self) -> tuple[int, ...]:
        """Query heads of each layer."""
        return tuple(layer.n_heads for layer in self.layers)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """Key-value heads of each layer."""
        return tuple(layer.n_kv_heads for layer in self.layers)

    @property
    def head_dim(self) -> int:
        """Width of a head, the same in all layers."""
        return self.layers[0].head_dim


class Keys:
    """Typed, checked look-ups in a file's metadata; names are without the architecture's prefix."""

    def __init__(self, metadata: Mapping[str, Any], rope_factors: Any = None) -> None:
        self.metadata = metadata
        self.architecture = self._architecture()
        self.rope_factors = rope_factors  # (rot/2,) float32 of the tensor rope_freqs.weight, or None

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = 1 << 24) -> int:
        """A whole number in [low, high]; ModelFileError where it is absent (and has no default), or anything else."""
        return self._number(name, int, default, low, high)

    def number(self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number in [low, high]."""
        return self._number(name, float, default, low, high)

    def text(self, name: str, default: str) -> str:
        value = self.metadata.get(self._key(name), default)
        if not isinstance(value, str):
            raise ModelFileError(
                f"{self._key(name)} = {value!r}: wanted text; the file is not a usable {self.architecture}"
            )
        return value

    def each_layer(self, name: str, n_layers: int, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A whole number for each layer: the file gives one for all, or an array of them."""
        value = self.metadata.get(self._key(name))
        if value is None and default is not None:
            return tuple(default)
        if value is None or isinstance(value, (int, float, str)):
            return (self.integer(name),) * n_layers
        values = tuple(value) if len(value) == n_layers else ()
        if not values or not all(isinstance(v, int) and 1 <= v <= 1 << 24 for v in values):
            raise ModelFileError(
                f"{self._key(name)} is an array of {len(value)}: wanted {n_layers} positive whole numbers"
            )
        return values

    def flags(self, name: str, n_layers: int) -> tuple[bool, ...] | None:
        """A yes or no for each layer, where the file gives an array; None where it gives a number, or nothing."""
        value = self.metadata.get(self._key(name))
        if value is None or isinstance(value, (int, float, str)):
            return None
        values = tuple(value) if len(value) == n_layers else ()
        if not values or any(v not in (0, 1) for v in values):
            raise ModelFileError(
                f"{self._key(name)} is an array of {len(value)}: wanted {n_layers} times yes or no; the file is damaged"
            )
        return tuple(map(bool, values))

    def has(self, name: str) -> bool:
        return self._key(name) in self.metadata

    def _architecture(self) -> str:
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise ModelFileError("no general.architecture in the metadata: this GGUF file is not a model")
        return name

    def _key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def _number(self, name: str, kind: type[Number], default: Number | None, low: Number, high: Number) -> Number:
        value = self.metadata.get(self._key(name), default)
        if value is None:
            raise ModelFileError(f"{self._key(name)} is missing: the file is not a usable {self.architecture} model")
        right = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or not low <= value <= high:
            what = "whole number" if kind is int else "number"
            raise ModelFileError(
                f"{self._key(name)} = {value!r}: wanted a {what} from {low} to {high}; the file is damaged"
            )
        return kind(value)


def read_config(model: ModelFile) -> Config:
    """The config of a model file; its family is the module `families/ARCHITECTURE.py`."""
    factors = model.tensor("rope_freqs.weight") if "rope_freqs.weight" in model.tensors else None
    keys = Keys(model.metadata, factors)
    family = registry.load(FAMILIES, keys.architecture, what="model family", error=ModelFileError)
    config: Config = family.config(keys, vocabulary(model))
    return config


def vocabulary(model: ModelFile) -> int:
    """Rows of the embedding table, the one count that cannot be wrong."""
    info = model.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise ModelFileError(
            f"{model.path.name} has no token_embd.weight table: this GGUF file is not a language model"
        )
    return int(info.shape[0])


def is_tied(tensors: Container[str]) -> bool:
    """Whether a file with tensors of these names uses the embedding as its output matrix too."""
    return "output.weight" not in tensors and "output_a.weight" not in tensors


def common(
    keys: Keys,
    vocab_size: int,
    *,
    activation: Activation = "silu",
    interleaved: bool = False,
    rotary: bool = True,
    eps: str = "attention.layer_norm_rms_epsilon",
    ffn: str = "feed_forward_length",
) -> Config:
    """The config that most families share; a family passes what differs and replaces the rest.

    `interleaved`: rotary pairs are neighbours. `rotary` False: learned positions. `eps`, `ffn`: names of two keys.
    """
    n_layers = keys.integer("block_count", high=4096)
    width = keys.integer("embedding_length", high=1 << 20)
    heads = keys.each_layer("attention.head_count", n_layers)
    kv_heads = keys.each_layer("attention.head_count_kv", n_layers, heads)
    for n_heads, n_kv in zip(heads, kv_heads, strict=True):
        if n_heads % n_kv:
            raise ModelFileError(
                f"{n_heads} query heads over {n_kv} key/value heads: they must divide; the file is damaged"
            )
    if not keys.has("attention.key_length") and (len(set(heads)) > 1 or width % heads[0]):
        told = " or ".join(map(str, sorted(set(heads))))
        raise ModelFileError(
            f"width {width} over {told} heads, without attention.key_length: they must divide; the file is damaged"
        )
    head_dim = keys.integer("attention.key_length", width // heads[0], high=4096)
    if keys.integer("attention.value_length", head_dim, high=4096) != head_dim:
        raise ModelFileError(f"keys of {head_dim} and values of another width are not supported; use another model")
    n_experts = keys.integer("expert_count", 0, low=0, high=1 << 16)
    used = keys.integer("expert_used_count", low=1, high=n_experts) if n_experts else 0
    spec = LayerSpec(
        index=0,
        n_heads=heads[0],
        n_kv_heads=kv_heads[0],
        head_dim=head_dim,
        scale=keys.number("attention.scale", 0.0) or head_dim**-0.5,
        activation=activation,
        rope=0 if rotary else -1,
        rope_interleaved=interleaved,
        score_cap=keys.number("attn_logit_softcapping", 0.0),
    )
    return Config(
        architecture=keys.architecture,
        width=width,
        vocab_size=vocab_size,
        context_length=keys.integer("context_length", high=1 << 30),
        layers=tuple(
            replace(spec, index=index, n_heads=heads[index], n_kv_heads=kv_heads[index]) for index in range(n_layers)
        ),
        ffn_widths=keys.each_layer(ffn, n_layers),
        ropes=(rope_table(keys, head_dim),) if rotary else (),
        eps=keys.number(eps, low=0.0, high=1.0),
        logit_cap=keys.number("final_logit_softcapping", 0.0),
        n_experts=n_experts,
        n_experts_used=used,
    )
