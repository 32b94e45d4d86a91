"""What arrives piece by piece as windows of one length, and a file that grows as pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genmote.errors import SignalError
from genmote.signals import reading
from genmote.signals.kinds import Frames, Records, Series, Signal
from genmote.signals.reading import joined
from genmote.signals.said import Said

MOST_CELLS = 1 << 22  # numbers that wait for a window to be full; then it is given as it is
EMPTY = 64  # windows without a row, one after the other, that are passed over at once


@dataclass(frozen=True)
class Window:
    """A stretch of a topic; `from_s`: when it began, as the signal's times count."""

    name: str
    signal: Signal
    from_s: float
    to_s: float


class Windows:
    """Windows of `seconds` of what comes under each name."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[str, list[Signal]] = {}

    def push(self, name: str, piece: Signal) -> list[Window]:
        """The windows that are full with this piece. SignalError for frames, and for rows without times."""
        if isinstance(piece, Frames) or (isinstance(piece, Records) and piece.times_s is None):
            kind = "frames" if isinstance(piece, Frames) else "rows without times"
            raise SignalError(f"{name}: is of {kind}, which windows cannot be counted of; describe it whole")
        waiting = self._waiting.setdefault(name, [])
        found: list[Window] = []
        if waiting and (type(waiting[-1]) is not type(piece) or waiting[-1].name != piece.name):
            waiting.clear()  # another recording began: what is left of the one before is no whole window
        waiting.append(piece)
        whole = joined(waiting)
        while (cut := self._cut(whole)) is not None:
            window = whole.part(0, cut)
            if cut:
                begin = began(window)
                found.append(Window(name, _apart(window), begin, begin + self.seconds))
            whole = whole.part(cut, len(whole))
        self._waiting[name] = [_apart(whole)] if len(whole) else []
        return found

    def _cut(self, signal: Signal) -> int | None:
        """How many rows the first window has, where it is full."""
        if not len(signal):
            return None
        if isinstance(signal, Series) and signal.rate_hz > 0:
            count = max(1, round(self.seconds * signal.rate_hz))
            full = len(signal) >= count or signal.values.size > MOST_CELLS
            return min(count, len(signal)) if full else None
        assert not isinstance(signal, Frames) and signal.times_s is not None
        since = signal.times_s - signal.times_s[0]
        if since[-1] >= self.seconds:
            return int(np.searchsorted(since, self.seconds, side="left"))
        width = signal.values.shape[1] if isinstance(signal, Series) else len(signal.fields)
        return len(signal) if len(signal) * width > MOST_CELLS else None


def began(signal: Signal) -> float:
    """When a signal begins, in seconds as its times count; 0 where it has none."""
    if isinstance(signal, Series) and signal.rate_hz > 0:
        return signal.start_s or 0.0
    return 0.0 if signal.times_s is None or not len(signal) else float(signal.times_s[0])


def _apart(signal: Signal) -> Signal:
    """The signal by itself: no view that keeps a longer one in memory."""
    if isinstance(signal, Series):
        times = None if signal.times_s is None else signal.times_s.copy()
        return replace(signal, values=signal.values.copy(), times_s=times, grid=None, continues=False)
    return replace(signal, continues=False)


class Growing:
    """A file that grows, read again where its size has changed."""

    def __init__(self, path: Path, *, reader: str | None = None, said: Said | None = None) -> None:
        self.path, self.reader, self.said = path, reader, said
        self.notes: list[str] = []
        self._size, self._seen = -1, 0

    def step(self) -> list[Signal]:
        """What has come since, mostly nothing. A line that is not whole waits until it is. SignalError as reading
        has it."""
        try:
            size = self.path.stat().st_size
        except OSError as fault:
            raise SignalError(f"{self.path}: cannot be read ({fault.strerror}): wanted a file that grows") from None
        if size in (0, self._size):
            return []
        self._size = size
        found = [piece for piece in self._fresh() if len(piece)]
        self._seen += sum(map(len, found))
        return found

    def _fresh(self) -> Iterator[Signal]:
        first: str | None = None
        at = 0
        pieces = list(reading.pieces(self.path, reader=self.reader, said=self.said, notes=self.notes))
        own = [piece for piece in pieces if first in (None, piece.name) and (first := piece.name) is not None]
        count = sum(map(len, own)) - self._half_written()
        if count < self._seen:
            self.notes.append(f"{self.path.name}: is shorter than it was: it begins anew")
            self._seen = 0
        for piece in own:
            start, stop = max(0, self._seen - at), min(len(piece), count - at)
            if start < stop:
                part = piece.part(start, stop)
                if isinstance(part, Series) and part.rate_hz > 0 and part.start_s is None:
                    part = replace(part, start_s=(at + start) / part.rate_hz)  # since the recording's beginning
                yield part
            at += len(piece)

    def _half_written(self) -> int:
        """Whether the last row of a text is not whole yet."""
        if self.path.suffix.lower() not in (".csv", ".tsv", ".txt", ".jsonl", ".log"):
            return 0
        with open(self.path, "rb") as file:
            file.seek(max(0, self._size - 1))
            return int(file.read(1) not in (b"\n", b""))
