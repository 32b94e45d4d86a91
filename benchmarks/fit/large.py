"""A 7B-shaped model where it hardly fits, and where it does not: resident in 4 GB, streamed in 1.5 GB and in 600 MB."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import files
from benchmarks.bench import Bench, about, missing
from benchmarks.fit import sides
from benchmarks.jailed import Held
from benchmarks.process import ContestantError
from benchmarks.record import Row, compare

FILE, DRAFT = "llama7b-q4_0", "llama160m-q4_0"
PHONE, HALF, SMALL = 4_000_000_000, 1_500_000_000, 600_000_000
RESIDENT_RATIO, STREAMED_RATIO, DISK_SHARE = 1.3, 1.5, 0.85
STREAMS = 4


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of the three budgets; what one of them cannot give does not stop the others."""
    for part in (resident, streamed, several, small):
        try:
            yield from part(bench)
        except ContestantError as why:
            yield missing(f"{part.__name__}, {files.title(FILE)}", "fit_large", why)


def resident(bench: Bench) -> Iterator[Row]:
    """In 4 GB, against llama.cpp as it comes and in its two other ways of loading; what was asked for counts against
    the fastest of them here."""
    count, rows = bench.pick(16, 8), []
    for options, label in (
        (sides.AS_IT_COMES, "llama.cpp as it comes"),
        (sides.DIRECT, "llama.cpp reading directly (-lm dio)"),
        (sides.MAPPED, "llama.cpp without re-laying (--repack 0)"),
    ):
        rows.append(match(bench, "decode in 4 GB", PHONE, options, label, None, count, bench.pick(3, 1)))
        yield rows[-1]
    ran = [row for row in rows if row.value is not None]
    name = f"decode in 4 GB, {files.title(FILE)}, {sides.THREADS} threads, the fastest way of llama.cpp"
    if not ran:
        yield missing(name, "fit_large", "no way of llama.cpp ran", asked=RESIDENT_RATIO)
        return
    fastest = max(ran, key=lambda row: row.peer or 0.0)
    yield replace(fastest, name=name, asked=RESIDENT_RATIO, note=fastest.name.rpartition(", ")[2])


def streamed(bench: Bench) -> Iterator[Row]:
    """In 1.5 GB, against llama.cpp with its file mapped; and beside a plain read of what cannot be held."""
    yield match(
        bench,
        "decode in 1.5 GB",
        HALF,
        sides.MAPPED,
        "llama.cpp mapped (--repack 0)",
        STREAMED_RATIO,
        bench.pick(6, 4),
        bench.pick(3, 1),
    )
    yield disk_share(bench, HALF, "1.5 GB")


def small(bench: Bench) -> Iterator[Row]:
    """In 600 MB, where both read nearly the whole file for each token."""
    yield match(
        bench,
        "decode in 600 MB",
        SMALL,
        sides.MAPPED,
        "llama.cpp mapped (--repack 0)",
        None,
        bench.pick(4, 3),
        bench.pick(2, 1),
    )


def match(
    bench: Bench,
    what: str,
    limit: int,
    options: Sequence[str],
    label: str,
    asked: float | None,
    count: int,
    repeats: int,
) -> Row:
    """Pairs of one comparison; llama.cpp killed for memory leaves ours alone, with the reason in the note."""
    name = f"{what}, {files.title(FILE)}, {sides.THREADS} threads, {label}"
    bench.say(f"{name}: {repeats} pairs of {count} tokens")
    try:
        mine, theirs = sides.pairs(
            lambda: sides.ours(bench, FILE, limit, "decode", "--decode", count),
            lambda: sides.llama_bench(bench, FILE, limit, options, decode=count),
            repeats,
        )
    except ContestantError as why:
        return missing(name, "fit_large", why, asked=asked)
    ours, peers = [sides.our_rate(one) for one in mine], [sides.llama_rate(one) for one in theirs]
    return Row(
        name=name,
        measure="fit_large",
        value=compare(ours, peers),
        value_unit="x",
        asked=asked,
        unit="tokens/s",
        ours=statistics.median(ours),
        ours_samples=ours,
        peer=statistics.median(peers),
        peer_samples=peers,
        peer_name=f"{bench.peer('avx512').version}, avx512 build",
        threads=sides.THREADS,
        others_cores=sides.disturbance([*mine, *theirs]),
        details={"limit_bytes": limit, "ours": sides.peaks(mine), "peer": sides.peaks(theirs), **engine_told(mine)},
        **about(FILE),
    )


