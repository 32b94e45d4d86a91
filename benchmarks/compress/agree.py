"""Our files with standard types in llama.cpp: the same perplexity there."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, about, missing
from benchmarks.compress import gemma, q4, sides
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

PERCENT = 0.3


def measure(bench: Bench) -> Iterator[Row]:
    """How far our engine's perplexity of our file lies from the peer's, in per cent."""
    for title, source, mix in (("SmolLM2-135M Q4_0", q4.SOURCE, None), ("Gemma-3-270M Q4_K_M", gemma.SOURCE, "Q4_K_M")):
        name = f"our {title} in llama-perplexity, off our engine's"
        try:
            if mix is None:
                path = sides.ours(bench, source, "gptq", ["--method", "gptq", *q4.WORDS]).path
            else:
                path = gemma.same(bench, sides.theirs(bench, source, mix, *gemma.EMBEDDING), mix).path
            ours, theirs = sides.perplexity(bench, path), sides.perplexity(bench, path, peer=True)
        except ContestantError as why:
            yield missing(name, "compress_agree", why, asked=PERCENT, sense=AT_MOST, unit="%")
            continue
        yield Row(
            name=name,
            measure="compress_agree",
            value=abs(ours / theirs - 1) * 100,
            value_unit="%",
            asked=PERCENT,
            sense=AT_MOST,
            unit="perplexity",
            ours=ours,
            peer=theirs,
            peer_name=bench.peer(sides.PEER).version,
            threads=bench.cores,
            details={"windows": sides.windows(bench)},
            **about(source),
        )
