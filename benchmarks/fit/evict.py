"""A quarter of the KV cache: what perplexity each policy adds to the full cache's, and what a long text gains."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import files, process
from benchmarks.bench import Bench, about, missing
from benchmarks.fit import sides
from benchmarks.measures.perplexity import corpus
from benchmarks.process import ContestantError, Ran
from benchmarks.record import AT_MOST, Row, compare
from genmote import registry

FILE = "smollm2-q4_1"
SHARE, CONTEXT, LONG, DECODE = 4, 2048, 4096, 64
ASKED = 5.0  # per cent


def measure(bench: Bench) -> Iterator[Row]:
    """A row a policy, one for the one that was best on other text, one for the default, and one on speed."""
    from genmote.runtime.eviction import eviction

    shipped = eviction(None, CONTEXT // SHARE, CONTEXT)  # what --kv-tokens alone takes
    default = shipped.name if shipped is not None else ""

    name = f"perplexity that a quarter of the KV cache adds to all of it, {files.title(FILE)}, context {CONTEXT}"
    few, many = bench.pick(4, 1), bench.pick(8, 2)
    try:
        chosen_on, scored_on = halves()
        full = perplexity(bench, scored_on, many)
    except ContestantError as why:
        yield missing(f"{name}, the best policy", "fit_evict", why, asked=ASKED, sense=AT_MOST, unit="%")
        return
    trials: dict[str, float] = {}
    scores: dict[str, float] = {}
    for policy in dict.fromkeys(filter(None, [*registry.names("genmote.runtime.evict"), default])):
        bench.say(f"{name}, {policy}: {few} windows to choose by, {many} to score")
        kept = ("--evict", policy, "--kv-tokens", CONTEXT // SHARE)
        try:
            trials[policy] = perplexity(bench, chosen_on, few, *kept)
            scores[policy] = perplexity(bench, scored_on, many, *kept)
        except ContestantError as why:
            yield missing(f"{name}, {policy}", "fit_evict", why, sense=AT_MOST, unit="%")
            continue
        yield ratio_row(bench, f"{name}, {policy}", scores[policy], full, many, None)
    if scores:
        best = min(scores, key=lambda policy: trials[policy])
        yield ratio_row(bench, f"{name}, the best policy on other text", scores[best], full, many, ASKED, policy=best)
        yield from speed(bench, best)
    if default in scores:
        label = f"{name}, the default policy"
        yield ratio_row(bench, label, scores[default], full, many, None, policy=default)


def halves() -> tuple[Path, Path]:
    """The text's first half, to choose by, and its second, to score on: files that are made each time."""
    lines = corpus().read_text(encoding="utf-8").splitlines(keepends=True)
    files.FOLDER.mkdir(parents=True, exist_ok=True)
    made = files.FOLDER / "first-half.txt", files.FOLDER / "second-half.txt"
    for path, part in zip(made, (lines[: len(lines) // 2], lines[len(lines) // 2 :]), strict=True):
        path.write_text("".join(part), encoding="utf-8")
    return made


def ratio_row(
    bench: Bench, name: str, value: float, full: float, chunks: int, asked: float | None, **details: Any
) -> Row:
    """The row of one policy's perplexity."""
    return Row(
        name=name,
        measure="fit_evict",
        value=(value / full - 1) * 100,
        value_unit="%",
        asked=asked,
        sense=AT_MOST,
        unit="perplexity",
        ours=value,
        peer=full,
        peer_name="the full cache of ours",
        threads=bench.cores,
        details={"context": CONTEXT, "kept": CONTEXT // SHARE, "chunks": chunks, "text": corpus().name, **details},
        **about(FILE),
    )


def perplexity(bench: Bench, text: Path, chunks: int, *words: object) -> float:
    """Perplexity over windows of a text, with the settings of the cache that `words` name."""
    sizes = ["--text", text, "--context", CONTEXT, "--chunks", chunks, "--threads", bench.cores, *words]
    return float(job(bench, "perplexity", *sizes).json()["perplexity"])


def job(bench: Bench, name: str, *words: object) -> Ran:
    """A job of `benchmarks.fit.ours`."""
    return process.python("benchmarks.fit.ours", name, str(bench.file(FILE)), *map(str, words))


def speed(bench: Bench, policy: str) -> Iterator[Row]:
    """Tokens a second at the end of a long text, with a quarter of its rows and with all; and of reading it."""
    name = f"decode at {LONG} tokens with a quarter of the KV cache over all of it, {files.title(FILE)}"
    bench.say(f"{name}: {policy}")
    sizes = ["--prefill", LONG - DECODE, "--decode", DECODE, "--threads", sides.THREADS]
    few: list[Ran] = []
    every: list[Ran] = []
    try:
        for _ in range(bench.pick(5, 2)):
            few.append(job(bench, "answer", *sizes, "--evict", policy, "--kv-tokens", LONG // SHARE))
            every.append(job(bench, "answer", *sizes))
    except ContestantError as why:
        yield missing(name, "fit_evict", why, asked=1.0)
        return
    reading = f"reading {LONG - DECODE} tokens with a quarter of the KV cache over all of it, {files.title(FILE)}"
    for title, figure, asked in ((name, "decode_tokens_per_s", 1.0), (reading, "prefill_tokens_per_s", None)):
        ours, theirs = ([float(ran.json()[figure]) for ran in side] for side in (few, every))
        yield Row(
            name=f"{title}, {sides.THREADS} threads",
            measure="fit_evict",
            value=compare(ours, theirs),
            value_unit="x",
            asked=asked,
            unit="tokens/s",
            ours=statistics.median(ours),
            ours_samples=ours,
            peer=statistics.median(theirs),
            peer_samples=theirs,
            peer_name="the full cache of ours",
            threads=sides.THREADS,
            others_cores=statistics.median(ran.others_cores or 0.0 for ran in few + every),
            details={"policy": policy},
            **about(FILE),
        )
