"""What a method takes of the memory, told before it begins, and which one a budget chooses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from genmote import registry
from genmote.device.sizes import meant
from genmote.errors import BudgetError
from genmote.models.config import Config, is_tied, read_config
from genmote.models.gguf import ModelFile
from genmote.models.parts import HEAD
from genmote.runtime.footprint import resident_bytes
from genmote.spec import member
from genmote.tune.memory import SPARE, Need
from genmote.tune.settings import WORKBENCH, Tuning
from genmote.tune.workbench._base import ENDS, Method, Shapes, block_of
from genmote.tune.workbench._model import BLOCK, TABLE

ROOM = "genmote.tune.workbench"
# PyTorch 2.13 with NumPy, the modules of a training, and the code that a first step brings into memory, as measured on
# x86-64 Linux. What this process has already is taken instead where it is more.
PROCESS_BYTES = 262 << 20


@dataclass(frozen=True)
class Sizes:
    """What a step is made of: rows of its examples, the longest's, and the rows of one pass."""

    step: int
    longest: int
    learnt: int  # rows of a pass whose logits are made, at most


def named(text: str) -> Method:
    """A method by its name, with settings after a colon (`galore:rank=64`). SpecError."""
    return member(ROOM, Method, text, what="method", where="method")


def every() -> list[Method]:
    """Those that a budget chooses from, the strongest first."""
    found = [named(name) for name in registry.names(ROOM)]
    return sorted((method for method in found if method.strength), key=lambda method: -method.strength)


def need(file: ModelFile, method: Method, tuning: Tuning, longest: int) -> Need:
    """What a training takes with these settings, out of the model's header and the longest example's rows."""
    config = read_config(file)
    shapes = method.shapes(file, tuning)
    active = method.most_active(shapes)
    step_rows = tuning.batch * longest
    rows = max(longest, min(step_rows, tuning.rows or step_rows))
    at_once = method.applies_at_once or rows >= step_rows
    tied = is_tied(file.tensors)
    matrices = {name: info for name, info in file.tensors.items() if len(info.shape) > 1}
    numbers = sum(math.prod(info.shape) for info in matrices.values())
    vectors = 4 * sum(math.prod(info.shape) for info in file.tensors.values() if len(info.shape) == 1)
    weights = vectors + (sum(info.nbytes for info in matrices.values()) if method.packed else 4 * numbers)
    sizes = {name: 4 * math.prod(shape) for name, shape in active.items()}
    ends = sum(size for name, size in sizes.items() if block_of(name) == ENDS)
    largest = max(4 * max(math.prod(shape), 1) + method.working_bytes(shape) for shape in active.values())
    head = ends if not at_once or tied or TABLE not in sizes else sizes.get(HEAD, 0)
    layer_rows = _layer_numbers(file, config, method, tuning)
    graph = 4 * rows * layer_rows
    depth = config.n_layers - _lowest(active, config)
    kept = depth * 4 * rows * config.width if tuning.recompute else depth * graph
    way_back = 4 * rows * (3 * max(config.ffn_widths) + 4 * config.width)
    one = graph if tuning.recompute else 0
    logits = 4 * min(rows, tuning.logit_rows) * 3 * config.vocab_size
    block = 3 * 4 * BLOCK if method.packed else 0
    at_head = kept + logits + head + 4 * rows * 2 * config.width
    at_first = kept + one + way_back + head
    gathered = sum(sizes.values()) if not at_once else ends
    at_end = gathered + one + way_back + (largest if at_once else 0)
    at_update = gathered + largest
    stage = max(at_head, at_first, at_end, at_update)
    return Need(
        {
            "Python and PyTorch": max(PROCESS_BYTES, resident_bytes()),
            "weights": weights,
            "adapter": sum(4 * math.prod(shape) for shape in shapes.values()) if method.adapts else 0,
            "averages": sum(method.state_bytes(shape) for shape in active.values()),
            "a pass and its gradients": stage + block,
        }
    )