def engine_told(mine: Sequence[Held]) -> dict[str, Any]:
    """The plan and the bytes read a pass of the last sample."""
    told = mine[-1].json()
    return {key: told[key] for key in ("plan", "read_bytes_per_pass") if key in told}


def disk_share(bench: Bench, limit: int, label: str) -> Row:
    """Passes a second times the bytes that cannot be held, over the rate of plain direct reads taken before and after.

    What cannot be held is what a pass read, less the memory that the engine left unused: that could have held some.
    """
    name = f"share of the disk's sequential rate, {files.title(FILE)} in {label}, {sides.THREADS} threads"
    repeats = bench.pick(5, 2)
    bench.say(f"{name}: {repeats} samples")
    model = bench.file(FILE)
    shares: list[float] = []
    rates: list[float] = []
    allowed: list[float] = []
    samples: list[Held] = []
    for _ in range(repeats):
        before = sides.sequential_rate(model)
        held = sides.ours(bench, FILE, limit, "decode", "--decode", bench.pick(8, 4))
        after = sides.sequential_rate(model)
        told = held.json()
        unused = max(0, limit - int(held.report.peak_rss_bytes or limit))
        unheld = float(told["read_bytes_per_pass"]) - unused
        rates.append((before + after) / 2)
        allowed.append(rates[-1] / unheld)
        shares.append(float(told["passes_per_s"]) / allowed[-1])
        samples.append(held)
    share = statistics.median(shares)
    return Row(
        name=name,
        measure="fit_large",
        value=share,
        value_unit="of what the disk allows",
        asked=DISK_SHARE,
        unit="tokens/s",
        ours=statistics.median(sides.our_rate(one) for one in samples),
        ours_samples=[sides.our_rate(one) for one in samples],
        peer=statistics.median(allowed),
        peer_samples=allowed,
        peer_name="plain direct reads",
        threads=sides.THREADS,
        others_cores=sides.disturbance(samples),
        note="the plain reads fell short of what the disk gives" if share > 1.05 else "",
        details={"limit_bytes": limit, "disk_bytes_per_s": rates, "shares": shares, **engine_told(samples)},
        **about(FILE),
    )


def several(bench: Bench) -> Iterator[Row]:
    """In 1.5 GB, several tokens from each pass over the weights: sessions in a batch, guesses checked at once."""
    count = bench.pick(8, 4)
    for what, job, words in (
        (f"{STREAMS} sessions in a batch", "decode", ("--decode", count, "--streams", STREAMS)),
        ("prompt lookup", "lookup", ("--decode", 4 * count)),
        (
            "a draft model (simulated guesses, 8 in 10 right)",
            "draft",
            ("--decode", 4 * count, "--draft", bench.file(DRAFT)),
        ),
    ):
        name = f"{what} in 1.5 GB against one token a pass, {files.title(FILE)}, {sides.THREADS} threads"
        bench.say(name)
        try:
            many, one = sides.pairs(
                lambda job=job, words=words: sides.ours(bench, FILE, HALF, job, *words),  # type: ignore[misc]
                lambda: sides.ours(bench, FILE, HALF, "decode", "--decode", count),
                bench.pick(2, 1),
            )
        except ContestantError as why:
            yield missing(name, "fit_large", why)
            continue
        ours, alone = [sides.our_rate(held) for held in many], [sides.our_rate(held) for held in one]
        told = many[-1].json()
        yield Row(
            name=name,
            measure="fit_large",
            value=compare(ours, alone),
            value_unit="x",
            asked=None,
            unit="tokens/s",
            ours=statistics.median(ours),
            ours_samples=ours,
            peer=statistics.median(alone),
            peer_samples=alone,
            peer_name="one token a pass of ours",
            threads=sides.THREADS,
            others_cores=sides.disturbance([*many, *one]),
            details={key: told[key] for key in ("tokens", "steps", "drafted", "accepted") if key in told}
            | sides.peaks(many),
            **about(FILE),
        )
