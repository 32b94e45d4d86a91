"""One sample of a mixture whose experts are loaded on demand, in a fresh process that the harness puts into a control
group.

    python -m benchmarks.fit.experts_run decode MODEL --threads T --decode N --memory BYTES
        [--trace MIXTURE --text FILE] [--no-cache] [--no-guess]
    python -m benchmarks.fit.experts_run hits MIXTURE --text FILE --share 0.5 --decode N

`decode` runs N tokens after a prompt within a budget of BYTES; with `--trace` its routers replay what MIXTURE's chose
on the text. `hits` runs the trained mixture itself over the text with a share of its experts cached. Prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ours import draw
from benchmarks.record import SEED

if TYPE_CHECKING:
    from genmote.models.packed import Packed
    from genmote.runtime.expert_trace import Trace

TRACE_TOKENS = 2048
PROMPT, WARM = 192, 4  # rows of a prompt, and tokens after it, before the clock runs: they fill the cache


def opened(model: str, threads: int) -> Packed:
    """The model's packed file."""
    from genmote import ops
    from genmote.models import packed
    from genmote.models.gguf import ModelFile

    found = packed.loader(ModelFile.open(model), ops.load("native", threads=threads))
    if not isinstance(found, packed.Packed):
        raise SystemExit("the packed file cannot be written: free some space")
    return found


def text_tokens(found: Packed, text: str) -> list[int]:
    from genmote.models.tokenizer import load_tokenizer

    return load_tokenizer(found.model).encode(Path(text).read_text(encoding="utf-8"))


def trace_of(mixture: str, text: str) -> Trace:
    """What a trained mixture's routers choose for a text."""
    from genmote.runtime.expert_trace import record

    found = opened(mixture, 1)
    return record(found, text_tokens(found, text)[:TRACE_TOKENS])


def decode(chosen: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second, one after another, of an engine within a budget."""
    from genmote import Engine
    from genmote.runtime.expert_trace import Replay

    trace = trace_of(chosen.trace, chosen.text) if chosen.trace else None
    length = PROMPT + WARM + chosen.decode
    engine = Engine.load(chosen.model, threads=chosen.threads, context=length, memory=chosen.memory)
    cache, config = engine.experts, engine.config
    if cache is None:
        raise SystemExit(f"all experts fit into {chosen.memory} bytes: give a smaller budget")
    cache.keep, cache.predict = not chosen.no_cache, not chosen.no_guess
    replay = None
    if trace is not None:
        replay = Replay(trace, config.n_layers, config.n_experts)
        if replay.used != config.n_experts_used:
            raise SystemExit(f"the trace gives {replay.used} experts a token, the model {config.n_experts_used}")
        replay.attach(engine.decoder.weights.layers, cache)
    session, tokens = engine.session(), draw(SEED, length)
    session.prefill(tokens[:PROMPT])
    started, before = 0.0, cache.counts.copy()
    for number, token in enumerate(tokens[PROMPT:]):
        if number == WARM:
            started, before = time.perf_counter(), cache.counts.copy()
        session.step(token)
    seconds = time.perf_counter() - started
    counts = cache.counts.since(before)
    assert engine.plan is not None
    return {
        "tokens_per_s": chosen.decode / seconds,
        "slots": cache.slots,
        "of": cache.where.size,
        "cache_bytes": cache.nbytes,
        "experts": counts.values(),
        "read_bytes_per_s": counts.bytes_read / seconds,
        "trace": replay.describe() if replay else "the model's own routing (seeded weights)",
        "plan": engine.plan.parts | {"chunk_rows": engine.plan.chunk_rows},
        "peak_rss_bytes": engine.peak_rss_bytes,
    }


def hits(chosen: argparse.Namespace) -> dict[str, Any]:
    """How often a trained mixture's experts are there, over text that it was not trained on."""
    from genmote.ops.protocol import Span
    from genmote.runtime.experts import open_experts

    found = opened(chosen.model, chosen.threads)
    tokens = text_tokens(found, chosen.text)
    everything = open_experts(found, 1 << 60)[1]
    room = round(everything.slots * chosen.share) * everything.slot_bytes
    decoder, cache = open_experts(found, room, keep=not chosen.no_cache, predict=not chosen.no_guess)
    before, started, window = cache.counts.copy(), 0.0, 256
    for number in range(chosen.decode + window):
        if number % window == 0:
            session = decoder.cache(window)
        if number == window:  # the first window fills the cache
            before, started = cache.counts.copy(), time.perf_counter()
        decoder.forward([tokens[number]], [Span(session, 0, 1)], logits=None)
    seconds = time.perf_counter() - started
    counts = cache.counts.since(before)
    return {
        "slots": cache.slots,
        "of": everything.slots,
        "tokens_per_s": chosen.decode / seconds,
        "experts": counts.values(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=["decode", "hits"])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--memory", type=int, help="bytes that the engine may take")
    parser.add_argument("--share", type=float, default=0.5, help="of the experts that the cache holds")
    parser.add_argument("--trace", help="trained mixture whose routing is replayed")
    parser.add_argument("--text", help="text that the trace is of")
    parser.add_argument("--no-cache", action="store_true")
    parser.add_argument("--no-guess", action="store_true")
    chosen = parser.parse_args()
    print(json.dumps({"decode": decode, "hits": hits}[chosen.job](chosen)))


if __name__ == "__main__":
    main()
