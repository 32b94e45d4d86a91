"""A quarter of SmolLM2's parameters taken out in whole channels, heads or layers: how much faster, at what cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks import contestants
from benchmarks.bench import Bench, about, missing
from benchmarks.compress import sides
from benchmarks.contestants import Work, disturbance
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, AT_MOST, Row, compare

SOURCE = "smollm2-q4_1"
RECIPE = "structured-25"
FASTER, COST, SHARE = 1.2, 1.25, 0.75
DECODE = 128


def measure(bench: Bench) -> Iterator[Row]:
    """A row on the speed and one on the perplexity."""
    faster = "SmolLM2-135M with 25% fewer parameters, decode over the original's, 1 thread"
    cost = "SmolLM2-135M with 25% fewer parameters, perplexity over the original's"
    try:
        made = sides.with_recipe(bench, SOURCE, RECIPE)
        share = parameters(made.path) / parameters(bench.file(SOURCE))
        if share > SHARE + 0.005:
            raise ContestantError(f"the recipe keeps {share:.1%} of the parameters")
        yield speed(bench, faster, made.path, share)
        original, ours = sides.perplexity(bench, bench.file(SOURCE)), sides.perplexity(bench, made.path)
        yield Row(
            name=cost,
            measure="compress_structured",
            value=ours / original,
            value_unit="x",
            asked=COST,
            sense=AT_MOST,
            unit="perplexity",
            ours=ours,
            details={"original": original, "windows": sides.windows(bench), "parameters": share},
            **about(SOURCE),
        )
    except ContestantError as why:
        yield missing(faster, "compress_structured", why, asked=FASTER)
        yield missing(cost, "compress_structured", why, asked=COST, sense=AT_MOST)


def speed(bench: Bench, name: str, path: Path, share: float) -> Row:
    """Ours and the original in turns, each in our engine."""
    sample = contestants.genmote()

    def on(model: Path) -> contestants.Contestant:
        return lambda work: sample(Work(model, work.threads, work.prefill, work.decode))

    work = Work(path, 1, 0, DECODE)
    ours, before = contestants.interleave(on(path), on(bench.file(SOURCE)), work, bench.pick(7, 3))
    fast, slow = ([one.decode or 0.0 for one in samples] for samples in (ours, before))
    return Row(
        name=name,
        measure="compress_structured",
        value=compare(fast, slow),
        value_unit="x",
        asked=FASTER,
        sense=AT_LEAST,
        unit="tokens/s",
        ours=statistics.median(fast),
        ours_samples=fast,
        peer_name="the original in our engine",
        peer=statistics.median(slow),
        peer_samples=slow,
        threads=1,
        others_cores=disturbance([*ours, *before]),
        details={"parameters": share},
        **about(SOURCE),
    )


def parameters(path: Path) -> int:
    """Numbers in a file's tensors."""
    import math

    from genmote.models.gguf import ModelFile

    return sum(math.prod(info.shape) for info in ModelFile.open(path).tensors.values())
