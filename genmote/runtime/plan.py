"""Whether a model fits a memory budget, what is streamed then, and how fast it will be: told before it is loaded.

    found = plan(ModelFile.open(path), memory=150_000_000, context=2048)
    found.parts            # bytes by what they are for; their sum is `predicted_bytes`
    found.pinned_bytes     # weights that stay in memory; `streamed_bytes` are read in each pass

What costs no accuracy is given up first: a prompt is run in smaller pieces, then weights are streamed. Keys and values
are stored in fewer bits, or dropped, only where the caller allows it (`kv="auto"`) or asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from genmote.errors import BudgetError, SpecError
from genmote.models.config import Config, read_config
from genmote.ops.cache import KINDS
from genmote.runtime import footprint
from genmote.runtime.evict._layers import REPEATED, SLICE
from genmote.runtime.eviction import Eviction, eviction, lossy
from genmote.runtime.plan_speed import RESIDENT_ROWS, TYPICAL_PROMPT, TYPICAL_TEXT, Expected, expected
from genmote.runtime.roofline import NOMINAL, Machine
from genmote.runtime.streaming import LEAST_RING, MOST_RING
from genmote.runtime.threads import default_threads

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile

CHUNKS = (512, 256, 128, 64, 32, 16)  # rows of a prompt at once
SHORTER = (8192, 4096, 2048, 1024, 512, 256)  # contexts that a refusal and advice try
USUAL_CONTEXT = 2048  # what a text may take within a budget, where nobody said
SLACK = 400  # one part in so many of what is used is left to allocators and page tables
ROWS_AT_ONCE = 16  # kRowsAtOnce of native/stream.cpp
LEAST_KV_TOKENS = 256  # what --kv auto leaves at least


@dataclass(frozen=True)
class Plan:
    """How a model is held in memory. Bytes; `budget_bytes` is None where nothing bounds them."""

    model: str
    budget_bytes: int | None
    context: int
    sessions: int
    threads: int
    kv: str
    evict: str | None
    kv_tokens: int | None
    chunk_rows: int
    pinned_bytes: int
    ring_bytes: int  # 0: all weights are held; else what is not pinned comes through the ring
    streamed_bytes: int  # weights that each pass reads from storage with a full context, experts apart
    expert_bytes: int  # the cache of experts
    parts: dict[str, int]
    weights_by_type: dict[str, int]
    load_bytes: int  # read from storage before the first token, the page cache empty; experts apart that come by need
    first_load_bytes: int  # the same for the first load ever, which reads the model file and writes its weights re-laid
    steps: tuple[str, ...] = ()  # what was given up so that it fits, in order
    lossy: tuple[str, ...] = ()  # those of the steps, or of what was asked for, that change the text
    expected: Expected | None = None
    kv_spill: str | None = None  # the folder for rows that are not in memory between two passes
    finding: bool = False  # whether finding out which layers look back, once, takes more than the rows of the text

    @property
    def predicted_bytes(self) -> int:
        """The greatest resident memory to expect."""
        return sum(self.parts.values())

    @property
    def streams(self) -> bool:
        return self.ring_bytes > 0

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON and records."""
        return asdict(self) | {"predicted_bytes": self.predicted_bytes}


@dataclass(frozen=True)
class Cache:
    """How keys and values are kept."""

    kv: str
    eviction: Eviction | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """What of it changes the text, as `Engine.lossy` tells it."""
        return lossy(self.kv, self.eviction)


@dataclass(frozen=True)
class Question:
    """What is planned for: the model's sizes and what was asked, checked."""

    name: str
    config: Config
    weights: footprint.Weights
    memory: int | None
    context: int
    sessions: int
    threads: int
    interpreter: int
    tables: int
    float_down: bool
    rank: int
    machine: Machine
    prompt_tokens: int
    kv_spill: str | None = None
    adapters: int = 0  # bytes


