"""How fast a plan is expected to be: what its passes read, compute and start, put to the roofline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genmote.models.config import Config
from genmote.runtime import footprint, roofline
from genmote.runtime.eviction import Eviction, eviction
from genmote.runtime.roofline import NOMINAL, Load

if TYPE_CHECKING:
    from genmote.runtime.plan import Plan, Question

TYPICAL_PROMPT, TYPICAL_TEXT = 256, 64  # tokens for which the choice between memory and passes is made
PIECES_TIMED = 32  # of a prompt, at most
RESIDENT_ROWS = 256  # `resident_rows` of NativeOps.cache


@dataclass(frozen=True)
class Expected:
    """Speeds by the roofline of `source`: expected, not measured.

    A text that grows takes memory which weights had until then, and attends to more: it is written ever more slowly.
    """

    decode_tokens_per_s: float  # right after the prompt
    text_decode_tokens_per_s: float  # when `text_tokens` are held: the prompt and a typical answer
    full_decode_tokens_per_s: float  # with the context full: the slowest that a text comes to
    prefill_tokens_per_s: float
    first_token_s: float
    full_first_token_s: float  # of a prompt as long as the context
    prompt_tokens: int
    text_tokens: int
    bound: str  # what decoding waits for after the prompt: memory, arithmetic, storage, or the start of operations
    full_bound: str  # and with the context full
    load_s: float  # reading what is held from storage, before the first pass or, where files are mapped, in it
    first_load_s: float  # the same where the weights are re-laid before
    source: str


def load_of(asked: Question, made: Plan, rows_held: int, rows: int = 1) -> Load:
    """What a pass of `rows` rows reads and computes when each session holds `rows_held` tokens before it."""
    w, config = asked.weights, asked.config
    active, missing = float(w.active), 0.0
    operations = float(roofline.OF_A_PASS + roofline.OF_A_LAYER * config.n_layers)
    if config.n_experts:  # as if choices were even; real ones repeat
        together = max(rows, asked.sessions)
        share = 1 - (1 - config.n_experts_used / config.n_experts) ** together  # of the experts, that some row chooses
        away = share * (1 - made.expert_bytes / w.experts)
        active, missing = w.dense + share * w.experts, away * w.experts
        of_experts = roofline.OF_AN_EXPERT * share + roofline.OF_A_READ * away
        operations += config.n_layers * (roofline.OF_EXPERTS + config.n_experts * of_experts)
    forget = eviction(made.evict, made.kv_tokens, made.context)
    if forget is not None and rows_held + rows > forget.rows:  # a cut comes with each block of rows
        operations += cut_operations(config, made.kv, forget) * max(rows, asked.sessions) / forget.block
    most = made.kv_tokens or made.context
    held = min(rows_held, most)
    kv = footprint.kv_row_bytes(config, made.kv) * held
    streamed = made.streamed_bytes
    if streamed:  # weights have the memory that keys and values do not take yet (`streaming.Room`)
        taken = footprint.kv_bytes(config, made.kv, min(held + rows, most))
        streamed = max(0, streamed - max(0, made.parts["kv"] - taken * made.sessions))
    if asked.kv_spill is not None:  # cold rows are read again in each pass
        missing += footprint.kv_row_bytes(config, made.kv) * max(0, held - RESIDENT_ROWS)
    attended = 2 * held * sum(config.heads) * config.head_dim  # multiply-adds: scores, and their sums
    updates = asked.adapters // 4  # multiply-adds, were all of them float32
    floats = w.float_macs + attended + updates
    return Load(active + asked.adapters, kv, w.macs, floats, streamed + missing, operations)


def cut_operations(config: Config, kind: str, forget: Eviction) -> float:
    """What it takes to choose which rows go and to move those that stay, as operations that start in that time. Layers
    whose attention has a window keep their latest rows, which is next to nothing."""
    kv_heads = zip(config.kv_heads, config.layers, strict=True)
    heads = sum(count for count, layer in kv_heads if not layer.window)
    numbers = heads * forget.rows * config.head_dim
    scored = numbers / roofline.SCORED[kind] if forget.policy.reads or forget.queries else 0.0
    return roofline.OF_A_CUT * heads + scored + numbers / roofline.MOVED[kind]


def _read_s(asked: Question, made: Plan, prompt: int) -> float:
    """Seconds until a prompt is read, piece by piece; of many pieces some stand for their neighbours."""
    starts = range(0, prompt, made.chunk_rows)
    step = -(-len(starts) // PIECES_TIMED)
    total = 0.0
    for at in range(0, len(starts), step):
        group = starts[at : at + step]
        rows = min(prompt, group[-1] + made.chunk_rows) - group[0]
        chunk = min(made.chunk_rows, rows)
        load = load_of(asked, made, group[len(group) // 2], chunk)
        total += rows / chunk * roofline.pass_s(load, asked.machine, asked.threads, chunk)
    return total


def expected(asked: Question, made: Plan) -> Expected | None:
    """The speeds of a plan; None where nothing is known of the machine."""
    if asked.machine is NOMINAL:
        return None
    prompt = asked.prompt_tokens
    text = min(asked.context, prompt + TYPICAL_TEXT)
    loads = [load_of(asked, made, held) for held in (prompt, text, asked.context)]
    speeds = [asked.sessions / roofline.pass_s(x, asked.machine, asked.threads, asked.sessions) for x in loads]
    bounds = [roofline.bound(x, asked.machine, asked.threads, asked.sessions) for x in loads]
    read = _read_s(asked, made, prompt)
    return Expected(
        decode_tokens_per_s=speeds[0],
        text_decode_tokens_per_s=speeds[1],
        full_decode_tokens_per_s=speeds[2],
        prefill_tokens_per_s=prompt / read,
        first_token_s=read,
        full_first_token_s=_read_s(asked, made, asked.context),
        prompt_tokens=prompt,
        text_tokens=text,
        bound=bounds[0],
        full_bound=bounds[2],
        load_s=roofline.stored_s(made.load_bytes, asked.machine),
        first_load_s=roofline.stored_s(made.first_load_bytes, asked.machine),
        source=asked.machine.source,
    )
