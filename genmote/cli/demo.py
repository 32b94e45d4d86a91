"""A short tour: real recordings are measured, a small model explains them, and its speed and memory are shown.

    genmote demo
    genmote demo --no-peer --folder tour

The recordings are fetched once, like models. The pictures and a record of all figures go to --folder. Where the
package xllamacpp is installed, llama.cpp does the same work in a process of its own. The memory budget of the native
kernels is file + KV cache + 60 MB; a run that takes more ends with exit status 1.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Bar, Output, columns, size
from genmote.errors import GenmoteError, UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.recipes.peer import Peer
    from genmote.recipes.tour import Budget, Finding
    from genmote.runtime.engine import Engine
    from genmote.runtime.generation import Result

LINE, INDENT = 100, 13  # columns
RELAYING = "re-lay weights"  # what a first load tells of its progress
BUSY_CORES = 0.3  # more than this, and timings are disturbed


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = setting("a chat model's name (fetched if it is not here) or path", default="smollm2-135m")
    folder: Path = setting("where the pictures and the record go", default=Path("runs/demo"))
    ops: str | None = setting("op set: native, numpy or torch (default: the fastest here)", default=None)
    isa: str | None = setting("instruction set of the native kernels (default: the best here)", default=None)
    threads: int | None = setting("threads, the peer's too (default: one a physical core)", default=None)
    max_tokens: int = setting("most tokens of an answer", default=64, short="-n")
    peer: bool = setting("let llama.cpp do the same, where xllamacpp is installed", default=True)


def run(settings: Settings, out: Output) -> None:
    from genmote import Engine
    from genmote.recipes import tour

    out.say("1. Two real recordings, measured with NumPy")
    findings = []
    for measure in tour.FINDINGS:
        with Bar() as bar:
            finding = measure(bar)
        picture = save(settings.folder / f"{finding.name}.svg", finding.picture)
        findings.append(finding)
        out.say(f"\n   {finding.title}\n   {finding.carrier}")
        out.say(indented(columns([*map(list, finding.summary), ["picture", str(picture)]]), 5))
    company = tour.Company()
    seen: set[str] = set()
    with Bar() as bar:

        def progress(what: str, done: int, total: int) -> None:
            seen.add(what)
            bar(what, done, total)

        engine = Engine.load(
            settings.model,
            ops=settings.ops,
            isa=settings.isa,
            threads=settings.threads,
            context=tour.CONTEXT,
            progress=progress,
        )
    with engine:
        prompts = [tour.prompt(engine, finding) for finding in findings]
        allowed = tour.budget(engine)
        out.say(f"\n2. {settings.model} explains them{within(engine.ops_name, allowed)}")
        results = [answer(engine, finding, settings.max_tokens, out) for finding in findings]
        ours = tour.figures(engine, results) | {"relaid": RELAYING in seen}
    other, why_not = compare(settings, engine, prompts, results)
    values = told(findings, results, ours, allowed, other, why_not)
    values["others_cores"] = others = company.cores()
    values["record"] = record(settings.folder, values, engine)
    out.result(values, "\n" + speed(ours, other, why_not, others) + "\n" + memory(ours, allowed))
    if values["memory"]["held"] is False:
        raise GenmoteError(
            f"peak memory {size(ours['peak_rss_bytes'])} is above the budget of {size(allowed.total_bytes)}: "
            "please report it with what `genmote doctor` prints"
        )


def answer(engine: Engine, finding: Finding, max_tokens: int, out: Output) -> Result:
    """Ask about one recording, showing the answer as it comes."""
    from genmote.recipes import tour

    lines = textwrap.wrap(finding.asked, LINE - INDENT)
    out.say("\n   Question  " + f"\n{'':{INDENT}}".join(lines) + "\n   Answer    ", end="")
    stream = tour.ask(engine, finding, max_tokens)
    column = INDENT
    for piece in stream:
        text = piece.text.replace("\n", " ")
        if text.startswith(" ") and column + len(text) > LINE:
            out.say(f"\n{'':{INDENT}}", end="")
            text, column = text[1:], INDENT
        column += len(text)
        out.say(text, end="")
    odd = tour.invented(finding, stream.result.text)
    wrong = f"{', '.join(odd)} was neither measured nor given: a model this small errs"
    out.say(f"\n   Check     {wrong if odd else 'every number in it was measured or given'}")
    return stream.result


def compare(
    settings: Settings, engine: Engine, prompts: list[list[int]], results: list[Result]
) -> tuple[Peer | None, str]:
    """What llama.cpp takes for the same, or why it was not asked."""
    from genmote.recipes import peer

    if not settings.peer:
        return None, "llama.cpp was not asked (--no-peer)"
    if engine.model_path is None or not peer.here():
        return None, "to see llama.cpp beside it: pip install xllamacpp, or make bench for a fair comparison"
    tokens = [max(2, result.decode_tokens) for result in results]
    with Bar() as bar:
        bar("llama.cpp does the same in a process of its own", 0, 0)
        try:
            return peer.run(engine.model_path, prompts, tokens, engine.threads, engine.context), ""
        except GenmoteError as fault:
            return None, f"no comparison: {fault}"


def told(
    findings: list[Finding],
    results: list[Result],
    ours: dict[str, Any],
    allowed: Budget,
    other: Peer | None,
    why_not: str,
) -> dict[str, Any]:
    """The whole tour as one object."""
    from genmote.recipes import tour

    held = ours["peak_rss_bytes"] <= allowed.total_bytes if ours["ops"] == "native" else None
    return {
        "recordings": [
            {
                "name": finding.name,
                "title": finding.title,
                "carrier": finding.carrier,
                "measured": finding.figures,
                "question": finding.asked,
                "answer": result.text,
                "numbers_not_measured": tour.invented(finding, result.text),
            }
            for finding, result in zip(findings, results, strict=True)
        ],
        "genmote": ours,
        "peer": vars(other) if other else None,
        "peer_absent": why_not or None,
        "memory": {**vars(allowed), "budget_bytes": allowed.total_bytes, "held": held},
    }


def speed(ours: dict[str, Any], other: Peer | None, why_not: str, others: float | None) -> str:
    """The table of both, and what to think of it."""
    disturbed = others is not None and others > BUSY_CORES
    heads = ["llama.cpp", *([] if disturbed else ["ratio"])] if other else []
    rows = [["3. Speed and memory", "genmote", *heads]]
    for label, key, more_is_better in (
        ("   model loaded in, ms", "load_ms", False),
        ("   first word of the first answer after, ms", "first_token_ms", False),
        ("   reading the questions, tokens/s", "prefill_tokens_per_s", True),
        ("   writing the answers, tokens/s", "decode_tokens_per_s", True),
        ("   peak memory, MB", "peak_rss_bytes", False),
    ):
        scale = 1e6 if key.endswith("bytes") else 1.0
        row = [label, f"{ours[key] / scale:>7.0f}"]
        if other:
            theirs = float(getattr(other, key))
            better, worse = (ours[key], theirs) if more_is_better else (theirs, ours[key])
            row += [f"{theirs / scale:>9.0f}", f"{better / worse:>4.1f}x" if worse else ""]
        rows.append(row[: len(rows[0])])
    notes = [f"genmote: {ours['ops']} op set, {ours['threads']} threads; {other.name if other else why_not}."]
    if disturbed:
        notes.append(
            f"Other programs kept {others:.1f} cores busy meanwhile: the speeds mean little, and no ratio is given."
        )
    elif other:
        notes.append("One run each, only to give an idea: make bench measures with care.")
    if ours["relaid"]:
        notes.append("This first load re-laid the weights for the kernels and kept them so; the next ones are faster.")
    return "\n".join([columns(rows), "", *("   " + note for note in notes)])


def memory(ours: dict[str, Any], allowed: Budget) -> str:
    if ours["ops"] != "native":
        return f"   The memory budget is the native kernels'; the {ours['ops']} op set unpacks weights and takes more."
    verb = "held" if ours["peak_rss_bytes"] <= allowed.total_bytes else "EXCEEDED"
    peak = size(ours["peak_rss_bytes"])
    return f"   Memory budget {size(allowed.total_bytes)}: {verb}, the peak was {peak}, measuring and drawing included."


def within(ops: str, allowed: Budget) -> str:
    """What the model may take, told before it answers."""
    if ops != "native":
        return f", slowly: the {ops} op set reads a question in some ten seconds"
    file, cache, rest = size(allowed.file_bytes), size(allowed.kv_bytes), size(allowed.spare_bytes)
    return f" in at most {size(allowed.total_bytes)} of memory\n   (file {file}, KV cache {cache}, all else {rest})"


def record(folder: Path, values: dict[str, Any], engine: Engine) -> Path:
    """Append the figures to the folder's records."""
    from genmote import records
    from genmote.runtime.loading import file_sha256

    flat = {key: value for key, value in values["genmote"].items() if key != "threads"}
    flat |= {f"peer_{key}": value for key, value in (values["peer"] or {}).items() if key != "texts"}
    flat |= values["memory"]
    for found in values["recordings"]:
        flat |= {f"{found['name']}_{key}": value for key, value in found["measured"].items()}
    sha256 = None if engine.model_path is None else file_sha256(engine.model_path)
    path = folder / "records.jsonl"
    records.append(path, records.Record("demo", flat, model_sha256=sha256, threads=engine.threads))
    return path


def save(path: Path, text: str) -> Path:
    from genmote import home

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with home.atomic_write(path, "w") as out:
            out.write(text)
    except OSError as fault:
        raise UserError(f"{path} cannot be written ({fault.strerror}): choose another --folder") from None
    return path


def indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.splitlines())
