"""SmolLM2 in a fifth of its FP16 size: each recipe of `recipes/` whose name begins with 54mb, one method or several;
and the combinations once more on an original in FP16 that is on no 4-bit grid already.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import files
from benchmarks.bench import Bench, about, missing
from benchmarks.compress import sides
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

SOURCE, TUNED = "smollm2-q4_1", "smollm2-tuned"
MEGABYTES = 54.0
ASKED, AIM = 1.35, 1.15
SINGLE, COMBINED = "54mb-single-", "54mb-combined-"


def measure(bench: Bench) -> Iterator[Row]:
    """Perplexity as a multiple of the original's, recipe by recipe; then the best combination over the best method."""
    best: dict[str, float] = {}
    for source, kind in ((SOURCE, SINGLE), (SOURCE, COMBINED), (TUNED, COMBINED)):
        for path in sorted(sides.RECIPES.glob(f"{kind}*.toml")):
            title = "SmolLM2-135M" if source == SOURCE else files.title(source)
            name = f"{title} in {MEGABYTES:g} MB, {path.stem.removeprefix('54mb-')}, perplexity over the original's"
            asked = ASKED if kind == COMBINED else None
            try:
                made = sides.with_recipe(bench, source, path.stem)
                if made.megabytes > MEGABYTES:
                    raise ContestantError(f"the recipe makes {made.megabytes:.2f} MB")
                found = row(bench, source, name, made, asked)
            except ContestantError as why:
                yield missing(name, "compress_eighty", why, asked=asked, sense=AT_MOST)
                continue
            assert found.value is not None
            if source == SOURCE:
                best[kind] = min(best.get(kind, found.value), found.value)
            yield found
    name = f"SmolLM2-135M in {MEGABYTES:g} MB, the best combination's perplexity over the best single method's"
    if len(best) < 2:
        yield missing(name, "compress_eighty", "a recipe of one side is missing", asked=1.0, sense=AT_MOST)
        return
    yield Row(
        name=name,
        measure="compress_eighty",
        value=best[COMBINED] / best[SINGLE],
        value_unit="x",
        asked=1.0,
        sense=AT_MOST,
        note="single methods: "
        + ", ".join(path.stem.removeprefix(SINGLE) for path in sorted(sides.RECIPES.glob(f"{SINGLE}*"))),
        **about(SOURCE),
    )


def row(bench: Bench, source: str, name: str, made: sides.Made, asked: float | None) -> Row:
    original, ours = sides.perplexity(bench, bench.file(source)), sides.perplexity(bench, made.path)
    return Row(
        name=name,
        measure="compress_eighty",
        value=ours / original,
        value_unit="x",
        asked=asked,
        aim=AIM if asked else None,
        sense=AT_MOST,
        unit="perplexity",
        ours=ours,
        threads=bench.cores,
        details={
            "original": original,
            "windows": sides.windows(bench),
            "learned_windows": sides.learned(bench),
            "ours_bytes": made.path.stat().st_size,
            "seconds": made.seconds,
        },
        **about(source),
    )
