"""Frames: pictures pixel by pixel, patch after patch; clouds of points as range images, by `_sphere.py`.

A frame is FRAME and a code for each number of each pixel: those of a patch together, patches from the top left on, so
that what lies close in the picture lies close in the tokens. All frames are of one size. Of a cloud there stays the
nearest point in each direction of a grid, put into the middle of that direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.codecs._quantiser import Quantiser, Spacing, Within
from genmote.signals.codecs._sphere import Sphere, spherical
from genmote.signals.coding import Bound, Codec, Codes
from genmote.signals.header import About, Header
from genmote.signals.kinds import Frames
from genmote.spec import setting

AXES, RANGE = ("x", "y", "z"), "range"
ROUNDING = 1e-6  # of a distance: of numbers of 32 bits
SLACK = 1e-9  # radians


@dataclass(frozen=True)
class Settings:
    """How frames are coded."""

    bins: int = setting("bins of a channel's range", default=256)
    spacing: Spacing = setting("bins of one width, or that hold as many pixels each", default="uniform")
    within: Within = setting("what a bin comes back as: the mean of its pixels, or its centre", default="mean")
    tail: float = setting("part of the pixels, at either end, that lies outside of the range", default=0.0)
    patch: int = setting("pixels along the side of a patch", default=8)
    rows: int = setting("of points: elevations", default=64)
    columns: int = setting("of points: azimuths", default=512)
    labels: tuple[str, ...] = setting("labels that are written into the header", default=())

    def faults(self) -> Iterable[str]:
        if not 2 <= self.bins <= 1 << 16:
            yield f"bins={self.bins}, wanted 2 to 65536"
        if not 0 <= self.tail < 0.5:
            yield f"tail={self.tail}, wanted 0 or more and less than half"
        for name in ("patch", "rows", "columns"):
            if not 1 <= getattr(self, name) <= 4096:
                yield f"{name}={getattr(self, name)}, wanted 1 to 4096"


@dataclass(frozen=True)
class Look:
    """Frames of `channels`, all of `height` x `width` pixels; or clouds of points, seen as such, from an elevation of
    `lowest` to `highest` radians."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    points: bool
    height: int
    width: int
    lowest: float
    highest: float

    def faults(self) -> Iterable[str]:
        if len(self.channels) != len(self.units) or (self.points and not _has_axes(self.channels)):
            yield f"channels={self.channels}, units={self.units}, wanted a unit for each, and of points x, y and z"
        if not (1 <= self.height <= 1 << 16 and 1 <= self.width <= 1 << 16):
            yield f"height={self.height}, width={self.width}, wanted 1 to 65536 each"
        if not -math.pi / 2 <= self.lowest <= self.highest <= math.pi / 2:
            yield f"lowest={self.lowest}, highest={self.highest}, wanted angles that rise"

    @property
    def coded(self) -> list[str]:
        """Names of the numbers that a pixel has."""
        return [RANGE, *(name for name in self.channels if name not in AXES)] if self.points else list(self.channels)

    @property
    def sphere(self) -> Sphere:
        return Sphere(self.height, self.width, self.lowest, self.highest)

    @property
    def _axes(self) -> list[int]:
        return [self.channels.index(axis) for axis in AXES]

    def image(self, frame: NDArray[Any], name: str) -> tuple[NDArray[Any], int, int]:
        """Numbers (pixels, coded) of a frame; how many points are in no direction of it, and how many behind others."""
        if not self.points:
            if frame.shape[:2] != (self.height, self.width):
                raise SignalError(
                    f"{name}: a frame of {frame.shape[0]} x {frame.shape[1]} pixels, the codec is for {self.height} x "
                    f"{self.width}; cut or scale it"
                )
            return frame.reshape(-1, frame.shape[2]), 0, 0
        image, nowhere, behind = self.sphere.image(frame[:, self._axes], np.delete(frame, self._axes, axis=1))
        return image.reshape(self.height * self.width, -1), nowhere, behind

    def frame(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """A frame of numbers (pixels, coded)."""
        pixels = image.reshape(self.height, self.width, -1)
        if not self.points:
            return pixels
        points, others = self.sphere.points(pixels)
        frame = np.zeros((len(points), len(self.channels)), np.float32)
        frame[:, self._axes] = points
        frame[:, [n for n in range(len(self.channels)) if n not in self._axes]] = others
        return frame


@dataclass(frozen=True, eq=False)
class Grid(Codec):
    KIND = Frames
    SETTINGS = Settings

    settings: Settings
    look: Look
    scale: Quantiser  # of the numbers of a pixel

    def __post_init__(self) -> None:
        if len(self.scale.edges) != len(self.look.coded):
            raise SignalError(
                f"a codec of {len(self.look.coded)} numbers a pixel with {len(self.scale.edges)} ranges: wanted one "
                "each; write the model file again"
            )

    @classmethod
    def fitted(cls, signals: Sequence[Frames], settings: Settings, head: Header) -> Grid:
        first = signals[0]
        for signal in signals:
            if (signal.shape, signal.channels, signal.units) != (first.shape, first.channels, first.units):
                raise SignalError(f"{signal.name}: other channels than {first.name}; fit a codec on each")
        points = first.shape == "points"
        if points and not _has_axes(first.channels):
            raise SignalError(f"{first.name}: points with {', '.join(first.channels)}; wanted x, y and z among them")
        frames = [frame for signal in signals for frame in signal.frames if frame.size]
        if not frames:
            raise SignalError(f"{first.name}: no frame with anything in it; give at least one to be fitted on")
        height, width = (settings.rows, settings.columns) if points else frames[0].shape[:2]
        low, high = _elevations(frames, first) if points else (0.0, 0.0)
        look = Look(first.channels, first.units, points, height, width, low, high)
        images = [look.image(frame, first.name)[0] for frame in frames]
        columns = [np.concatenate([image[:, n] for image in images]) for n in range(len(look.coded))]
        limits = (settings.bins, settings.spacing, settings.within, settings.tail)
        return cls(head, settings, look, Quantiser.fit(columns, look.coded, *limits))

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """The pixel (height * width) that each place in the tokens is of."""
        row, column = np.divmod(np.arange(self.look.height * self.look.width), self.look.width)
        side = self.settings.patch
        return np.lexsort((column % side, row % side, column // side, row // side)).astype(np.int64)

    @property
    def size(self) -> int:
        return self.scale.bins + 2

    def ordered(self) -> list[tuple[int, int]]:
        return [(0, self.scale.bins)]

    @property
    def row(self) -> int:
        return self._start

    def follows(self, row: Sequence[int]) -> list[tuple[int, int]]:
        whole = 1 + self.look.height * self.look.width * len(self.look.coded)
        # A picture has each of its pixels; in a cloud there is nothing in many a direction.
        most = self.scale.bins + (1 if self.look.points else 0)
        return [(0, most)] if 0 < len(row) < whole else [(self._start, self._start + 1)]

    def error(self) -> dict[str, Bound]:
        """By channel. Of the points that are kept, `x`, `y` and `z` tell how far one may be moved: the relative part is
        of its distance."""
        bounds = {name: self.scale.bound(n) for n, name in enumerate(self.look.coded)}
        if self.look.points:
            moved = Bound(bounds[RANGE].absolute, self.look.sphere.half_cell + ROUNDING)
            bounds |= dict.fromkeys(AXES, moved)
        return bounds

    def codes(self, signal: Frames, notes: list[str]) -> Codes:
        if (signal.shape == "points") != self.look.points or signal.channels != self.look.channels:
            raise SignalError(
                f"{signal.name}: {signal.shape} of {', '.join(signal.channels)}, the codec is for "
                f"{'points' if self.look.points else 'grid'} of {', '.join(self.look.channels)}; fit one on it"
            )
        parts, outside = [np.zeros(0, np.int64)], np.zeros(len(self.look.coded), np.int64)
        lost = {"too high or low, or no numbers": 0, "behind others": 0}
        for frame in signal.frames:
            image, *counts = self.look.image(frame, signal.name)
            lost = {what: lost[what] + count for what, count in zip(lost, counts, strict=True)}
            image = image[self._order]
            codes = np.zeros(image.shape, np.int64)
            for n in range(image.shape[1]):
                codes[:, n], count = self.scale.code(image[:, n], n)
                outside[n] += count
            parts += [np.array([self._start]), codes.reshape(-1)]
        total = sum(len(frame) for frame in signal.frames)
        for what, count in lost.items():
            if count:
                notes.append(f"{signal.name}: {count} of {total} points are {what}, left out")
        for n in np.flatnonzero(outside).tolist():
            low, high = self.scale.edges[n, 0], self.scale.edges[n, -1]
            told = f"{outside[n]} values of {self.look.coded[n]} lie outside of {low:g} to {high:g}, cut to that"
            notes.append(f"{signal.name}: {told}")
        return np.concatenate(parts)

    def signal(self, codes: Codes, about: About, notes: list[str]) -> Frames:
        wanted = len(self._order) * len(self.look.coded)
        starts = np.flatnonzero(codes == self._start)
        lost = int(starts[0]) if len(starts) else len(codes)
        if lost:
            notes.append(f"{about.name}: {lost} tokens before the first frame, left out")
        frames, broken = [], 0
        for start, stop in pairwise([*starts.tolist(), len(codes)]):
            held = np.full(wanted, -1)
            part = codes[start + 1 : stop][:wanted]
            held[: len(part)] = part
            broken += stop - start - 1 != wanted
            frames.append(self._frame(held.reshape(len(self._order), -1)))
        if broken:
            notes.append(f"{about.name}: {broken} of {len(frames)} frames are broken, cut or filled with no numbers")
        times = None if about.times_s is None else about.times_s[: len(frames)]
        if times is not None and len(times) < len(frames):
            notes.append(f"{about.name}: {len(times)} times for {len(frames)} frames; wanted one each, left out")
            times = None
        shape: Any = "points" if self.look.points else "grid"
        return Frames(about.name, shape, frames, self.look.channels, self.look.units, times, about.labels)

    @property
    def _start(self) -> int:
        """The code that a frame begins with."""
        return self.scale.bins + 1

    def _frame(self, codes: Codes) -> NDArray[np.float32]:
        image = np.zeros(codes.shape, np.float32)
        for n in range(codes.shape[1]):
            image[self._order, n] = self.scale.value(codes[:, n], n)
        return self.look.frame(image)


def _has_axes(channels: tuple[str, ...]) -> bool:
    return all(channels.count(axis) == 1 for axis in AXES)


def _elevations(frames: Sequence[NDArray[Any]], first: Frames) -> tuple[float, float]:
    axes = [first.channels.index(axis) for axis in AXES]
    points = np.concatenate([frame[:, axes] for frame in frames]).astype(np.float64)
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        raise SignalError(f"{first.name}: no point that is a number; give a cloud that has some to be fitted on")
    elevations = spherical(points)[1]
    # A little wider, so that another machine's arc tangent leaves no point outside.
    return max(float(elevations.min()) - SLACK, -math.pi / 2), min(float(elevations.max()) + SLACK, math.pi / 2)
