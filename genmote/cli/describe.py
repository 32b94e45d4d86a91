"""Describe a recording in words: a report of an ECG, what a person did, how a room was. On this machine.

    genmote describe recording.hea -m ecg.toml
    genmote describe room.csv -m home.toml --json --plot room.svg
    genmote describe mqtt://broker.local/room -m home.toml --follow --window 600
    genmote describe growing.csv -m home.toml --follow --window 60

The report streams. Where there is nothing to tell from (a flat line, noise alone, no samples), that is said instead, by
a rule and without a model; --no-check leaves the rule out. With --follow there is a report for each --window of what
arrives, from a topic of a broker or at the end of a file that grows, until Ctrl-C; with --json an object a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genmote.cli import _answer
from genmote.cli._describe import DescribeFlags, EvidenceFlags
from genmote.cli._output import Output
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(EvidenceFlags, DescribeFlags):
    file: str = setting("a recording; with --follow also mqtt://HOST[:PORT]/TOPIC", positional=True)
    max_tokens: int = setting("most tokens of the report", default=160, short="-n")
    follow: bool = setting("a report for each window of what arrives", default=False)
    window: float = setting("with --follow: seconds that a report is of", default=60.0)
    reports: int = setting("with --follow: end after so many (0: with Ctrl-C)", default=0)
    rate: float = setting("with --follow: messages are samples of so many Hz (0: by their times)", default=0.0)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if not 0 < self.window < float("inf") or self.reports < 0 or not 0 <= self.rate < 1e9:
            yield f"window={self.window}, reports={self.reports}, rate={self.rate}: use such as 60, 0 and 0"
        if not self.follow and (self.reports or self.rate):
            yield "reports, rate: go with --follow; add it, or leave them out"
        if not self.follow and self.file.startswith(("mqtt://", "mqtts://")):
            yield f"file={self.file}: a topic is described with --follow"
        if self.follow and self.model is None:
            yield "follow: say with -m which model, as what will come is not known yet"
        if self.follow and (self.also or self.plot is not None or self.evidence):
            yield "follow: tells of one signal as it comes; leave out --also, --plot and --evidence"


def run(settings: Settings, out: Output) -> int | None:
    if settings.follow:
        from genmote.cli import _follow

        return _follow.run(settings, out)
    _answer.run(settings, settings, Path(settings.file), None, settings.max_tokens, out)
    return None
