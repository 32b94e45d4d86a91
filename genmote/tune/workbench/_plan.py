"""What a method takes of the memory, told before it begins, and which one a budget chooses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from genmote import registry
from genmote.device.sizes import meant
from genmote.errors import BudgetError, SpecError
from genmote.models.config import Config, read_config
from genmote.models.gguf import ModelFile
from genmote.models.parts import NORMS
from genmote.ops import quant
from genmote.runtime.footprint import resident_bytes
from genmote.spec import member
from genmote.tune.memory import SPARE, Need
from genmote.tune.settings import WORKBENCH, Tuning
from genmote.tune.workbench._base import ENDS, Method, Shapes, block_of
from genmote.tune.workbench._model import BLOCK, TABLE

ROOM = "genmote.tune.workbench"
# PyTorch 2.13 with NumPy, the modules of a training, the code that a first step brings into memory, and the allocator's
# slack, as measured on x86-64 Linux. What this process has already is taken instead where it is more.
PROCESS_BYTES = 286 << 20
LOGITS = 3  # a row's logits, their softmax and its gradient are there at a time
POSITIONS = "position_embd.weight"


def named(text: str) -> Method:
    """A method by its name, with settings after a colon (`galore:rank=64`). SpecError."""
    return member(ROOM, Method, text, what="method", where="method")


def every() -> list[Method]:
    """Those that a budget chooses from, the strongest first."""
    found = [named(name) for name in registry.names(ROOM)]
    return sorted((method for method in found if method.strength), key=lambda method: -method.strength)


def need(file: ModelFile, method: Method, tuning: Tuning, longest: int, most: int = 0) -> Need:
    """What a training takes with these settings, out of the model's header, the longest example's rows, and the most
    that a step has (0: not known, as many as if all were of the longest): what is always there, and the most of what
    comes and goes in a step."""
    config = read_config(file)
    shapes = method.shapes(file, tuning)
    active = method.most_active(shapes, tuning)
    sizes = {name: 4 * math.prod(shape) for name, shape in active.items()}
    most = most or tuning.batch * longest
    rows = max(longest, min(most, tuning.rows or most))
    at_once = method.applies_at_once or rows >= most
    # What the way back goes through, and what of a step is kept for it.
    layers = {block_of(name) for name in active} - {ENDS}
    depth = config.n_layers - (0 if {TABLE, POSITIONS} & set(active) else min(layers, default=config.n_layers))
    learning, passed = (
        4 * rows * layer_numbers(file, config, method, learnt, min(layers, default=0)) for learnt in (active, {})
    )
    kept = len(layers) * learning + (depth - len(layers)) * passed  # the graphs of all layers
    again = 0
    if tuning.recompute:  # or their inputs, and one graph
        kept, again = depth * 4 * rows * config.width, learning if layers else passed
    passing = 4 * rows * (3 * max(config.ffn_widths) + 4 * config.width) + again
    ends = sum(size for name, size in sizes.items() if block_of(name) == ENDS)
    update = max((sizes[name] + method.working_bytes(active[name]) for name in active), default=0)
    states = 2 * 4 * rows * config.width  # the last layer's, and their gradient
    moments = (
        kept + ends + states + tuning.logit_rows * LOGITS * 4 * config.vocab_size,
        kept + ends + states + passing,
        (ends if at_once else sum(sizes.values())) + states + passing,
        (ends if at_once else sum(sizes.values())) + update,
    )
    floats = sum(math.prod(info.shape) for info in file.tensors.values() if len(info.shape) == 1)
    matrices = [info for info in file.tensors.values() if len(info.shape) > 1]
    weights = sum(info.nbytes if method.packed else 4 * math.prod(info.shape) for info in matrices)
    return Need(
        {
            "Python and PyTorch": max(PROCESS_BYTES, resident_bytes()),
            "weights": weights + 4 * floats,
            "adapter": sum(4 * math.prod(shape) for shape in shapes.values()) if method.adapts else 0,
            "averages": sum(method.state_bytes(shape) for shape in active.values()),
            "a pass and its gradients": max(moments) + (4 * 4 * BLOCK if method.packed else 0),
        }
    )


def layer_numbers(file: ModelFile, config: Config, method: Method, learnt: Shapes, layer: int) -> int:
    """Numbers a row that the graph of a layer keeps for the way back, where of it learns what is in `learnt`: the
    inputs of `models/decoder.block`'s operations over the torch op set that their gradients take."""
    prefix = f"blk.{layer}."
    names = [name.removeprefix(prefix) for name in learnt if name.startswith(prefix)]
    parts = {name.split(".")[0] for name in names if "norm" not in name and not name.endswith(".bias")}
    norms = {name.split(".")[0] for name in names if "norm" in name}
    spec, width, inner = config.layers[layer], config.width, config.ffn_widths[layer]
    a, kv = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    out = {"attn_q": a, "attn_k": kv, "attn_v": kv, "attn_output": width, "ffn_down": width}
    out |= {"ffn_gate": inner, "ffn_up": inner}
    there = [norm for norm in NORMS if f"{prefix}{norm}.weight" in file.tensors]
    of_norm = {"attn_q_norm": a, "attn_k_norm": kv}
    found = sum(of_norm.get(norm, width) * (1 + (norm in norms)) for norm in there)
    found += 4 * a + spec.n_heads  # attention: queries, keys and values for each of their heads, what comes out
    found += width * bool(parts & {"attn_q", "attn_k", "attn_v"}) + a * ("attn_output" in parts)
    gated = (
        config.n_experts or f"{prefix}ffn_gate.weight" in file.tensors or f"{prefix}ffn_gate_a.weight" in file.tensors
    )
    experts = {part for part in parts if "_exps" in part or part.startswith("ffn_")}
    if config.n_experts:
        found += config.n_experts_used * (3 * inner + 2 * width + (inner + width) * bool(experts))
    else:
        found += (3 if gated else 1) * inner + width * bool(parts & {"ffn_gate", "ffn_up"})
        found += inner * (
            "ffn_down" in parts and (bool(gated) or spec.activation != "relu")
        )  # relu keeps what it gives
    if method.adapts:
        found += sum(learnt[prefix + name][0] for name in names if name.endswith(".lora_a"))
    if method.keeps_products:
        found += sum(out[part] for part in parts)
    return found


