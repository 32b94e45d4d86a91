"""Make a model file of a known shape with seeded random weights, for tests and for measuring speed and memory.

Such a model says nothing, but it costs what the real one costs: the same tensors in the same types, with weights of
the usual magnitudes. A shape is a TOML file in ``shapes/``, found by its name; a seed makes the same file again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmote import registry, spec
from genmote.errors import SpecError
from genmote.models import requantise
from genmote.models.gguf_write import Progress, Tensor, write_gguf
from genmote.models.make_vocabulary import byte_level, sentence_piece
from genmote.models.rope import llama3_factors
from genmote.ops import quant

SHAPES = Path(__file__).parent / "shapes"
# Numbers from which a tensor's blocks are drawn: enough that no two rows are alike.
_POOL = 1 << 15
_PIECE_BYTES = 1 << 21

Norms = Literal["none", "head", "all"]


@dataclass(frozen=True)
class Shape:
    """What decides a model's tensors; widths in numbers."""

    architecture: str
    source: str  # where the figures come from
    vocab_size: int
    context_length: int
    width: int
    layers: int
    ffn_width: int  # of the feed-forward part; of one expert where there are experts
    heads: int
    kv_heads: int
    head_dim: int = 0  # 0: width / heads
    eps: float = 1e-5
    rope_base: float = 10000.0
    rope_llama3: tuple[float, ...] = ()  # factor, low and high frequency factor, original context
    layer_heads: tuple[int, ...] = ()  # of each layer, where they differ
    layer_kv_heads: tuple[int, ...] = ()
    layer_ffn_widths: tuple[int, ...] = ()
    layer_ranks: tuple[int, ...] = ()  # of each layer's linears; 0: they are whole
    head_rank: int = 0  # of the output matrix; 0: it is whole
    experts: int = 0
    experts_used: int = 0
    window: int = 0  # positions that a local layer sees
    tied: bool = True  # the embedding is also the output matrix
    tokenizer: Literal["bpe", "spm"] = "bpe"
    pre: str = "gpt-2"  # pre-tokenizer of a byte-level BPE

    @property
    def key_width(self) -> int:
        return self.head_dim or self.width // self.heads

    def of_layers(self, name: str) -> tuple[int, ...]:
        """`heads`, `kv_heads`, `ffn_width` of each layer, or its `rank`."""
        each: tuple[int, ...] = getattr(self, f"layer_{name}s" if name in ("ffn_width", "rank") else f"layer_{name}")
        return each or (getattr(self, name, 0),) * self.layers

    def faults(self) -> Iterator[str]:
        for name in ("layer_heads", "layer_kv_heads", "layer_ffn_widths", "layer_ranks"):
            if len(each := getattr(self, name)) not in (0, self.layers):
                yield f"{name} has {len(each)} numbers for {self.layers} layers"

    @property
    def norms(self) -> Norms:
        """Query and key norms: none, over each head, or over all heads at once."""
        if self.architecture == "olmoe":
            return "all"
        return "head" if self.architecture in ("qwen3", "qwen3moe", "gemma3") else "none"


def shape_names() -> list[str]:
    """Names of the known shapes.

    >>> "tiny-llama" in shape_names()
    True
    """
    return sorted(path.stem for path in SHAPES.glob("*.toml"))


def load_shape(name: str) -> Shape:
    """The shape of a name; ``SpecError`` for an unknown one."""
    if name not in shape_names():
        close = registry.near(name, shape_names())
        raise SpecError(f"no model shape is called {name!r}{close}; known: {', '.join(shape_names())}")
    return spec.from_toml(Shape, SHAPES / f"{name}.toml")


