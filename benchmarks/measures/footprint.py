"""What a fresh process takes: peak resident memory, time to the first token, time to import."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator

from benchmarks import contestants, files, process
from benchmarks.bench import Bench, about, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

OVERHEAD_BYTES = 60_000_000
FIRST_TOKEN_MS = 1000
IMPORT_MS = 150
CONTEXT = 512
TOKENS = 32


def measure(bench: Bench) -> Iterator[Row]:
    """A memory row and a first-token row for SmolLM2 and Gemma, and the import row."""
    for name in ("smollm2-q4_0", "smollm2-q4_1", "gemma3"):
        title = files.title(name)
        bench.say(f"memory and first token, {title}")
        memory_name, first_name = f"peak memory over file and KV cache, {title}", f"load to first token, {title}"
        try:
            yield memory(bench, name, memory_name)
            yield first_token(bench, name, first_name)
        except ContestantError as why:
            yield missing(memory_name, "memory", why, asked=OVERHEAD_BYTES / 1e6, sense=AT_MOST, unit="MB")
            yield missing(first_name, "first_token", why, asked=FIRST_TOKEN_MS, sense=AT_MOST, unit="ms")
    yield import_time(bench)


def memory(bench: Bench, name: str, row_name: str) -> Row:
    """Peak resident bytes of a fresh process that loads, prefills and decodes, less the file and the KV cache."""
    path = bench.file(name)
    words = ("memory", str(path), "--threads", "2", "--context", str(CONTEXT), "--decode", str(TOKENS))
    # Twice: the first run may be the one that makes the cache file, and must stay within the same bound.
    runs = [process.python("benchmarks.ours", *words).json() for _ in range(2)]
    told = max(runs, key=lambda one: int(one["peak_rss_bytes"]))
    size = path.stat().st_size
    over = told["peak_rss_bytes"] - size - told["kv_cache_bytes"]
    return Row(
        name=row_name,
        measure="memory",
        value=over / 1e6,
        value_unit="MB over file and KV cache",
        asked=OVERHEAD_BYTES / 1e6,
        sense=AT_MOST,
        unit="MB peak",
        ours=told["peak_rss_bytes"] / 1e6,
        peer=llama_peak(bench, name),
        peer_name="llama.cpp, avx512 build" if "avx512" in bench.peers else None,
        threads=2,
        details={"file_bytes": size, "kv_cache_bytes": told["kv_cache_bytes"], "prompt_and_new_tokens": told["tokens"]},
        **about(name),
    )


def llama_peak(bench: Bench, name: str) -> float | None:
    """llama.cpp's peak on the same work in megabytes (10^6 bytes), or None where it is absent."""
    if "avx512" not in bench.peers:
        return None
    sizes = ["-p", str(CONTEXT - TOKENS), "-n", str(TOKENS), "-t", "2", "-r", "1", "--no-warmup", "-o", "json"]
    command = [bench.peer("avx512").program("llama-bench"), "-m", str(bench.file(name)), *sizes]
    return process.run(command).peak_rss_bytes / 1e6


def first_token(bench: Bench, name: str, row_name: str) -> Row:
    """From the start of the load to the first token of a ten-token prompt, page cache warm."""
    words = ("first-token", str(bench.file(name)), "--threads", "2")
    process.python("benchmarks.ours", *words)  # makes the cache file and warms the page cache
    runs = [process.python("benchmarks.ours", *words) for _ in range(bench.pick(5, 3))]
    told = [ran.json() for ran in runs]
    samples = [float(one["first_token_ms"]) for one in told]
    return Row(
        name=row_name,
        measure="first_token",
        value=statistics.median(samples),
        value_unit="ms",
        asked=FIRST_TOKEN_MS,
        sense=AT_MOST,
        unit="ms",
        ours=statistics.median(samples),
        ours_samples=samples,
        threads=2,
        others_cores=contestants.disturbance(runs),
        details={
            "whole_process_ms": statistics.median(ran.wall_ms for ran in runs),
            "prompt_tokens": told[0]["prompt_tokens"],
        },
        **about(name),
    )


def import_time(bench: Bench) -> Row:
    """`import genmote` in a fresh interpreter, timed inside it."""
    code = "import time; t = time.perf_counter(); import genmote; print((time.perf_counter() - t) * 1e3)"
    samples = [float(process.run([sys.executable, "-c", code]).output) for _ in range(bench.pick(11, 5))]
    median = statistics.median(samples)
    return Row(
        name="import genmote",
        measure="import",
        value=median,
        value_unit="ms",
        asked=IMPORT_MS,
        sense=AT_MOST,
        unit="ms",
        ours=median,
        ours_samples=samples,
    )
