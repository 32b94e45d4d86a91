"""A short tour: real recordings are measured, a small model explains them, and its speed and memory are shown.

    genmote demo
    genmote demo --device pi-4b-2gb
    genmote demo --no-jail --no-peer --folder tour

The recordings are fetched once, like models. The model answers in a jail with the memory, the cores and the disk rate
of --device, as far as this machine lets control groups be made; what was planned for it is shown beside what it took.
The pictures and a record of all figures go to --folder. Where the package xllamacpp is installed, llama.cpp does the
same work in a process of its own, outside the jail. The memory budget of the native kernels is file + KV cache + 60 MB;
a run that takes more ends with exit status 1.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Bar, Output, columns, size
from genmote.errors import GenmoteError, UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.device.jail import Report
    from genmote.device.profile import Profile
    from genmote.recipes.answers import Answers, Request
    from genmote.recipes.peer import Peer
    from genmote.recipes.tour import Budget, Finding
    from genmote.runtime.plan import Plan

BUSY_CORES = 0.3  # more than this, and timings are disturbed


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = setting("a chat model's name (fetched if it is not here) or path", default="smollm2-135m")
    folder: Path = setting("where the pictures and the record go", default=Path("runs/demo"))
    device: str = setting("the board in whose jail the model answers", default="pi-zero-2w")
    jail: bool = setting("run the model in the board's jail, where one can be made", default=True)
    ops: str | None = setting("op set: native, numpy or torch (default: the fastest here)", default=None)
    isa: str | None = setting("instruction set of the native kernels (default: the best here)", default=None)
    threads: int | None = setting("threads, the peer's too (default: one a physical core)", default=None)
    max_tokens: int = setting("most tokens of an answer", default=64, short="-n")
    peer: bool = setting("let llama.cpp do the same, where xllamacpp is installed", default=True)


def run(settings: Settings, out: Output) -> None:
    from genmote.cli._model import find
    from genmote.device import profile
    from genmote.recipes import tour
    from genmote.recipes.answers import Request

    device = profile.runnable(settings.device) if settings.jail else None
    out.say("1. Two real recordings, measured with NumPy")
    findings = []
    for measure in tour.FINDINGS:
        with Bar() as bar:
            finding = measure(bar)
        picture = save(settings.folder / f"{finding.name}.svg", finding.picture)
        findings.append(finding)
        out.say(f"\n   {finding.title}\n   {finding.carrier}")
        out.say(indented(columns([*map(list, finding.summary), ["picture", str(picture)]]), 5))
    asked = Request(
        model=settings.model if device is None else str(find(settings.model)),
        questions=tuple(finding.question for finding in findings),
        ops=settings.ops,
        isa=settings.isa,
        threads=settings.threads,
        max_tokens=settings.max_tokens,
        loud=not out.json,
    )
    company = tour.Company()
    out.say(f"\n2. {settings.model} explains them")
    made = None if device is None else planned(asked, device)
    found, report, why_open = answered(asked, device, made, out)
    ours, allowed = found.figures, found.allowed
    other, why_not = compare(settings, found)
    values = told(findings, found, other, why_not) | jailed(settings, made, report, why_open)
    values["others_cores"] = others = company.cores()
    values["record"] = record(settings.folder, values, found)
    text = "\n" + speed(ours, other, why_not, others) + "\n" + memory(ours, allowed)
    out.result(values, text + board(device, made, ours, report, why_open))
    if values["memory"]["held"] is False:
        raise GenmoteError(
            f"peak memory {size(ours['peak_rss_bytes'])} is above the budget of {size(allowed.total_bytes)}: "
            "please report it with what `genmote doctor` prints"
        )


def planned(asked: Request, device: Profile) -> Plan:
    """What the board's memory will hold. Raises BudgetError where the model does not fit."""
    from genmote.models.gguf import ModelFile
    from genmote.recipes.tour import CONTEXT
    from genmote.runtime.footprint import INTERPRETER_BYTES
    from genmote.runtime.plan import plan
    from genmote.runtime.roofline import Machine
    from genmote.runtime.threads import checked_threads

    return plan(
        ModelFile.open(asked.model),
        memory=device.usable_bytes,
        context=CONTEXT,
        threads=checked_threads(asked.threads),
        machine=Machine.of(device),
        interpreter=INTERPRETER_BYTES,
    )


def answered(
    asked: Request, device: Profile | None, made: Plan | None, out: Output
) -> tuple[Answers, Report | None, str]:
    """What the model says: in the board's jail, or here with the reason why."""
    from genmote.recipes import answers

    if device is None or made is None:
        return answers.run(asked, out.say, Bar), None, "--no-jail"
    limits = (
        f"{size(device.usable_bytes)} of memory, {device.compute.cores} cores, disk {device.storage.read_mb_s:g} MB/s"
    )
    lines: list[str] = []
    if native(asked):  # the one op set that keeps to a budget by itself too
        asked = replace(asked, memory_bytes=device.usable_bytes)
    try:
        out.say(f"   in the jail of a {device.title}: {limits};\n   {size(made.predicted_bytes)} are planned")
        found, report = answers.in_jail(asked, device, Path(asked.model), lines.append)
    except UserError as fault:  # no right to make control groups, mostly
        kept = f" within {size(asked.memory_bytes)} that it keeps to itself" if asked.memory_bytes else ""
        out.say(f"   No jail can be made here ({fault}).\n   It goes on outside{kept}.")
        return answers.run(asked, out.say, Bar), None, str(fault)
    return found, report, "; ".join(lines)


