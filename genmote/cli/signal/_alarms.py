"""Where what is watched meets the model that judges it."""

from __future__ import annotations

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
    """`rows` one after another were too odd, the oddest, at `row` of the piece, with `score` nats, of which `channel`
    has the largest part. `over`: an alarm that went on from piece to piece has ended before `row`; it is of all its
    rows."""

    row: int
    rows: int
    score: float
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
        self._detectors: dict[str, tuple[str, Any]] = {}  # by topic: the recording, and what judges it
        self._open: dict[str, Alarm] = {}  # by topic: what has been told, and reaches the end of the last piece

    def push(self, topic: str, piece: Series | Records) -> Iterator[Alarm]:
        """The alarms of a piece that follows the one before."""
        if topic in self.unjudged:
            return
        if topic not in self._detectors or self._detectors[topic][0] != piece.name:  # another recording begins
            self._detectors[topic] = piece.name, self._made()
            before = self._open.pop(topic, None)
            if before is not None and before.over and len(piece):
                yield replace(before, row=0)
        try:
            found = self._detectors[topic][1].push(fitting(self._generator, piece))
        except GenmoteError as fault:
            self.unjudged[topic] = str(fault)
            return
        edges = np.flatnonzero(np.diff(found.alarms.astype(np.int8), prepend=0, append=0)).reshape(-1, 2).tolist()
        before = self._open.pop(topic, None) if len(piece) else None
        if before is not None and before.over and (not edges or edges[0][0]):
            yield replace(before, row=0)  # it ended with the piece before
        for start, stop in edges:
            row = start + int(np.argmax(found.scores[start:stop]))
            alarm = Alarm(row, stop - start, float(found.scores[row]), found.channel(row))
            if before is not None and start == 0:  # it has been told
                highest = max(before, alarm, key=lambda one: one.score)
                alarm = replace(highest, row=stop, rows=before.rows + alarm.rows, over=True)
            if stop == len(piece):
                self._open[topic] = alarm
            if not alarm.over or stop < len(piece):
                yield alarm
