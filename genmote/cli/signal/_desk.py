"""What `genmote signal watch` does with what comes, and what it tells of it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from genmote.cli._output import Output, note, shown
from genmote.errors import SignalError
from genmote.signals.kinds import Records, Series

if TYPE_CHECKING:
    from genmote.cli.signal._alarms import Alarm, Alarms
    from genmote.signals.live.recording import Recorder
    from genmote.signals.live.watching import Piece, Watch

STEP_S = 0.2
SHOWN = 8  # values of a topic that a line of text names
EPOCH = 3e8  # seconds from which on a time counts from 1970


@dataclass
class Seen:
    """What came of one topic."""

    kind: str
    channels: list[str]
    rows: int = 0
    told: int = 0  # of the rows
    last: tuple[float, dict[str, Any]] = (0.0, {})  # the time of the last row, and its values


class Desk:
    """Takes pieces, records and judges them, and tells every so many seconds of what came, or of alarms alone."""

    def __init__(
        self, out: Output, watch: Watch, recorder: Recorder | None, alarms: Alarms | None, every_s: float
    ) -> None:
        self.out, self.watch, self.recorder, self.alarms, self.every_s = out, watch, recorder, alarms, every_s
        self.started = self.told_at = time.monotonic()
        self.seconds = 0.0
        self.seen: dict[str, Seen] = {}
        self.told: set[str] = set()  # what was left out, and topics that are not judged
        self.dropped = 0  # messages that were told of
        self.alarmed = 0
        self.line = StatusLine(sys.stderr)

    def follow(self, seconds: float | None) -> None:
        """For so many seconds, or for ever."""
        end = self.started + (seconds if seconds is not None else float("inf"))
        while (left := end - time.monotonic()) > 0:
            self._take(self.watch.step(min(STEP_S, left)))
            if self.recorder is not None:
                self.recorder.due(time.monotonic())
            self._news()
            if self.alarms is None and time.monotonic() - self.told_at >= self.every_s:
                self._values()
            self.line.show(self._status())

    def close(self) -> None:
        """Take what has come besides, and write it."""
        self.seconds = time.monotonic() - self.started
        try:
            self._take(self.watch.rest())
            self._news()
        finally:
            if self.recorder is not None:
                self.recorder.flush()
            self.line.clear()

    def _take(self, pieces: list[Piece]) -> None:
        for topic, piece in pieces:
            seen = self.seen.get(topic)
            if seen is None:
                names = [f.name for f in piece.fields] if isinstance(piece, Records) else list(piece.channels)
                seen = self.seen[topic] = Seen(type(piece).__name__.lower(), names)
            seen.rows += len(piece)
            seen.last = _at(piece, len(piece) - 1)
            if self.recorder is not None:
                try:
                    self.recorder.add(topic, piece, time.monotonic())
                except SignalError as fault:
                    self.watch.tally.add("{n} rows are not recorded", str(fault), len(piece))
            for alarm in self.alarms.push(topic, piece) if self.alarms is not None else ():
                self._alarm(topic, alarm)

    # -- what is told ------------------------------------------------------------------------------------------------

    def _alarm(self, topic: str, alarm: Alarm) -> None:
        assert self.alarms is not None
        at_s, values = _at(alarm.piece, alarm.row)
        rows, score, limit = alarm.rows, alarm.score, self.alarms.threshold
        told = {
            "topic": topic,
            "time_s": at_s,
            "rows": rows,
            "score": score,
            "threshold": limit,
            "above": score - limit,
            "channel": alarm.channel,
        }
        mostly = f", {alarm.channel} the oddest" if alarm.channel and len(values) > 1 else ""
        if alarm.over:
            line = f"over after {rows} rows, highest score {score:.2f}{mostly}"
            return self._tell({"event": "over", **told}, f"{when(at_s)}  {topic}: {line}")
        self.alarmed += 1
        self._tell(
            {"event": "alarm", **told, "values": values},
            f"{when(at_s)}  {topic}: score {score:.2f}, {score - limit:.2f} above {limit:.2f}"
            f"{f', {rows} rows' if rows > 1 else ''}{mostly}: {_listed(values)}",
        )

    def _values(self) -> None:
        passed, self.told_at = time.monotonic() - self.told_at, time.monotonic()
        for topic, seen in self.seen.items():
            new, seen.told = seen.rows - seen.told, seen.rows
            if not new:
                continue
            at_s, values = seen.last
            told = {"event": "values", "topic": topic, "time_s": at_s, "rows": new, "per_s": round(new / passed, 3)}
            line = f"{when(at_s)}  {topic}: {new} rows, {new / passed:.3g}/s: {_listed(values)}"
            self._tell({**told, "values": values}, line)

    def _news(self) -> None:
        for line in self.watch.source.news():
            self._note(line)
        for text, (times, places) in self.watch.tally.found.items():
            if text not in self.told:
                self.told.add(text)
                self._note(text.replace("{n}", str(times)) + (f": {places[0]}" if places else ""))
        for topic, why in self.alarms.unjudged.items() if self.alarms is not None else ():
            if topic not in self.told:
                self.told.add(topic)
                self._note(f"{topic} is not judged: {why}")
        dropped = self.watch.source.counts.dropped
        if dropped >= max(1, 2 * self.dropped):
            self.dropped = dropped
            self._note(f"messages come faster than they are taken: {dropped} dropped, the oldest first")

    def _note(self, text: str) -> None:
        if self.out.json:
            self._tell({"event": "note", "note": text}, "")
        else:
            self.line.clear()
            note(shown(text))

    def _tell(self, values: dict[str, Any], text: str) -> None:
        self.line.clear()
        self.out.result(values, shown(text))
        self.out.flush()

    def _status(self) -> str:
        counts, passed = self.watch.source.counts, time.monotonic() - self.started
        parts = [
            f"{len(self.seen)} topics",
            f"{counts.received} messages",
            f"{counts.received / max(passed, 1e-9):.3g}/s",
        ]
        parts += [f"{counts.dropped} dropped"] if counts.dropped else []
        parts += [f"{self.watch.damaged} damaged"] if self.watch.damaged else []
        parts += [f"{self.alarmed} alarms"] if self.alarms is not None else []
        return ", ".join(parts)

    def summary(self) -> None:
        """All in all."""
        counts, files = self.watch.source.counts, self.recorder.files if self.recorder is not None else {}
        unjudged = self.alarms.unjudged if self.alarms is not None else {}
        self.watch.tally.tell()
        notes = [*self.watch.notes]
        if counts.retained:
            notes.append(f"{counts.retained} retained messages, from before the watch, are left out")
        if counts.unnamed:
            notes.append(f"{counts.unnamed} messages of topics that are not UTF-8 are left out")
        if counts.dropped:
            notes.append(f"{counts.dropped} messages came faster than they were taken, and were dropped")
        if counts.connections > 1:
            notes.append(f"the connection was made {counts.connections} times")
        topics = [
            {
                "topic": topic,
                "kind": seen.kind,
                "channels": seen.channels,
                "rows": seen.rows,
                "path": files.get(topic),
                "rows_written": self.recorder.rows.get(topic, 0) if self.recorder is not None else 0,
                "judged": None if self.alarms is None else topic not in unjudged,
            }
            for topic, seen in self.seen.items()
        ]
        per_s = counts.received / max(self.seconds, 1e-9)
        lines = [f"{self.seconds:.1f} s, {self._status()}"]
        lines += [
            f"  {topic}: {seen.kind}, {seen.rows} rows"
            + (f", {files[topic]}" if topic in files else "")
            + (", not judged" if topic in unjudged else "")
            for topic, seen in self.seen.items()
        ]
        self.out.result(
            {
                "event": "summary",
                "seconds": round(self.seconds, 3),
                "messages": counts.received,
                "messages_per_s": round(per_s, 3),
                "dropped": counts.dropped,
                "damaged": self.watch.damaged,
                "retained": counts.retained,
                "connections": counts.connections,
                "alarms": self.alarmed if self.alarms is not None else None,
                "topics": topics,
                "notes": notes,
            },
            "\n".join(map(shown, [*lines, *notes])),
        )


class StatusLine:
    """One line on a terminal that is written over; nothing elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.wide, self.shown = stream, 0, 0.0

    def show(self, text: str) -> None:
        if self.stream.isatty() and time.monotonic() - self.shown >= STEP_S:
            text = text[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + text + " " * (self.wide - len(text)))
            self.wide, self.shown = len(text), time.monotonic()

    def clear(self) -> None:
        if self.wide:
            self._write("\r" + " " * self.wide + "\r")
            self.wide, self.shown = 0, 0.0

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that has gone
            self.stream.write(text)
            self.stream.flush()


