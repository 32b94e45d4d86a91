"""Steps of training of models that are too large for it elsewhere, in control groups with a memory limit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import files, jailed
from benchmarks.bench import Bench, about, missing
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, SEED, Row

OPT, LLAMA = "opt1.3b-q4_0", "llama7b-q4_0"
GB = 1_000_000_000
PATIENCE_S = 2 * 3600


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each model and way: what the group took at its peak, in a group that holds no more than was asked."""
    for file, method, batch, context, limit in (
        (OPT, "backward", 8, 128, GB),
        (OPT, "forward", 8, 128, GB),
        (LLAMA, "backward", 1, 128, 2 * GB),
    ):
        yield step(bench, file, method, batch, context, limit)


def step(bench: Bench, file: str, method: str, batch: int, context: int, limit: int) -> Row:
    """One step, begun with nothing of the model in the system's cache."""
    way = {"backward": "by exact gradients", "forward": "by passes forward alone"}[method]
    name = f"a step {way}, {batch} x {context} tokens, {files.title(file)}, in a group of {limit / GB:g} GB"
    bench.say(name)
    try:
        model = bench.file(file)
        with tempfile.TemporaryDirectory() as room:
            data, judge = Path(room) / "learn.jsonl", Path(room) / "judge.jsonl"
            tokens = np.random.default_rng(SEED).integers(3, 30_000, (batch + 1, context)).tolist()
            data.write_text("".join(json.dumps({"text": one}) + "\n" for one in tokens[:-1]), encoding="utf-8")
            judge.write_text(json.dumps({"text": tokens[-1][:8]}) + "\n", encoding="utf-8")
            words = [str(model), str(data), "-o", str(Path(room) / "a.gguf"), "--held-out", str(judge)]
            words += ["--method", method, "--batch", str(batch), "--context", str(context), "--steps", "1"]
            words += ["--memory", f"{0.9 * limit / 1e6:.0f}MB", "--threads", str(bench.cores), "--json"]
            ran = jailed.python("genmote.cli", "tune", *words, memory_bytes=limit, drop=[model], timeout_s=PATIENCE_S)
            told = ran.json()
    except ContestantError as why:
        return missing(name, "tune_large", why, asked=limit / 1e6, sense=AT_MOST, unit="MB")
    details = {key: told[key] for key in ("planned_bytes", "peak_rss_bytes", "seconds", "tokens_per_s", "notes")}
    return Row(
        name=name,
        measure="tune_large",
        value=ran.report.usage.peak_bytes / 1e6,
        value_unit="MB",
        asked=limit / 1e6,
        sense=AT_MOST,
        unit="MB, the process",
        ours=ran.report.peak_rss_bytes / 1e6,
        threads=bench.cores,
        others_cores=ran.others_cores,
        details=details | ran.figures(),
        **about(file),
    )
