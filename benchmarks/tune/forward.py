"""Passes forward alone: how much of what backpropagation learns they learn, and what memory they take beside a plain
pass of the same batch."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.bench import Bench, about, missing
from benchmarks.measures.perplexity import corpus
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, AT_MOST, Row
from benchmarks.tune import intents

FILE = "smollm2-q4_1"
BATCH, CONTEXT = 4, 256
COMMON = ("--batch", "8", "--context", "64", "--rows", "512", "--threads", "1")
METHODS = {
    "backward": ("--steps", "116", "--judge-every", "58", "--rate", "0.001"),
    "forward": ("--method", "forward", "--steps", "120", "--judge-every", "60", "--rate", "0.06"),
}
PATIENCE_S = 4 * 3600


def measure(bench: Bench) -> Iterator[Row]:
    """Two rows: the share of the gap in accuracy that is closed, and the peak."""
    yield from learnt(bench)
    yield from peak(bench)


def learnt(bench: Bench) -> Iterator[Row]:
    name = "passes forward alone close of the gap to backpropagation, agent commands, SmolLM2-135M Q4_1"
    bench.say(name)
    try:
        with tempfile.TemporaryDirectory() as room:
            learn, test = intents.write(Path(room))
            model, found = str(bench.file(FILE)), dict[str, Any]()
            found["base"] = accuracy(model, test)
            for method, settings in METHODS.items():
                output = Path(room) / f"{method}.gguf"
                words = [model, str(learn), "-o", str(output), *COMMON, *settings, "--json"]
                made = process.run([sys.executable, "-m", "genmote.cli", "tune", *words], timeout_s=PATIENCE_S).json()
                found[method] = accuracy(model, test, output)
                found |= {f"{method}_{key}": made[key] for key in ("steps", "held_out_before", "held_out_after")}
                found[f"{method}_peak_rss_bytes"] = made["peak_rss_bytes"]
    except ContestantError as why:
        yield missing(name, "tune_forward", why, asked=60, sense=AT_LEAST, unit="%")
        return
    yield Row(
        name=name,
        measure="tune_forward",
        value=100 * (found["forward"] - found["base"]) / (found["backward"] - found["base"]),
        value_unit="%",
        asked=60,
        sense=AT_LEAST,
        unit="% of intents right",
        ours=100 * found["forward"],
        peer=100 * found["backward"],
        peer_name="backpropagation, the same examples",
        threads=1,
        details=found,
        **about(FILE),
    )


def accuracy(model: str, test: Path, adapter: Path | None = None) -> float:
    """The share of intents that a model names."""
    words = [model, str(test), *([] if adapter is None else ["--adapter", str(adapter)])]
    return float(process.python("benchmarks.tune.intents", *words, timeout_s=PATIENCE_S).json()["accuracy"])


def peak(bench: Bench) -> Iterator[Row]:
    name = f"peak of a step forward alone over a plain pass of the same {BATCH} x {CONTEXT} tokens, SmolLM2-135M Q4_1"
    bench.say(name)
    try:
        model = str(bench.file(FILE))
        with tempfile.TemporaryDirectory() as room:
            text = Path(room) / "text.txt"
            text.write_text(corpus().read_text(encoding="utf-8")[: 12 * BATCH * CONTEXT], encoding="utf-8")
            words = [model, str(text), "-o", str(Path(room) / "a.gguf"), "--method", "forward", "--threads", "1"]
            words += ["--batch", str(BATCH), "--context", str(CONTEXT), "--steps", "2", "--judge-every", "2", "--json"]
            ours = process.run([sys.executable, "-m", "genmote.cli", "tune", *words], timeout_s=PATIENCE_S)
            plain = process.python("benchmarks.tune.plain_pass", model, str(text), str(BATCH), str(CONTEXT))
    except ContestantError as why:
        yield missing(name, "tune_forward", why, asked=1.15, sense=AT_MOST)
        return
    yield Row(
        name=name,
        measure="tune_forward",
        value=ours.peak_rss_bytes / plain.peak_rss_bytes,
        value_unit="x",
        asked=1.15,
        sense=AT_MOST,
        unit="MB",
        ours=ours.peak_rss_bytes / 1e6,
        peer=plain.peak_rss_bytes / 1e6,
        peer_name="a plain pass",
        threads=1,
        **about(FILE),
    )
