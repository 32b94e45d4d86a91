"""How a signal becomes what a generator's decoder reads: tokens, and beside each what it is a token of.

A model of codec tokens alone has to count: in twelve interleaved channels it must find out whose turn it is. So each
row of the decoder is the embedding of a token plus those of its *asks*: tokens, too, that tell what the next one will
be of. There are six, each of which may be absent (-1): the channel; how many steps are left of a gap that is filled
in; the hour; and the day of the week, where recordings have dates and are slow enough for that to matter; and the first
two labels, which a header alone would tell too quietly.

A gap is filled in as what goes on from before it, with what comes after it told first: header, AFTER, what follows the
gap, BEFORE, what precedes it, and then the gap (in the manner of Bavarian et al. 2022, arXiv 2207.14255, their SPM).

The vocabulary is the codec's, then AFTER, BEFORE, and the asks' own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.generator.scale import Own
from genmote.signals.codecs.bins import Bins
from genmote.signals.coding import Codec
from genmote.signals.header import FIRST
from genmote.signals.kinds import DATED, Records, Series, Signal

ASKS = 6  # channel, steps left, hour, day of the week, two labels
CHANNEL, LEFT, HOUR, DAY, LABEL, OTHER = range(ASKS)
NEAR, LEFTS = 16, 32  # steps left that have a token each; tokens for steps left
SLOWEST, FASTEST = 86400.0, 10.0  # seconds from step to step between which the hour matters
Int = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens (n,), and what each is of: asks (n, ASKS), -1 where there is none."""

    tokens: Int
    asks: Int

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.tokens[part], self.asks[part])


def joined(parts: Sequence[Rows]) -> Rows:
    return Rows(np.concatenate([part.tokens for part in parts]), np.concatenate([part.asks for part in parts]))


