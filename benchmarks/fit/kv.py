"""What a smaller KV cache costs: the perplexity that int8 and int4 keys and values add to that with float16."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchmarks import files, process
from benchmarks.bench import Bench, about, missing
from benchmarks.measures.perplexity import corpus
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

FILE = "smollm2-q4_1"
CONTEXT = 2048
KINDS = {"int8": ("q8_0", 0.2), "int4": ("q4_0", 3.0)}  # llama.cpp's nearest kind, most per cent asked for


def measure(bench: Bench) -> Iterator[Row]:
    """One row a kind, llama.cpp's nearest kind beside it."""
    chunks = bench.pick(16, 4)
    base: float | None = None
    peer_base: float | None = None
    for kind, (theirs, asked) in KINDS.items():
        name = f"perplexity that {kind} KV adds to float16 KV, {files.title(FILE)}, context {CONTEXT}"
        bench.say(f"{name}: {chunks} windows")
        note = ""
        try:
            base = base or our_perplexity(bench, None, chunks)
            ours = our_perplexity(bench, kind, chunks) / base
        except ContestantError as why:
            yield missing(name, "fit_kv", why, asked=asked, sense=AT_MOST, unit="%")
            continue
        try:
            peer_base = peer_base or peer_perplexity(bench, "f16", chunks)
            other = peer_perplexity(bench, theirs, chunks)
        except ContestantError as why:
            other, note = None, f"llama.cpp: {why}"
        yield Row(
            name=name,
            measure="fit_kv",
            value=(ours - 1) * 100,
            value_unit="%",
            asked=asked,
            sense=AT_MOST,
            unit="% more",
            ours=(ours - 1) * 100,
            peer=(other / peer_base - 1) * 100 if other and peer_base else None,
            peer_name=f"llama.cpp, {theirs} keys and values" if other else None,
            threads=bench.cores,
            note=note,
            details={"context": CONTEXT, "chunks": chunks, "float16": base, "peer_float16": peer_base},
            **about(FILE),
        )


def our_perplexity(bench: Bench, kind: str | None, chunks: int) -> float:
    """Ours with a kind of KV cache (None: float16)."""
    words = ["--text", str(corpus()), "--context", str(CONTEXT), "--chunks", str(chunks)]
    words += ["--threads", str(bench.cores), *(["--kv", kind] if kind else [])]
    ran = process.python("benchmarks.fit.ours", "perplexity", str(bench.file(FILE)), *words)
    return float(ran.json()["perplexity"])


def peer_perplexity(bench: Bench, kind: str, chunks: int) -> float | None:
    """llama-perplexity with keys and values of a type, or None where there is no llama.cpp."""
    if "avx512" not in bench.peers:
        return None
    words = ["-f", str(corpus()), "--ctx-size", str(CONTEXT), "--chunks", str(chunks), "-t", str(bench.cores)]
    words += ["-ctk", kind, "-ctv", kind, "-fa", "on"]
    program = bench.peer("avx512").program("llama-perplexity")
    said = process.run([program, "-m", str(bench.file(FILE)), *words], errors=True)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", said.output)
    if not found:
        raise ContestantError("llama-perplexity gave no final estimate")
    return float(found.group(1))
