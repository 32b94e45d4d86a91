"""A mixture of experts that does not fit: how often an expert is there when it is needed, and what that is worth."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import files, jailed, process
from benchmarks.bench import Bench, about, missing
from benchmarks.fit import sides
from benchmarks.jailed import Held
from benchmarks.measures.perplexity import corpus
from benchmarks.process import ContestantError
from benchmarks.record import Row, compare
from genmote.models.store import ZOO
from genmote.runtime.loading import file_sha256

FILE, MIXTURE = "olmoe-q4_0", "mixture-16x"
SHARE_OF_FILE = 0.35
ENGINE_SHARE = 0.98  # of the limit that the engine is told
HITS, OVER_DEMAND, OVER_PEER = 0.90, 2.5, 1.5


def measure(bench: Bench) -> Iterator[Row]:
    """Hits of the trained mixture, then the large shape against plain loading on demand and against llama.cpp."""
    for part in (hits, over_demand, over_peer):
        try:
            yield part(bench)
        except ContestantError as why:
            yield missing(f"{part.__name__}, {files.title(FILE)}", "fit_experts", why)


def trained() -> tuple[str, str]:
    """The trained mixture and text that it was not trained on: the last twentieth of the lines of WikiText-2's test
    split, as `tools/make_mixture.py` parts it. Raises `ContestantError` where the split is not here."""
    lines = corpus().read_text(encoding="utf-8").splitlines(keepends=True)
    held_out = files.FOLDER / "held-out.txt"
    held_out.parent.mkdir(parents=True, exist_ok=True)
    held_out.write_text("".join(lines[round(len(lines) * 0.95) :]), encoding="utf-8")
    return str(ZOO / MIXTURE / f"{MIXTURE}.gguf"), str(held_out)


def hits(bench: Bench) -> Row:
    """The share of expert reads that nobody waited for, half of the experts cached, on the trained mixture itself."""
    model, text = trained()
    count = bench.pick(2048, 512)
    bench.say(f"hits of {MIXTURE}: {count} tokens")
    words = ["--text", text, "--share", "0.5", "--decode", str(count), "--threads", "1"]
    held = [process.python("benchmarks.fit.experts_run", "hits", model, *words) for _ in range(bench.pick(3, 1))]
    rates = [one.json()["experts"]["hit_rate"] for one in held]
    return Row(
        name=f"experts there when needed, half of them cached, {MIXTURE}, held-out text",
        measure="fit_experts",
        value=statistics.median(rates),
        value_unit="of reads",
        asked=HITS,
        unit="of reads",
        ours=statistics.median(rates),
        ours_samples=rates,
        threads=1,
        details=held[-1].json(),
        model=MIXTURE,
        model_sha256=file_sha256(Path(model)),
    )


def budget(bench: Bench) -> int:
    """What the model is held to: a share of its file."""
    return int(bench.file(FILE).stat().st_size * SHARE_OF_FILE)


def decode(bench: Bench, *words: str, replayed: bool) -> Held:
    """Our side inside the limit, its routers replaying the trained mixture's choices or making their own."""
    drop, limit = sides.prepare(bench, FILE), budget(bench)
    model, text = trained()
    trace = ["--trace", model, "--text", text] if replayed else []
    count = ["--decode", str(bench.pick(48, 16)), "--threads", str(sides.THREADS)]
    told = ["--memory", str(int(limit * ENGINE_SHARE))]
    return jailed.python(
        "benchmarks.fit.experts_run",
        "decode",
        str(drop[0]),
        *count,
        *told,
        *trace,
        *words,
        memory_bytes=limit,
        drop=drop,
    )


def over_demand(bench: Bench) -> Row:
    """With cache and guesses against the same engine with both off, a trained router's choices replayed in both."""
    name = f"cached and guessed experts over loading on demand, {files.title(FILE)} in {SHARE_OF_FILE:.0%}, replayed"
    bench.say(name)
    mine, plain = sides.pairs(
        lambda: decode(bench, replayed=True),
        lambda: decode(bench, "--no-cache", "--no-guess", replayed=True),
        bench.pick(7, 1),  # of three pairs the ratio was 2.4 to 3.1, as the disk was
    )
    return matched(
        bench, name, mine, [sides.our_rate(one) for one in plain], "ours, cache and guesses off", OVER_DEMAND
    )


def over_peer(bench: Bench) -> Row:
    """Against llama.cpp with its file mapped; it cannot replay, so both sides choose by their seeded routers."""
    name = f"decode, {files.title(FILE)} in {SHARE_OF_FILE:.0%}, own routing"
    bench.say(name)
    mine, theirs = sides.pairs(
        lambda: decode(bench, replayed=False),
        # As long as ours, so that its page cache is as warm in the end; its first tokens are in its rate, ours not.
        lambda: sides.llama_bench(bench, FILE, budget(bench), sides.MAPPED, decode=bench.pick(96, 16)),
        bench.pick(2, 1),
    )
    label = f"{bench.peer('avx512').version}, avx512 build, mapped (--repack 0)"
    peer = {"peer": sides.peaks(theirs)}
    return matched(bench, name, mine, [sides.llama_rate(one) for one in theirs], label, OVER_PEER, **peer)


def matched(
    bench: Bench, name: str, mine: list[Held], other: list[float], label: str, asked: float, **more: Any
) -> Row:
    rates = [sides.our_rate(one) for one in mine]
    details: dict[str, Any] = mine[-1].json() | {"limit_bytes": budget(bench), "ours": sides.peaks(mine)} | more
    return Row(
        name=name,
        measure="fit_experts",
        value=compare(rates, other),
        value_unit="x",
        asked=asked,
        unit="tokens/s",
        ours=statistics.median(rates),
        ours_samples=rates,
        peer=statistics.median(other),
        peer_samples=other,
        peer_name=label,
        threads=sides.THREADS,
        others_cores=sides.disturbance(mine),
        details=details,
        **about(FILE),
    )
