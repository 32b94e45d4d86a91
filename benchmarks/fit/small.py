"""A 98 MB model, cold, inside 96 MB and 64 MB with 2,000 tokens of context, interpreter included."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import files
from benchmarks.bench import Bench, about, missing
from benchmarks.fit import sides
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row

FILE = "smollm2-q4_1"
CONTEXT, DECODE = 2000, 64
# Limit, and the kind of KV cache that is allowed there: half of 64 MB is gone before the first key is stored.
LIMITS: tuple[tuple[int, str | None], ...] = ((96_000_000, None), (64_000_000, "auto"))
ASKED = 96_000_000


def measure(bench: Bench) -> Iterator[Row]:
    """A row on the peak and one on the speed for each limit."""
    for limit, kv in LIMITS:
        where = f"{limit / 1e6:.0f} MB" + (f" (--kv {kv})" if kv else "")
        peak_name = f"peak answering in {where} with {CONTEXT} tokens, {files.title(FILE)}, cold"
        speed_name = f"{CONTEXT - DECODE} tokens read and {DECODE} written in {where}, {files.title(FILE)}, cold"
        bench.say(peak_name)
        asked = limit / 1e6 if limit == ASKED else None
        words = ["--prefill", CONTEXT - DECODE, "--decode", DECODE, *(["--kv", kv] if kv else [])]
        try:
            mine = [sides.ours(bench, FILE, limit, "answer", *words) for _ in range(bench.pick(3, 1))]
        except ContestantError as why:
            yield missing(peak_name, "fit_small", why, asked=asked, sense=AT_MOST, unit="MB")
            continue
        told = mine[-1].json()
        # The group's own count leaves out pages of libraries that others touched first; the process's count has them.
        peak = max(max(one.report.usage.peak_bytes or 0, one.report.peak_rss_bytes or 0) for one in mine)
        common = about(FILE) | {"threads": sides.THREADS, "others_cores": sides.disturbance(mine)}
        yield Row(
            name=peak_name,
            measure="fit_small",
            value=peak / 1e6,
            value_unit="MB",
            asked=asked,
            sense=AT_MOST,
            aim=LIMITS[-1][0] / 1e6 if asked else None,
            unit="MB",
            ours=peak / 1e6,
            details={"limit_bytes": limit, "context": CONTEXT, "decoded": DECODE, "ours": sides.peaks(mine)} | told,
            **common,
        )
        yield speed(bench, limit, speed_name, [sides.our_rate(one) for one in mine], common, told)
        written = [float(one.json()["decode_tokens_per_s"]) for one in mine]
        yield Row(
            name=f"writing {DECODE} tokens after {CONTEXT - DECODE} in {where}, {files.title(FILE)}, cold",
            measure="fit_small",
            value=statistics.median(written),
            value_unit="tokens/s",
            asked=None,
            unit="tokens/s",
            ours=statistics.median(written),
            ours_samples=written,
            **common,
        )


def speed(bench: Bench, limit: int, name: str, ours: list[float], common: dict, told: dict) -> Row:  # type: ignore[type-arg]
    """Tokens a second of prompt and text together, beside llama.cpp in the same group where it runs."""
    note, theirs = "", []
    try:  # once: it takes minutes, all of them waiting for the same pages again
        both = (CONTEXT - DECODE, DECODE)
        theirs = [sides.llama_bench(bench, FILE, limit, sides.MAPPED, both=both, timeout_s=240)]
    except ContestantError as why:
        note = f"llama.cpp: {why}"
    peers = [sides.llama_rate(one) for one in theirs]
    return Row(
        name=name,
        measure="fit_small",
        value=statistics.median(ours) / (peers[0] if peers else 1.0),
        value_unit="x" if peers else "tokens/s",
        asked=None,
        unit="tokens/s",
        ours=statistics.median(ours),
        ours_samples=ours,
        peer=statistics.median(peers) if peers else None,
        peer_samples=peers,
        peer_name=f"{bench.peer('avx512').version}, avx512 build" if peers else None,
        note=note,
        details={
            "limit_bytes": limit,
            "prefill_tokens_per_s": told["prefill_tokens_per_s"],
            "decode_tokens_per_s": told["decode_tokens_per_s"],
            "peer": sides.peaks(theirs) if theirs else None,
        },
        **common,
    )
