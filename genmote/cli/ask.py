"""Ask a question about a recording: a small model answers, on this machine.

    genmote ask watch.csv "How many squats, and was the last one slower?" -m motion.toml
    genmote ask today.csv "Which is livelier?" --also yesterday.csv -m home.toml --json

The answer streams. Where there is nothing to tell from (a flat line, noise alone, no samples, no such sensor or channel
as is asked for), that is said instead, by a rule and without a model; --no-check leaves the rule out. --evidence hides
stretches of the signal in turn and tells which moved the answer most.
"""

from __future__ import annotations

from pathlib import Path

from genmote.cli import _answer
from genmote.cli._describe import DescribeFlags, EvidenceFlags
from genmote.cli._output import Output
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(EvidenceFlags, DescribeFlags):
    file: Path = setting("a recording", positional=True)
    question: str = setting("the question", positional=True)
    max_tokens: int = setting("most tokens of the answer", default=64, short="-n")


def run(settings: Settings, out: Output) -> None:
    _answer.run(settings, settings, settings.file, settings.question, settings.max_tokens, out)
