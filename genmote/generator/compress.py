"""What a generator tells a compressor: of each next sample how probable each bin is, to the same bits on every machine.

Where a block is longer than a window, the model goes on from the header and the latest third: the same places when a
block is run at once and when it is walked, so that both tell the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import OpsError, SignalError
from genmote.generator.layout import CHANNEL, DAY, HOUR, LABEL, OTHER, Rows
from genmote.generator.model import Generator
from genmote.generator.walk import CHUNK, embedded
from genmote.models.gguf import ModelFile
from genmote.ops.protocol import Span
from genmote.runtime.loading import file_sha256
from genmote.signals import practice
from genmote.signals.codecs.bins import Bins
from genmote.signals.kinds import Series
from genmote.signals.practice import Practice
from genmote.signals.telling import Codes, Logits

PRACTICE = "genmote.practice."  # keys of a model file
SEEN, SEEN_STEPS = 160, 20  # tokens, or samples of each channel, that the model sees: more cost more than they tell


def windows(total: int, channels: int, room: int) -> Iterator[tuple[int, int, int]]:
    """Of each window the first sample that the model sees, the first that it tells of, and where it ends; `room`
    samples go into one, and one more is told of. Windows begin with a time's first channel, where that leaves any.

    >>> list(windows(12, 2, 6))
    [(0, 0, 7), (6, 7, 12)]
    """
    begin = first = 0
    while first < total:
        stop = min(total, begin + room + 1)
        yield begin, first, stop
        oldest = stop - room // 3
        begin = -(-oldest // channels) * channels
        if begin >= stop:
            begin = oldest
        first = stop


@dataclass(eq=False)
class Lane:
    """A block that is walked. `at`: of which sample is told next."""

    header: Rows
    asks: NDArray[np.int32]  # (T * K, those that there are)
    codes: Codes  # (T, K)
    room: int  # tokens of a window, the header's too
    windows: Iterator[tuple[int, int, int]]
    cache: Any = None
    at: int = 0
    stop: int = 0
    flat: Codes = field(init=False)

    def __post_init__(self) -> None:
        self.flat = self.codes.reshape(-1)


class Teller:
    """A generator's side of `genmote.signals.container`."""

    def __init__(self, model: Generator, sha256: str, name: str, learnt: Practice | None = None) -> None:
        """SignalError for a model without a token for each sample, OpsError for an op set that is not exact."""
        layout = model.layout
        if not layout.steady:
            raise SignalError(
                f"{name}: its codec {layout.codec.name} has no token for each sample, which compressing needs; train "
                "one with --codec bins"
            )
        if layout.scale != "none":
            raise SignalError(
                f"{name}: it is told each stretch by a scale of its own, which no block gives beforehand; train "
                "one without --scale"
            )
        if not model.exact:
            raise OpsError(
                f"op set {model.decoder.ops.name} gives other bits on other machines, so that what it compresses could "
                "not be read there; use native or numpy"
            )
        assert isinstance(layout.codec, Bins)
        self.model, self.sha256, self.name, self.practice = model, sha256, name, learnt
        self.codec, self.bins = layout.codec, layout.codec.scale.bins
        # which there are
        self.asks = [CHANNEL, *([HOUR, DAY] if layout.clock else []), *([LABEL, OTHER] if layout.labelled else [])]

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, threads: int | None = None, ops: str | None = None) -> Teller:
        """Of a model file; raises as `Generator.load` and `__init__` do."""
        model = Generator.load(path, threads=threads, ops=ops)
        file = model.path or Path(path)
        keys = ModelFile.open(file).metadata
        state = {key.removeprefix(PRACTICE): value for key, value in keys.items() if key.startswith(PRACTICE)}
        learnt = practice.from_state(state) if state else None
        return cls(model, file_sha256(file), file.name, learnt)

    def cuts(self, series: Series) -> list[NDArray[np.float64] | None]:
        head = self.codec.head
        known = {pair: n for n, pair in enumerate(zip(head.channels, head.units, strict=True))}
        at = [known.get(pair) for pair in zip(series.channels, series.units, strict=True)]
        # Of a time's samples each must see at least the one before it: as many channels as that allows, and a header.
        fit = (self.model.layout.context - 16 - len(head.label_keys)) // 3
        at = [n if n is not None and sum(m is not None for m in at[:k]) < fit else None for k, n in enumerate(at)]
        return [None if n is None else self.codec.scale.edges[n].astype(np.float64) for n in at]

    def logits(self, series: Series, codes: Codes) -> Iterator[Logits]:
        lane = self.lane(series)
        tokens = codes.reshape(-1).astype(np.int32) + self.codec.head.size
        header, decoder = lane.header, self.model.decoder
        for begin, first, stop in lane.windows:
            fed = np.concatenate([header.tokens, tokens[begin : stop - 1]])
            asks = np.concatenate([header.asks[1:, self.asks], lane.asks[begin:stop]])
            skipped = len(header) - 1 + first - begin
            cache = decoder.cache(lane.room)
            for at in range(0, len(fed), CHUNK):
                end = min(at + CHUNK, len(fed))
                x = embedded(decoder, fed[at:end], asks[at:end])
                wanted = list(range(max(skipped, at) - at, end - at))
                found = decoder.forward(x, [Span(cache, 0, end - at)], logits=wanted or None)
                if found is not None:
                    yield self._own(found)

    def lane(self, series: Series) -> Lane:
        layout, channels = self.model.layout, len(series.channels)
        header = layout.header(series)
        asks = np.ascontiguousarray(layout.asks(series, layout.times(series))[:, self.asks])
        room = min(layout.context - len(header), max(SEEN, SEEN_STEPS * channels))
        codes = np.zeros((len(series), channels), np.int64)
        return Lane(header, asks, codes, len(header) + room, windows(len(asks), channels, room))

    def step(self, lanes: Sequence[Lane]) -> Logits:
        decoder, head = self.model.decoder, self.codec.head.size
        tokens = np.empty(len(lanes), np.int32)
        asks = np.empty((len(lanes), len(self.asks)), np.int32)
        for n, lane in enumerate(lanes):
            asks[n] = lane.asks[lane.at]
            if lane.at < lane.stop:
                tokens[n] = lane.flat[lane.at - 1] + head
            else:
                tokens[n] = self._begin(lane)
            lane.at += 1
        x = embedded(decoder, tokens, asks)
        found = decoder.forward(x, [Span(lane.cache, n, 1) for n, lane in enumerate(lanes)])
        assert found is not None
        return self._own(found)

    def _begin(self, lane: Lane) -> int:
        """Run a new window but for its last token, which is given back."""
        begin, first, lane.stop = next(lane.windows)
        decoder, header = self.model.decoder, lane.header
        known = (lane.flat[begin:first] + self.codec.head.size).astype(np.int32)
        fed = np.concatenate([header.tokens, known])
        asks = np.concatenate([header.asks[1:, self.asks], lane.asks[begin : first + 1]])
        lane.cache = decoder.cache(lane.room)
        for at in range(0, len(fed) - 1, CHUNK):
            end = min(at + CHUNK, len(fed) - 1)
            decoder.forward(embedded(decoder, fed[at:end], asks[at:end]), [Span(lane.cache, 0, end - at)], logits=None)
        return int(fed[-1])

    def _own(self, logits: NDArray[np.float32]) -> Logits:
        """Of bins alone."""
        first = self.codec.head.size
        return np.ascontiguousarray(logits[:, first : first + self.bins])
