"""What `describe` and `ask` do with a file: the answer, streamed, and what is told beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli import _describe
from genmote.cli._describe import DescribeFlags, EvidenceFlags
from genmote.cli._output import Output, note

if TYPE_CHECKING:
    from genmote.describe.model import Describer
    from genmote.describe.quality import Quality
    from genmote.signals.kinds import Signal

CANNOT = "I cannot tell"


def run(
    flags: DescribeFlags,
    of: EvidenceFlags,
    file: Path,
    question: str | None,
    max_tokens: int,
    out: Output,
) -> None:
    """`question`: None for the one that the model was taught to describe by."""
    of.check_plot()
    notes: list[str] = []
    signals = _describe.signals(flags, file, notes)
    with _describe.load(flags, signals[0]) as describer:
        asked = describer.parts.question if question is None else question
        quality = _describe.checked(flags, describer, signals, asked, shape=None if question is not None else True)
        values, said = answered(describer, signals, asked, quality, max_tokens, out)
        warned = _describe.notice(describer, signals)
        spans = describer.evidence(signals, asked, said, spans=of.stretches) if of.stretches and said else []
        if of.plot is not None:
            _describe.plot(of.plot, signals, spans, values["text"])
            values["plot"] = of.plot
    if spans and not out.json:
        note(_describe.evidence_text(spans))
    _describe.notes_of(quality, notes, warned)
    evidence = {"evidence": _describe.evidence_values(spans)} if of.stretches else {}
    head = {"file": file, "question": asked, **values, **evidence}
    out.result({**head, "unusable": quality.unusable, "notice": warned, "notes": notes}, "")


def answered(
    describer: Describer, signals: Sequence[Signal], question: str, quality: Quality, max_tokens: int, out: Output
) -> tuple[dict[str, Any], str]:
    """The answer, shown as it comes; what --json tells of it, and what the model said (nothing where it was not
    asked)."""
    if quality.why:
        text = f"{CANNOT}: {quality.why}."
        out.say(text)
        return {"text": text, "by": "rule"}, ""
    began = time.perf_counter()
    stream = describer.stream(signals, question, max_tokens=max_tokens)
    encoded_ms = (time.perf_counter() - began) * 1e3
    first = True
    try:
        for piece in stream:
            out.say(piece.text.lstrip() if first else piece.text, end="")
            first = first and not piece.text.strip()
    except KeyboardInterrupt:
        out.say("")
        raise
    out.say("")
    result = stream.result
    engine = describer.engine
    return {
        "text": result.text.strip(),
        "by": "model",
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "decode_tokens": result.decode_tokens,
        "decode_tokens_per_s": round(result.decode_tokens_per_s, 2),
        "encoded_ms": round(encoded_ms, 2),
        "first_token_ms": round(encoded_ms + result.first_token_ms, 2),
        "load_ms": round(engine.load_ms, 2),
        "peak_rss_bytes": engine.peak_rss_bytes,
        "ops": engine.ops_name,
        "threads": engine.threads,
    }, result.text.strip()
