"""What a result cost and gained: the original and the compressed model, measured alike, as one record.

    told = measure(original, compressed, text=..., text_name="wiki.test.raw", steps=made.steps)
    records.append("small.json", told)
    print(summary(told))

`report_page.py` draws the same record as a page.
"""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genmote.compress.evaluate import Loss, compare, sizes, whole_windows
from genmote.errors import SpecError
from genmote.fetch import Progress, quiet
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.tokenizer import load_tokenizer
from genmote.records import Record
from genmote.runtime import trial

WHAT = "compress"
CONTEXT = 512
RUN = 320  # tokens of the run whose speed and memory are told, a fifth of them written
SAMPLES = 3  # of it; the fastest counts: whatever else runs only slows it
RAN = ("decode_tokens_per_s", "prefill_tokens_per_s", "peak_rss_bytes", "load_ms", "prompt_tokens", "decode_tokens")
RECIPE = "genmote.compress.recipe"


def check_text(original: Path, text: str, name: str) -> None:
    """Raise SpecError for a text that is too short for `measure`: to be asked before the model is compressed."""
    file = ModelFile.open(original)
    tokens = load_tokenizer(file).encode(text, bos=False)
    whole_windows(tokens, min(CONTEXT, read_config(file).context_length), name)


def measure(
    original: Path,
    compressed: Path,
    *,
    text: str,
    text_name: str,
    steps: Sequence[Mapping[str, Any]] = (),
    search: Mapping[str, Any] | None = None,
    scores: Mapping[str, tuple[float, float]] | None = None,
    windows: int | None = None,
    progress: Progress = quiet,
) -> Record:
    """Both models on `text` and in a process of their own.

    `steps`: as `Compressed.steps`; `search`: plain values of what a search found; `scores`: of each task what the
    original and the compressed model reached, 0 to 1, by whatever measured them. Raises what `compare` raises, and
    GenmoteError where a model does not run.
    """
    from genmote.runtime.engine import Engine

    before, after = ModelFile.open(original), ModelFile.open(compressed)
    with Engine.load(original) as one, Engine.load(compressed) as other:
        context = min(CONTEXT, one.context, other.context)
        found = compare(
            one,
            other,
            text,
            context=context,
            windows=windows,
            progress=lambda done, total: progress("comparing both models", done, total),
        )
        threads, room = other.threads, min(RUN, one.context, other.context)
    runs = []
    for number, path in enumerate((original, compressed)):
        progress("running both models", number, 2)
        runs.append(_run(path, room))
    progress("running both models", 2, 2)
    recipe = json.loads(after.metadata.get(RECIPE, "null"))
    values = {
        "original": _side(before, found.original, runs[0]),
        "compressed": _side(after, found.compressed, runs[1]),
        "perplexity_ratio": found.perplexity_ratio,
        "kl_nats_per_token": found.kl,
        "agreement": found.agreement,
        "scores": {name: {"original": a, "compressed": b} for name, (a, b) in (scores or {}).items()},
        "text": text_name,
        "windows": found.windows,
        "context": found.context,
        "recipe": recipe,
        "steps": [dict(step) for step in steps],
        "search": search,
    }
    seed = recipe["calibration"]["seed"] if recipe else None
    return Record(WHAT, values, model_sha256=after.sha256(), seed=seed, threads=threads)


def _side(file: ModelFile, loss: Loss, ran: Mapping[str, Any]) -> dict[str, Any]:
    """One model's figures."""
    found = sizes(file)
    return {
        "name": file.path.name,
        "sha256": file.sha256(),
        "size_bytes": found.total,
        "parts_bytes": found.parts,
        "bits_per_weight": found.bits_per_weight,
        "types": {info.name: info.type for info in file.tensors.values() if len(info.shape) > 1},
        **asdict(loss),
        **{key: ran[key] for key in RAN},
    }


