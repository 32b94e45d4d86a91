"""One sample of genmote in a fresh process, driven through the Engine as a program would.

    python -m benchmarks.ours speed MODEL --threads T --prefill N --decode N --seed S
    python -m benchmarks.ours memory MODEL --threads T --context N --decode N
    python -m benchmarks.ours first-token MODEL --threads T
    python -m benchmarks.ours streams MODEL --threads T --streams N --decode N
    python -m benchmarks.ours perplexity MODEL --threads T --text FILE --context N --chunks N

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genmote import Engine

PROSE = "A patient's heart beats sixty times a minute at rest, and the watch on the wrist counts every beat of it. "
TEN_TOKENS = "The heart beats sixty times a minute at rest."


def load(chosen: argparse.Namespace, context: int) -> Engine:
    """The engine on the asked number of threads; GENMOTE_ISA holds as it does for any program."""
    from genmote import Engine

    return Engine.load(chosen.model, threads=chosen.threads, context=context)


def draw(seed: int, count: int) -> list[int]:
    """Random tokens that are ordinary text in every vocabulary here."""
    generator = random.Random(seed)
    return [generator.randrange(500, 30000) for _ in range(count)]


def speed(chosen: argparse.Namespace) -> dict[str, Any]:
    """What llama-bench times: a prompt in one call, and single tokens from an empty cache, after a warm-up of both."""
    prompt, tokens = draw(chosen.seed, chosen.prefill), draw(chosen.seed + 1, chosen.decode)
    rows = max(chosen.prefill, chosen.decode)
    engine = load(chosen, rows)
    session = engine.session()
    prefill_s = decode_s = 0.0
    if prompt:
        session.prefill(prompt)
        session.truncate(0)
        started = time.perf_counter()
        session.prefill(prompt)
        prefill_s = time.perf_counter() - started
        session.truncate(0)
    if tokens:
        session.step(tokens[0])
        session.truncate(0)
        started = time.perf_counter()
        for token in tokens:
            session.step(token)
        decode_s = time.perf_counter() - started
    return {
        "prefill_tokens_per_s": chosen.prefill / prefill_s if prompt else None,
        "decode_tokens_per_s": chosen.decode / decode_s if tokens else None,
        "peak_rss_bytes": engine.peak_rss_bytes,
        "isa": getattr(engine.decoder.ops, "isa", engine.ops_name),
    }


def memory(chosen: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of a text that fills the context, tokenizer and sampling included."""
    engine = load(chosen, chosen.context)
    wanted = chosen.context - chosen.decode
    prompt = engine.tokenizer.encode(PROSE * (1 + wanted // 10))[:wanted]
    session = engine.session()
    result = engine.generate(prompt, session=session, max_tokens=chosen.decode, ignore_eos=True)
    return {
        "peak_rss_bytes": engine.peak_rss_bytes,
        "kv_cache_bytes": session.nbytes,
        "tokens": result.prompt_tokens + result.decode_tokens,
    }


def first_token(chosen: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds from before `import genmote` to the first token of a short text."""
    started = time.perf_counter()
    engine = load(chosen, 512)
    loaded = time.perf_counter()
    result = engine.generate(TEN_TOKENS, max_tokens=1, ignore_eos=True)
    ended = time.perf_counter()
    return {
        "first_token_ms": (ended - started) * 1e3,
        "load_ms": (loaded - started) * 1e3,
        "prompt_tokens": result.prompt_tokens,
    }


def streams(chosen: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of all sessions, one token of each in every pass."""
    engine = load(chosen, chosen.decode + 1)
    from genmote.runtime.prompt import Rows
    from genmote.runtime.session import Work, run_batch

    sessions = [engine.session() for _ in range(chosen.streams)]
    texts = [Rows(draw(number, chosen.decode + 1)) for number in range(chosen.streams)]
    started = 0.0
    for at in range(chosen.decode + 1):
        if at == 1:  # the first pass is the warm-up
            started = time.perf_counter()
        run_batch(engine, [Work(session, text, at, at + 1, 1) for session, text in zip(sessions, texts, strict=True)])
    return {"tokens_per_s": chosen.streams * chosen.decode / (time.perf_counter() - started)}


def perplexity(chosen: argparse.Namespace) -> dict[str, Any]:
    """Perplexity of a text file by llama.cpp's definition."""
    engine = load(chosen, chosen.context)
    # As bytes, so that CR LF stays what it is; llama-perplexity leaves out the file's last line end.
    text = Path(chosen.text).read_bytes().decode("utf-8").removesuffix("\n")
    found = engine.perplexity(text, context=chosen.context, chunks=chosen.chunks)
    return {"perplexity": found.value, "stderr": found.stderr, "tokens": found.tokens}


JOBS = {
    "speed": speed,
    "memory": memory,
    "first-token": first_token,
    "streams": streams,
    "perplexity": perplexity,
}


def main() -> None:
    """Do one job and print what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ours")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    for name in ("prefill", "decode", "seed", "context", "streams", "chunks"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--text")
    chosen = parser.parse_args()
    print(json.dumps(JOBS[chosen.job](chosen)))


if __name__ == "__main__":
    main()
