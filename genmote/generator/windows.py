"""What a generator is trained on: stretches of recordings, drawn by a seed, and some with a gap that is filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.generator.layout import ASKS, Layout, Rows, joined
from genmote.generator.scale import KNOWN, Scale
from genmote.signals.header import END
from genmote.signals.kinds import Frames, Series, Signal

HELD = 0.1  # of the recordings, or of each, by which training is stopped and judged
FEW = 10  # recordings, below which the end of each is held out
UNSAID = 0.1  # of the stretches, whose labels are left out: recordings without any are judged, too
GAPS = 0.3  # of the stretches of series, in which a gap is filled in
SHORTEST = 8  # steps of a stretch with a gap


@dataclass(frozen=True, eq=False)
class Recording:
    """A signal's rows (n), and where its T steps begin in them (T + 1)."""

    signal: Signal
    header: Rows
    rows: Rows
    starts: NDArray[np.int64]

    @property
    def steps(self) -> int:
        return len(self.starts) - 1

    def part(self, start: int, stop: int) -> Rows:
        return self.rows[int(self.starts[start]) : int(self.starts[stop])]


def recordings(layout: Layout, signals: Sequence[Signal], notes: list[str]) -> list[Recording]:
    """All signals as rows; those without a sample are left out."""
    found = []
    for signal in signals:
        if not len(signal):
            continue
        own = Scale.of(signal.values, layout.scale).told(signal) if scaled(signal, layout) else signal
        rows = layout.rows(own, notes)
        try:
            starts = layout.starts(signal, rows)
        except SignalError:  # a codec without steps: each token is one
            starts = np.arange(len(rows) + 1)
        found.append(Recording(signal, layout.header(signal), rows, starts))
    if not found:
        raise SignalError("no recording with a sample in it; give some that have")
    return found


def scaled(signal: Signal, layout: Layout) -> TypeGuard[Series]:
    """Whether each stretch is told by a scale of its own."""
    return layout.scale != "none" and isinstance(signal, Series)


def learnt_rows(signals: Sequence[Signal], seed: int) -> list[int]:
    """Of each signal how many of its first rows are learnt from; by the others training is judged: whole recordings
    where there are many, else the end of each."""
    found = [len(signal) for signal in signals]
    some = [n for n, length in enumerate(found) if length]
    if len(some) >= FEW:
        order = np.random.default_rng(seed).permutation(len(some))
        for n in order[: max(1, int(len(some) * HELD))].tolist():
            found[some[n]] = 0
        return found
    for n in some:
        cut = found[n] - max(1, int(found[n] * HELD))
        if cut > 0 and not isinstance(signals[n], Frames):
            found[n] = cut
    return found


