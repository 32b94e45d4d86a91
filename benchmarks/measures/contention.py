"""Two threads while another program spins on one of the two cores, beside one undisturbed thread."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import contestants, files
from benchmarks.bench import Bench, about, missing
from benchmarks.contestants import Contestant, Speed, Work
from benchmarks.process import ContestantError, spinning
from benchmarks.record import Row

ASKED = 0.5
FILE = "smollm2-q4_0"


@dataclass(frozen=True)
class Shares:
    """Speed of two disturbed threads as a share of one undisturbed, sample by sample, and the undisturbed samples."""

    shares: list[float]
    alone: list[Speed]

    @property
    def median(self) -> float:
        return statistics.median(self.shares)

    @property
    def undisturbed(self) -> float:
        """Median tokens a second of one undisturbed thread."""
        return statistics.median(float(sample.decode or 0) for sample in self.alone)


def measure(bench: Bench) -> Iterator[Row]:
    """Ours against the asked half, and llama.cpp's share of its own one-thread speed beside it."""
    name = f"two threads beside a spinning program, decode, {files.title(FILE)}"
    if bench.cores != 2:
        yield missing(name, "contention", f"asked for two cores, this process has {bench.cores}", asked=ASKED)
        return
    bench.say(name)
    repeats = bench.pick(3, 2)
    try:
        ours = shares(bench, contestants.genmote(), repeats)
    except ContestantError as why:
        yield missing(name, "contention", why, asked=ASKED)
        return
    details = {"undisturbed_tokens_per_s": ours.undisturbed, "ratio": "disturbed two threads to undisturbed one thread"}
    peer_name, peer_share = None, None
    try:
        peer = bench.peer("avx512")
        theirs = shares(bench, contestants.llama_bench(peer), repeats)
        peer_name, peer_share = f"{peer.version}, avx512 build", theirs.median
        details |= {"peer_undisturbed_tokens_per_s": theirs.undisturbed}
    except ContestantError as why:
        details |= {"peer_absent": str(why)}
    yield Row(
        name=name,
        measure="contention",
        value=ours.median,
        value_unit="of one undisturbed thread",
        asked=ASKED,
        unit="of one undisturbed thread",
        ours=ours.median,
        ours_samples=ours.shares,
        peer=peer_share,
        peer_name=peer_name,
        threads=2,
        others_cores=contestants.disturbance(ours.alone),
        details=details,
        **about(FILE),
    )


def shares(bench: Bench, contestant: Contestant, repeats: int) -> Shares:
    """Both speeds in turns, `repeats` times."""
    model = bench.file(FILE)
    found: list[float] = []
    alone: list[Speed] = []
    for _ in range(repeats):
        alone.append(contestant(Work(model, 1, 0, 64)))
        # Few tokens: a peer that falls to a few per cent would otherwise take minutes here.
        with spinning(min(os.sched_getaffinity(0))):
            loud = contestant(Work(model, 2, 0, 32))
        found.append(float(loud.decode or 0) / float(alone[-1].decode or 0))
    return Shares(found, alone)
