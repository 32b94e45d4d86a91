"""Where what is watched meets the model that judges it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genmote.cli.signal._series import fitting
from genmote.errors import GenmoteError
from genmote.signals import reading
from genmote.signals.kinds import Records, Series


@dataclass(frozen=True)
class Alarm:
    """`rows` one after another were too odd, with a smoothed score of up to `score` nats. The oddest of what that is
    of is `row` of `piece`, which may lie before them: its `own` score is the highest, and `channel` has the largest
    part in it. `over`: an alarm that went on from piece to piece has ended before `row`; it is of all its rows."""

    piece: Series | Records
    row: int
    rows: int
    score: float
    own: float
    channel: str | None = None
    over: bool = False


class Alarms:
    """A detector for each topic. `threshold`: the score from which on a sample is an alarm; else the `quantile` of
    those of `clean`. `smooth`: samples that a score is the mean of."""

    def __init__(self, model: Path, threshold: float | None, clean: Path | None, quantile: float, smooth: int) -> None:
        from genmote.generator import detect
        from genmote.generator.model import Generator

        generator = Generator.load(model)
        if threshold is None:
            assert clean is not None
            quiet = [fitting(generator, signal) for signal in reading.read(clean)]
            threshold = detect.threshold(generator, quiet, quantile, smooth)
        self._generator = generator
        self.threshold = float(threshold)
        self.unjudged: dict[str, str] = {}  # topics that the model does not know, and why
        self._made: Callable[[], Any] = lambda: detect.Detector(generator, self.threshold, smooth)
        self._smooth = smooth
        self._detectors: dict[str, tuple[str, Any]] = {}  # by topic: the recording, and what judges it
        self._last: dict[str, deque[tuple[Series | Records, int]]] = {}  # by topic: rows that later scores are of, too
        self._open: dict[str, Alarm] = {}  # by topic: what has been told, and reaches the end of the last piece

    def push(self, topic: str, piece: Series | Records) -> Iterator[Alarm]:
        """The alarms of a piece that follows the one before."""
        if topic in self.unjudged:
            return
        if topic not in self._detectors or self._detectors[topic][0] != piece.name:  # another recording begins
            self._detectors[topic] = piece.name, self._made()
            self._last[topic] = deque(maxlen=self._smooth - 1)
            before = self._open.pop(topic, None)
            if before is not None and before.over and len(piece):
                yield replace(before, piece=piece, row=0)
        try:
            found = self._detectors[topic][1].push(fitting(self._generator, piece))
        except GenmoteError as fault:
            self.unjudged[topic] = str(fault)
            return
        edges = np.flatnonzero(np.diff(found.alarms.astype(np.int8), prepend=0, append=0)).reshape(-1, 2).tolist()
        before = self._open.pop(topic, None) if len(piece) else None
        if before is not None and before.over and (not edges or edges[0][0]):
            yield replace(before, piece=piece, row=0)  # it ended with the piece before
        last = self._last[topic]
        for start, stop in edges:
            row, score = found.oddest(start, stop), float(found.scores[start:stop].max())
            of, at = (piece, row) if row >= 0 else last[row]
            alarm = Alarm(of, at, stop - start, score, float(found.own[row + found.before]), found.channel(row))
            if before is not None and start == 0:  # it has been told
                oddest, score = max(before, alarm, key=lambda one: one.own), max(before.score, score)
                rows = before.rows + alarm.rows
                alarm = replace(oddest, piece=piece, row=stop, rows=rows, score=score, over=True)
            if stop == len(piece):
                self._open[topic] = alarm
            if not alarm.over or stop < len(piece):
                yield alarm
        last.extend((piece, row) for row in range(max(0, len(piece) - self._smooth), len(piece)))