@dataclass(frozen=True, eq=False)
class Layout:
    """`clock`: the hour and the day are asked. `context`: rows that the decoder was trained for. `scale`: by what a
    stretch of a series is told. `labelled`: labels are asked."""

    codec: Codec
    clock: bool
    context: int
    scale: Own = "none"
    labelled: bool = False

    @property
    def after(self) -> int:
        return self.codec.vocabulary

    @property
    def before(self) -> int:
        return self.codec.vocabulary + 1

    @property
    def _lefts(self) -> int:
        return self.codec.vocabulary + 2

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self._lefts + LEFTS + (24 + 7 if self.clock else 0)

    @property
    def first_label(self) -> int:
        """The first token of a header that is a label."""
        return self.codec.head.size - len(self.codec.head.label_keys)

    def unlabelled(self, rows: Rows) -> Rows:
        """The rows of a stretch, header and all, without what its labels say."""
        kept = (rows.tokens < self.first_label) | (rows.tokens >= self.codec.head.size)
        asks = rows.asks[kept].copy()
        asks[:, LABEL:] = -1
        return Rows(rows.tokens[kept], asks)

    @property
    def steady(self) -> bool:
        """Whether each sample of each channel is one token, so that steps can be counted."""
        return isinstance(self.codec, Bins) and not self.codec.settings.exact

    def ranges(self) -> list[tuple[int, int]]:
        """Tokens [start, stop) whose neighbours mean nearly the same: what is learnt of one holds for others."""
        head = self.codec.head.size
        found = [(head + start, head + stop) for start, stop in self.codec.ordered()]
        return [*found, (self._lefts, self._lefts + LEFTS)]

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """(V,) tokens that the codec reads."""
        said = np.zeros(self.vocabulary, bool)
        said[self.codec.head.size : self.codec.vocabulary] = True
        return said

    def header(self, signal: Signal) -> Rows:
        tokens = self.codec.header(signal)
        return Rows(tokens, np.full((len(tokens), ASKS), -1, np.int32))

    def mark(self, token: int) -> Rows:
        """A token that is of nothing: AFTER, BEFORE, END."""
        return Rows(np.array([token], np.int32), np.full((1, ASKS), -1, np.int32))

    def rows(self, signal: Signal, notes: list[str] | None = None) -> Rows:
        """The signal's tokens, without a header."""
        tokens = self.codec.encode(signal, notes)
        if isinstance(signal, Series) and self.steady:
            return Rows(tokens, self.asks(signal, self.times(signal)))
        return Rows(tokens, np.full((len(tokens), ASKS), -1, np.int32))

    def starts(self, signal: Signal, rows: Rows) -> NDArray[np.int64]:
        """(T + 1,) where each sample or row begins in the signal's tokens, and where the last ends. SignalError for a
        codec whose tokens cannot be told apart so."""
        if isinstance(signal, Series) and self.steady:
            return np.arange(len(signal) + 1) * len(signal.channels)
        if not isinstance(signal, Records):
            raise SignalError(
                f"{signal.name}: codec {self.codec.name} has no tokens of single samples; train with --codec bins"
            )
        begins = np.flatnonzero(rows.tokens == self.codec.head.size + self.codec.row)
        return np.append(begins, len(rows))

    def times(self, signal: Signal) -> NDArray[np.float64] | None:
        """(T,) seconds since 1970 of each sample, where they are known and asked for."""
        return dates(signal) if self.clock else None

    def asks(self, signal: Series, times: NDArray[np.float64] | None, left: Int | None = None) -> Int:
        """(T * C, ASKS) of a series of T samples; `left` (T,): how many steps are left of a gap, 0 where there is
        none."""
        positions = np.array(self.codec.head.positions(signal))
        head = self.codec.head
        first = FIRST + len(head.modalities) + len(head.rates_hz)
        count = len(signal) if left is None else len(left)
        found = np.full((count, len(positions), ASKS), -1, np.int32)
        found[:, :, CHANNEL] = first + positions
        if self.labelled:
            said = [token for token in head.tokens(signal).tolist() if token >= self.first_label][:2]
            for column, token in zip((LABEL, OTHER), said, strict=False):
                found[:, :, column] = token
        if left is not None:
            found[:, :, LEFT] = np.where(left > 0, self._lefts + bucket(left), -1)[:, None]
        if times is not None:
            hours = self._lefts + LEFTS
            found[:, :, HOUR] = (hours + np.floor(times / 3600).astype(np.int64) % 24)[:, None]
            found[:, :, DAY] = (hours + 24 + (np.floor(times / 86400).astype(np.int64) + 4) % 7)[:, None]
        return found.reshape(-1, ASKS)


def bucket(left: Int) -> Int:
    """Which of the LEFTS tokens stands for so many steps.

    >>> bucket(np.array([1, 16, 17, 30, 100000], np.int32)).tolist()
    [0, 15, 16, 18, 31]
    """
    far = NEAR + np.floor(np.log2(np.maximum(left, NEAR + 1) / NEAR) * 3)
    return np.where(left <= NEAR, left - 1, np.minimum(far, LEFTS - 1)).astype(np.int32)


def dates(signal: Signal) -> NDArray[np.float64] | None:
    """(T,) seconds since 1970 of each sample of a series whose steps are such that the hour matters; None where they
    are not, or not known."""
    if not isinstance(signal, Series) or not len(signal):
        return None
    if signal.rate_hz > 0:
        if signal.start_s is None:
            return None
        times, step = signal.start_s + np.arange(len(signal)) / signal.rate_hz, 1 / signal.rate_hz
    else:
        assert signal.times_s is not None
        times = signal.times_s
        step = float(np.median(np.diff(times))) if len(times) > 1 else FASTEST
    return times if float(times[0]) > DATED and FASTEST <= step <= SLOWEST else None


def slow(signals: Sequence[Signal]) -> bool:
    """Whether there are more than two days of samples that the hour matters for."""
    times = [found for signal in signals if (found := dates(signal)) is not None]
    return sum(float(each[-1] - each[0]) for each in times) > 2 * 86400