def _run(path: Path, context: int) -> dict[str, Any]:
    """The model in a process of its own: figures of `runtime.trial`."""
    settings = {"model": os.fspath(path), "context": context, "tokens": context // 5}
    found = []
    for _ in range(SAMPLES):
        ran = subprocess.run(trial.command(settings), stdout=subprocess.PIPE, check=False)
        found.append(trial.figures(ran.stdout))
    fastest = max(found, key=lambda one: float(one["decode_tokens_per_s"]))
    return fastest | {"prefill_tokens_per_s": max(one["prefill_tokens_per_s"] for one in found)}


def load(path: Path) -> Record:
    """The report in a file; SpecError where there is none."""
    from genmote import records

    try:
        with warnings.catch_warnings(action="ignore"):  # of lines that are none: what follows tells it once
            found = [record for record in records.read(path) if record.what == WHAT]
    except OSError as fault:
        raise SpecError(
            f"{path}: cannot be read ({fault.strerror}): wanted a report that compress --report wrote"
        ) from None
    if not found or not {"original", "compressed", "perplexity_ratio"} <= found[-1].values.keys():
        raise SpecError(f"{path}: holds no report: wanted the JSON that compress --report wrote")
    return found[-1]


def rows(told: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was measured, for people: its name, before, after, and how they compare."""
    a, b = told["original"], told["compressed"]

    def times(key: str) -> str:
        return f"{b[key] / a[key]:.3f}x" if a[key] else ""

    listed = [
        ("file", _mb(a["size_bytes"]), _mb(b["size_bytes"]), times("size_bytes")),
        ("bits per weight", f"{a['bits_per_weight']:.2f}", f"{b['bits_per_weight']:.2f}", times("bits_per_weight")),
        (
            "perplexity",
            f"{a['perplexity']:.3f}",
            f"{b['perplexity']:.3f}",
            "" if told["perplexity_ratio"] is None else times("perplexity"),
        ),
        ("bits per byte", f"{a['bits_per_byte']:.4f}", f"{b['bits_per_byte']:.4f}", times("bits_per_byte")),
    ]
    if told["kl_nats_per_token"] is not None:
        listed.append(("KL divergence, nats a token", "", f"{told['kl_nats_per_token']:.4f}", ""))
        listed.append(("same likeliest token", "", f"{told['agreement']:.1%}", ""))
    for name, score in told["scores"].items():
        change = score["compressed"] - score["original"]
        listed.append((name, f"{score['original']:.1%}", f"{score['compressed']:.1%}", f"{100 * change:+.1f} points"))
    for label, key in (("writes, tokens/s", "decode_tokens_per_s"), ("reads, tokens/s", "prefill_tokens_per_s")):
        listed.append((label, f"{a[key]:.4g}", f"{b[key]:.4g}", times(key)))
    listed.append(("peak memory", _mb(a["peak_rss_bytes"]), _mb(b["peak_rss_bytes"]), times("peak_rss_bytes")))
    return listed


def summary(record: Record) -> str:
    """The report for a terminal: a table, what it was measured on, where the bytes are, and what each step took."""
    told = record.values
    a, b = told["original"], told["compressed"]
    table = [("", a["name"], b["name"], ""), *rows(told)]
    table.append(("", "", "", ""))
    for part in {**a["parts_bytes"], **b["parts_bytes"]}:
        before, after = a["parts_bytes"].get(part, 0), b["parts_bytes"].get(part, 0)
        table.append((part, _mb(before), _mb(after), f"{after / before:.3f}x" if before else ""))
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3))]).rstrip()
        for row in table
    ]
    lines += ["", measured_on(record)]
    if (device := expected_on(told["search"])) is not None:
        lines.append(f"Expected: {device}.")
    for step in told["steps"]:
        lines.append(f"step {step['use']}: {step['seconds']:.0f} s" + (f"; {step['note']}" if step.get("note") else ""))
    return "\n".join(lines)


def measured_on(record: Record) -> str:
    """What text and machine the figures are of, in words."""
    told = record.values
    return (
        f"Measured on {told['text']}, {told['windows']} windows of {told['context']} tokens, the second half of each "
        f"scored. Speeds and memory: {told['compressed']['prompt_tokens']} "
        f"tokens read and {told['compressed']['decode_tokens']} written on {record.device['cpu']}, "
        f"{record.threads} threads."
    )


def expected_on(search: Mapping[str, Any] | None) -> str | None:
    """What a search expects of the device that it was for, in words; None where none was named."""
    if search is None or search.get("device") is None:
        return None
    after, before = (
        "does not fit its memory" if speed is None else f"{speed:.3g} tokens/s"
        for speed in (search["expected_tokens_per_s"], search["original_expected_tokens_per_s"])
    )
    return f"{after} on {search['device']}, the original {before}; by that machine's figures, not measured"


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