def planned(
    file: ModelFile, tuning: Tuning, longest: int, budget: int | None, most: int = 0
) -> tuple[Tuning, Method, Need, str]:
    """The settings to train with, the method, what it takes, and why in words. With a budget the strongest method that
    fits, or of the one that is asked for the fastest way that fits. BudgetError where none fits."""
    asked = every() if tuning.method == WORKBENCH else [named(tuning.method)]
    for method in asked:
        check(method, tuning)
    if budget is None:
        tuning = settled(tuning, asked[0])
        found = need(file, asked[0], tuning, longest, most)
        return (
            tuning,
            asked[0],
            found,
            f"{asked[0].learnt} learn by {tuning.method}: {found.total / 1e6:.0f} MB planned",
        )
    refused: list[tuple[str, int]] = []
    least: tuple[str, Need] | None = None
    for method in asked:
        smallest: Need | None = None
        for step, way in _ladder(settled(tuning, method), method, longest):
            found = need(file, method, step, longest, most)
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


def check(method: Method, tuning: Tuning) -> None:
    """SpecError for settings that this method does not take."""
    if tuning.base is not None and (method.writes != "adapter"):
        raise SpecError(f"method={tuning.method}: --from goes on from an adapter; use lora, or merge it first")
    if tuning.type is not None and method.writes == "adapter" and tuning.method != WORKBENCH:
        raise SpecError(f"method={tuning.method}: writes an adapter, whose numbers are F32: leave --type out")
    if tuning.type is not None and not quant.by_name(tuning.type).codec:
        raise SpecError(f"type={tuning.type}: weights cannot be stored so; use one of {', '.join(quant.codec_names())}")


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
