"""A tenth of the examples, chosen by `genmote tune --select auto`: its quality beside all of them and beside a tenth by
chance, and its time beside that of all.

Quality is the share of a test whose answers are said whole (`exact.py`). Of time it is the processor's that counts,
from the model's loading to the adapter's writing, the choosing with it. A part is learnt from for `ROUNDS` rounds, all
of the examples for one. Five draws by chance; the choice by `auto` with three seeds, which give its trials, the
adapter's first numbers and the order of the examples.

What was measured is kept in `build/bench-deft/` until a task's rows are made, so that a run that is broken off goes on.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.bench import Bench, about, missing
from benchmarks.files import FOLDER
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, AT_MOST, Row
from benchmarks.tune.deft_sets import TASKS, Pair, split

FILE = "smollm2-q4_1"
KEEP, BATCH, ROUNDS, JUDGED = 0.1, 2, 3.0, 16
COMMON = ("--rank", "4", "--batch", str(BATCH), "--rate", "0.002", "--context", "64", "--rows", "256", "--threads", "1")
DRAWS = {"random": 5, "auto": 3}
PATIENCE_S = 4 * 3600
WORK = FOLDER.parent / "bench-deft"


def measure(bench: Bench) -> Iterator[Row]:
    """Three rows of each task: quality beside all examples, beside chance, and time."""
    if unknown := sorted(set(bench.parts) - set(TASKS)):
        raise SystemExit(f"bench: deft has no part {unknown[0]!r}; there are {', '.join(TASKS)}")
    for task in bench.parts or TASKS:
        yield from of(bench, task)


def of(bench: Bench, task: str) -> Iterator[Row]:
    title = TASKS[task][0]
    names = (
        f"a tenth of the examples, chosen by auto, reaches of the quality of all, {title}, SmolLM2-135M Q4_1",
        f"the same over a tenth by chance, in standard deviations of {DRAWS['random']} draws, {title}",
        f"choosing and learning over learning from all, processor time, {title}",
    )
    try:
        found = measured(bench, task)
    except ContestantError as why:
        for name, asked, sense in zip(names, (97, 1, 40), (AT_LEAST, AT_LEAST, AT_MOST), strict=True):
            yield missing(name, "tune_deft", why, asked=asked, sense=sense)
        return
    quality = {way: [100 * each["right"] for each in some] for way, some in found.items()}
    cpu_s = {way: [each["cpu_s"] for each in some] for way, some in found.items()}
    mean = {way: statistics.mean(some) for way, some in quality.items()}
    common: dict[str, Any] = {"measure": "tune_deft", "threads": 1, **about(FILE)}
    details = {"task": task, "rounds": ROUNDS, "settings": " ".join(COMMON), "runs": found, "cpu_s": cpu_s}
    yield Row(
        name=names[0],
        value=100 * mean["auto"] / max(mean["all"], 1e-9),
        value_unit="%",
        asked=97,
        sense=AT_LEAST,
        unit="% of answers right",
        ours=mean["auto"],
        ours_samples=quality["auto"],
        peer_name="all examples",
        peer=mean["all"],
        peer_samples=quality["all"],
        seeds=DRAWS["auto"],
        details=details,
        **common,
    )
    spread = statistics.stdev(quality["random"])
    yield Row(
        name=names[1],
        value=(mean["auto"] - mean["random"]) / max(spread, 1e-9),
        value_unit="x",
        asked=1,
        sense=AT_LEAST,
        unit="% of answers right",
        ours=mean["auto"],
        ours_samples=quality["auto"],
        peer_name="a tenth by chance",
        peer=mean["random"],
        peer_samples=quality["random"],
        seeds=DRAWS["auto"],
        details={"task": task, "spread": spread, "best_by_chance": max(quality["random"])},
        **common,
    )
    yield Row(
        name=names[2],
        value=100 * statistics.mean(cpu_s["auto"]) / cpu_s["all"][0],
        value_unit="%",
        asked=40,
        sense=AT_MOST,
        unit="s",
        ours=statistics.mean(cpu_s["auto"]),
        ours_samples=cpu_s["auto"],
        peer_name="all examples",
        peer=cpu_s["all"][0],
        peer_samples=cpu_s["all"],
        details={"task": task, "random_s": statistics.mean(cpu_s["random"])},
        **common,
    )


def measured(bench: Bench, task: str) -> dict[str, list[dict[str, Any]]]:
    """Each way's runs: `right`, `cpu_s`, what was told."""
    learn, development, test = split(task)
    room = WORK / task
    room.mkdir(parents=True, exist_ok=True)
    for name, some in (("learn", learn), ("judge", development[:JUDGED]), ("test", test)):
        _write(room / f"{name}.jsonl", some)
    runs = [
        ("all", 0),
        *sorted(((way, n) for way, draws in DRAWS.items() for n in range(draws)), key=lambda run: run[1]),
    ]
    found: dict[str, list[dict[str, Any]]] = {"all": [], **{way: [] for way in DRAWS}}
    for way, seed in runs:
        bench.say(f"{task}: {way}, seed {seed}")
        found[way].append(_run(bench, room, way, seed, len(learn)))
    shutil.rmtree(room)
    return found


def _run(bench: Bench, room: Path, way: str, seed: int, total: int) -> dict[str, Any]:
    kept, model = room / f"{way}-{seed}.json", str(bench.file(FILE))
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    adapter = room / f"{way}-{seed}.gguf"
    rounds, count = (1.0, total) if way == "all" else (ROUNDS, math.ceil(KEEP * total))
    steps = str(round(rounds * count / BATCH))
    words = [model, str(room / "learn.jsonl"), "-o", str(adapter), "--held-out", str(room / "judge.jsonl"), *COMMON]
    words += ["--steps", steps, "--judge-every", steps, "--seed", str(seed), "--json"]
    words += [] if way == "all" else ["--select", way, "--keep", str(KEEP)]
    made = process.run([sys.executable, "-m", "genmote.cli", "tune", *words], timeout_s=PATIENCE_S).json()
    told = process.python("benchmarks.tune.exact", model, str(room / "test.jsonl"), "--adapter", str(adapter)).json()
    found = {"right": told["right"], "cpu_s": made["cpu_s"], "steps": made["steps"], "notes": made["notes"]}
    adapter.unlink()
    kept.write_text(json.dumps(found))
    return found


def _write(path: Path, pairs: Sequence[Pair]) -> None:
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