def plan(
    file: ModelFile,
    *,
    memory: int | None = None,
    context: int | None = None,
    kv: str | None = None,
    evict: str | None = None,
    kv_tokens: float | None = None,
    kv_spill: str | os.PathLike[str] | None = None,
    sessions: int = 1,
    threads: int | None = None,
    machine: Machine | None = None,
    prompt_tokens: int = TYPICAL_PROMPT,
    stored_as: str | None = None,
    adapter_bytes: int = 0,
    beside: int = 0,
    interpreter: int | None = None,
) -> Plan:
    """How `file` runs within `memory` bytes (None: unbounded), for `sessions` texts of `context` tokens each.

    `context` None: what the model was trained for; within a budget the longest for which all weights stay in memory, or
    else the longest up to 2,048 that fits.

    `kv`: f16, int8, int4, or "auto", which allows fewer bits and eviction where nothing else helps; `evict` and
    `kv_tokens` and `kv_spill` as for `Engine.load`; `machine`: whose speeds to expect; `stored_as`: as if the
    matrices were of that tensor type; `adapter_bytes`: what LoRA adapters take (`footprint.adapter_bytes`);
    `interpreter`: bytes of Python and its modules (None: what this process has now, or the usual), `beside`: and of
    what is known to come, such as a chat template's engine. Raises BudgetError where it cannot be done, with the
    smallest budget that could, SpecError for a setting that nothing supports.
    """
    config = read_config(file)
    trained = config.context_length
    if context is None and memory is not None:
        asked: dict[str, Any] = {
            "kv": kv,
            "evict": evict,
            "kv_tokens": kv_tokens,
            "kv_spill": kv_spill,
            "sessions": sessions,
            "threads": threads,
        }
        asked |= {"machine": machine, "prompt_tokens": prompt_tokens, "stored_as": stored_as}
        asked |= {"adapter_bytes": adapter_bytes, "beside": beside}
        return _with_longest_context(file, memory, trained, asked | {"interpreter": interpreter})
    context = trained if context is None else context
    _check(config, context, kv, sessions, memory)
    if interpreter is None:
        file.release(0, file.nbytes)  # what has been read of it is none of this process's lasting memory
        interpreter = max(footprint.INTERPRETER_BYTES, footprint.resident_bytes() + footprint.CODE_BYTES)
    question = Question(
        name=file.path.name,
        config=config,
        weights=footprint.weights(file, config, stored_as),
        memory=memory,
        context=context,
        sessions=sessions,
        threads=threads or (default_threads() if machine is None else machine.cores),
        interpreter=interpreter
        + beside
        + footprint.HEAP_BYTES
        + (footprint.EXPERTS_CODE_BYTES if config.n_experts else 0),
        tables=footprint.tables_bytes(file),
        float_down=footprint.float_down(file),
        rank=footprint.rank(file),
        machine=machine or NOMINAL,
        prompt_tokens=max(1, min(prompt_tokens, context)),
        kv_spill=None if kv_spill is None else os.fspath(kv_spill),
        adapters=adapter_bytes,
    )
    for cache in _caches(context, kv, evict, kv_tokens):
        found = _best(question, cache)
        if found is not None:
            return found
    raise _refusal(question, list(_caches(context, kv, evict, kv_tokens)))


