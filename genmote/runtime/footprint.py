"""How many bytes a model takes while it runs, by what they are for, out of its file's header alone.

Sizes are those of the native op set: weights re-laid in panels (`ops/packed.py`), the scratch memory of
`native/block.cpp`, keys and values in rows. Nothing is loaded and no weight is read.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genmote.errors import ModelFileError, OpsError, SpecError
from genmote.models.config import Config, is_tied, read_config
from genmote.models.gguf_values import MetaArray
from genmote.models.lora import check_lora
from genmote.models.requantise import MatrixTypes
from genmote.models.weights import is_expert
from genmote.ops.cache import cache_bytes, row_bytes
from genmote.ops.packed import PANEL, PLAIN, packed_bytes

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile, TensorInfo

# CPython 3.11 with NumPy, the kernels and the modules of a text, as measured on x86-64 Linux: the most of several
# loads, so that a plan of another process and a load, which differ by 0.2 MB each time, come to the same; another
# process's share of libraries counts in full. With compiled bytecode, as an installed package has it: a process that
# compiles its modules takes some megabytes more. What this process has already, with `CODE_BYTES`, is taken instead
# where it is more.
INTERPRETER_BYTES = 36_300_000
CODE_BYTES = 1 << 20  # of the kernels', NumPy's and C++'s code, which comes into memory when it first computes
EXPERTS_CODE_BYTES = 1 << 20  # and where experts are chosen: NumPy sorts them
HEAP_BYTES = 1 << 20  # what texts, samplers and the allocator's slack take on top
GROUP_BYTES = 64  # 32 activations in 8 bits with their scale and sums: one cache line
QUERIES_AT_ONCE = 8 * 8  # kMaxTiles * kMaxQueries of native/genmote.h
PAGE = 4096  # what reads are aligned to
LARGE_BYTES = 128 << 10  # what has a mapping of its own, within a budget
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

# What a pass uses together: one stage of the ring. Names are those after "blk.N.".
STAGES = (
    ("attn_q", "attn_k", "attn_v"),
    ("attn_output",),
    ("ffn_gate_inp",),
    ("ffn_gate", "ffn_up"),
    ("ffn_down",),
)
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+?)(_[ab])?\.weight$")  # _a, _b: the two matrices of a linear of low rank


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights as the kernels hold them."""

    stages: tuple[int, ...]  # of each stage of a pass, layer after layer
    head: int  # the output matrix, the embedding's own where the two are tied
    embedding: int  # beside the head: rows are read by need; 0 where the two are tied
    vectors: int  # norms and biases, always in memory
    experts: int  # all experts of all layers
    expert: int  # memory for one expert of one layer, the largest: whole pages; 0 where there are none
    by_type: dict[str, int]
    panel: int  # the widest stage's two panels of 16 rows: the least that is streamed at once
    row_panel: int  # 16 rows of the embedding: what looking up a token reads
    macs: int  # multiply-adds of one token with quantised weights, the head's included
    float_macs: int  # and with weights that are floats
    active: int  # bytes that one token's multiply-adds read

    @property
    def dense(self) -> int:
        """Bytes that every pass reads: all but the embedding and the experts."""
        return sum(self.stages) + self.head

    @property
    def total(self) -> int:
        return self.dense + self.embedding + self.experts + self.vectors


