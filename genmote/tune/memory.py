"""What a training takes of the memory, told before it begins, and what is given up where that is too much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genmote.device.sizes import meant
from genmote.errors import BudgetError
from genmote.models.config import Config, read_config
from genmote.models.lora import base_shapes
from genmote.models.parts import HEAD
from genmote.runtime import footprint
from genmote.tune.adamw import STATE_BYTES
from genmote.tune.settings import BIASES_PART, NORMS_PART, Tuning

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile

# Beside `footprint.INTERPRETER_BYTES`, as measured: the modules of a training, the tokenizer, the meter.
MODULE_BYTES = 5 << 20
PRODUCT_BYTES = 18 << 20  # what NumPy's own products and eigenvectors take at their first use, as measured
EXACT_RANKS = 16  # the rank of what is learnt exactly by passes forward alone, in ranks of what is estimated
WRITERS = ("attn_output", "ffn_down")  # the matrices that write into the residual stream
FEW_LOGITS = 8  # rows
SPARE = 1.05  # of what is planned is kept free within a budget: plans came out up to 3% below what was taken


@dataclass(frozen=True)
class Need:
    """Bytes that a training takes at its peak, by what they are for."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def need(model: ModelFile, tuning: Tuning, threads: int) -> Need:
    """What a training takes with these settings, out of the model's header alone. The examples are not in it."""
    config = read_config(model)
    rows = tuning.rows or tuning.context
    numbers, lowest = _learnt(model, config, tuning)
    one_pass = rows >= tuning.batch * tuning.context
    width = config.width
    kept = 2 if tuning.inputs == "f16" else 4
    attended, kv = max(config.heads) * config.head_dim, max(config.kv_heads) * config.head_dim
    inner = max(config.ffn_widths)
    # What one layer is made of on the way back, in numbers a row: see `models/backward.py`.
    wide = 3 if "blk.0.ffn_gate.weight" in model.tensors or config.n_experts else 2  # gate, up and what they give
    held = 6 * width + 2 * attended + 2 * kv + wide * inner
    passing = wide * inner + 3 * width
    return Need(
        {
            "interpreter": footprint.INTERPRETER_BYTES + footprint.CODE_BYTES + MODULE_BYTES,
            "weights": _weights(model, config, tuning),
            "adapter": 4 * numbers + (0 if one_pass else 4 * numbers),
            "averages": int(STATE_BYTES * numbers),
            "inputs of layers": (config.n_layers - lowest) * rows * width * kept,
            "a layer": 4 * rows * (held + passing) + 4 * rows * kv,
            "logits": tuning.logit_rows * footprint.logits_bytes(config) + 3 * 4 * rows * width,
            "scratch": threads * (1 << 20) + footprint.HEAP_BYTES,
        }
    )


def _weights(model: ModelFile, config: Config, tuning: Tuning) -> int:
    found = footprint.weights(model, config)
    if tuning.weights == "memory":
        return found.total
    each = max(1, len(found.stages) // config.n_layers)
    largest = max(sum(found.stages[start : start + each]) for start in range(0, len(found.stages), each))
    experts = found.experts // config.n_layers
    return largest + experts + found.head + found.vectors  # what is read ahead is the system's, not this process's


def need_forward(model: ModelFile, tuning: Tuning, threads: int) -> Need:
    """What passes forward alone take, all weights in memory (`tune/forward.py`)."""
    config = read_config(model)
    rows = tuning.rows or 2 * tuning.context
    numbers, last = 0, (0, 0)
    for tensor, (out, cols) in base_shapes(config).items():
        if tensor in model.tensors and writes(tensor, config, tuning):
            numbers += tuning.rank * (out + cols)
            last = (EXACT_RANKS - 1) * tuning.rank * (out + cols), EXACT_RANKS * tuning.rank * out
    passing = footprint.activation_bytes(config, rows, rows, threads, rank=footprint.rank(model), steps=True)
    return Need(
        {
            "interpreter": footprint.INTERPRETER_BYTES + footprint.CODE_BYTES + MODULE_BYTES + PRODUCT_BYTES,
            "weights": footprint.weights(model, config).total,
            "adapter": 4 * (numbers + sum(last)),
            "averages": int(STATE_BYTES * last[1]),
            "a pass": passing + 4 * rows * (max(config.kv_heads) * config.head_dim + 3 * config.width),
            "logits": (tuning.logit_rows - 1) * footprint.logits_bytes(config),
            "scratch": threads * (1 << 20) + footprint.HEAP_BYTES,
        }
    )


def writes(tensor: str, config: Config, tuning: Tuning) -> bool:
    """Whether passes forward alone learn this matrix: what writes into the residual stream in the upper half."""
    if not tensor.startswith("blk.") or not tuning.learns(tensor):
        return False
    _, index, part, _ = tensor.split(".")
    return part in WRITERS and int(index) >= config.n_layers // 2


def _learnt(model: ModelFile, config: Config, tuning: Tuning) -> tuple[int, int]:
    """How many numbers are learnt, and the lowest layer that has any."""
    count, lowest = 0, config.n_layers
    for tensor, (out, cols) in base_shapes(config).items():
        there = tensor in model.tensors or tensor.replace(".weight", "_a.weight") in model.tensors
        if (there or tensor == HEAD) and tuning.learns(tensor):
            count += tuning.rank * (out + cols)
            lowest = min(lowest, config.n_layers if tensor == HEAD else int(tensor.split(".")[1]))
    if {NORMS_PART, BIASES_PART} & set(tuning.parts):
        count += sum(math.prod(info.shape) for info in model.tensors.values() if len(info.shape) == 1)
        lowest = 0
    return count, lowest


def fitted(model: ModelFile, tuning: Tuning, threads: int, budget: int) -> tuple[Tuning, Need, str]:
    """The settings with which a training keeps to `budget` bytes, what it takes then, and why in words: the fastest of
    those that fit. What is learnt stays the same, but for the rounding of layers' inputs to float16. BudgetError where
    none fits."""
    least = None
    for step, given_up in _ladder(tuning):
        found = need(model, step, threads)
        if SPARE * found.total <= budget:
            told = f"{budget / 1e6:.0f} MB: {found.total / 1e6:.0f} MB planned"
            return step, found, f"{told}, {given_up}"
        least = found if least is None or found.total < least.total else least
    assert least is not None
    largest = max(least.parts, key=lambda part: least.parts[part])
    fewest = math.ceil(SPARE * least.total)
    raise BudgetError(
        f"memory {budget / 1e6:.0f} MB{meant(budget)}: to train on this model takes at least "
        f"{math.ceil(fewest / 1e6)} MB, most of it for {largest}; give more, or a shorter --context, a lower --rank, "
        "fewer matrices (--on attention)",
        fewest,
    )


def _ladder(tuning: Tuning) -> Iterator[tuple[Tuning, str]]:
    """Settings from the fastest to the leanest, and what each gives up."""
    context = tuning.context
    few = min(FEW_LOGITS, tuning.logit_rows)
    if tuning.batch > 1 and not tuning.rows:
        whole = replace(tuning, rows=tuning.batch * context)
        yield whole, f"a step's {tuning.batch} examples in one pass"
    yield tuning, "one example at a time" if not tuning.rows else f"{tuning.rows} rows at a time"
    yield replace(tuning, logit_rows=few), f"one example at a time, logits of {few} rows"
    half = replace(tuning, logit_rows=few, inputs="f16")
    yield half, f"one example at a time, logits of {few} rows, layers' inputs as float16"
    told = f"one example at a time, logits of {few} rows, layers' inputs as float16, weights from the disk"
    yield replace(half, weights="disk"), told
