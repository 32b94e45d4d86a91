"""llama.cpp on the same file and prompts, in a process of its own: `python -m genmote.recipes.peer` with a JSON request
on standard input prints one JSON object.

It comes as the Python package `xllamacpp`, which is a comparison and no part of genmote.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from genmote.errors import GenmoteError

LONGEST_S = 300.0


@dataclass(frozen=True)
class Peer:
    """What the peer took for the same work."""

    name: str
    load_ms: float
    first_token_ms: float  # of the first prompt
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_rss_bytes: int
    texts: tuple[str, ...]


def here() -> bool:
    """Whether the peer is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def run(model: Path, prompts: Sequence[Sequence[int]], tokens: Sequence[int], threads: int, context: int) -> Peer:
    """Generate `tokens[i]` tokens after `prompts[i]`, greedily. Raises GenmoteError where the peer fails."""
    request = {
        "model": str(model),
        "prompts": [list(prompt) for prompt in prompts],
        "tokens": list(tokens),
        "threads": threads,
        "context": context,
    }
    command = [sys.executable, "-m", __name__]
    try:
        ran = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        told = json.loads(ran.stdout.splitlines()[-1])
        return Peer(**{**told, "texts": tuple(told["texts"])})
    except subprocess.TimeoutExpired:
        raise GenmoteError(f"llama.cpp took longer than {LONGEST_S:.0f} s") from None
    except (IndexError, ValueError, TypeError, KeyError):
        said = ran.stderr.strip().splitlines() or ["nothing"]
        raise GenmoteError(f"llama.cpp ended with status {ran.returncode} and said: {said[-1][:200]}") from None


def _serve(request: dict[str, Any]) -> Peer:
    import xllamacpp

    from genmote.runtime.loading import peak_rss_bytes

    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_ctx = request["context"]
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    started = time.perf_counter()
    server = xllamacpp.Server(params)
    load_ms = (time.perf_counter() - started) * 1e3
    timings, texts = [], []
    for prompt, tokens in zip(request["prompts"], request["tokens"], strict=True):
        asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "samplers": ["top_k"], "top_k": 1}
        answer = server.handle_completions({**asked, "ignore_eos": True, "cache_prompt": False})
        timings.append(answer["timings"])
        texts.append(str(answer["choices"][0]["text"]))
    # The first token comes out of the prompt's own pass; the clock of the others starts after it.
    return Peer(
        name=f"llama.cpp (xllamacpp {_version('xllamacpp')}{_isa(xllamacpp.get_system_info())})",
        load_ms=load_ms,
        first_token_ms=timings[0]["prompt_ms"],
        prefill_tokens_per_s=1e3 * sum(t["prompt_n"] for t in timings) / sum(t["prompt_ms"] for t in timings),
        decode_tokens_per_s=1e3 * sum(t["predicted_n"] - 1 for t in timings) / sum(t["predicted_ms"] for t in timings),
        peak_rss_bytes=peak_rss_bytes(),
        texts=tuple(texts),
    )


def _isa(told: str) -> str:
    """The widest instruction set that its own description names."""
    for name, sign in (("AVX-512", "AVX512 = 1"), ("AVX2", "AVX2 = 1"), ("NEON", "NEON = 1")):
        if sign in told:
            return f", {name}"
    return ""


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    print(json.dumps(asdict(_serve(json.load(sys.stdin)))))
