"""Methods of the workbench: what each takes beside what was planned, and what it learns in a few steps of one task."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import process
from benchmarks.bench import Bench, about, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row
from benchmarks.tune import intents
from genmote import registry
from genmote.tune.settings import ROOM

FILE = "smollm2-q4_1"
STEPS = 16
COMMON = ("--batch", "8", "--context", "64", "--steps", str(STEPS), "--judge-every", str(STEPS), "--threads", "1")
PATIENCE_S = 3600


def measure(bench: Bench) -> Iterator[Row]:
    """Two rows a method: the plan's error, and the held-out loss after beside that before. Whole models are written as
    Q8_0, and the loss is that of the file."""
    for method in registry.names(ROOM):
        planned = f"planned peak of --method {method}, agent commands, SmolLM2-135M: off by"
        learnt = (
            f"held-out loss after {STEPS} steps of --method {method} over that before, agent commands, SmolLM2-135M"
        )
        bench.say(learnt)
        try:
            with tempfile.TemporaryDirectory() as room:
                files = intents.write(Path(room))
                words = [str(bench.file(FILE)), str(files["learn"]), "-o", str(Path(room) / "mine.gguf"), *COMMON]
                words += ["--method", method, "--held-out", str(files["development"]), "--json"]
                words += [] if "lora" in method else ["--type", "Q8_0"]
                ran = process.run([sys.executable, "-m", "genmote.cli", "tune", *words], timeout_s=PATIENCE_S)
                made = ran.json()
        except ContestantError as why:
            yield missing(planned, "tune_methods", why, asked=10, sense=AT_MOST, unit="%")
            yield missing(learnt, "tune_methods", why)
            continue
        after = made["held_out_after"] if made["held_out_written"] is None else made["held_out_written"]
        told = (
            "steps",
            "rate",
            "held_out_before",
            "held_out_after",
            "held_out_written",
            "tokens_per_s",
            "output_bytes",
        )
        details = {key: made.get(key, made["card"]["settings"].get(key)) for key in told}
        yield Row(
            name=planned,
            measure="tune_methods",
            value=100 * abs(made["planned_bytes"] / ran.peak_rss_bytes - 1),
            value_unit="%",
            asked=10,
            sense=AT_MOST,
            unit="MB",
            ours=made["planned_bytes"] / 1e6,
            peer=ran.peak_rss_bytes / 1e6,
            peer_name="measured",
            threads=1,
            details=details,
            **about(FILE),
        )
        yield Row(
            name=learnt,
            measure="tune_methods",
            value=after / made["held_out_before"],
            value_unit="x",
            asked=None,
            unit="nats a token",
            ours=after,
            peer=made["held_out_before"],
            peer_name="before",
            threads=1,
            details=details,
            **about(FILE),
        )
