"""What verbs print: text or one JSON object on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from genmote.errors import UserError

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Output:
    """Where a verb prints; with `json` only :meth:`result`'s object appears on standard output."""

    line_open = False  # of the process: whether text on standard output waits for the end of its line

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.told = False  # whether a result has been printed

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """The verb's result: `values` as one JSON object, or `text`."""
        self.told = True
        if self.json:
            # NaN and infinity are not JSON: what could not be measured is null.
            print(json.dumps({key: _plain(value) for key, value in values.items()}, ensure_ascii=False))
        elif text:
            print(text)

    def flush(self) -> None:
        """Show what was printed at once, also in a pipe."""
        sys.stdout.flush()

    def say(self, text: str, end: str = "\n") -> None:
        """Text for people, at once; silent with ``--json``."""
        if not self.json:
            print(text, end=end, flush=True)
            if text or end:
                Output.line_open = not (text + end).endswith("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def going_on(told: str) -> Iterator[None]:
    """Where the block is ended by Ctrl-C, or by SIGTERM, which `genmote.cli` makes SystemExit, what stays is `told`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        note(told)
        raise


def shown(line: str) -> str:
    """Without signs that a terminal would obey: names and words come from anybody.

    >>> shown("a\x1b[2Jb"), shown("20\xa0°C")
    ('a?[2Jb', '20\xa0°C')
    """
    return CONTROL.sub("?", line)


def note(text: str) -> None:
    """One line beside the result, on standard error; seen with a text in the making it breaks no line of it."""
    if Output.line_open and _together():
        print(file=sys.stderr)
        Output.line_open = False
    print("\n".join(map(shown, text.split("\n"))), file=sys.stderr, flush=True)


def _together() -> bool:
    """Whether standard output and error are seen in one place: a terminal, also behind a pipe (`| tee`), or a file."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        return True
    try:
        text, notes = (os.fstat(stream.fileno()) for stream in (sys.stdout, sys.stderr))
    except (OSError, ValueError):  # no files of the system
        return False
    return os.path.samestat(text, notes) or (stat.S_ISFIFO(text.st_mode) and sys.stderr.isatty())


def check_place(path: Path, option: str) -> None:
    """Raise UserError where no file can be written at `path`: ask before the work whose result is to go there."""
    from genmote import home

    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it with {option}")
    try:
        folder = home.target(path).parent
    except OSError as fault:
        raise UserError(f"{path} cannot be written ({fault.strerror}): choose another {option}") from None
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written, {folder} is no folder: make it first, or choose another {option}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written, {folder} takes no new files: choose another {option}")


def save(path: Path, text: str, option: str = "name") -> None:
    """Write a text file, whole or not at all; UserError where that fails."""
    from genmote import home

    try:
        with home.atomic_write(path, "w") as out:
            out.write(text)
    except OSError as fault:
        raise UserError(f"{path} cannot be written ({fault.strerror}): choose another {option}") from None


def size(count: float) -> str:
    """Bytes for people.

    >>> size(98362432), size(512), size(2_400_000_000)
    ('98.4 MB', '512 B', '2.4 GB')
    """
    if abs(count) < 1000:
        return f"{count:.0f} B"
    thousands = min(3, (len(str(int(abs(count)))) - 1) // 3)
    return f"{count / 1000**thousands:.1f} {'BkMG'[thousands]}B"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns, the first row being the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


class Bar:
    """Progress of anything over a second: a bar on a terminal, otherwise one plain line at each tenth.

    What takes less than a second leaves no plain lines, and nothing at all where it is `late`: then a timer shows what
    takes longer, even if no further call comes.
    Call it with what is being done, how much is done and how much there is (0: unknown); :meth:`close` ends the line.
    """

    def __init__(self, stream: TextIO | None = None, *, unit_bytes: bool = True, late: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._bytes = unit_bytes
        self._started = self._shown = time.monotonic()
        self._what = ""
        self._tenth = -1
        self._wide = 0
        self._late = late
        self._at = (0, 0)
        self._first = 0  # done when it began
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()  # the timer's thread draws too

    def __call__(self, what: str, done: int, total: int) -> None:
        with self._lock:
            now = time.monotonic()
            self._at = done, total
            if what != self._what:
                self.close()
                self._what, self._tenth, self._started, self._first = what, -1, now, done
                if self._late:
                    self._timer = threading.Timer(1.0, self._wake, (what,))
                    self._timer.daemon = True
                    self._timer.start()
            elif self._tty and now - self._shown < 0.1 and done != total:
                return
            if now - self._started >= 1 or (self._tty and not self._late):
                self._show(now)

    def _wake(self, what: str) -> None:
        """A second is over: show how far it is, if it still goes on."""
        with self._lock:
            if self._timer is not None and what == self._what:
                self._show(time.monotonic())

    def _show(self, now: float) -> None:
        done, total = self._at
        self._shown = now
        if self._tty:
            self._draw(done, total, now)
        elif total and done >= total and self._tenth < 0:
            return  # it is over, and nothing was said of it
        elif total and self._tenth < 10 * done // total:
            self._tenth = 10 * done // total
            left = self._left(done, total, now)
            self._print(f"{self._what}: {10 * self._tenth}% of {self._amount(total)}{left and ', ' + left}\n")
        elif not total and self._tenth < 0:
            self._tenth = 0
            self._print(f"{self._what}\n")

    def _draw(self, done: int, total: int, now: float) -> None:
        room = shutil.get_terminal_size().columns - 1
        amount = self._amount(done) + (f" / {self._amount(total)}" if total else "") if done or total else ""
        if left := self._left(done, total, now):
            amount += f"  {left}"
        cells = min(30, room - len(self._what) - len(amount) - 6)
        bar = ""
        if total and cells >= 5:
            full = cells * min(done, total) // total
            bar = f"[{'#' * full}{'.' * (cells - full)}] "
        line = f"{self._what}  {bar}{amount}"[:room]
        self._print("\r" + line + " " * max(0, self._wide - len(line)))
        self._wide = len(line)

    def _left(self, done: int, total: int, now: float) -> str:
        """The time that is left, going by the rate so far; nothing where that cannot be told."""
        if not self._first < done < total or now - self._started <= 1:
            return ""
        seconds = round((total - done) * (now - self._started) / (done - self._first))
        return f"{seconds} s left" if seconds < 120 else f"{round(seconds / 60)} min left"

    def close(self) -> None:
        """End the bar's line, if one was drawn: what comes next is shown from its beginning."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.make_way()
            self._what = ""

    def make_way(self) -> None:
        """What is told next stands on a line of its own, and the bar goes on below it."""
        with self._lock:
            if self._wide:
                self._print("\n")
            self._wide = 0

    def _amount(self, count: int) -> str:
        return size(count) if self._bytes else str(count)

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
