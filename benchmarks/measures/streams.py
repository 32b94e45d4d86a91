"""Four sessions decoded together beside one: tokens a second of all."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import contestants, files, process
from benchmarks.bench import Bench, about, missing
from benchmarks.process import ContestantError
from benchmarks.record import Row, compare

ASKED = 2.0
STREAMS = 4


def measure(bench: Bench) -> Iterator[Row]:
    """One row a file and number of threads."""
    for file, threads in (("smollm2-q4_0", 1), ("smollm2-q4_0", 2)):
        name = f"{STREAMS} streams together against one, {files.title(file)}, {threads} thread{'s' * (threads > 1)}"
        bench.say(name)
        together: list[process.Ran] = []
        alone: list[process.Ran] = []
        try:
            for _ in range(bench.pick(5, 3)):
                together.append(sample(bench, file, threads, STREAMS))
                alone.append(sample(bench, file, threads, 1))
        except ContestantError as why:
            yield missing(name, "streams", why, asked=ASKED)
            continue
        all_of_them, one = [rate(ran) for ran in together], [rate(ran) for ran in alone]
        yield Row(
            name=name,
            measure="streams",
            value=compare(all_of_them, one),
            value_unit="x",
            asked=ASKED,
            unit="tokens/s",
            ours=statistics.median(all_of_them),
            ours_samples=all_of_them,
            peer=statistics.median(one),
            peer_samples=one,
            peer_name="one stream of ours",
            threads=threads,
            others_cores=contestants.disturbance(together + alone),
            **about(file),
        )


def sample(bench: Bench, file: str, threads: int, streams: int) -> process.Ran:
    """A fresh process that decodes `streams` sessions together."""
    words = ("streams", str(bench.file(file)), "--threads", str(threads), "--streams", str(streams), "--decode", "64")
    return process.python("benchmarks.ours", *words)


def rate(ran: process.Ran) -> float:
    """Tokens a second of all streams."""
    return float(ran.json()["tokens_per_s"])
