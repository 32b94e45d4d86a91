"""Say which of some labels a recording has, and how likely each is; nothing where none is likely enough.

    genmote classify recording.hea -m ecg.toml
    genmote classify gesture.csv -m motion.toml --labels wave,still --question "What is the movement?"

A label's probability is that of the model's answering with it, among all labels; it is calibrated by examples that were
held out of the model's training, which is said. Below --confidence no label is told (the model's .toml states the
default), nor where a rule finds that there is no signal.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genmote.cli import _describe
from genmote.cli._describe import DescribeFlags, EvidenceFlags
from genmote.cli._output import Output, note
from genmote.errors import SpecError
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(EvidenceFlags, DescribeFlags):
    file: Path = setting("a recording", positional=True)
    task: str | None = setting("which of the model's tasks, where it has several", default=None)
    labels: str | None = setting("labels of your own, with commas between", default=None)
    question: str | None = setting("the question that they answer", default=None)
    confidence: float | None = setting("a label less likely than this is not told", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.confidence is not None and not 0 <= self.confidence <= 1:
            yield f"confidence={self.confidence}: use 0 to 1, or a percentage"
        if (self.labels is None) != (self.question is None):
            yield "labels and question go together: give both, or neither for the model's own"
        if self.labels is not None and self.task is not None:
            yield "task: is the model's own; with --labels and --question leave it out"


def run(settings: Settings, out: Output) -> None:
    from genmote.describe.file import Task

    settings.check_plot()
    notes: list[str] = []
    signals = _describe.signals(settings, settings.file, notes)
    with _describe.load(settings, signals[0]) as describer:
        if settings.labels is not None and settings.question is not None:
            labels = tuple(word.strip() for word in settings.labels.split(",") if word.strip())
            task = Task(about="own", question=settings.question, labels=labels)
            if faults := list(task.faults()):
                raise SpecError("; ".join(faults))
            own = False
        else:
            task, own = describer.task(settings.task), True
        quality = _describe.checked(settings, describer, signals, task.question, shape=True, taught=own)
        values: dict[str, Any] = {"file": settings.file, "task": task.about, "question": task.question}
        spans = []
        if quality.why:
            values |= {"label": None, "why": quality.why, "by": "rule", "labels": {}}
            text = f"cannot tell: {quality.why}"
        else:
            found = describer.classify(signals, task, confidence=settings.confidence)
            ordered = sorted(found.probabilities.items(), key=lambda pair: -pair[1])
            values |= {"label": found.label, "by": "model", "labels": dict(ordered), "confidence": found.confidence}
            values["calibrated"] = found.calibrated
            if found.label is None:
                values["why"] = f"no label reaches {found.confidence:.0%}"
            text = f"cannot tell: {values['why']}" if found.label is None else f"{found.label}"
            text += "".join(f"\n  {share:6.1%}  {label}" for label, share in ordered)
            if settings.stretches:
                spans = describer.evidence(signals, task.question, ordered[0][0], spans=settings.stretches)
                values["evidence"] = _describe.evidence_values(spans)
        if settings.plot is not None:
            _describe.plot(settings.plot, signals, spans, text.partition("\n")[0])
            values["plot"] = settings.plot
        warned = _describe.notice(describer, signals)
    out.result({**values, "unusable": quality.unusable, "notice": warned, "notes": notes}, text)
    if spans and not out.json:
        note(_describe.evidence_text(spans))
    if not values.get("calibrated", True):
        note("the probabilities are not calibrated: no examples were held out for these labels")
    _describe.notes_of(quality, notes, warned)
