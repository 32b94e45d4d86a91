"""Perplexity beside `llama-perplexity`: the same file, text and windows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks import files, process
from benchmarks.bench import Bench, about, missing
from benchmarks.process import REPOSITORY, ContestantError
from benchmarks.record import AT_MOST, Row

ASKED_PERCENT = 0.3
CONTEXT = 512


def corpus() -> Path:
    """The text: the one beside the checkout, or what GENMOTE_BENCH_TEXT names. Raises `ContestantError` if neither."""
    named = os.environ.get("GENMOTE_BENCH_TEXT")
    path = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "wikitext2_raw" / "wikitext-test.txt"
    if not path.exists():
        raise ContestantError(f"no text at {path.name}; name a text file in GENMOTE_BENCH_TEXT")
    return path


def measure(bench: Bench) -> Iterator[Row]:
    """One row a file: how far ours lies from the peer's, in per cent, either way."""
    for file in ("smollm2-q4_1", "smollm2-q4_0", "smollm2-q8_0", "gemma3"):
        name = f"perplexity off llama-perplexity, {files.title(file)}"
        chunks = bench.pick(16, 4)
        bench.say(f"{name}: {chunks} windows of {CONTEXT}")
        try:
            yield row(bench, file, name, chunks)
        except ContestantError as why:
            yield missing(name, "perplexity", why, asked=ASKED_PERCENT, sense=AT_MOST, unit="%")


def row(bench: Bench, file: str, name: str, chunks: int) -> Row:
    """Both perplexities and the distance between them."""
    model, text, peer = bench.file(file), corpus(), bench.peer("avx512")
    sizes = ["--ctx-size", str(CONTEXT), "--chunks", str(chunks), "-t", str(bench.cores)]
    said = process.run([peer.program("llama-perplexity"), "-m", str(model), "-f", str(text), *sizes], errors=True)
    theirs = final_estimate(said.output)
    sizes = ["--context", str(CONTEXT), "--chunks", str(chunks), "--threads", str(bench.cores)]
    ran = process.python("benchmarks.ours", "perplexity", str(model), "--text", str(text), *sizes)
    ours = float(ran.json()["perplexity"])
    return Row(
        name=name,
        measure="perplexity",
        value=abs(ours / theirs - 1) * 100,
        value_unit="%",
        asked=ASKED_PERCENT,
        sense=AT_MOST,
        unit="perplexity",
        ours=ours,
        peer=theirs,
        peer_name=f"{peer.version}, avx512 build",
        threads=bench.cores,
        details={
            "context": CONTEXT,
            "chunks": chunks,
            "text": text.name,
            "ours_ms": ran.wall_ms,
            "peer_ms": said.wall_ms,
        },
        **about(file),
    )


def final_estimate(said: str) -> float:
    """The perplexity in what llama-perplexity printed."""
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", said)
    if not found:
        raise ContestantError("llama-perplexity gave no final estimate")
    return float(found.group(1))
