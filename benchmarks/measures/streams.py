"""Four sessions decoded together beside one: tokens a second of all."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import files, process
from benchmarks.bench import Bench, about
from benchmarks.process import ContestantError
from benchmarks.record import Row, compare

ASKED = 2.0
STREAMS = 4


def measure(bench: Bench) -> Iterator[Row]:
    """One row a file and number of threads."""
    for file, threads in (("smollm2-q4_0", 1), ("smollm2-q4_0", 2)):
        name = f"{STREAMS} streams together against one, {files.title(file)}, {threads} thread{'s' * (threads > 1)}"
        bench.say(name)
        try:
            together, alone = [], []
            for _ in range(bench.pick(5, 3)):
                together.append(sample(bench, file, threads, STREAMS))
                alone.append(sample(bench, file, threads, 1))
        except ContestantError as why:
            yield Row(name=name, measure="streams", value=None, value_unit="x", asked=ASKED, note=str(why))
            continue
        yield Row(
            name=name,
            measure="streams",
            value=compare(together, alone),
            value_unit="x",
            asked=ASKED,
            unit="tokens/s",
            ours=statistics.median(together),
            ours_samples=together,
            peer=statistics.median(alone),
            peer_samples=alone,
            peer_name="one stream of ours",
            threads=threads,
            **about(file),
        )


def sample(bench: Bench, file: str, threads: int, streams: int) -> float:
    """Tokens a second of all streams, in a fresh process."""
    words = ("streams", str(bench.file(file)), "--threads", str(threads), "--streams", str(streams), "--decode", "64")
    return float(process.python("benchmarks.ours", *words).json()["tokens_per_s"])