def make_model(
    shape: str,
    type: str,
    path: str | os.PathLike[str],
    seed: int = 0,
    *,
    embedding_type: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a model of ``shape`` with its matrices stored as ``type`` to ``path``, streamed.

    ``embedding_type`` as in :func:`requantise.convert_type`. ``SpecError`` for an unknown shape or type and for a
    negative seed.
    """
    if not 0 <= seed < 1 << 64:
        raise SpecError(f"seed={seed}: wanted 0 to 2**64 - 1")
    form = load_shape(shape)
    types = requantise.MatrixTypes(type, form.tied, embedding_type)
    tensors: list[Tensor] = []
    for name, dims, mean, std in tensor_list(form):
        stored = types.of(name, dims, "F32")
        # The name is part of the seed: a tensor's numbers do not depend on the tensors before it.
        key = hashlib.sha256(f"{seed}/{shape}/{name}".encode()).digest()
        tensors.append((name, stored, dims, RandomBlocks(stored, dims, mean, std, key)))
    if form.rope_llama3:
        factors = llama3_factors(form.key_width, form.rope_base, *form.rope_llama3)
        tensors.append(("rope_freqs.weight", "F32", factors.shape, factors))
    metadata = {
        **model_metadata(form),
        "general.name": f"{shape}, random weights, seed {seed}",
        "general.file_type": np.uint32(requantise.FILE_TYPES[types.matrices]),
        "genmote.shape": shape,
        "genmote.seed": np.uint64(seed),
    }
    write_gguf(path, metadata, tensors, progress=progress)


def tensor_list(form: Shape) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Name, shape, mean and standard deviation of every tensor, as the family's converter names them.

    A matrix of N inputs has numbers of size 1/sqrt(N), so that it keeps the size of what goes through; those that add
    to the residual stream are smaller by sqrt(2 layers), so that its size does not grow with depth.
    """
    opt = form.architecture == "opt"
    biased = {
        "opt": ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"],
        "qwen2": ["attn_q", "attn_k", "attn_v"],
    }.get(form.architecture, [])
    residual = (2 * form.layers) ** -0.5

    def matrix(
        name: str, *dims: int, gain: float = 1.0, rank: int = 0
    ) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
        if rank:
            yield f"{name}_a.weight", (rank, dims[-1]), 0.0, dims[-1] ** -0.5
            yield f"{name}_b.weight", (dims[0], rank), 0.0, gain * rank**-0.5
        else:
            yield f"{name}.weight", dims, 0.0, gain * dims[-1] ** -0.5
        if name.split(".")[-1] in biased:
            yield f"{name}.bias", (dims[-2],), 0.0, 0.02

    def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
        yield f"{name}.weight", (width,), 1.0, 0.1
        if opt:
            yield f"{name}.bias", (width,), 0.0, 0.02

    yield from matrix("token_embd", form.vocab_size, form.width)
    if opt:
        yield from matrix("position_embd", form.context_length, form.width)
    for i in range(form.layers):
        queries, keys = (form.of_layers(name)[i] * form.key_width for name in ("heads", "kv_heads"))
        inner, rank = form.of_layers("ffn_width")[i], form.of_layers("rank")[i]
        yield from norm(f"blk.{i}.attn_norm", form.width)
        yield from matrix(f"blk.{i}.attn_q", queries, form.width, rank=rank)
        yield from matrix(f"blk.{i}.attn_k", keys, form.width, rank=rank)
        yield from matrix(f"blk.{i}.attn_v", keys, form.width, rank=rank)
        if form.norms != "none":
            yield from norm(f"blk.{i}.attn_q_norm", queries if form.norms == "all" else form.key_width)
            yield from norm(f"blk.{i}.attn_k_norm", keys if form.norms == "all" else form.key_width)
        yield from matrix(f"blk.{i}.attn_output", form.width, queries, gain=residual, rank=rank)
        yield from norm(f"blk.{i}.ffn_norm", form.width)
        if form.architecture == "gemma3":
            yield from norm(f"blk.{i}.post_attention_norm", form.width)
            yield from norm(f"blk.{i}.post_ffw_norm", form.width)
        each = (form.experts,) if form.experts else ()
        tail = "_exps" if form.experts else ""
        if form.experts:
            yield from matrix(f"blk.{i}.ffn_gate_inp", form.experts, form.width)
        low = 0 if form.experts else rank
        if not opt:
            yield from matrix(f"blk.{i}.ffn_gate{tail}", *each, inner, form.width, rank=low)
        yield from matrix(f"blk.{i}.ffn_up{tail}", *each, inner, form.width, rank=low)
        yield from matrix(f"blk.{i}.ffn_down{tail}", *each, form.width, inner, gain=residual, rank=low)
    yield from norm("output_norm", form.width)
    if not form.tied:
        yield from matrix("output", form.vocab_size, form.width, rank=form.head_rank)


def model_metadata(form: Shape) -> dict[str, Any]:
    """The metadata keys that the family's converter writes, and a tokenizer of the right size."""
    epsilon = "layer_norm_epsilon" if form.architecture == "opt" else "layer_norm_rms_epsilon"
    keys: dict[str, Any] = {
        "context_length": form.context_length,
        "embedding_length": form.width,
        "block_count": form.layers,
        "feed_forward_length": list(form.layer_ffn_widths) or form.ffn_width,
        "attention.head_count": list(form.layer_heads) or form.heads,
        "attention.head_count_kv": list(form.layer_kv_heads) or form.kv_heads,
        f"attention.{epsilon}": form.eps,
    }
    if form.architecture != "opt":
        keys["rope.freq_base"] = form.rope_base
    if form.architecture in ("llama", "deci"):
        keys |= {"vocab_size": form.vocab_size, "rope.dimension_count": form.key_width}
    if form.head_dim:
        keys |= {"attention.key_length": form.head_dim, "attention.value_length": form.head_dim}
    if form.window:
        keys["attention.sliding_window"] = form.window
    if form.experts:
        keys |= {"expert_count": form.experts, "expert_used_count": form.experts_used}
    if form.architecture == "qwen3moe":
        keys["expert_feed_forward_length"] = keys["feed_forward_length"]
    if form.tokenizer == "bpe":
        tokenizer = byte_level(form.vocab_size, form.pre)
    elif form.architecture == "gemma3":
        tokenizer = sentence_piece(form.vocab_size, ("<pad>", "<eos>", "<bos>", "<unk>"))
    else:
        tokenizer = sentence_piece(form.vocab_size, ("<unk>", "<s>", "</s>"))
    return {
        "general.architecture": form.architecture,
        "general.type": "model",
        "general.quantization_version": 2,
        **{f"{form.architecture}.{key}": value for key, value in keys.items()},
        **tokenizer,
    }


class RandomBlocks:
    """The bytes of a random tensor in pieces: blocks drawn from a pool of quantised normal numbers.

    Quantising every number of a large model takes minutes; drawing blocks takes seconds, and they are as legal, finite
    and normally distributed as those of the pool.
    """

    def __init__(self, type: str, dims: tuple[int, ...], mean: float, std: float, key: bytes) -> None:
        self.type, self.dims, self.mean, self.std, self.key = type, dims, mean, std, key

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(self.key[:16], "little")))
        kind = quant.by_name(self.type)
        run = max(kind.block_size, 32)
        numbers = rng.standard_normal((_POOL // run, run), np.float32) * np.float32(self.std) + np.float32(self.mean)
        pool = quant.quantize(kind.name, numbers).reshape(len(numbers), -1)  # (blocks, bytes)
        left = quant.nbytes(kind.name, self.dims)
        step = _PIECE_BYTES // pool.shape[1]
        while left > 0:
            drawn = rng.integers(0, len(pool), min(step, -(-left // pool.shape[1])), np.uint16)
            piece = pool[drawn].reshape(-1)[:left]
            left -= piece.size
            yield piece
