"""What a smaller KV cache costs and gains: perplexity, finding, copying, speed, over policy × budget × kind.

Tokens are fed as in real use: a prompt in slices, rows evicted in between, so that each scored token sees only what the
policy had left by then, and a question comes after its answer's rows may have gone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from genmote.errors import SpecError
from genmote.runtime.eviction import LEAST_ROWS, eviction
from genmote.runtime.prompt import Rows
from genmote.runtime.session import Session

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine

NEEDLES = 8
ENOUGH = 0.8  # the full cache must find, or copy, so many for the task to mean anything
TASKS = 3  # texts beside those of the perplexity: to find in, to copy from, for the speed
DECODED = 64  # tokens whose speed is measured, at least
PLACES = (
    "Oslo Lima Cairo Paris Tokyo Delhi Boston Madrid Dublin Vienna Berlin Sydney Moscow London Athens Prague "
    "Havana Geneva Quebec Denver Austin Venice Munich Zurich"
).split()
WORDS = (
    "copper violin garden thunder candle bridge marble rocket pepper window dragon silver ladder basket mirror "
    "pencil anchor button camera hammer lantern orange tunnel velvet"
).split()
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Case:
    """A cache to be measured: `policy` None for all rows, `budget` the share of the context that a layer holds."""

    policy: str | None = None
    budget: float = 1.0
    kv: str = "f16"

    def __str__(self) -> str:
        return f"{self.policy or 'full'} {self.budget:g} {self.kv}"


@dataclass(frozen=True)
class Measured:
    """What a case gave. `ratio` is to the full f16 cache; `needle` and `copy` are shares that were right, None where
    the full cache scores under 80%. Rates are tokens per second, bytes are those of a session with a full context."""

    policy: str
    budget: float
    kv: str
    rows: int
    perplexity: float
    ratio: float
    needle: float | None
    copy: float | None
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    kv_bytes: int

    def values(self) -> dict[str, Any]:
        return asdict(self)


def cases(policies: Sequence[str], budgets: Sequence[float], kinds: Sequence[str]) -> list[Case]:
    """All of them, the full f16 cache first: the others are compared with it."""
    full = [Case(kv=kind) for kind in dict.fromkeys(["f16", *kinds])]
    return full + [Case(policy, budget, kind) for kind in kinds for policy in policies for budget in budgets]


def evaluate(
    engine: Engine,
    text: str | Sequence[int],
    wanted: Sequence[Case],
    *,
    windows: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Measured]:
    """Measure the cases one by one, with texts of the engine's whole context; `windows` of them for the perplexity,
    spread over `text` (or its token ids). The first case must be the full f16 cache. Raises SpecError, before anything
    is measured, for a text that is too short and a case that cannot be.

    The engine's own setting of the cache is put back at the end.
    """
    context = engine.context
    tokens = engine.tokenizer.encode(text, special=False) if isinstance(text, str) else text
    check(wanted, context, len(tokens))
    spread = spread_windows(tokens, context, windows)
    hay, questions = haystack(engine, tokens, seed)
    ledger, copied = copy_text(engine, seed)
    before = engine.kv, engine.eviction
    full: Measured | None = None
    texts = len(spread) // context + TASKS

    def tell(done: int, _: int = 0, before: int = 0) -> None:
        if progress is not None:
            progress("measuring caches, texts", before + done, texts * len(wanted))

    try:
        for number, case in enumerate(wanted):
            done = number * texts
            engine.set_cache(kv=case.kv, evict=case.policy, kv_tokens=_rows(case, context))
            value = engine.perplexity(spread, context=context, progress=partial(tell, before=done)).value
            needle = found(engine, hay, questions) if full is None or full.needle is not None else None
            tell(done + texts - 2)
            copy = copied_right(engine, ledger, copied) if full is None or full.copy is not None else None
            tell(done + texts - 1)
            prefill, decode, nbytes = speed(engine, tokens)
            tell(done + texts)
            made = Measured(
                policy=case.policy or "full",
                budget=1.0 if case.policy is None else case.budget,
                kv=case.kv,
                rows=_rows(case, context) or context,
                perplexity=value,
                ratio=1.0 if full is None else value / full.perplexity,
                needle=needle if needle is None or full is not None or needle >= ENOUGH else None,
                copy=copy if copy is None or full is not None or copy >= ENOUGH else None,
                prefill_tokens_per_s=prefill,
                decode_tokens_per_s=decode,
                kv_bytes=nbytes,
            )
            full = full or made
            yield made
    finally:
        engine.set_cache(kv=before[0])
        engine.eviction = before[1]


def check(wanted: Sequence[Case], context: int, tokens: int) -> None:
    """Raise SpecError for cases that cannot be with that context, and for a text of too few tokens."""
    if context < 256:
        raise SpecError(f"context={context}: use at least 256, eviction is for long texts")
    if tokens < context:
        raise SpecError(f"the text has {tokens} tokens, one window takes {context}: give a longer text")
    for case in wanted:
        rows = _rows(case, context)
        if rows is not None and rows < LEAST_ROWS:
            raise SpecError(
                f"budget {case.budget:g} of a context of {context} is {rows} row{'s' * (rows != 1)} a layer: wanted at "
                f"least {LEAST_ROWS}, which is {math.ceil(1000 * LEAST_ROWS / context) / 1000:g} of it"
            )
        eviction(case.policy, rows, context)


def _rows(case: Case, context: int) -> int | None:
    """How many rows a layer may hold, None for all."""
    return None if case.policy is None else max(1, int(case.budget * context))


def spread_windows(tokens: Sequence[int], context: int, windows: int) -> list[int]:
    """`windows` windows of `context` tokens, evenly spread, one after another; fewer where the text has fewer."""
    all_windows = len(tokens) // context
    count = min(windows, all_windows)
    picked = [number * all_windows // count for number in range(count)]
    return [token for number in picked for token in tokens[number * context : (number + 1) * context]]


# -- finding ----------------------------------------------------------------------------------------------------------
def haystack(engine: Engine, tokens: Sequence[int], seed: int) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """A text with facts strewn in at even depths, and (question, answer) for each: which word belongs to which place.
    At most half of the text are facts. Each says it twice, as then small models can tell while they see it."""
    rng = np.random.default_rng(seed)
    chosen = zip(rng.permutation(PLACES)[:NEEDLES], rng.permutation(WORDS)[:NEEDLES], strict=True)

    def encode(words: str) -> list[int]:
        return engine.tokenizer.encode(words, special=False, start=False)

    facts: list[list[int]] = []
    questions = []
    for place, word in chosen:
        asked = f"The secret word of {place} is"
        fact = encode(f"\n{asked} {word}. Remember that the secret word of {place} is {word}.\n")
        if sum(map(len, facts)) + len(fact) <= engine.context // 2:
            facts.append(fact)
            questions.append((encode(f"\n{asked}"), encode(f" {word}")))
    most = max((len(q) + len(a) for q, a in questions), default=0)
    straw = engine.context - most - sum(map(len, facts)) - 1
    hay = [] if engine.begin_token is None else [engine.begin_token]
    for number, fact in enumerate(facts):
        hay += [*tokens[number * straw // len(facts) : (number + 1) * straw // len(facts)], *fact]
    return hay, questions


def found(engine: Engine, hay: Sequence[int], questions: Sequence[tuple[list[int], list[int]]]) -> float:
    """The share of the questions that are answered right, each asked after the whole text; 0 where there are none."""
    if not questions:
        return 0.0
    session = Session(engine)
    session.prefill(hay)
    right = 0
    for question, answer in questions:
        asked = session.fork(len(session))
        fed = [*question, *answer[:-1]]
        logits = asked.extend(Rows(fed), 0, len(fed), len(answer))
        right += logits is not None and logits.argmax(axis=-1).tolist() == answer
    return right / len(questions)


# -- copying ----------------------------------------------------------------------------------------------------------
def copy_text(engine: Engine, seed: int) -> tuple[list[int], list[int]]:
    """A list of random sums as long as half the context, to be said again: (the list, the same once more)."""
    rng = np.random.default_rng(seed + 1)
    encode = engine.tokenizer.encode
    begin = [] if engine.begin_token is None else [engine.begin_token]
    listed: list[int] = []
    while True:
        a, b = (int(n) for n in rng.integers(10, 100, 2))
        line = encode(f"{a} + {b} = {a + b}\n", special=False, start=False)
        if len(begin) + 2 * (len(listed) + len(line)) > engine.context:
            return begin + listed, listed
        listed += line


def copied_right(engine: Engine, listed: Sequence[int], again: Sequence[int]) -> float:
    """The share of the second saying's tokens that were the likeliest; the first lines, which tell that it is a second
    saying, are not counted."""
    session = Session(engine)
    session.prefill(listed)
    step = max(1, (8 << 20) // (4 * engine.config.vocab_size))
    right: list[bool] = []
    for start in range(0, len(again) - 1, step):
        part = list(again[start : min(start + step, len(again) - 1)])
        logits = session.extend(Rows(part), 0, len(part), len(part))
        if logits is not None:
            right += (logits.argmax(axis=-1) == again[start + 1 : start + 1 + len(part)]).tolist()
    counted = right[min(32, len(right) // 4) :]
    return sum(counted) / max(1, len(counted))


# -- speed ------------------------------------------------------------------------------------------------------------
def speed(engine: Engine, tokens: Sequence[int]) -> tuple[float, float, int]:
    """(prefill tokens/s, decode tokens/s, bytes of the session's cache) with a full context. Decoding is measured over
    whole blocks, evictions included."""
    block = engine.eviction.block if engine.eviction is not None else DECODED
    steps = min(block * math.ceil(DECODED / block), engine.context // 2)
    first = list(tokens[: engine.context - steps])
    session = Session(engine)
    began = time.perf_counter()
    session.prefill(first)
    filled = time.perf_counter()
    for token in tokens[len(first) : len(first) + steps]:
        session.step(token)
    ended = time.perf_counter()
    return len(first) / (filled - began), steps / (ended - filled), session.nbytes
