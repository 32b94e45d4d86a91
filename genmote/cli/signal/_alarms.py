"""Where what is watched meets the model that judges it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genmote.cli.signal._series import fitting
from genmote.errors import GenmoteError
from genmote.signals import reading
from genmote.signals.kinds import Records, Series


@dataclass(frozen=True)
class Alarm:
    """`rows` one after another were too odd, the oddest, at `row` of the piece, with `score` nats."""

    row: int
    rows: int
    score: float


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

    def push(self, topic: str, piece: Series | Records) -> Iterator[Alarm]:
        """The alarms of a piece that follows the one before."""
        if topic in self.unjudged:
            return
        if topic not in self._detectors or self._detectors[topic][0] != piece.name:  # another recording begins
            self._detectors[topic] = piece.name, self._made()
        try:
            found = self._detectors[topic][1].push(fitting(self._generator, piece))
        except GenmoteError as fault:
            self.unjudged[topic] = str(fault)
            return
        edges = np.flatnonzero(np.diff(found.alarms.astype(np.int8), prepend=0, append=0))
        for start, stop in edges.reshape(-1, 2).tolist():
            row = start + int(np.argmax(found.scores[start:stop]))
            yield Alarm(row, stop - start, float(found.scores[row]))
