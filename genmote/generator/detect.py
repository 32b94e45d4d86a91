"""What is unlike what the model knows: how unlikely each sample or row was, and a threshold from a clean stretch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError, SpecError
from genmote.generator.layout import Rows, joined
from genmote.generator.material import placed
from genmote.generator.walk import embedded
from genmote.ops.protocol import Span
from genmote.signals.codecs.bins import Bins
from genmote.signals.kinds import Series, Signal

if TYPE_CHECKING:
    from genmote.generator.model import Generator

CHUNK = 256  # rows that are run at once
SETTLES = 4  # samples at a stream's beginning, before which nothing is known, that are no alarm
Floats = NDArray[np.float32]


class Scorer:
    """Nats of each sample or row (mean over a sample's channels, sum over a row's fields), piece after piece. A number
    outside of what the codec was fitted on is as unlikely as its edge, and more so the further it lies out."""

    def __init__(self, model: Generator) -> None:
        self.model = model
        self.header: Rows | None = None
        self.kept: Rows | None = None  # what the cache was made for, but for the header; the last is not in it yet
        self.cache: Any = None
        self.parts: list[Scorer] = []  # of channels that are told each by itself

    def push(self, piece: Signal) -> Floats:
        """(n,) of a piece that goes on from the one before; however a signal is cut into pieces, its scores are the
        same."""
        return np.asarray(self.each(piece).mean(axis=1), np.float32)

    def channels(self, piece: Signal) -> tuple[str, ...]:
        """What the columns of `each` are of; none where a sample or row is told as a whole."""
        return piece.channels if isinstance(piece, Series) and self.model.layout.steady else ()

    def each(self, piece: Signal) -> NDArray[np.float64]:
        """(n, C) of each channel, or (n, 1) of samples or rows as a whole; `push` has their mean."""
        layout = self.model.layout
        piece = self.model.fitted(piece)
        if isinstance(piece, Series) and layout.steady:
            groups = self.model.together(piece.channels)
            if len(groups) > 1:
                self.parts = self.parts or [Scorer(self.model) for _ in groups]
                found = np.zeros(piece.values.shape)
                for part, group in zip(self.parts, groups, strict=True):
                    found[:, group] = part.each(placed(piece, group))
                return found
        header = layout.header(piece)
        if self.header is None or not np.array_equal(header.tokens, self.header.tokens):
            self.header = header
            self._begin(layout.header(piece)[:0])
        if not len(piece):
            return np.zeros((0, max(1, len(self.channels(piece)))))
        rows = layout.rows(piece)
        nats, starts = self._nats(rows), layout.starts(piece, rows)
        if isinstance(piece, Series) and layout.steady:
            return nats.reshape(piece.values.shape) + self._outside(piece)
        return np.add.reduceat(nats, starts[:-1]).astype(np.float64)[:, None]

    def _begin(self, rows: Rows) -> None:
        """Forget all but these."""
        assert self.header is not None
        self.kept = rows
        self.cache = self.model.decoder.cache(self.model.layout.context)
        before = joined([self.header, rows])
        for at in range(0, len(before) - 1, CHUNK):
            stop = min(at + CHUNK, len(before) - 1)
            self._run(before.tokens[at:stop], before.asks[at + 1 : stop + 1], logits=None)

    def _run(self, tokens: NDArray[Any], asks: NDArray[Any], logits: Any) -> Floats | None:
        x = embedded(self.model.decoder, tokens, asks)
        return self.model.decoder.forward(x, [Span(self.cache, 0, len(x))], logits=logits)

    def _nats(self, rows: Rows) -> Floats:
        """(n,) of tokens that follow those before."""
        layout = self.model.layout
        head = layout.codec.head.size
        found = np.zeros(len(rows), np.float32)
        at = 0
        while at < len(rows):
            assert self.kept is not None and self.header is not None
            room = layout.context - len(self.header) - len(self.kept)
            if room < 1:
                self._begin(self.kept[len(self.kept) - (layout.context - len(self.header)) // 2 :])
                continue
            part = rows[at : at + min(CHUNK, room)]
            last = self.kept.tokens[-1:] if len(self.kept) else self.header.tokens[-1:]
            logits = self._run(np.concatenate([last, part.tokens[:-1]]), part.asks, "all")
            assert logits is not None
            logits = logits[:, head:]  # what is no header's
            top = logits.max(axis=1, keepdims=True)
            total = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
            found[at : at + len(part)] = total - logits[np.arange(len(part)), part.tokens - head]
            self.kept = joined([self.kept, part])
            at += len(part)
        return found

    def _outside(self, piece: Series) -> NDArray[np.float64]:
        """(n, C) what is added for numbers beyond the codec's range: by how many of its bins."""
        codec = self.model.codec
        assert isinstance(codec, Bins)
        scale, extra = codec.scale, np.zeros(piece.values.shape)
        for n, at in enumerate(self.model.codec.head.positions(piece)):
            low, high = float(scale.edges[at, 0]), float(scale.edges[at, -1])
            wide = max((high - low) / scale.bins, 1e-30)
            # Infinity is as far as a number goes: the mean over it and its neighbours must stay a number.
            values = np.nan_to_num(piece.values[:, n], nan=low).astype(np.float64)
            beyond = np.maximum(np.maximum(low - values, values - high), 0)
            extra[:, n] = np.log1p(beyond / wide)
        return extra


