"""`genmote describe --follow`: a report for each window of what arrives."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli import _answer, _describe
from genmote.cli._output import Output, note, shown
from genmote.cli.signal import watch
from genmote.cli.signal._desk import when
from genmote.describe.windows import Growing, Window, Windows

if TYPE_CHECKING:
    from genmote.cli.describe import Settings
    from genmote.describe.model import Describer
    from genmote.signals.kinds import Signal

STEP_S = 0.2


def run(settings: Settings, out: Output) -> int:
    reports, status = 0, 0
    live = settings.file.startswith(("mqtt://", "mqtts://"))
    with _describe.load(settings) as describer, contextlib.ExitStack() as stack:
        arrivals = _topic(settings, out, stack) if live else _file(settings, out)
        windows = Windows(settings.window)
        try:
            for name, piece in arrivals:
                for window in windows.push(name, _describe.picked(piece, settings.channels)):
                    _report(describer, settings, window, out)
                    reports += 1
                    if reports == settings.reports:
                        return _over(out, reports, 0)
        except KeyboardInterrupt:
            pass  # that is how it ends
        except SystemExit as leave:  # SIGTERM
            status = leave.code if isinstance(leave.code, int) else 1
    return _over(out, reports, status)


def _over(out: Output, reports: int, status: int) -> int:
    out.result({"event": "summary", "reports": reports}, f"{reports} reports")
    return status


def _report(describer: Describer, settings: Settings, window: Window, out: Output) -> None:
    question = describer.parts.question
    quality = _describe.checked(settings, describer, [window.signal], question, shape=True)
    out.say(f"{when(window.from_s)}  {shown(window.name)}: ", end="")
    values, _ = _answer.answered(describer, [window.signal], question, quality, settings.max_tokens, out)
    told: dict[str, Any] = {"event": "report", "topic": window.name, "from_s": window.from_s, "to_s": window.to_s}
    notice = _describe.notice(describer, [window.signal])
    out.result({**told, **values, "unusable": quality.unusable, "notice": notice}, "")
    out.flush()


def _topic(settings: Settings, out: Output, stack: contextlib.ExitStack) -> Iterator[tuple[str, Signal]]:
    """Pieces of a broker's topics. User and password are those of the environment, as of `genmote signal watch`."""
    from genmote.signals.live.watching import Watch

    source = watch.source(watch.Settings(topic=settings.file))
    seen = Watch(source, rate_hz=settings.rate)
    stack.enter_context(source)
    told = 0
    while True:
        yield from seen.step(STEP_S)
        for line in source.news():
            _note(out, line)
        if (dropped := source.counts.dropped) >= max(1, 2 * told):  # reports take longer than windows
            told = dropped
            _note(out, f"messages come faster than they are described: {dropped} dropped, the oldest first")


def _file(settings: Settings, out: Output) -> Iterator[tuple[str, Signal]]:
    """Pieces of a file that grows; what is in it already comes first."""
    growing = Growing(Path(settings.file), reader=settings.reader, said=settings)
    told: set[str] = set()
    while True:
        for piece in growing.step():
            yield growing.path.name, piece
        for line in growing.notes:
            if line not in told:
                told.add(line)
                _note(out, line)
        time.sleep(STEP_S)


def _note(out: Output, line: str) -> None:
    if out.json:
        out.result({"event": "note", "note": line}, "")
        out.flush()
    else:
        note(line)
