"""A block of a compressed signal (`container.py`): its head, its planes, and how a model tells of them.

The model sees the channels that it knows and whose values lie in one plane, sample by sample. Their planes are coded
as it tells, together with the other planes that are coded at once; what is left is coded without it, and times come
before, so that the model may know them.
"""

from __future__ import annotations

import json
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from genmote.signals import adaptive, practice
from genmote.signals._planes import PLAIN, Integers, Reader, how, planed, unpacked, varint
from genmote.signals.kinds import Mark, Series
from genmote.signals.practice import Plane
from genmote.signals.telling import Teller

Floats = NDArray[np.float64]


def head(piece: Series, *, aligned: bool = False) -> tuple[bytes, list[Integers]]:
    """Rows, a checksum of the integers, how each channel was made small, and its marks; and the planes of numbers of
    channels, then of times. `aligned`: numbers are told from where the value is 0."""
    assert piece.grid is not None
    integers = np.ascontiguousarray(piece.grid.integers, "<i8")
    found = [varint(len(piece)), struct.pack("<I", zlib.crc32(integers.tobytes()))]
    columns = [(integers[:, n], _origin(piece, n) if aligned else None) for n in range(integers.shape[1])]
    if piece.times_s is not None:  # their bits, as whole numbers: rising times give rising numbers
        bits = np.ascontiguousarray(piece.times_s, np.float64).view(np.int64)
        columns += [(bits >> 32, None), (bits & 0xFFFFFFFF, None)]
    planes: list[Integers] = []
    for column, origin in columns:
        said, own = planed(column, origin)
        found.append(said)
        planes += own
    listed = [[m.start, m.stop, m.label, *[1] * m.goes_on] for m in piece.marks]
    marks = json.dumps(listed, ensure_ascii=False) if listed else ""
    packed = zlib.compress(marks.encode(errors="replace"), 9) if marks else b""
    return b"".join([*found, varint(len(packed)), packed]), planes


def coded(planes: Sequence[Integers]) -> list[bytes]:
    """Planes, at most 64 at once, with the sizes of what is coded."""
    found = []
    for first in range(0, len(planes), adaptive.CHANNELS):
        part = adaptive.encode(np.stack(planes[first : first + adaptive.CHANNELS], axis=1))
        found += [varint(len(part)), part]
    return found


def block(teller: Teller, piece: Series, pool: Executor, notes: list[str]) -> bytes | None:
    """A block coded with the model's help; None where it knows nothing of it."""
    begin, planes = head(piece, aligned=True)
    body = Body(begin, piece, piece.values.size)
    plan = body.plan(teller)
    samples = np.zeros((len(piece), 0), np.int64)
    if plan is not None:
        samples = np.ascontiguousarray(np.stack(planes[: plan.width], axis=1))
    _tell(notes, piece, plan, samples)
    if plan is None:
        return None
    coder = adaptive.coder(samples, plan.help)
    coder.go(adaptive.NO_LOGITS)
    wanted, at = np.array([value >= 0 for _, value, _ in plan.places]), 0
    running: Future[bool] | None = None
    for logits in teller.logits(plan.series, plan.codes(samples)):
        told = np.ascontiguousarray(logits[wanted[(at + np.arange(len(logits))) % len(wanted)]])
        at += len(logits)
        if running is not None:
            running.result()
        running = pool.submit(coder.go, told)
    if running is not None:
        running.result()
    helped = coder.finish()
    count = sum(one.planes for one in body.hows[: len(piece.channels)])
    return b"".join([begin, *coded(planes[count:]), varint(len(helped)), helped, *coded(planes[plan.width : count])])


def walk(teller: Teller, bodies: Sequence[Body]) -> None:
    """Give blocks back that a model told of, all at once, sample by sample."""
    lanes = [_Lane(teller, body) for body in bodies]
    active = [lane for lane in lanes if not lane.done]
    while active:
        found = teller.step([lane.own for lane in active])
        for n, lane in enumerate(active):
            lane.take(found[n : n + 1])
        active = [lane for lane in active if not lane.done]
    for lane in lanes:
        lane.finish()


