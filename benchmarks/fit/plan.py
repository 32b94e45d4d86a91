"""What `genmote plan` predicts beside what a run takes: the greatest error over models, contexts, budgets, policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import files
from benchmarks.bench import Bench, missing
from benchmarks.fit import sides
from benchmarks.process import ContestantError
from benchmarks.record import AT_MOST, Row
from genmote.errors import GenmoteError

ASKED_PERCENT = 10.0
#: File, context, budget in bytes (None: unbounded), kind of KV cache, share of its rows that stay (None: all).
CASES: tuple[tuple[str, int, int | None, str | None, float | None], ...] = (
    ("smollm2-q4_1", 512, None, None, None),
    ("smollm2-q4_1", 2000, None, None, None),
    ("smollm2-q4_1", 2000, 96_000_000, None, None),
    ("smollm2-q4_1", 2000, 70_000_000, "int4", 0.5),
    ("smollm2-q4_1", 2000, 150_000_000, "int8", None),
    ("smollm2-q8_0", 1024, 128_000_000, None, None),
    ("smollm2-q4_1", 2000, 76_000_000, None, 0.25),
    ("smollm2-q4_1", 2000, 100_000_000, "int4", 0.5),
    ("gemma3", 1024, None, None, None),
    ("gemma3", 1024, 200_000_000, None, None),
    ("gemma3", 2000, 150_000_000, "int4", 0.25),
    ("llama1b-q4_0", 1024, None, None, None),
    ("llama1b-q4_0", 512, 400_000_000, "int4", None),
    ("llama7b-q4_0", 128, 1_500_000_000, None, None),
)
QUICK = 6


def measure(bench: Bench) -> Iterator[Row]:
    """A row for the greatest error, in which a case that failed counts as wholly wrong."""
    from genmote.models.gguf import ModelFile
    from genmote.runtime import footprint, trial
    from genmote.runtime.plan import plan

    name = "predicted peak off the measured one, the worst case"
    found: list[dict[str, object]] = []
    failed: list[str] = []
    errors: list[float] = []
    for file, context, budget, kv, share in CASES[: bench.pick(len(CASES), QUICK)]:
        case = f"{files.title(file)}, {context} tokens" + (f", {budget / 1e6:.0f} MB" if budget else "")
        case += f", {kv}" if kv else ""
        case += f", {share:.0%} of the rows" if share else ""
        bench.say(f"plan: {case}")
        try:
            model = sides.prepare(bench, file)[0]
            asked: dict[str, Any] = {
                "memory": budget,
                "context": context,
                "kv": kv,
                "kv_tokens": share,
                "threads": sides.THREADS,
            }
            # This process, which holds more than a plain Python, is not the one that will run.
            made = plan(ModelFile.open(model), interpreter=footprint.INTERPRETER_BYTES, **asked)
            took = trial.measured(model, made)
        except (GenmoteError, ContestantError) as why:
            failed.append(f"{case}: {why}")
            continue
        peak = max(took["peak_rss_bytes"], took.get("group_peak_bytes") or 0)
        errors.append((made.predicted_bytes / peak - 1) * 100)
        found.append({"case": case, "predicted_bytes": made.predicted_bytes, "peak_bytes": peak, "error": errors[-1]})
    note = "; ".join(failed)
    if not errors:
        yield missing(name, "fit_plan", note, asked=ASKED_PERCENT, sense=AT_MOST, unit="%")
        return
    yield Row(
        name=name,
        measure="fit_plan",
        value=max([abs(error) for error in errors] + [100.0] * len(failed)),
        value_unit="%",
        asked=ASKED_PERCENT,
        sense=AT_MOST,
        unit="%",
        threads=sides.THREADS,
        note=note,
        details={"cases": found, "failed": failed},
    )
