"""The time of a step of the trainer on the device beside PEFT's, in turn, a thread each."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.bench import Bench, about, missing
from benchmarks.peers import cpu_flags
from benchmarks.process import ContestantError, busy_s
from benchmarks.record import AT_MOST, Row, compare
from benchmarks.tune.beside import FILE, LORA, peer, prepared, talking

PAIRS = 6


def measure(bench: Bench) -> Iterator[Row]:
    """One row: the median of the ratios pair by pair."""
    name = f"a step, {LORA}, one thread, over PEFT's"
    asked = 1.0 if "amx_bf16" in cpu_flags() else 1.6  # as asked where the processor has no products of matrices
    mine: list[float] = []
    other: list[float] = []
    try:
        with tempfile.TemporaryDirectory() as room:
            given = prepared(bench, Path(room), 1 + PAIRS)
            bench.say(name)
            command = [sys.executable, "-m", "benchmarks.tune.ours", str(bench.file(FILE)), str(given.arrays), "1"]
            with talking(command) as ours, peer(given, "float32", 1) as theirs:
                for side in (ours, theirs):  # the first step makes room
                    side("steps 1")
                before = busy_s()
                for _ in range(bench.pick(PAIRS, 2)):
                    mine += ours("steps 1")["seconds"]
                    other += theirs("steps 1")["seconds"]
                after = busy_s()
    except ContestantError as why:
        yield missing(name, "tune_step", why, asked=asked, sense=AT_MOST)
        return
    own = sum(mine) + sum(other)
    yield Row(
        name=name,
        measure="tune_step",
        value=compare(mine, other),
        value_unit="x",
        asked=asked,
        sense=AT_MOST,
        unit="s",
        ours=float(np.median(mine)),
        ours_samples=mine,
        peer=float(np.median(other)),
        peer_samples=other,
        peer_name="PEFT, float32",
        threads=1,
        others_cores=None if before is None or after is None else max(0.0, (after - before - own) / own),
        **about(FILE),
    )