class Body:
    """A block as it is read. `about`: its series without samples, beginning where the block does."""

    def __init__(self, body: bytes, about: Series, most: int) -> None:
        self.data = data = Reader(body)
        self.about, self.rows = about, data.varint()
        channels = len(about.channels)
        if self.rows * channels > max(most, channels):
            raise ValueError(f"{self.rows} rows are more than a block has")
        (self.check,) = struct.unpack("<I", data.take(4))
        self.hows = [how(data) for _ in range(channels + (0 if about.times_s is None else 2))]
        self.marks = data.take(data.varint())
        self.planes: list[Integers] = []

    def plain(self) -> None:
        """Read the planes of a block without a model."""
        self.planes = self.decoded(sum(one.planes for one in self.hows))

    def decoded(self, count: int) -> list[Integers]:
        """So many planes more, at most 64 at once."""
        found: list[Integers] = []
        for first in range(0, count, adaptive.CHANNELS):
            width = min(adaptive.CHANNELS, count - first)
            part = adaptive.decode(self.data.take(self.data.varint()), self.rows, width)
            found += [part[:, n] for n in range(width)]
        return found

    def plan(self, teller: Teller, times: NDArray[np.float64] | None = None) -> Plan | None:
        """What the model tells of; None for nothing."""
        about, grid = self.about, self.about.grid
        assert grid is not None
        hows = self.hows[: len(about.channels)]
        ends = np.cumsum([one.planes for one in hows])
        width = int(min(ends[-1], adaptive.CHANNELS))
        known, places, planes = [], [], [Plane()] * width
        cuts: list[Floats] = []
        for n, (one, edges) in enumerate(zip(hows, teller.cuts(about), strict=True)):
            value = int(ends[n]) - 1 if one.planes > one.holes else -1
            step = float(grid.step[n]) * one.factor
            at = None if edges is None else one.placed((edges - grid.zero[n]) / grid.step[n])
            if ends[n] > width:
                continue
            if at is not None:
                gone = int(ends[n]) - one.planes if one.holes else -1
                known.append(n)
                places.append((gone, value, at))
            if value >= 0 and one.kind == PLAIN and teller.practice is not None:
                aligned = 0 <= one.base - _origin(about, n) < one.factor
                at_home = teller.practice.at(about.channels[n], about.units[n]) if aligned else -1
                planes[value] = Plane(at_home, step)
            if value >= 0 and at is not None:
                planes[value] = replace(planes[value], told=len(cuts))
                cuts.append(at)
        if not cuts:
            return None
        table = np.ascontiguousarray(np.stack(cuts))
        series = replace(
            about,
            values=np.zeros((self.rows, len(known)), np.float32),
            times_s=about.times_s if times is None else times,
            channels=tuple(about.channels[n] for n in known),
            units=tuple(about.units[n] for n in known),
            grid=None,
            marks=(),
        )
        return Plan(series, width, places, practice.help_of(teller.practice, planes, table))

    def series(self) -> Series:
        """What the planes say. ValueError where that is not what was coded."""
        about, columns, at = self.about, [], 0
        for one in self.hows:
            columns.append(one.made(self.planes[at : at + one.planes], self.rows))
            at += one.planes
        channels = len(about.channels)
        integers = np.stack(columns[:channels], axis=1)
        if zlib.crc32(integers.astype("<i8").tobytes()) != self.check:
            raise ValueError("its samples do not have their checksum")
        listed = json.loads(unpacked(self.marks)) if self.marks else []
        marks = tuple(Mark(int(m[0]), int(m[1]), str(m[2]), len(m) > 3) for m in listed)
        if any(not 0 <= mark.start <= mark.stop <= self.rows for mark in marks):
            raise ValueError("a mark lies outside its block")
        assert about.grid is not None
        grid = replace(about.grid, integers=integers)
        times = None if about.times_s is None else _times(columns[channels:])
        return replace(about, values=grid.values(), times_s=times, grid=grid, marks=marks)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a model tells of a block: `series` of the channels that it sees; of each of them the planes of gaps and of
    values (-1: none) and where its bins end in the latter; `width` planes are coded with it."""

    series: Series
    width: int
    places: list[tuple[int, int, Floats]]
    help: adaptive.Help

    def codes(self, samples: Integers) -> NDArray[np.int64]:
        """(T, K) of planes (T, width)."""
        found = np.zeros((len(samples), len(self.places)), np.int64)
        for n, (gone, value, cuts) in enumerate(self.places):
            values = samples[:, value] if value >= 0 else np.zeros(len(samples), np.int64)
            found[:, n] = np.searchsorted(cuts[1:-1], values, side="right")
            if gone >= 0:
                found[samples[:, gone] != 0, n] = len(cuts) - 1
        return found

    def outside(self, samples: Integers) -> int:
        """How many samples lie beyond the bins."""
        at = [(samples[:, value], cuts) for _, value, cuts in self.places if value >= 0]
        return sum(int(((values < cuts[0]) | (values > cuts[-1])).sum()) for values, cuts in at)


class _Lane:
    """A block while it is walked."""

    def __init__(self, teller: Teller, body: Body) -> None:
        channels = len(body.about.channels)
        late = body.hows[channels:]
        self.body, self.late = body, body.decoded(sum(one.planes for one in late))
        times = None
        if late:
            first = late[0].planes
            columns = [late[0].made(self.late[:first], body.rows), late[1].made(self.late[first:], body.rows)]
            times = _times(columns)
        plan = body.plan(teller, times)
        if plan is None:
            raise ValueError("the model knows none of its channels")
        self.plan, self.at, self.bins = plan, 0, teller.bins
        self.samples = np.zeros((body.rows, plan.width), np.int64)
        self.coder = adaptive.coder(self.samples, plan.help, body.data.take(body.data.varint()))
        self.coder.go(adaptive.NO_LOGITS)
        self.own = teller.lane(plan.series)
        self.inner = [cuts[1:-1].tolist() for _, _, cuts in plan.places]

    @property
    def done(self) -> bool:
        return self.at >= int(self.own.codes.size)

    def take(self, logits: NDArray[np.float32]) -> None:
        """Of the next sample, (1, bins)."""
        row, column = divmod(self.at, len(self.inner))
        gone, value, _ = self.plan.places[column]
        if value >= 0:
            self.coder.go(logits)
        if gone >= 0 and self.samples[row, gone]:
            code = self.bins
        else:
            code = bisect_right(self.inner[column], self.samples.item(row, value) if value >= 0 else 0)
        self.own.codes[row, column] = code
        self.at += 1

    def finish(self) -> None:
        channels = len(self.body.about.channels)
        count = sum(one.planes for one in self.body.hows[:channels])
        rest = self.body.decoded(count - self.plan.width)
        self.body.planes = [*self.samples.T, *rest, *self.late]


def _times(columns: Sequence[Integers]) -> NDArray[np.float64]:
    return ((columns[0] << 32) | columns[1]).view(np.float64)


def _origin(about: Series, channel: int) -> int:
    """The whole number that is nearest to the value 0."""
    assert about.grid is not None
    with np.errstate(all="ignore"):
        found = -about.grid.zero[channel] / about.grid.step[channel]
    return int(np.rint(found)) if abs(found) < 1 << 62 else 0


def _tell(notes: list[str], piece: Series, plan: Plan | None, samples: Integers) -> None:
    """What the model is of no help for, once each."""
    seen = () if plan is None else plan.series.channels
    unknown = [name for name in piece.channels if name not in seen]
    told = [f"{piece.name}: the model tells nothing of {', '.join(unknown)}"] if unknown else []
    if plan is not None and (outside := plan.outside(samples)):
        told.append(f"{piece.name}: {outside} samples lie outside of what the model was trained on")
    notes += [line for line in told if line not in notes]
