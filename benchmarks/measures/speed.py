"""Decode and prefill speed against llama.cpp, and decode against a plain read of as many bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import contestants, files, process
from benchmarks.bench import Bench, about, missing
from benchmarks.contestants import Contestant, Work
from benchmarks.peers import cpu_flags
from benchmarks.process import ContestantError
from benchmarks.record import Row, compare


@dataclass(frozen=True)
class Match:
    """A file, a number of threads and a peer, with the ratios that are asked for (None: told, not asked)."""

    file: str
    threads: int
    peer: str
    decode: float | None
    prefill: float | None
    decode_aim: float | None = None
    isa: str | None = None
    large: bool = False
    everyday: bool = True  # part of a quick run


AVX512, AMX, XLLAMACPP, AVX2 = "avx512", "amx", "xllamacpp", "avx2"
BANDWIDTH_AIM = 0.75
PREFILL_AIM_WITH_AMX = 5.0
MATCHES = (
    Match("smollm2-q4_0", 1, AVX512, 1.6, 2.0, decode_aim=2.0),
    Match("smollm2-q4_1", 1, AVX512, 1.6, 2.0, decode_aim=2.0),
    Match("smollm2-q8_0", 1, AVX512, 1.6, 2.0, decode_aim=2.0),
    Match("llama1b-q4_0", 1, AVX512, 1.6, 2.0, decode_aim=2.0, large=True),
    Match("smollm2-q4_0", 2, AVX512, None, None),
    Match("llama1b-q4_0", 2, AVX512, None, None, large=True, everyday=False),
    Match("smollm2-q4_0", 1, AMX, 1.15, 1.2),
    Match("smollm2-q4_0", 2, AMX, 1.15, 1.2),
    Match("llama1b-q4_0", 1, AMX, 1.15, 1.2, large=True),
    Match("llama1b-q4_0", 2, AMX, 1.15, 1.2, large=True),
    Match("smollm2-q4_0", 1, XLLAMACPP, 1.3, 1.3, isa="avx2"),
    Match("smollm2-q4_1", 1, XLLAMACPP, 1.3, 1.3, isa="avx2", everyday=False),
    Match("smollm2-q8_0", 1, XLLAMACPP, 1.3, 1.3, isa="avx2", everyday=False),
    Match("smollm2-q4_0", 1, AVX2, None, None, isa="avx2", everyday=False),
)


def measure(bench: Bench) -> Iterator[Row]:
    """Two rows a match (decode, prefill) and a third, on one thread's bandwidth, beside the AVX-512 peer."""
    for match in MATCHES:
        if bench.quick and not match.everyday:
            continue
        try:
            yield from play(bench, match)
        except ContestantError as why:
            yield missing(name_of("decode", match), "decode", why, asked=match.decode)
            yield missing(name_of("prefill", match), "prefill", why, asked=match.prefill)


def name_of(what: str, match: Match) -> str:
    """A row's name: what, the file, threads and the peer."""
    label = {XLLAMACPP: "xllamacpp (AVX2)"}.get(match.peer, f"llama.cpp {match.peer.upper().replace('X5', 'X-5')}")
    ours = f", ours held to {match.isa.upper()}" if match.isa else ""
    return f"{what}, {files.title(match.file)}, {match.threads} thread{'s' * (match.threads > 1)}, {label}{ours}"


def opponent(bench: Bench, match: Match) -> tuple[Contestant, str]:
    """The peer's contestant and its name in the record."""
    if match.peer == XLLAMACPP:
        return contestants.xllamacpp(), "xllamacpp"
    peer = bench.peer(match.peer)
    return contestants.llama_bench(peer), f"{peer.version}, {match.peer} build"


def play(bench: Bench, match: Match) -> Iterator[Row]:
    """Run a match's pairs and draw its rows from them."""
    against, peer_name = opponent(bench, match)
    model = bench.file(match.file)
    prefill, decode = (512, bench.pick(64, 24)) if match.large else (512, 128)
    repeats = bench.pick(3, 1) if match.large else bench.pick(5, 2)
    bench.say(f"{name_of('speed', match)}: {repeats} pairs")
    work = Work(model, match.threads, prefill, decode)
    ours, theirs = contestants.interleave(contestants.genmote(match.isa), against, work, repeats)
    common = about(match.file) | {
        "threads": match.threads,
        "peer_name": peer_name,
        "unit": "tokens/s",
        "value_unit": "x",
        "ours_energy_mj": contestants.total_energy(ours),
        "peer_energy_mj": contestants.total_energy(theirs),
        "others_cores": contestants.disturbance(ours + theirs),
        "details": {"prefill_tokens": prefill, "decode_tokens": decode, "isa": ours[0].isa},
    }
    amx = "amx_int8" in cpu_flags()
    for what, asked, aim in (
        ("decode", match.decode, match.decode_aim),
        ("prefill", match.prefill, PREFILL_AIM_WITH_AMX if match.peer == AVX512 and amx else None),
    ):
        mine = [float(getattr(sample, what)) for sample in ours]
        other = [float(getattr(sample, what)) for sample in theirs]
        yield Row(
            name=name_of(what, match),
            measure=what,
            value=compare(mine, other),
            asked=asked,
            aim=aim,
            ours=statistics.median(mine),
            ours_samples=mine,
            peer=statistics.median(other),
            peer_samples=other,
            **common,
        )
    if match.peer == AVX512 and match.threads == 1:
        yield bandwidth(match, statistics.median(float(sample.decode or 0) for sample in ours))


def bandwidth(match: Match, tokens_per_s: float) -> Row:
    """Bytes of weights read a second in decode, as a share of what a plain read of as many bytes reaches right now."""
    size = files.weight_bytes(files.path(match.file))
    read = process.python("benchmarks.plain_read", str(size), str(match.threads)).json()
    return Row(
        name=f"share of a plain read's bandwidth, {files.title(match.file)}, {match.threads} thread",
        measure="bandwidth",
        value=tokens_per_s * size / read["bytes_per_s"],
        value_unit="of a plain read",
        asked=None,
        aim=BANDWIDTH_AIM,
        unit="GB/s",
        ours=tokens_per_s * size / 1e9,
        peer=read["bytes_per_s"] / 1e9,
        peer_name=f"plain read ({read['reader']})",
        threads=match.threads,
        details={"weight_bytes": size},
        **about(match.file),
    )
