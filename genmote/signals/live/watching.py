"""Messages as pieces of signals, a series or records for each topic, in memory that does not grow."""

from __future__ import annotations

import time

from genmote.errors import SignalError
from genmote.signals._tables import Tally
from genmote.signals.kinds import Records, Series
from genmote.signals.live.mqtt import Subscription
from genmote.signals.live.payload import rows_of
from genmote.signals.live.topic import Topic

TOPICS = 256
MESSAGES = 64  # that are taken at once: each may be of many rows
PIECE_S, PIECE_CELLS = 1.0, 1 << 15  # what came is given this often, or where it has so many cells, of all topics
Piece = tuple[str, Series | Records]  # with its topic


class Watch:
    """Reads a subscription. `rate_hz` above 0: messages are samples of that rate. `tally` tells what was left out."""

    def __init__(self, source: Subscription, *, rate_hz: float = 0.0) -> None:
        self.source, self.rate_hz = source, rate_hz
        self.notes: list[str] = []
        self.tally = Tally(self.notes)
        self.topics: dict[str, Topic] = {}
        self.damaged = 0
        self._cells, self._since = 0, time.monotonic()

    def step(self, timeout_s: float = 0.2) -> list[Piece]:
        """Wait for messages, at most `timeout_s`; the pieces that are due, mostly none."""
        for message in self.source.take(timeout_s, MESSAGES):
            self._push(message.arrived_s, message.topic, message.payload)
        full = self._cells >= PIECE_CELLS
        if not full and time.monotonic() - self._since < PIECE_S:
            return []
        self._cells, self._since = 0, time.monotonic()
        now_s = time.time()
        return self._pieces([topic for topic in self.topics.values() if full or topic.ready(now_s)])

    def rest(self) -> list[Piece]:
        """What has come and was not given yet."""
        found: list[Piece] = []
        while messages := self.source.take(0.0, MESSAGES):
            for message in messages:
                self._push(message.arrived_s, message.topic, message.payload)
            if self._cells >= PIECE_CELLS:
                self._cells = 0
                found += self._pieces(list(self.topics.values()))
        return found + self._pieces(list(self.topics.values()))

    def _pieces(self, topics: list[Topic]) -> list[Piece]:
        return [(topic.name, piece) for topic in topics for piece in topic.pieces()]

    def _push(self, arrived_s: float, name: str, payload: bytes) -> None:
        topic = self.topics.get(name)
        if topic is None and len(self.topics) >= TOPICS:
            return self.tally.add(f"{{n}} messages of more topics than {TOPICS} are left out", name[:60])
        try:
            rows = rows_of(payload)
        except SignalError as fault:
            self.damaged += 1
            return self.tally.add("{n} messages that cannot be read are left out", f"{name[:60]}: {fault}")
        if topic is None:
            topic = self.topics[name] = Topic(name, self.tally, self.rate_hz)
        for row in rows:
            self._cells += len(row)
            topic.push(arrived_s, row)