def _at(piece: Series | Records, row: int) -> tuple[float, dict[str, Any]]:
    """The time of a row, and its values with their units behind their names."""
    if isinstance(piece, Records):
        assert piece.times_s is not None
        cells = [None if x != x else x for x in (column[row] for column in piece.columns)]
        plain = [x.item() if isinstance(x, np.generic) else x for x in cells]
        names = [_named(field.name, field.unit) for field in piece.fields]
        return float(piece.times_s[row]), dict(zip(names, plain, strict=True))
    own = [float(f"{x:.7g}") if np.isfinite(x) else None for x in piece.values[row]]
    names = [_named(name, unit) for name, unit in zip(piece.channels, piece.units, strict=True)]
    at_s = (piece.start_s or 0.0) + row / piece.rate_hz if piece.times_s is None else float(piece.times_s[row])
    return at_s, dict(zip(names, own, strict=True))


def _named(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _listed(values: dict[str, Any]) -> str:
    told = [f"{name} {'-' if x is None else f'{x:.6g}' if isinstance(x, float) else x}" for name, x in values.items()]
    return ", ".join(told[:SHOWN]) + (", …" if len(told) > SHOWN else "")


def when(seconds: float) -> str:
    """
    >>> when(12.5), when(1e9 + 0.9)
    ('12.500 s', '2001-09-09T01:46:40.900Z')
    """
    if seconds < EPOCH:
        return f"{seconds:.3f} s"
    try:
        moment = datetime.fromtimestamp(seconds + 0.0005, UTC)  # what follows cuts
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.3f} s"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
