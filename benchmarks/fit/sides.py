"""The two sides inside a control group: ours under a budget, and llama.cpp with its file mapped or read."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import jailed, process
from benchmarks.bench import Bench
from benchmarks.disk_read import measure as disk_rate
from benchmarks.jailed import Held

THREADS = 2
#: How llama.cpp can be told to hold a model that hardly fits. As it comes it maps the file and re-lays the weights into
#: memory of its own; without re-laying the kernel drops mapped pages and reads them again; with direct reads no page of
#: the file stays beside the re-laid weights.
AS_IT_COMES: tuple[str, ...] = ()
MAPPED = ("--repack", "0")
DIRECT = ("-lm", "dio")


def prepare(bench: Bench, name: str) -> list[Path]:
    """The model file and its re-laid twin, made on first use: what is dropped from the page cache before a run."""
    model = bench.file(name)
    twin = model.with_suffix(".packed")
    if not twin.exists() and not cached(model):
        bench.say(f"re-laying {model.name}")
        if bench_made(model):
            process.python("benchmarks.fit.ours", "pack", str(model))
        else:  # beside it nothing is written: into the user's cache
            process.python("genmote.cli", "pack", str(model))
    return [model, *([twin] if twin.exists() else []), *cached(model)]


def bench_made(model: Path) -> bool:
    """Whether the benchmark made the file, so that its twin may lie beside it."""
    from benchmarks.files import FOLDER

    return model.parent == FOLDER


def cached(model: Path) -> list[Path]:
    """The re-laid file of the user's cache, if there is one."""
    from genmote.models import packed
    from genmote.models.gguf import ModelFile

    path = packed.path_of(ModelFile.open(model))
    return [path] if path.exists() else []


def ours(
    bench: Bench,
    name: str,
    limit: int | None,
    job: str,
    *words: object,
    budget: int | None = None,
    timeout_s: float = 600,
) -> Held:
    """A job of `benchmarks.fit.ours` within `limit`; `budget` (default: the limit) is what the engine is told."""
    drop = prepare(bench, name)
    sizes = ["--threads", str(THREADS)]
    if limit is not None or budget is not None:
        sizes += ["--memory", str(budget or limit)]
    more = [str(word) for word in words]
    return jailed.python(
        "benchmarks.fit.ours", job, str(drop[0]), *sizes, *more, memory_bytes=limit, drop=drop, timeout_s=timeout_s
    )


def llama_bench(
    bench: Bench,
    name: str,
    limit: int,
    options: Sequence[str],
    *,
    decode: int = 0,
    both: tuple[int, int] | None = None,
    timeout_s: float = 600,
) -> Held:
    """llama-bench within `limit`: `decode` tokens from an empty cache, or a prompt and tokens after it (`both`)."""
    drop = prepare(bench, name)
    work = ["-pg", f"{both[0]},{both[1]}"] if both else []
    command = [bench.peer("avx512").program("llama-bench"), "-m", str(drop[0]), "-p", "0", "-n", str(decode), *work]
    return jailed.run(
        [*command, "-t", str(THREADS), "-r", "1", "-o", "json", *options], limit, drop=drop, timeout_s=timeout_s
    )


def llama_rate(held: Held) -> float:
    """Tokens a second of llama-bench's last test."""
    return float(held.json()[-1]["avg_ts"])


def our_rate(held: Held) -> float:
    """Tokens a second that our side told."""
    return float(held.json()["tokens_per_s"])


def pairs(mine: Callable[[], Held], theirs: Callable[[], Held], repeats: int) -> tuple[list[Held], list[Held]]:
    """Samples A B, B A, A B, …, so that a drift of the machine falls on both alike."""
    first: list[Held] = []
    second: list[Held] = []
    for number in range(repeats):
        turns = [(mine, first), (theirs, second)]
        for side, samples in turns if number % 2 == 0 else reversed(turns):
            samples.append(side())
    return first, second


def sequential_rate(model: Path, seconds: float = 1.0) -> float:
    """Bytes a second of plain direct reads of the file: the best of one, two and four reads under way at a time."""
    return max(disk_rate(str(model), seconds, readers) for readers in (1, 2, 4))


def disturbance(samples: Sequence[Held]) -> float | None:
    """Median of the cores that other programs kept busy, or None where the system does not tell."""
    known = [sample.others_cores for sample in samples if sample.others_cores is not None]
    return statistics.median(known) if known else None


def peaks(samples: Sequence[Held]) -> dict[str, Any]:
    """The greatest figures of a side's samples, for a record's details."""
    figures = [sample.figures() for sample in samples]
    return {key: max((one[key] for one in figures if one[key] is not None), default=None) for key in figures[0]}


def genmote(*words: str, **options: Any) -> Any:
    """A verb's `--json` answer, outside any group."""
    code = "import sys; from genmote.cli import main; sys.exit(main())"
    return json.loads(process.run([sys.executable, "-c", code, *words, "--json"], **options).output)
