"""Two threads while another program spins on one of the two cores, beside one undisturbed thread."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import contestants, files
from benchmarks.bench import Bench, about, missing
from benchmarks.contestants import Contestant, Work
from benchmarks.process import ContestantError, spinning
from benchmarks.record import Row

ASKED = 0.5
FILE = "smollm2-q4_0"


def measure(bench: Bench) -> Iterator[Row]:
    """Ours against the asked half, and llama.cpp's share of its own one-thread speed beside it."""
    name = f"two threads beside a spinning program, decode, {files.title(FILE)}"
    if bench.cores != 2:
        yield missing(name, "contention", f"asked for two cores, this process has {bench.cores}", asked=ASKED)
        return
    bench.say(name)
    repeats = bench.pick(3, 2)
    ours = shares(bench, contestants.genmote(), repeats)
    details = {"undisturbed_tokens_per_s": ours[1], "ratio": "disturbed two threads to undisturbed one thread"}
    peer_name, peer_share = None, None
    try:
        peer = bench.peer("avx512")
        theirs = shares(bench, contestants.llama_bench(peer), repeats)
        peer_name, peer_share = f"{peer.version}, avx512 build", theirs[0]
        details |= {"peer_undisturbed_tokens_per_s": theirs[1]}
    except ContestantError as why:
        details |= {"peer_absent": str(why)}
    yield Row(
        name=name,
        measure="contention",
        value=ours[0],
        value_unit="of one undisturbed thread",
        asked=ASKED,
        unit="of one undisturbed thread",
        ours=ours[0],
        ours_samples=ours[2],
        peer=peer_share,
        peer_name=peer_name,
        threads=2,
        details=details,
        **about(FILE),
    )


def shares(bench: Bench, contestant: Contestant, repeats: int) -> tuple[float, float, list[float]]:
    """Median share, median undisturbed tokens a second, and the shares. Both speeds are taken in turns."""
    model = bench.file(FILE)
    found, alone = [], []
    for _ in range(repeats):
        quiet = contestant(Work(model, 1, 0, 64)).decode or 0.0
        # Few tokens: a peer that falls to a few per cent would otherwise take minutes here.
        with spinning(0):
            loud = contestant(Work(model, 2, 0, 32)).decode or 0.0
        alone.append(quiet)
        found.append(loud / quiet)
    return statistics.median(found), statistics.median(alone), found
