"""Passes forward alone: how much of what backpropagation learns they learn, and what memory they take beside a plain
pass of the same batch.

    python -m benchmarks --set tune --only forward --seeds 3
    python -m benchmarks.tune.forward "motion labels" forward --steps 60 --rate 0.06

The second tells what a setting comes to on the development part, with which the settings below were chosen."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import process
from benchmarks.bench import Bench, about, missing
from benchmarks.measures.perplexity import corpus
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, AT_MOST, Row
from benchmarks.tune import intents, motions

FILE = "smollm2-q4_1"
BATCH, CONTEXT = 4, 256
COMMON = ("--batch", "8", "--context", "64", "--rows", "512", "--threads", "1")
PATIENCE_S = 4 * 3600


@dataclass(frozen=True)
class Task:
    """Examples, and the settings that did best on their development part: rate and steps by method."""

    unit: str
    write: Callable[[Path], dict[str, Path]]
    steps: int
    rates: dict[str, float]


TASKS = {
    "agent commands": Task("% of intents right", intents.write, 120, {"backward": 0.001, "forward": 0.06}),
    "motion labels": Task("% of activities right", motions.write, 240, {"backward": 0.001, "forward": 0.06}),
}


def measure(bench: Bench) -> Iterator[Row]:
    """Rows: of each task the share of the gap in accuracy that is closed, and the peak."""
    for name in TASKS:
        yield learnt(bench, name)
    yield from peak(bench)


def learnt(bench: Bench, task: str) -> Row:
    """Both methods by each seed, from the same examples in the same order."""
    name, asked = f"passes forward alone close of the gap to backpropagation, {task}, SmolLM2-135M Q4_1", TASKS[task]
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in asked.rates}
    try:
        with tempfile.TemporaryDirectory() as room:
            files, model = asked.write(Path(room)), str(bench.file(FILE))
            base = accuracy(model, files["test"])
            for seed in range(bench.seeds):
                for method, rate in asked.rates.items():
                    bench.say(f"{name}: {method}, seed {seed}")
                    found[method].append(trained(model, files, "test", method, asked.steps, rate, seed))
    except ContestantError as why:
        return missing(name, "tune_forward", why, asked=60, sense=AT_LEAST, unit="%")
    ours, peer = ([each["accuracy"] for each in found[method]] for method in ("forward", "backward"))
    return Row(
        name=name,
        measure="tune_forward",
        value=100 * (mean(ours) - base) / (mean(peer) - base),
        value_unit="%",
        asked=60,
        sense=AT_LEAST,
        unit=asked.unit,
        ours=100 * mean(ours),
        ours_samples=[100 * each for each in ours],
        peer=100 * mean(peer),
        peer_samples=[100 * each for each in peer],
        peer_name="backpropagation, the same examples",
        threads=1,
        seeds=bench.seeds,
        details={"base": base, "steps": asked.steps, "rates": asked.rates, **found},
        **about(FILE),
    )


def trained(
    model: str, files: dict[str, Path], judge: str, method: str, steps: int, rate: float, seed: int
) -> dict[str, Any]:
    """What a training came to: the share of the answers of the part `judge` that it gets right. Of its judgements it
    sees the development part alone."""
    output = files["learn"].with_name(f"{method}.gguf")
    words = [model, str(files["learn"]), "-o", str(output), "--held-out", str(files["development"]), *COMMON]
    words += ["--method", method, "--steps", str(steps), "--judge-every", str(steps), "--rate", str(rate)]
    words += ["--seed", str(seed), "--json"]
    made = process.run([sys.executable, "-m", "genmote.cli", "tune", *words], timeout_s=PATIENCE_S).json()
    kept = ("held_out_before", "held_out_after", "peak_rss_bytes", "seconds")
    return {"accuracy": accuracy(model, files[judge], output), **{key: made[key] for key in kept}}


def accuracy(model: str, test: Path, adapter: Path | None = None) -> float:
    """The share of answers that a model gets right."""
    words = [model, str(test), *([] if adapter is None else ["--adapter", str(adapter)])]
    return float(process.python("benchmarks.tune.answers", *words, timeout_s=PATIENCE_S).json()["accuracy"])


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


def main() -> int:
    """Print what one setting comes to on the development part of a task."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("method", choices=("backward", "forward"))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        files, model = TASKS[asked.task].write(Path(room)), str(Bench(quick=False).file(FILE))
        found = trained(model, files, "development", asked.method, asked.steps, asked.rate, asked.seed)
    print(json.dumps(vars(asked) | found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