def held_out(signals: Sequence[Signal], seed: int) -> tuple[list[Signal], list[Signal]]:
    """Signals to learn from, and others to judge by."""
    both = list(zip(signals, learnt_rows(signals, seed), strict=True))
    learnt = [s if rows == len(s) or isinstance(s, Frames) else s.part(0, rows) for s, rows in both if rows]
    judged = [s if not rows or isinstance(s, Frames) else s.part(rows, len(s)) for s, rows in both if rows < len(s)]
    return learnt, judged or learnt


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs (B, L), what each asks next (B, L, ASKS), and what came next (B, L), -1 where nothing is to be learnt."""

    tokens: NDArray[np.int64]
    asks: NDArray[np.int64]
    targets: NDArray[np.int64]


class Windows:
    """Stretches of recordings, each of at most `layout.context` rows."""

    def __init__(self, layout: Layout, found: Sequence[Recording]) -> None:
        self.layout, self.found = layout, list(found)
        lengths = np.array([len(recording.rows) for recording in found], float)
        # A long recording is drawn from more often, but each is.
        self.shares = np.maximum(lengths, 1) ** 0.75
        self.shares /= self.shares.sum()
        self.tokens = int(lengths.sum())

    def batch(self, count: int, draw: np.random.Generator, *, shift: float = 0.0) -> Batch:
        """`count` stretches. `shift`: by which part of the bins, about, each series is moved up or down as a whole."""
        chosen = draw.choice(len(self.found), count, p=self.shares)
        found = self.padded([self._drawn(self.found[n], draw) for n in chosen.tolist()])
        if not self.layout.steady or not shift:
            return found
        start, stop = (self.layout.codec.head.size + code for code in self.layout.codec.ordered()[0])
        by = np.rint(draw.standard_normal((count, 1)) * shift * (stop - start)).astype(np.int64)

        def moved(x: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.where((x >= start) & (x < stop), np.clip(x + by, start, stop - 1), x)

        return Batch(moved(found.tokens), found.asks, moved(found.targets))

    def fixed(self, most: int) -> list[Rows]:
        """At most so many stretches, evenly over all recordings: the same each time."""
        found: list[Rows] = []
        for recording in self.found:
            at = 0
            while at < recording.steps:
                stop = self._reach(recording, at)
                found.append(self._stretch(recording, at, stop))
                at = stop
        keep = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int))
        return [found[n] for n in keep.tolist()]

    def padded(self, parts: Sequence[Rows]) -> Batch:
        length = max(len(part) for part in parts) - 1
        tokens = np.zeros((len(parts), length), np.int64)
        targets = np.full((len(parts), length), -1, np.int64)
        asks = np.full((len(parts), length, ASKS), -1, np.int64)
        head = self.layout.codec.head.size
        for n, part in enumerate(parts):
            tokens[n, : len(part) - 1] = part.tokens[:-1]
            asks[n, : len(part) - 1] = part.asks[1:]
            next_ = part.tokens[1:]
            learnt = ((next_ >= head) & (next_ < self.layout.codec.vocabulary)) | (next_ == END)
            targets[n, : len(part) - 1] = np.where(learnt, next_, -1)
        return Batch(tokens, asks, targets)

    def _drawn(self, recording: Recording, draw: np.random.Generator) -> Rows:
        found = self._whole(recording, draw)
        if self.layout.codec.head.label_keys and draw.random() < UNSAID:
            return self.layout.unlabelled(found)
        return found

    def _whole(self, recording: Recording, draw: np.random.Generator) -> Rows:
        room = self.layout.context - len(recording.header) - 3
        start = 0
        if len(recording.rows) > room:
            # The beginning is what generation starts from: it is drawn a little more often than any other place.
            start = max(0, int(draw.integers(-recording.steps // 50 - 1, recording.steps - 1)))
        stop = self._reach(recording, start)
        short = len(recording.rows) - int(recording.starts[start]) < room // 2
        if short and start:  # not a rest: the last whole stretch
            stop = recording.steps
            start = int(np.searchsorted(recording.starts, recording.starts[-1] - room))
        steps = stop - start
        if self.layout.steady and isinstance(recording.signal, Series) and steps >= SHORTEST and draw.random() < GAPS:
            return self._filled(recording, start, stop, draw)
        return self._stretch(recording, start, stop, known=float(draw.uniform(0.5, 1.0)))

    def _reach(self, recording: Recording, start: int) -> int:
        """The last step that a stretch from `start` has room for."""
        room = self.layout.context - len(recording.header) - 3
        stop = int(np.searchsorted(recording.starts, recording.starts[start] + room, side="right")) - 1
        return max(start + 1, min(stop, recording.steps))

    def _stretch(self, recording: Recording, start: int, stop: int, known: float = KNOWN) -> Rows:
        """`known`: the part by which its scale is found, where it has one of its own."""
        rows = recording.part(start, stop)
        if scaled(recording.signal, self.layout):
            piece = recording.signal.part(start, stop)
            seen = piece.values[: max(1, int(known * len(piece)))]
            rows = self.layout.rows(Scale.of(seen, self.layout.scale).told(piece))
        parts = [recording.header, rows]
        if start == 0 and stop == recording.steps:
            parts.append(self.layout.mark(END))
        return joined(parts)[: self.layout.context]

    def _filled(self, recording: Recording, start: int, stop: int, draw: np.random.Generator) -> Rows:
        steps = stop - start
        gap = int(np.exp(draw.uniform(0, np.log(steps / 2))))
        after = int(draw.integers(1, max(2, (steps - gap) // 2)))
        begin = stop - after - gap
        layout = self.layout
        hole = recording.part(begin, begin + gap)
        follows, precedes = recording.part(begin + gap, stop), recording.part(start, begin)
        assert isinstance(recording.signal, Series)
        piece = recording.signal.part(begin, begin + gap)
        if scaled(recording.signal, layout):
            whole = recording.signal.part(start, stop)
            seen = np.concatenate([whole.values[: begin - start], whole.values[begin - start + gap :]])
            rows = layout.rows(Scale.of(seen, layout.scale).told(whole))
            at = [x * len(piece.channels) for x in (begin - start, begin - start + gap)]
            precedes, hole, follows = rows[: at[0]], rows[at[0] : at[1]], rows[at[1] :]
        left = np.arange(gap, 0, -1, dtype=np.int32)
        return joined(
            [
                recording.header,
                layout.mark(layout.after),
                follows,
                layout.mark(layout.before),
                precedes,
                Rows(hole.tokens, layout.asks(piece, layout.times(piece), left)),
            ]
        )
