"""SmolLM2's 210 linear layers to Q4_0, its head as it is; and a free choice of types in as many bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, about, missing
from benchmarks.compress import sides
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

SOURCE = "smollm2-q4_1"
WORDS = ("--type", "Q4_0")
ASKED, AIM, FREE = 1.09, 1.04, 1.02


def measure(bench: Bench) -> Iterator[Row]:
    """Perplexity as a multiple of the original's."""
    rows = (
        ("Q4_0 by GPTQ", ["--method", "gptq", *WORDS], ASKED, AIM),
        ("Q4_0 by learned rounding", ["--method", "round", *WORDS], ASKED, AIM),
        ("Q4_0 by rounding to nearest", ["--method", "rtn", *WORDS], None, None),
    )
    for title, words, asked, aim in rows:
        name = f"SmolLM2-135M, 210 layers to {title}, perplexity over the original's"
        try:
            made = sides.ours(bench, SOURCE, words[1], words)
            yield row(bench, name, made.path, asked, aim)
        except ContestantError as why:
            yield missing(name, "compress_q4", why, asked=asked, sense=AT_MOST)
    name = "SmolLM2-135M, types chosen freely in the bytes of Q4_0 layers, perplexity over the original's"
    try:
        whole = sides.ours(bench, SOURCE, "gptq", ["--method", "gptq", *WORDS])
        target = str(whole.path.stat().st_size)
        yield row(bench, name, sides.ours(bench, SOURCE, "free", ["--target", target]).path, FREE, None)
    except ContestantError as why:
        yield missing(name, "compress_q4", why, asked=FREE, sense=AT_MOST)


def row(bench: Bench, name: str, path: Path, asked: float | None, aim: float | None) -> Row:
    """Beside llama-quantize's Q4_0 with the same head."""
    original = sides.perplexity(bench, bench.file(SOURCE))
    peer = sides.theirs(bench, SOURCE, "Q4_0", "--pure", "--token-embedding-type", "q8_0")
    ours, theirs = sides.perplexity(bench, path), sides.perplexity(bench, peer)
    return Row(
        name=name,
        measure="compress_q4",
        value=ours / original,
        value_unit="x",
        asked=asked,
        aim=aim,
        sense=AT_MOST,
        unit="perplexity",
        ours=ours,
        peer=theirs,
        peer_name=f"llama-quantize with an importance matrix, {bench.peer(sides.PEER).version}",
        threads=bench.cores,
        details={
            "original": original,
            "windows": sides.windows(bench),
            "learned_windows": sides.learned(bench),
            "ours_bytes": path.stat().st_size,
            "peer_bytes": peer.stat().st_size,
        },
        **about(SOURCE),
    )
