"""Stretches told by a scale of their own, so that a model of what differs in size from recording to recording, or
drifts, need not learn each size: of a forecast the history's, of a gap that of what is around it.

`size` divides by the mean size, so that zero stays zero; `level` takes the mean off and divides by the spread. In the
manner of Ansari et al., "Chronos", TMLR 2024, arXiv 2403.07815, and Kim et al., "RevIN", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.kinds import Series, Signal

Own = Literal["none", "size", "level"]
KNOWN = 0.75  # of a stretch, by which its scale is found where nothing is drawn
Floats = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Scale:
    """Of each channel (C,): what is taken off, and what is divided by."""

    middle: NDArray[np.float64]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, values: Floats, own: Own) -> Scale:
        """By samples (T, C), of which some may be missing; a channel without any, or without change, stays as large as
        it is."""
        there = np.isfinite(values)
        count = np.maximum(1, there.sum(axis=0))
        x = np.where(there, values, 0).astype(np.float64)
        if own == "none":
            return cls(np.zeros(values.shape[1]), np.ones(values.shape[1]))
        if own == "size":
            middle, spread = np.zeros(values.shape[1]), np.abs(x).sum(axis=0) / count
        else:
            middle = x.sum(axis=0) / count
            spread = ((np.where(there, x - middle, 0) ** 2).sum(axis=0) / count) ** 0.5
        return cls(middle, np.where(spread > 1e-9 * np.maximum(1e-9, np.abs(middle)), spread, 1.0))

    def told(self, series: Series) -> Series:
        """The series in these terms."""
        return replace(series, values=((series.values - self.middle) / self.spread).astype(np.float32), grid=None)

    def back(self, values: Floats) -> NDArray[np.float32]:
        """(..., C) in the series' own units."""
        return (values * self.spread + self.middle).astype(np.float32)


def pieces(signals: Sequence[Signal], context: int, own: Own) -> list[Signal]:
    """The signals in stretches as long as a model sees at once, each told by its own scale: what a codec is fitted on.
    SignalError where one is no series."""
    found: list[Signal] = []
    for signal in signals:
        if not isinstance(signal, Series):
            raise SignalError(f"{signal.name}: is no series, and only those have a scale: train without --scale")
        steps = max(1, context // len(signal.channels))
        for start in range(0, len(signal), steps):
            part = signal.part(start, start + steps)
            found.append(Scale.of(part.values[: max(1, int(KNOWN * len(part)))], own).told(part))
    return found
