"""One sample of genmote under a memory budget, in a fresh process that the harness puts into a control group.

    python -m benchmarks.fit.ours pack MODEL
    python -m benchmarks.fit.ours decode MODEL --threads T --decode N [--memory BYTES] [--streams S]
    python -m benchmarks.fit.ours lookup MODEL --threads T --decode N [--memory BYTES]
    python -m benchmarks.fit.ours draft MODEL --draft SMALL --threads T --decode N [--memory BYTES]
    python -m benchmarks.fit.ours answer MODEL --threads T --prefill N --decode N [--memory BYTES]
    python -m benchmarks.fit.ours perplexity MODEL --threads T --text FILE --context N --chunks N
        [--kv KIND] [--evict POLICY --kv-tokens N]

Prints one JSON object. `--memory` is the budget that `Engine.load` is given, which plans and streams for it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ours import PROSE, draw

if TYPE_CHECKING:
    from genmote import Engine

RIGHT = 0.8  # of a draft model's guesses
SEED = 7  # of prompts; here too, so that what counts memory imports no more than it needs
WARM = 2  # passes before the clock runs: the first fills what is pinned


def load(chosen: argparse.Namespace, context: int, *, sessions: int = 1) -> Engine:
    """The engine under the asked budget, or with the file mapped where none is asked."""
    from genmote import Engine

    given = {name: getattr(chosen, name) or None for name in ("memory", "kv", "evict", "kv_tokens", "draft")}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if chosen.memory:
        options["sessions"] = sessions
    return Engine.load(chosen.model, threads=chosen.threads, context=context, **options)


def told(engine: Engine) -> dict[str, Any]:
    """What the engine planned and read, as far as it tells: plain numbers and words only."""
    found: dict[str, Any] = {"peak_rss_bytes": engine.peak_rss_bytes}
    plan = getattr(engine, "plan", None)
    if plan is not None:
        found["plan"] = plan.values()
    return found


def read_bytes() -> int:
    """What this process has had from the disk so far."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    return 0


def pack(chosen: argparse.Namespace) -> dict[str, Any]:
    """Re-lay the weights into a file beside the model, unless it is there."""
    from genmote import ops
    from genmote.models import packed
    from genmote.models.gguf import ModelFile

    path = Path(chosen.model).with_suffix(".packed")
    if not path.exists():
        packed.pack(ModelFile.open(Path(chosen.model)), ops.load("native", threads=chosen.threads), path)
    return {"bytes": os.stat(path).st_size}


def decode(chosen: argparse.Namespace) -> dict[str, Any]:
    """Single random tokens from an empty cache, as llama-bench decodes them; with `streams`, one of each session in
    every pass."""
    from genmote.runtime.prompt import Rows
    from genmote.runtime.session import Work, run_batch

    count, context = max(1, chosen.streams), chosen.decode + WARM
    engine = load(chosen, context, sessions=count)
    sessions = [engine.session() for _ in range(count)]
    texts = [Rows(draw(SEED + number, chosen.decode + WARM)) for number in range(count)]
    started, before = time.perf_counter(), read_bytes()
    for at in range(chosen.decode + WARM):
        if at == WARM:
            started, before = time.perf_counter(), read_bytes()
        run_batch(engine, [Work(session, text, at, at + 1, 1) for session, text in zip(sessions, texts, strict=True)])
    seconds = time.perf_counter() - started
    return {
        "tokens_per_s": count * chosen.decode / seconds,
        "passes_per_s": chosen.decode / seconds,
        "read_bytes_per_pass": (read_bytes() - before) / chosen.decode,
        **told(engine),
    }


def lookup(chosen: argparse.Namespace) -> dict[str, Any]:
    """A greedy text with prompt lookup: tokens a second, and how many of the guesses held."""
    prompt = draw(SEED, 16)
    engine = load(chosen, len(prompt) + chosen.decode)
    result = engine.generate(prompt, max_tokens=chosen.decode, speculate=True, ignore_eos=True)
    return {
        "tokens_per_s": result.decode_tokens_per_s,
        "tokens": result.decode_tokens,
        "steps": result.steps,
        "drafted": result.drafted,
        "accepted": result.accepted,
        **told(engine),
    }


def draft(chosen: argparse.Namespace) -> dict[str, Any]:
    """A greedy text with a draft model that costs what a real one does and is right as often as a good one.

    Models with seeded weights agree on nothing, so its guesses are replaced by the text's own tokens, each with the
    probability `RIGHT`; that text is made first, with the same engine, all of it as one guess after another.
    """
    import numpy as np

    from genmote.runtime import speculate

    prompt = draw(SEED, 16)
    engine = load(chosen, len(prompt) + 2 * chosen.decode)
    small, engine.draft = engine.draft, None
    if small is None:
        raise SystemExit("--draft names no model")
    wanted: list[int] = engine.generate(prompt, max_tokens=chosen.decode, ignore_eos=True, speculate=True).tokens
    chance = np.random.default_rng(SEED)

    class Good(speculate.DraftModel):
        def guess(self, room: int) -> list[int]:
            made = len(self._text) - len(prompt)
            return [
                true if chance.random() < RIGHT else other
                for true, other in zip(wanted[made:], super().guess(room), strict=False)
            ]

    engine.draft = small
    engine.guesser = lambda request: Good(small)  # type: ignore[method-assign]
    result = engine.generate(prompt, session=engine.session(), max_tokens=chosen.decode, ignore_eos=True)
    if result.tokens != wanted:
        raise SystemExit("the draft model changed the text")
    return {
        "tokens_per_s": result.decode_tokens_per_s,
        "tokens": result.decode_tokens,
        "steps": result.steps,
        "drafted": result.drafted,
        "accepted": result.accepted,
        **told(engine),
    }


def answer(chosen: argparse.Namespace) -> dict[str, Any]:
    """A prompt of prose and its continuation, tokenizer and sampling included."""
    engine = load(chosen, chosen.prefill + chosen.decode)
    prompt = engine.tokenizer.encode(PROSE * (1 + chosen.prefill // 10))[: chosen.prefill]
    loaded = time.perf_counter()
    result = engine.generate(prompt, max_tokens=chosen.decode, ignore_eos=True)
    return {
        "prefill_tokens_per_s": result.prefill_tokens_per_s,
        "decode_tokens_per_s": result.decode_tokens_per_s,
        "tokens_per_s": (result.prompt_tokens + result.decode_tokens) / (time.perf_counter() - loaded),
        "tokens": result.prompt_tokens + result.decode_tokens,
        "text": result.text[:80],
        "load_ms": engine.load_ms,
        **told(engine),
    }


def perplexity(chosen: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of a text file by llama.cpp's definition, with a kind of KV cache."""
    engine = load(chosen, chosen.context)
    text = Path(chosen.text).read_bytes().decode("utf-8").removesuffix("\n")
    found = engine.perplexity(text, context=chosen.context, chunks=chosen.chunks)
    return {"perplexity": found.value, "stderr": found.stderr, "tokens": found.tokens}


JOBS = {"pack": pack, "decode": decode, "lookup": lookup, "draft": draft, "answer": answer, "perplexity": perplexity}


def main() -> None:
    """Do one job and print what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit.ours")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    for name in ("memory", "prefill", "decode", "streams", "context", "chunks", "kv-tokens"):
        parser.add_argument(f"--{name}", type=int, default=0)
    for name in ("text", "kv", "evict", "draft"):
        parser.add_argument(f"--{name}")
    chosen = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command line does, before NumPy is loaded
    print(json.dumps(JOBS[chosen.job](chosen)))


if __name__ == "__main__":
    main()
