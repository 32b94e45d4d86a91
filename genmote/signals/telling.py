"""What a compressor may be told of each next sample by a model that has seen such recordings: a model's side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote.signals.kinds import Series
from genmote.signals.practice import Practice

Codes = NDArray[np.int64]  # (T, K) bins, or how many bins there are for a sample that is missing
Logits = NDArray[np.float32]  # (n, bins)


class Lane(Protocol):
    """One block that is given back sample by sample. A sample's logits are of its bins, and of all before it."""

    codes: Codes  # (T, K), filled in as samples become known, row by row


class Teller(Protocol):
    """A model of series. What it tells of a sample must have the same bits each time, on every machine, whether samples
    are told one by one or many at once, alone or beside other blocks."""

    name: str
    sha256: str  # of its file
    bins: int
    practice: Practice | None  # what the coder begins with

    def cuts(self, series: Series) -> list[NDArray[np.float64] | None]:
        """Of each channel where its bins end, (bins + 1,) ascending, in its unit; None where it does not know it."""

    def logits(self, series: Series, codes: Codes) -> Iterator[Logits]:
        """Of each sample of a block, in their order, some at a time. `series`: channels that it knows, T samples of
        whatever value, and their times."""

    def lane(self, series: Series) -> Any:
        """A block whose samples are not known yet: `codes` (T, K) is to be filled in."""

    def step(self, lanes: Sequence[Any]) -> Logits:
        """(len(lanes), bins) of the next sample of each; the samples before must be known."""