@dataclass(frozen=True, eq=False)
class Found:
    """(n,) each: smoothed scores, and which of them are alarms: above the threshold, and not at the very beginning.
    `own` (k + n,): each sample's or row's own score, those of the k before the piece that its scores are of, too;
    `most`: which of the `channels` has the largest part in that, where it is of channels."""

    scores: Floats
    alarms: NDArray[np.bool_]
    own: Floats
    most: NDArray[np.intp]
    smooth: int
    channels: tuple[str, ...] = ()

    @property
    def before(self) -> int:
        """k"""
        return len(self.own) - len(self.scores)

    def oddest(self, start: int, stop: int) -> int:
        """Of the rows that the scores [start, stop) are of, the one whose own is the highest; below 0 before the
        piece. A smoothed score stays high after what is odd, so it does not tell the row."""
        first = max(-self.before, start - self.smooth + 1)
        return first + int(self.own[first + self.before : stop + self.before].argmax())

    def channel(self, row: int) -> str | None:
        return self.channels[self.most[row + self.before]] if self.channels else None


class Detector:
    """Scores, averaged over the last `smooth` samples, against a threshold."""

    def __init__(self, model: Generator, threshold: float, smooth: int = 1) -> None:
        if smooth < 1:
            raise SpecError(f"smooth={smooth}: use 1 or more")
        self.scorer, self.threshold, self.smooth = model.scorer(), threshold, smooth
        self._last: NDArray[np.float64] | None = None  # of each channel, the samples that later scores are of, too
        self._seen = 0

    def push(self, piece: Signal) -> Found:
        """Of a piece that goes on from the one before."""
        own = self.scorer.each(piece)
        before = own[:0] if self._last is None else self._last
        both = np.concatenate([before, own])
        sums = np.cumsum(np.concatenate([np.zeros((1, own.shape[1])), both]), axis=0)
        at = np.arange(len(before) + 1, len(both) + 1)
        begin = np.maximum(0, at - self.smooth)
        scores = ((sums[at] - sums[begin]) / (at - begin)[:, None]).mean(axis=1).astype(np.float32)
        self._last = both[max(0, len(both) - self.smooth + 1) :] if self.smooth > 1 else both[:0]
        place = self._seen + np.arange(len(scores))
        self._seen += len(scores)
        alarms = (scores > self.threshold) & (place >= SETTLES)
        alone = both.mean(axis=1).astype(np.float32)
        return Found(scores, alarms, alone, both.argmax(axis=1), self.smooth, self.scorer.channels(piece))


def threshold(model: Generator, clean: list[Signal], quantile: float = 0.999, smooth: int = 1) -> float:
    """The score that a part `quantile` of a clean stretch stays below."""
    if not 0 < quantile < 1:
        raise SpecError(f"quantile={quantile}: use one between 0 and 1, such as 0.999")
    found = [Detector(model, np.inf, smooth).push(signal).scores[SETTLES:] for signal in clean]
    scores = np.concatenate(found) if found else np.zeros(0, np.float32)
    if len(scores) < 20:
        raise SignalError(f"{len(scores)} clean samples: wanted at least 20 to set a threshold by")
    return float(np.quantile(scores, quantile))
