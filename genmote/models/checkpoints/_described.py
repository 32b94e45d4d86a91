"""What a folder's tensors become: the description that a family gives, and the list of parts that follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.gguf_values import one_line

# Where the text model's tensors lie in a folder: of a whole model, of a bare one, inside a model that also sees.
_PREFIXES = ("model.", "", "model.language_model.", "language_model.model.", "model.decoder.", "decoder.")
_HEADS = ("lm_head", "language_model.lm_head")
# Tensors that hold nothing that is not known from the config.
_DERIVED = (r"rotary_emb\.inv_freq$", r"\.masked_bias$", r"position_ids$")

# Tensors of one block: GGUF's name → the folder's (or several: the first that is there).
Names = Mapping[str, str | tuple[str, ...]]
ATTENTION: Names = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
GATED: Names = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
# `{}` is the expert's number; another form has all experts in one tensor, each gate's rows before its up's.
EXPERTS: Names = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": ("mlp.experts.{}.gate_proj", "mlp.experts.gate_up_proj"),
    "ffn_up_exps": ("mlp.experts.{}.up_proj", "mlp.experts.gate_up_proj"),
    "ffn_down_exps": ("mlp.experts.{}.down_proj", "mlp.experts.down_proj"),
}
HEAD_NORMS: Names = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True)
class Sizes:
    """Counts and widths, in numbers."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # of one expert where there are experts
    context: int
    experts: int = 0

    @classmethod
    def of(cls, config: Hparams, **known: int) -> Sizes:
        """From the config's usual keys; `known` has what a family reads or defaults otherwise."""
        width = known.get("width") or config.integer("hidden_size", high=1 << 20)
        heads = known.get("heads") or config.integer("num_attention_heads", high=1 << 16)
        head_dim = known.get("head_dim") or config.integer("head_dim", width // heads, high=4096)
        sizes = cls(
            vocab=known.get("vocab") or config.integer("vocab_size"),
            width=width,
            layers=known.get("layers") or config.integer("num_hidden_layers", high=4096),
            heads=heads,
            kv_heads=known.get("kv_heads") or config.integer("num_key_value_heads", heads, high=1 << 16),
            head_dim=head_dim,
            ffn=known.get("ffn") or config.integer("intermediate_size"),
            context=known.get("context") or config.integer("max_position_embeddings", high=1 << 30),
            experts=known.get("experts", 0),
        )
        if sizes.heads % sizes.kv_heads or sizes.head_dim % 2:
            raise config.fail(
                f"{heads} heads of {head_dim} over {sizes.kv_heads} key/value heads: they must divide, "
                "and a head's width must be even"
            )
        return sizes


@dataclass(frozen=True)
class Described:
    """What `describe` of a family says. Metadata keys are without the architecture's prefix."""

    architecture: str
    sizes: Sizes
    metadata: Mapping[str, Any]
    block: Names
    tied: bool
    interleaved: bool = False  # rotary pairs are neighbours in GGUF: query and key rows change places
    norm_gain: float = 0.0  # added to every norm's weight
    norm_biases: bool = False
    biased: tuple[str, ...] = ()  # matrices of a block that must have a bias; the others may
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # where they are not the usual ones
    output_norm: str = "norm"
    positions: int = 0  # rows of a position table that come before position 0; 0: no table
    rope_factors: NDArray[np.float32] | None = None
    beside: tuple[str, ...] = ()  # tensors (regular expressions) that are no part of the text model
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One tensor of the GGUF file: the rows of one or several of the folder's tensors, checked to have their shapes.

    `order`: which rows of the source, in which order; None: all as they lie. `add` is added to every number.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    order: NDArray[np.int64] | None = None
    add: float = 0.0


def parts(described: Described, shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[list[Part], list[str]]:
    """All tensors of the file, and the folder's tensors that are left out on purpose.

    `shapes`: of the folder's tensors by name. ``ModelFileError`` for those missing, of another shape, or left over.
    """
    made = list(_Parts(described, shapes, where))
    used = {source for part in made for source in part.sources}
    expected = [*_DERIVED, *described.beside, *([r"lm_head\.weight$"] if described.tied else [])]
    unused = sorted(shapes.keys() - used)
    dropped = [name for name in unused if any(re.search(pattern, name) for pattern in expected)]
    if left := sorted(set(unused) - set(dropped)):
        raise ModelFileError(
            f"{where}: has {len(left)} tensors that a {described.architecture} model does not use "
            f"({one_line(', '.join(left[:3])):.200}{', …' if len(left) > 3 else ''}); "
            "the model is not what config.json says"
        )
    return made, dropped


class _Parts:
    def __init__(self, described: Described, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        self.d, self.shapes, self.where = described, shapes, where
        prefix = next((prefix for prefix in _PREFIXES if f"{prefix}embed_tokens.weight" in shapes), None)
        if prefix is None:
            raise ModelFileError(f"{where}: has no tensor embed_tokens.weight; it holds no language model")
        self.prefix = prefix

    def __iter__(self) -> Iterator[Part]:
        d, s = self.d, self.d.sizes
        yield self._part("token_embd.weight", (s.vocab, s.width), f"{self.prefix}embed_tokens.weight")
        if d.positions:
            rows = s.context + d.positions
            name = self._source((rows, s.width), f"{self.prefix}embed_positions.weight")
            yield Part("position_embd.weight", (s.context, s.width), (name,), np.arange(d.positions, rows))
        for layer in range(s.layers):
            yield from self._block(layer)
        yield from self._norm("output_norm", [self.prefix + d.output_norm])
        if not d.tied:
            yield self._part("output.weight", (s.vocab, s.width), *(f"{head}.weight" for head in _HEADS))

    def _block(self, layer: int) -> Iterator[Part]:
        for part, theirs in self.d.block.items():
            names = (theirs,) if isinstance(theirs, str) else theirs
            places = [f"{self.prefix}layers.{layer}.{name}" for name in names]
            if part.endswith("_norm"):
                yield from self._norm(f"blk.{layer}.{part}", places)
            elif part.endswith("_exps"):
                yield self._experts(f"blk.{layer}.{part}.weight", part, *places)
            else:
                yield from self._matrix(f"blk.{layer}.{part}", part, places)

    def _matrix(self, name: str, part: str, places: list[str]) -> Iterator[Part]:
        heads = {"attn_q": self.d.sizes.heads, "attn_k": self.d.sizes.kv_heads}.get(part, 0)
        heads = heads if self.d.interleaved else 0
        shape = self._shape(part)
        yield self._part(f"{name}.weight", shape, *(f"{place}.weight" for place in places), heads=heads)
        biases = [f"{place}.bias" for place in places]
        if part in self.d.biased or self.shapes.keys() & set(biases):
            yield self._part(f"{name}.bias", shape[:1], *biases, heads=heads)

    def _norm(self, name: str, places: list[str]) -> Iterator[Part]:
        shape = self._shape(name.split(".")[-1])
        yield self._part(f"{name}.weight", shape, *(f"{place}.weight" for place in places), add=self.d.norm_gain)
        if self.d.norm_biases:
            yield self._part(f"{name}.bias", shape, *(f"{place}.bias" for place in places))

    def _experts(self, name: str, part: str, apart: str, together: str) -> Part:
        shape, (count, ffn, width) = self._shape(part), self._shape("ffn_up_exps")
        if together not in self.shapes:
            each = (self._source(shape[1:], f"{apart}.weight".format(number)) for number in range(count))
            return Part(name, shape, tuple(each))
        if part == "ffn_down_exps":
            return self._part(name, shape, together)
        source = self._source((count, 2 * ffn, width), together)
        first = np.arange(count)[:, None] * 2 * ffn + (ffn if part == "ffn_up_exps" else 0)
        return Part(name, shape, (source,), (first + np.arange(ffn)).reshape(-1))

    def _part(self, name: str, shape: tuple[int, ...], *places: str, heads: int = 0, add: float = 0.0) -> Part:
        """A part of one source; with `heads` its row (head, half, pair) becomes row (head, pair, half)."""
        source = self._source(shape, *places)
        order = np.arange(shape[0]).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1) if heads else None
        return Part(name, shape, (source,), order, add)

    def _source(self, shape: tuple[int, ...], *places: str) -> str:
        """The first of these names that the folder has; it must have the shape."""
        found = next((place for place in places if place in self.shapes), None)
        if found is None:
            raise ModelFileError(
                f"{self.where}: has no tensor {' or '.join(places)}, which a {self.d.architecture} model needs; "
                "fetch the whole model"
            )
        if self.shapes[found] != shape:
            raise ModelFileError(
                f"{self.where}: tensor {found} has shape {self.shapes[found]}, config.json asks for {shape}; "
                "the two do not belong together"
            )
        return found

    def _shape(self, part: str) -> tuple[int, ...]:
        s = self.d.sizes
        queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
        usual: dict[str, tuple[int, ...]] = {
            "attn_q": (queries, s.width),
            "attn_k": (keys, s.width),
            "attn_v": (keys, s.width),
            "attn_output": (s.width, queries),
            "attn_q_norm": (s.head_dim,),
            "attn_k_norm": (s.head_dim,),
            "ffn_gate": (s.ffn, s.width),
            "ffn_up": (s.ffn, s.width),
            "ffn_down": (s.width, s.ffn),
            "ffn_gate_inp": (s.experts, s.width),
            "ffn_gate_exps": (s.experts, s.ffn, s.width),
            "ffn_up_exps": (s.experts, s.ffn, s.width),
            "ffn_down_exps": (s.experts, s.width, s.ffn),
        }
        return {**usual, **self.d.shapes}.get(part, (s.width,))