def weights(model: ModelFile, config: Config | None = None, stored_as: str | None = None) -> Weights:
    """The model's weights, or what they would be with the matrices stored as another type. Raises ModelFileError where
    a tensor has no packed form, SpecError for an unknown type."""
    config = config or read_config(model)
    by_type: Counter[str] = Counter()
    stage_of = {name: number for number, names in enumerate(STAGES) for name in names}
    stages = [[0] * len(STAGES) for _ in range(config.n_layers)]
    panels: Counter[tuple[int, int]] = Counter()  # of each layer's stages
    experts: Counter[tuple[str, int]] = Counter()  # bytes of each layer's experts
    head = embedding = vectors = used_bytes = row_panel = 0
    macs = [0, 0]  # quantised, floats
    tied = is_tied(model.tensors)
    types = None if stored_as is None else MatrixTypes(stored_as, tied)
    share = config.n_experts_used / config.n_experts if config.n_experts else 0.0
    for name, info in model.tensors.items():
        numbers = math.prod(info.shape)
        if len(info.shape) == 1:
            vectors += 4 * numbers
            continue
        kind = info.type if types is None else types.of(name, info.shape, info.type)
        size = _packed(model, info, kind)
        by_type[kind] += size
        floats = kind in PLAIN
        if name == "token_embd.weight":
            row_panel = packed_bytes(kind, (PANEL, info.shape[1]))
            head, embedding = (size, embedding) if tied else (head, embedding + size)
            macs[floats] += numbers if tied else 0
        elif name in ("output.weight", "output_a.weight", "output_b.weight"):
            head += size
            macs[floats] += numbers
        elif name == "position_embd.weight":
            embedding += size
        elif is_expert(name):
            layer, single = name.split(".")[1], name.split(".")[-2]
            those = [int(single)] if single.isdecimal() else range(info.shape[0])  # in a tensor of its own, or in all's
            experts.update({(layer, expert): size // len(those) for expert in those})
            macs[floats] += round(numbers * share)
            used_bytes += round(size * share)
        else:
            found = _BLOCK.match(name)
            if found is None or found[2] not in stage_of or int(found[1]) >= config.n_layers:
                raise ModelFileError(
                    f"{model.path.name} has a tensor {name}, which no plan knows; use a plain conversion of the model"
                )
            stage = stage_of[found[2]]
            stages[int(found[1])][stage] += size
            panels[int(found[1]), stage] += 2 * packed_bytes(kind, (PANEL, info.shape[1]))
            macs[floats] += numbers
    flat = tuple(size for layer in stages for size in layer if size)
    return Weights(
        stages=flat,
        head=head,
        embedding=embedding,
        vectors=vectors,
        experts=experts.total(),
        expert=_slot(max(experts.values())) if experts else 0,
        by_type=dict(by_type),
        panel=max(panels.values(), default=0),
        row_panel=row_panel,
        macs=macs[0],
        float_macs=macs[1],
        active=sum(flat) + head + used_bytes,
    )


def _slot(expert: int) -> int:
    """Memory that an expert of so many bytes takes (`experts.slot_bytes`), wherever in a block it begins."""
    page = max(PAGE, mmap.PAGESIZE)
    return -(-(expert + PAGE) // page) * page


def _packed(model: ModelFile, info: TensorInfo, kind: str) -> int:
    *outer, rows, cols = info.shape
    try:
        each = packed_bytes(kind, (rows, cols))
    except (OpsError, SpecError) as error:
        raise ModelFileError(f"{model.path.name}, {info.name}: {error}") from None
    return -(-each // 64) * 64 * math.prod(outer)


def adapter_bytes(config: Config, adapters: Iterable[ModelFile]) -> int:
    """LoRA adapters' matrices as the native kernels hold them. Raises ModelFileError for what is no adapter of this
    model's."""
    total = 0
    for adapter in adapters:
        for infos in check_lora(adapter, config)[1].values():
            total += sum(_packed(adapter, info, info.type) for info in infos)
    return total


def kv_row_bytes(config: Config, kind: str) -> int:
    """Keys and values of one token in all layers, as attention reads them."""
    return sum(config.kv_heads) * row_bytes(kind, config.head_dim)


def kv_bytes(config: Config, kind: str, rows: int, queries: int = 0) -> int:
    """A session's cache that holds `rows` tokens, and the queries of the last rows."""
    shape = (config.n_layers, config.kv_heads, config.head_dim)
    return cache_bytes(*shape, rows, kind=kind, queries=queries, n_heads=config.heads)


def logits_bytes(config: Config) -> int:
    """One row's logits, and their copy where a cap is put on them or the vocabulary is no multiple of 16."""
    return 4 * _up16(config.vocab_size) * (1 + bool(config.logit_cap or config.vocab_size % 16))


def activation_bytes(
    config: Config,
    chunk: int,
    rows: int,
    threads: int,
    *,
    float_down: bool = False,
    rank: int = 0,
    sessions: int = 1,
    steps: bool = False,
) -> int:
    """Scratch memory of a pass over `chunk` rows against a cache of `rows`: what `native/block.cpp` allocates, and the
    states and logits (of a row in each session) that NumPy holds. `float_down`, `rank`: see the functions of these
    names; `steps`: blocks are computed in single steps (`decoder.block`), as those with adapters are."""
    width, inner = config.width, max(config.ffn_widths)
    attended = max(config.heads) * config.head_dim
    q, kv = _up16(attended), _up16(max(config.kv_heads) * config.head_dim)
    normed = 4 * width
    attended_and_q = 4 * (q + attended)
    quantised = max(width, attended) // 32 * GROUP_BYTES
    hidden = 4 * _up16(inner) if float_down else inner // 32 * GROUP_BYTES
    branch = 4 * _up16(width)
    rotary = 2 * 4 * (config.head_dim // 2) * len(config.ropes)
    low = 2 * (4 * _up16(rank) + rank // 32 * GROUP_BYTES)
    a_row = 4 * width + normed + quantised + attended_and_q + 8 * kv + hidden + branch + rotary + low
    if steps:  # x before and after, a norm, a branch; gate, up and an update of theirs
        a_row = 4 * (4 * width + 3 * inner + q + 2 * kv) + max(quantised, hidden) + rotary + low
    if config.n_experts:  # gathered inputs, hidden states and answers of each chosen expert, and NumPy's sums of them
        gathered = (width + inner) // 32 * GROUP_BYTES + (4 * inner if float_down else 0)
        a_row += config.n_experts_used * (gathered + 3 * 4 * width) + 4 * (4 * width + 3 * config.n_experts)
    stride = _up16(rows + 1) + 16
    scores = 4 * stride * (QUERIES_AT_ONCE if chunk >= 16 else 8)
    spelt = 2 * (max(width, inner) // 32) * (512 + 256)
    each_thread = scores + spelt + 2 * 4 * 64 * chunk
    logits = sessions * logits_bytes(config) + 3 * 4 * config.vocab_size  # the kernel's, a sampler's copies
    return a_row * chunk + each_thread * threads + logits


def _up16(count: int) -> int:
    return -(-count // 16) * 16


def tables_bytes(model: ModelFile) -> int:
    """The token table, which is mapped: texts touch it all over (`models/tokenizer/table.py` has its sections)."""
    total = 48 << 10  # the pre-tokenizer
    for name, each in (("tokens", 4 + 4 + 1 + 6), ("merges", 24)):
        array = model.metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(array, MetaArray):
            total += each * len(array)
            total += array.raw_span()[1] - 8 * len(array) if name == "tokens" else 0
    return total


def float_down(model: ModelFile) -> bool:
    """Whether feed-forward rows stay floats: the down matrices are not quantised."""
    return any(re.search(r"\.ffn_down(?!_b)", name) and info.type in PLAIN for name, info in model.tensors.items())


def rank(model: ModelFile) -> int:
    """The highest rank of the blocks' linears of low rank; 0 where there are none."""
    ranks = [info.shape[0] for name, info in model.tensors.items() if re.match(r"blk\.\d+\.\w+_a\.weight$", name)]
    return max(ranks, default=0)


def resident_bytes() -> int:
    """What this process has in memory now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0


def without_holes(large: int = LARGE_BYTES) -> None:
    """From now on pieces of `large` bytes and more go back to the system as they are freed, where the C library is
    glibc.

    By itself it takes ever larger pieces from the heap, up to 32 MB once such a piece was freed. Scratch memory that
    grows with a text then leaves holes there, as resident as what is used.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, large)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, large)  # of the heap's end, too


def trim() -> None:
    """Give memory that is free within this process back to the system, where the C library (glibc's) can."""
    import ctypes  # NumPy has loaded it

    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