def _lowest(active: Shapes, config: Config) -> int:
    layers = [block_of(name) for name in active]
    if TABLE in active or "position_embd.weight" in active:
        return 0
    return min((layer for layer in layers if layer != ENDS), default=config.n_layers)


def _layer_numbers(file: ModelFile, config: Config, method: Method, tuning: Tuning) -> int:
    """Numbers a row that the graph of one layer keeps, the widest: see `models/decoder.block` over the torch op set."""
    width, inner = config.width, max(config.ffn_widths)
    a, kv = max(config.heads) * config.head_dim, max(config.kv_heads) * config.head_dim
    found = 4 * width + 5 * a + max(config.heads)
    gated = "blk.0.ffn_gate.weight" in file.tensors or "blk.0.ffn_gate_a.weight" in file.tensors or config.n_experts
    found += (4 if gated else 2) * inner * max(1, config.n_experts_used)
    return found


def planned(file: ModelFile, tuning: Tuning, longest: int, budget: int | None) -> tuple[Tuning, Method, Need, str]:
    """The settings to train with, the method, what it takes, and why in words. With a budget the strongest method that
    fits, or of the one that is asked for the fastest way that fits. BudgetError where none fits."""
    asked = every() if tuning.method == WORKBENCH else [named(tuning.method)]
    if budget is None:
        tuning = settled(tuning, asked[0])
        found = need(file, asked[0], tuning, longest)
        return tuning, asked[0], found, f"{asked[0].learnt} learn by {tuning.method}: {found.total / 1e6:.0f} MB planned"
    refused: list[tuple[str, int]] = []
    least: tuple[str, Need] | None = None
    for method in asked:
        smallest: Need | None = None
        for step, way in _ladder(settled(tuning, method), method, longest):
            found = need(file, method, step, longest)
            if SPARE * found.total <= budget:
                return step, method, found, _why(budget, step, found, way, refused)
            smallest = found if smallest is None or found.total < smallest.total else smallest
        assert smallest is not None
        refused.append((name_of(method), math.ceil(SPARE * smallest.total)))
        if least is None or smallest.total < least[1].total:
            least = name_of(method), smallest
    assert least is not None
    name, smallest = least
    fewest = math.ceil(SPARE * smallest.total)
    largest = max(smallest.parts, key=lambda part: smallest.parts[part])
    raise BudgetError(
        f"memory {budget / 1e6:.0f} MB{meant(budget)}: {name} takes at least {math.ceil(fewest / 1e6)} MB, most of it "
        f"for {largest}; give more, or a shorter --context, or leave --method out, which needs no PyTorch",
        fewest,
    )


def _why(budget: int, tuning: Tuning, found: Need, way: str, refused: list[tuple[str, int]]) -> str:
    told = f"{budget / 1e6:.0f} MB: {tuning.method}, {found.total / 1e6:.0f} MB planned, {way}"
    if refused:
        name, bytes_ = refused[-1]
        told += f"; the next stronger, {name}, takes {math.ceil(bytes_ / 1e6)} MB"
    return told


def settled(tuning: Tuning, method: Method) -> Tuning:
    """The settings with what the method decides."""
    name = name_of(method) if tuning.method == WORKBENCH else tuning.method
    rate = method.rate if tuning.rate is None else tuning.rate
    return replace(tuning, method=name, rate=rate)


def name_of(method: Method) -> str:
    return type(method).__module__.rpartition(".")[2].replace("_", "-")


def _ladder(tuning: Tuning, method: Method, longest: int) -> Iterator[tuple[Tuning, str]]:
    """Ways from the fastest to the leanest, and each in words."""
    whole = f"{tuning.rows} rows in a pass" if tuning.rows else f"a step's {tuning.batch} examples in one pass"
    one, again = "one example at a time", "layers computed again on the way back"
    splits = not tuning.rows and tuning.batch > 1
    if not tuning.recompute:
        yield tuning, whole
        if splits and not method.applies_at_once:  # whose steps then are several small ones
            yield replace(tuning, rows=longest), one
    yield replace(tuning, recompute=True), f"{whole}, {again}"
    if splits:
        yield replace(tuning, rows=longest, recompute=True), f"{one}, {again}"
