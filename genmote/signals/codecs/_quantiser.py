"""Values in bins, with a range of its own for each channel: what `bins` and `grid` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.coding import Bound, Codes

Spacing = Literal["uniform", "quantile"]
Within = Literal["mean", "centre"]


@dataclass(frozen=True, eq=False)
class Quantiser:
    """Bin n of channel c holds what lies in [edges[c, n], edges[c, n + 1]], and comes back as levels[c, n].

    A code is a bin, or `bins` for no number. A value outside of the edges, infinity too, is put into the nearest bin.
    """

    edges: NDArray[np.float32]  # (C, bins + 1) ascending
    levels: NDArray[np.float32]  # (C, bins)

    def __post_init__(self) -> None:
        rises = self.edges.ndim == 2 and np.isfinite(self.edges).all() and (np.diff(self.edges) >= 0).all()
        shape = (self.edges.shape[0], self.edges.shape[-1] - 1)
        between = rises and shape == self.levels.shape and shape[1] > 0
        if not between or not ((self.levels >= self.edges[:, :-1]) & (self.levels <= self.edges[:, 1:])).all():
            raise SignalError(
                f"a codec with edges of shape {self.edges.shape} and levels of {self.levels.shape}: wanted (channels, "
                "bins + 1) that rise and a level between each two; write the model file again"
            )

    @classmethod
    def fit(
        cls,
        channels: Sequence[NDArray[Any]],
        titles: Sequence[str],
        bins: int,
        spacing: Spacing,
        within: Within,
        tail: float,
    ) -> Quantiser:
        """For the values (n,) of each channel. `tail`: which part of them, at either end, may lie outside."""
        edges = np.zeros((len(channels), bins + 1), np.float32)
        levels = np.zeros((len(channels), bins), np.float32)
        for n, values in enumerate(channels):
            finite = values[np.isfinite(values)].astype(np.float64)
            if not len(finite):
                raise SignalError(f"channel {titles[n]} has no number in it: leave it out, or fit on other recordings")
            if np.abs(finite).max() > np.finfo(np.float32).max:
                raise SignalError(f"channel {titles[n]} has numbers beyond 3.4e38: wanted what fits into 32 bits")
            low, high = np.quantile(finite, tail, method="lower"), np.quantile(finite, 1 - tail, method="higher")
            if spacing == "uniform":
                cuts = np.linspace(low, high, bins + 1).astype(np.float32)
            else:
                cuts = np.quantile(finite, np.linspace(tail, 1 - tail, bins + 1)).astype(np.float32)
            # Rounded outwards, so that rounding leaves no value that was inside outside.
            cuts[0], cuts[-1] = _below(low), -_below(-high)
            cuts = np.maximum.accumulate(cuts)
            # What comes again and again, such as zero, has a bin of its own.
            ends = np.flatnonzero((cuts[1:-1] == cuts[:-2]) & (cuts[1:-1] < cuts[2:])) + 1
            cuts[ends] = np.nextafter(cuts[ends], np.float32(np.inf))
            edges[n] = cuts
            levels[n] = _levels(edges[n], finite, within)
        return cls(edges, levels)

    @property
    def bins(self) -> int:
        return int(self.levels.shape[1])

    def code(self, values: NDArray[Any], channel: int) -> tuple[Codes, int]:
        """Codes of the values (n,) of a channel, and how many lie outside of the edges."""
        edges = self.edges[channel].astype(np.float64)
        gone = np.isnan(values)
        outside = int(((values < edges[0]) | (values > edges[-1])).sum())
        found = np.searchsorted(edges[1:-1], np.where(gone, 0, values), side="right")
        return np.where(gone, self.bins, found), outside

    def value(self, codes: Codes, channel: int) -> NDArray[np.float32]:
        """The values (n,) of codes: NaN of what is no bin."""
        fits = (codes >= 0) & (codes < self.bins)
        return np.where(fits, self.levels[channel][np.where(fits, codes, 0)], np.float32(np.nan))

    def bound(self, channel: int) -> Bound:
        """The half of the widest bin, or more where a level is not its middle."""
        edges, levels = self.edges[channel].astype(np.float64), self.levels[channel].astype(np.float64)
        return Bound(float(np.maximum(levels - edges[:-1], edges[1:] - levels).max()))


def _below(exact: np.float64) -> np.float32:
    rounded = np.float32(exact)
    return rounded if rounded <= exact else np.nextafter(rounded, np.float32(-np.inf))


def _levels(edges: NDArray[np.float32], values: NDArray[np.float64], within: Within) -> NDArray[np.float32]:
    wide = edges.astype(np.float64)
    middle = wide[:-1] / 2 + wide[1:] / 2
    if within == "mean":
        inside = values[(values >= wide[0]) & (values <= wide[-1])]
        at = np.searchsorted(wide[1:-1], inside, side="right")
        count = np.bincount(at, minlength=len(middle))
        total = np.bincount(at, weights=inside, minlength=len(middle))
        middle = np.where(count > 0, total / np.maximum(count, 1), middle)
    return np.clip(middle.astype(np.float32), edges[:-1], edges[1:])