def native(asked: Request) -> bool:
    """Whether the native op set will compute."""
    wanted = asked.ops or os.environ.get("GENMOTE_OPS") or "native"
    return wanted == "native" and importlib.util.find_spec("genmote.ops._native") is not None


def compare(settings: Settings, found: Answers) -> tuple[Peer | None, str]:
    """What llama.cpp takes for the same, or why it was not asked."""
    from genmote.recipes import peer

    if not settings.peer:
        return None, "llama.cpp was not asked (--no-peer)"
    if found.model_path is None or not peer.here():
        return None, "to see llama.cpp beside it: pip install xllamacpp, or make bench for a fair comparison"
    tokens = [max(2, count) for count in found.tokens]
    threads = found.figures["threads"]
    with Bar() as bar:
        bar("llama.cpp does the same in a process of its own", 0, 0)
        try:
            return peer.run(Path(found.model_path), found.prompts, tokens, threads, found.context), ""
        except GenmoteError as fault:
            return None, f"no comparison: {fault}"


def jailed(settings: Settings, made: Plan | None, report: Report | None, why_open: str) -> dict[str, Any]:
    """The board, its plan and what its jail counted, as values."""
    return {
        "device": settings.device if report is not None else None,
        "no_jail": None if report is not None else why_open,
        "plan": None if made is None else made.values(),
        "jail": None if report is None else report.values(),
    }


def board(device: Profile | None, made: Plan | None, ours: dict[str, Any], report: Report | None, why_open: str) -> str:
    """Planned beside measured, for people."""
    if device is None or made is None:
        return ""
    peak = ours["peak_rss_bytes"]
    lines = [f"Planned {size(made.predicted_bytes)} with a full context, measured {size(peak)}."]
    if report is None:
        return "\n   " + "\n   ".join([*lines, f"Not in the jail of a {device.title}: {why_open}."])
    counted, read = report.usage.peak_bytes, report.usage.read_bytes
    if counted is not None and read is not None:
        lines.append(
            f"The jail counted {size(counted)} of {size(device.usable_bytes)} at most, cached files included, and "
            f"{size(read)} from the disk."
        )
    return "\n   " + "\n   ".join([*lines, *(f"Not as on the board: {why}." for why in why_open.split("; ") if why)])


def told(
    findings: list[Finding],
    found: Answers,
    other: Peer | None,
    why_not: str,
) -> dict[str, Any]:
    """The whole tour as one object."""
    from genmote.recipes import tour

    ours, allowed = found.figures, found.allowed
    held = ours["peak_rss_bytes"] <= allowed.total_bytes if ours["ops"] == "native" else None
    return {
        "recordings": [
            {
                "name": finding.name,
                "title": finding.title,
                "carrier": finding.carrier,
                "measured": finding.figures,
                "question": finding.asked,
                "answer": text,
                "numbers_not_measured": tour.invented(finding.question, text),
            }
            for finding, text in zip(findings, found.texts, strict=True)
        ],
        "genmote": ours,
        "peer": vars(other) if other else None,
        "peer_absent": why_not or None,
        "memory": {**vars(allowed), "budget_bytes": allowed.total_bytes, "held": held},
    }


def speed(ours: dict[str, Any], other: Peer | None, why_not: str, others: float | None) -> str:
    """The table of both, and what to think of it."""
    disturbed = others is not None and others > BUSY_CORES
    heads = ["llama.cpp", "ratio"] if other and not disturbed else []
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
            f"Other programs kept {others:.1f} cores busy meanwhile: the speeds mean little, so none is compared."
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
    return f"   Memory budget {size(allowed.total_bytes)}: {verb}, the peak was {peak}."


def record(folder: Path, values: dict[str, Any], answers: Answers) -> Path:
    """Append the figures to the folder's records."""
    from genmote import records
    from genmote.runtime.loading import file_sha256

    flat = {key: value for key, value in values["genmote"].items() if key != "threads"}
    flat |= {f"peer_{key}": value for key, value in (values["peer"] or {}).items() if key != "texts"}
    flat |= values["memory"]
    for one in values["recordings"]:
        flat |= {f"{one['name']}_{key}": value for key, value in one["measured"].items()}
    if values["plan"] is not None:
        flat |= {"device": values["device"], "planned_bytes": values["plan"]["predicted_bytes"]}
    if values["jail"] is not None:
        flat |= {"jail_peak_bytes": values["jail"]["peak_bytes"], "jail_read_bytes": values["jail"]["read_bytes"]}
    sha256 = None if answers.model_path is None else file_sha256(Path(answers.model_path))
    path = folder / "records.jsonl"
    records.append(path, records.Record("demo", flat, model_sha256=sha256, threads=answers.figures["threads"]))
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