def _with_longest_context(file: ModelFile, memory: int, trained: int, asked: dict[str, Any]) -> Plan:
    """The plan for the longest context that fits beside all weights, or for the longest up to the usual one."""
    powers = [1 << bits for bits in range(trained.bit_length(), 7, -1)]
    lengths = [trained, *(n for power in powers for n in (power, power * 3 // 4) if n < trained and n >= powers[-1])]
    usual = [length for length in lengths if length <= max(USUAL_CONTEXT, lengths[-1])]
    found = refused = None
    for length in lengths:
        try:
            made = plan(file, memory=memory, context=length, **asked)
        except BudgetError as error:
            refused = refused if length < USUAL_CONTEXT and refused is not None else error
            continue
        resident = not made.streams and made.expert_bytes == footprint.weights(file).experts
        if (resident and not _gave_up(made, asked)) or length in usual:
            found = made
            break
    if found is None:
        raise refused or BudgetError("no context fits")
    told = f"texts have at most {found.context} tokens (the model takes {trained}: --context)"
    return found if found.context == trained else replace(found, steps=(told, *found.steps))


def _gave_up(made: Plan, asked: dict[str, Any]) -> bool:
    """Whether "auto" chose what changes the text."""
    chosen = made.evict is not None and asked["evict"] is None and asked["kv_tokens"] is None
    return asked["kv"] == "auto" and (made.kv != KINDS[0] or chosen)


def _check(config: Config, context: int, kv: str | None, sessions: int, memory: int | None) -> None:
    if not 1 <= context <= config.context_length:
        raise SpecError(f"context={context}: this model takes 1 to {config.context_length} tokens")
    if kv not in (None, "auto", *KINDS):
        raise SpecError(f"kv={kv!r}: keys and values are kept as {', '.join(KINDS)}, or auto")
    if sessions < 1:
        raise SpecError(f"sessions={sessions}: wanted 1 or more")
    if memory is not None and memory < 1:
        raise SpecError(f"memory={memory}: wanted bytes above 0")


def _caches(context: int, kv: str | None, evict: str | None, kv_tokens: float | None) -> Iterator[Cache]:
    """Ways to keep keys and values, from what was asked to what loses most; more than one only for "auto"."""
    asked = eviction(evict, kv_tokens, context)
    for kind in KINDS if kv == "auto" else (kv or "f16",):
        yield Cache(kind, asked)
    if kv == "auto" and asked is None:
        for rows in fewer_rows(context):
            yield Cache(KINDS[-1], eviction(None, rows, context))


def fewer_rows(context: int) -> Iterator[int]:
    """Rows that layers may be held to where nothing else helps, from many to few."""
    rows = context // 2
    while rows >= LEAST_KV_TOKENS:
        yield rows
        rows //= 2


def _best(asked: Question, cache: Cache) -> Plan | None:
    """The arrangement that fits with the largest pieces of a prompt; None where none does.

    Where no pass has to read weights from storage, a smaller piece costs little and is taken. Else the pieces have one
    size whatever the memory, smaller only where it would not fit: so more memory makes neither reading nor writing
    slower, and what is planned for a board is what its engine does.
    """
    for chunk in CHUNKS:
        if chunk == CHUNKS[-1] or chunk < 2 * asked.context:
            made = _arranged(asked, cache, chunk)
            if made is not None and not made.streamed_bytes and made.expert_bytes == asked.weights.experts:
                return made
    for chunk in range(_streamed_chunk(asked, cache), 0, -CHUNKS[-1]):
        made = _arranged(asked, cache, chunk)
        if made is not None:
            return made
    return None


def _streamed_chunk(asked: Question, cache: Cache) -> int:
    """Rows of a prompt at once with which a typical text reads the fewest bytes, were all weights streamed: each piece
    reads them again, and the memory that a larger piece takes is read by each token that is written."""
    w = asked.weights
    prompt = min(TYPICAL_PROMPT, asked.context)

    def read(chunk: int) -> int:
        return -(-prompt // chunk) * (w.dense + w.experts) + TYPICAL_TEXT * _fixed(asked, cache, chunk)["activations"]

    return min((chunk for chunk in CHUNKS if chunk == CHUNKS[-1] or chunk < 2 * asked.context), key=read)


def _fixed(asked: Question, cache: Cache, chunk: int) -> dict[str, int]:
    """What is in memory whatever is done with the weights."""
    config, forget = asked.config, cache.eviction
    rows = cache_rows(asked.context, forget)
    kv = whole = footprint.kv_bytes(config, cache.kv, rows)
    if asked.kv_spill is not None:
        kv = min(kv, spilling_bytes(config, cache.kv, rows))
    queries = scratch = 0
    longest = rows
    if forget is not None:
        longest = forget.longest(config.n_layers)
        queries = footprint.kv_bytes(config, cache.kv, rows, forget.queries) - whole
        if forget.policy.accumulates:
            queries += 4 * sum(config.kv_heads) * rows  # the scores
        scratch = forget.scratch_bytes(config, longest)
        if forget.layers == "retrieval":  # which layers look back is found out by a text of so many tokens
            chunk = max(chunk, min(SLICE, asked.context))
            kv = max(kv, finding_bytes(config) // asked.sessions)
    activations = footprint.activation_bytes(
        config,
        chunk,
        longest,
        asked.threads,
        float_down=asked.float_down,
        rank=asked.rank,
        sessions=asked.sessions,
        steps=asked.adapters > 0,
    )
    parts = {
        "interpreter": asked.interpreter,
        "tables": asked.tables,
        "adapters": asked.adapters,
        "kv": kv * asked.sessions,
        "queries": queries * asked.sessions,
        "activations": activations + scratch,
    }
    if asked.memory is not None:
        parts["interpreter"] += min(asked.memory, sum(parts.values()) + asked.weights.total) // SLACK
    return parts


def finding_bytes(config: Config) -> int:
    """Keys, values and queries of the text that tells which layers look back, before a first text is read."""
    return footprint.kv_bytes(config, "f16", 2 * REPEATED, REPEATED)


def spilling_bytes(config: Config, kind: str, rows: int) -> int:
    """Memory of a session's cache of `rows` rows whose cold ones lie on disk: the latest of each layer, with the pages
    that are begun, and all rows of the layer that is computed and of the next, which is read meanwhile."""
    held = footprint.kv_bytes(config, kind, min(rows, RESIDENT_ROWS))
    begun = 2 * sum(config.kv_heads) * footprint.PAGE
    largest = max(config.kv_heads) / sum(config.kv_heads)  # a layer's share
    return held + begun + round(2 * footprint.kv_bytes(config, kind, rows) * largest)


def cache_rows(context: int, forget: Eviction | None) -> int:
    """Rows that a session's layers hold at most, on average."""
    return context if forget is None else min(context, forget.rows)


def _arranged(asked: Question, cache: Cache, chunk: int) -> Plan | None:
    """Weights placed into what is left beside the rest; None where too little is left."""
    if cache.eviction is not None:  # a prompt is cut wherever rows go
        chunk = min(chunk, cache.eviction.block)
    parts = _fixed(asked, cache, chunk)
    w = asked.weights
    left = None if asked.memory is None else asked.memory - sum(parts.values()) - w.vectors
    routers = router_bytes(asked.config)
    experts, ring = w.experts, 0
    if left is None or left >= w.total - w.vectors:
        pinned = w.dense + w.embedding
    else:
        least = _least_experts(asked)
        left -= looked_up_bytes(w) + routers
        if left >= w.dense + w.embedding + least:  # what every pass needs first, then as many experts
            pinned = w.dense + w.embedding
            experts = min(w.experts, left - pinned)
        elif left >= w.dense + ring_bytes(w, w.dense) + least:
            pinned, ring = w.dense, ring_bytes(w, w.dense)
            experts = min(w.experts, left - pinned - ring)
            pinned = min(w.dense + w.embedding, left - experts - ring)
        else:
            experts = least
            ring = ring_bytes(w, left - experts)
            pinned = left - experts - ring
        if pinned < 0:
            return None
    streamed = max(0, w.dense - pinned)
    parts |= {"weights": pinned + w.vectors, "ring": ring and ring + looked_up_bytes(w)}
    parts |= {"experts": experts + (routers if experts < w.experts else 0)}
    steps = []
    if chunk < CHUNKS[0] and asked.context > chunk:
        steps.append(f"a prompt is run {chunk} tokens at a time")
    if streamed:
        steps.append(f"up to {streamed / 1e6:.0f} MB of weights are read from storage in each pass")
    if experts < w.experts:
        steps.append(f"{experts / w.experts:.0%} of the experts stay in memory, the rest are read when chosen")
    held = pinned + w.vectors + (experts if experts == w.experts else 0) + asked.tables + asked.adapters
    made = Plan(
        model=asked.name,
        budget_bytes=asked.memory,
        context=asked.context,
        sessions=asked.sessions,
        threads=asked.threads,
        kv=cache.kv,
        evict=None if cache.eviction is None else cache.eviction.name,
        kv_tokens=None if cache.eviction is None else cache.eviction.rows,
        chunk_rows=chunk,
        pinned_bytes=pinned,
        ring_bytes=ring,
        streamed_bytes=streamed,
        expert_bytes=experts,
        parts=parts,
        weights_by_type=w.by_type,
        load_bytes=held,
        first_load_bytes=held + 2 * (w.total + asked.tables),  # a file is about as large as what is written
        steps=(*steps, *cache.told),
        lossy=cache.told,
        kv_spill=asked.kv_spill,
        finding=_finds(asked, cache, parts["kv"]),
    )
    return replace(made, expected=expected(asked, made))


def _finds(asked: Question, cache: Cache, kv: int) -> bool:
    """Whether `kv` bytes are those of finding out which layers look back."""
    looks = cache.eviction is not None and cache.eviction.layers == "retrieval"
    return looks and kv == finding_bytes(asked.config) // asked.sessions * asked.sessions


def _least_experts(asked: Question) -> int:
    """Experts that must be in memory at once: those that a row goes through in one layer."""
    return asked.weights.expert * max(2, asked.config.n_experts_used) if asked.weights.experts else 0


def ring_bytes(w: footprint.Weights, limit: int) -> int:
    """The ring that `streaming.Streaming.arrange` makes where weights may take `limit`: a twelfth of that, within
    bounds, and three of the smallest pieces."""
    return max(LEAST_RING, min(MOST_RING, limit // 12), 3 * (w.panel + 4 * footprint.PAGE))


def router_bytes(config: Config) -> int:
    """The routers as floats, with which the experts of the layer to come are guessed."""
    return 4 * config.n_layers * config.n_experts * config.width


def looked_up_bytes(w: footprint.Weights) -> int:
    """Memory for rows of the embedding that are looked up."""
    return ROWS_AT_ONCE * (w.row_panel + 2 * footprint.PAGE)


def least_bytes(asked: Question, cache: Cache) -> int:
    """The smallest budget with which `_arranged` succeeds."""
    w = asked.weights
    fixed = sum(_fixed(replace(asked, memory=None), cache, CHUNKS[-1]).values())
    beside = looked_up_bytes(w) + router_bytes(asked.config) + _least_experts(asked)
    needed = fixed + w.vectors + min(min(ring_bytes(w, 0), w.dense + w.embedding) + beside, w.total - w.vectors)
    # With what is left to slack: a part of the budget, or of all that the model takes.
    return needed + min((needed - 1) // (SLACK - 1), (fixed + w.total) // SLACK)


def _refusal(asked: Question, caches: list[Cache]) -> BudgetError:
    """Why it does not fit, the smallest budget that does, and what would help within this one."""
    memory = asked.memory or 0
    least = min(least_bytes(asked, cache) for cache in caches)
    told = (
        f"{asked.name} does not fit {_given(memory)}: with a context of {asked.context} tokens the least is "
        f"{_mb(least, up=True)}"
    )
    tries: dict[str, int] = {}
    may_lose = len(caches) == 1 and caches[0] == Cache("f16")  # nothing was asked of keys and values
    if may_lose:
        tries["--kv auto"] = _least_with_auto(asked)
    shorter = [count for count in SHORTER if count < asked.context]
    for count in shorter:
        brief = replace(asked, context=count)
        tries[f"--context {count}"] = min(least_bytes(brief, cache) for cache in caches)
    if (forget := caches[0].eviction) is not None:
        simple = Cache(caches[0].kv, eviction("window", forget.rows, asked.context))
        tries["--evict window"] = least_bytes(asked, simple)
        for count in shorter:
            tries[f"--context {count} and no eviction"] = least_bytes(
                replace(asked, context=count), Cache(caches[0].kv)
            )
    for count in shorter if may_lose else ():
        tries[f"--kv auto --context {count}"] = _least_with_auto(replace(asked, context=count))
    fits = [what for what, needed in tries.items() if needed <= memory]
    first = {what.split(" --context")[0].split()[0] + str("auto" in what): what for what in reversed(fits)}
    if first:
        helps = [f"{what} (from {_mb(tries[what], up=True)})" for what in reversed(first.values())]
        return BudgetError(f"{told}; what helps: {', '.join(helps)}, a smaller model", least)
    if tries and min(tries.values()) < least:
        what = min(tries, key=lambda name: tries[name])
        told += f", and with {what} it is {_mb(tries[what], up=True)}, the least of all"
    return BudgetError(f"{told}; what helps: more memory, or a smaller model", least)


def _least_with_auto(asked: Question) -> int:
    return min(least_bytes(asked, cache) for cache in _caches(asked.context, "auto", None, None))


def _given(memory: int) -> str:
    """A budget as it was given; one that is too small for any model was meant otherwise."""
    if memory >= 1_000_000:
        return _mb(memory)
    meant = memory // 1000 if memory >= 1000 else memory
    return f"{memory} bytes (was {meant}MB meant?)"


def _mb(count: int, *, up: bool = False) -> str:
    return f"{-(-count // 1_000_000) if up else count / 1e6:.0f} MB"
