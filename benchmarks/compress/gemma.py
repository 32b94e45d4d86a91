"""Gemma-3-270M at the sizes of three of llama.cpp's mixes: with their very types, and with a free choice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench, about, missing
from benchmarks.compress import sides
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

SOURCE = "gemma3"
MIXES = ("Q4_K_M", "Q3_K_M", "Q2_K")
EMBEDDING = ("--token-embedding-type", "q8_0")


def measure(bench: Bench) -> Iterator[Row]:
    """Our perplexity over the peer's; below 1 is better."""
    for mix in MIXES:
        for free in (False, True):
            how = "types chosen freely in its bytes" if free else "its types"
            name = f"Gemma-3-270M at {mix}, {how}, our perplexity over llama-quantize's"
            try:
                peer = sides.theirs(bench, SOURCE, mix, *EMBEDDING)
                made = chosen(bench, peer, mix) if free else same(bench, peer, mix)
                yield row(bench, name, made.path, peer)
            except ContestantError as why:
                yield missing(name, "compress_gemma", why, asked=1.0, sense=AT_MOST)


def same(bench: Bench, peer: Path, mix: str) -> sides.Made:
    """GPTQ into the types of the peer's file."""
    recipe = sides.FOLDER / f"{SOURCE}-{mix}.toml"
    recipe.write_text(sides.toml_of(sides.types_of(peer)))
    return sides.ours(bench, SOURCE, f"{mix}-same", [], recipe)


def chosen(bench: Bench, peer: Path, mix: str) -> sides.Made:
    """A search within the peer's bytes."""
    return sides.ours(bench, SOURCE, f"{mix}-free", ["--target", str(peer.stat().st_size)])


def row(bench: Bench, name: str, path: Path, peer: Path) -> Row:
    ours, theirs = sides.perplexity(bench, path), sides.perplexity(bench, peer)
    original = sides.perplexity(bench, bench.file(SOURCE))
    return Row(
        name=name,
        measure="compress_gemma",
        value=ours / theirs,
        value_unit="x",
        asked=1.0,
        sense=AT_MOST,
        unit="perplexity",
        ours=ours,
        peer=theirs,
        peer_name=f"llama-quantize with an importance matrix, {bench.peer(sides.PEER).version}",
        threads=bench.cores,
        note="the original has these types: neither side changes it" if ours == theirs == original else "",
        details={
            "original": original,
            "windows": sides.windows(bench),
            "learned_windows": sides.learned(bench),
            "ours_bytes": path.stat().st_size,
            "peer_bytes": peer.stat().st_size,
        },
        **about(SOURCE),
    )
