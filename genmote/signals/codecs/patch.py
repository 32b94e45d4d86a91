"""Series, a few tokens for a patch of samples of a channel: learned patches (`_fsq.py`), far fewer than samples.

Codes are in the order of time, patch after patch, and in one time in that of the channels. A patch is `codes` shapes,
and a HOLE for each of its samples that is missing; or GONE, where all are; or SPELT and a bin for each sample, where
the learned patch is off by more than the stated error. So the error holds for all that lies within the bins' range,
whatever was learned. A last patch that the samples do not fill is followed by CUT, which says how many they are.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.codecs._fsq import Float64, Integers, Net
from genmote.signals.codecs._quantiser import Quantiser
from genmote.signals.codecs.bins import series_of
from genmote.signals.coding import Bound, Codec, Codes
from genmote.signals.header import About, Header
from genmote.signals.kinds import Series
from genmote.spec import setting

MOST = 1 << 16
JUDGED = 20_000  # patches that the stated error is measured on, at most
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Settings:
    """How series are coded."""

    patch: int = setting("samples of a patch", default=16)
    codes: int = setting("tokens of a patch", default=2)
    levels: tuple[int, ...] = setting("levels of each number in a token", default=(8, 5, 5, 5))
    spelt: float = setting(
        "part of the patches that is spelt sample by sample: the others state the error", default=0.02
    )
    bins: int = setting("bins of a channel's range, for what is spelt", default=256)
    tail: float = setting("part of the samples, at either end, that lies outside of the range", default=0.0005)
    hidden: int = setting("units of a hidden layer", default=64)
    steps: int = setting("steps of training", default=2000)
    seed: int = setting("of the training", default=0)
    labels: tuple[str, ...] = setting("labels that are written into the header", default=())

    def faults(self) -> Iterable[str]:
        for name, low, high in (("patch", 2, 256), ("codes", 1, 16), ("hidden", 1, 256), ("steps", 1, 1_000_000)):
            if not low <= getattr(self, name) <= high:
                yield f"{name}={getattr(self, name)}, wanted {low} to {high}"
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) > MOST:
            yield f"levels={self.levels}, wanted each 2 or more and their product {MOST} at most"
        if not 2 <= self.bins <= MOST:
            yield f"bins={self.bins}, wanted 2 to {MOST}"
        for name in ("tail", "spelt"):
            if not 0 <= getattr(self, name) < 0.5:
                yield f"{name}={getattr(self, name)}, wanted 0 or more and less than half"
        if self.seed < 0:
            yield f"seed={self.seed}, wanted 0 or more"


@dataclass(frozen=True, eq=False)
class Patch(Codec):
    """`centre`, `spread` (C,): of the channels' values, in which the network is told them. `bound` (C,): how far off a
    learned patch may be."""

    KIND = Series
    SETTINGS = Settings

    settings: Settings
    scale: Quantiser
    centre: NDArray[np.float64]
    spread: NDArray[np.float64]
    bound: NDArray[np.float64]
    net: Net

    def __post_init__(self) -> None:
        count = len(self.head.channels)
        numbers = self.centre, self.spread, self.bound
        alike = all(x.shape == (count,) and np.isfinite(x).all() for x in numbers) and len(self.scale.edges) == count
        if not alike or self.scale.bins != self.settings.bins or (self.spread <= 0).any() or (self.bound < 0).any():
            raise SignalError(
                f"a codec of {count} channels whose ranges, centres, spreads and errors do not fit: wanted one each; "
                "write the model file again"
            )
        if self.net.levels != self.settings.levels * self.settings.codes:
            raise SignalError(f"a codec with net.levels={self.net.levels}: wanted its settings'; write the model again")
        self.net.check(self.settings.patch, count)

    @classmethod
    def fitted(cls, signals: Sequence[Series], settings: Settings, head: Header) -> Patch:
        if importlib.util.find_spec("torch") is None:
            raise SignalError(
                "codec patch: is fitted with PyTorch, which is not installed: run pip install 'genmote[workbench]', or "
                "choose codec bins"
            )
        from genmote.signals.codecs import _fsq_fit

        titles = head.titles()
        columns: list[list[NDArray[np.float32]]] = [[] for _ in titles]
        for signal in signals:
            for n, at in enumerate(head.positions(signal)):
                columns[at].append(signal.values[:, n])
        values = [np.concatenate(parts) for parts in columns]
        scale = Quantiser.fit(values, titles, settings.bins, "uniform", "mean", settings.tail)
        centre, spread = np.zeros(len(titles)), np.ones(len(titles))
        runs: list[list[NDArray[np.float32]]] = []
        for n, parts in enumerate(columns):
            low, high = scale.edges[n, 0].astype(float), scale.edges[n, -1].astype(float)
            inside = np.clip(values[n][np.isfinite(values[n])].astype(np.float64), low, high)
            # No spread: so small a one that all comes back as the centre.
            centre[n], spread[n] = np.median(inside), max(float(inside.std()), 1e-30)
            known = [part for part in parts if np.isfinite(part).any()]
            runs.append([_run((part.clip(low, high) - centre[n]) / spread[n], settings.patch) for part in known])
        levels = settings.levels * settings.codes
        net = _fsq_fit.train(runs, settings.patch, levels, settings.hidden, settings.steps, settings.seed)
        codec = cls(head, settings, scale, centre, spread, np.zeros(len(titles)), net)
        return replace(codec, bound=np.array([codec._usual(parts, n) for n, parts in enumerate(columns)]))

    def _usual(self, parts: Sequence[NDArray[np.float32]], channel: int) -> float:
        """The error that all but the part `spelt` of these values' (n,) learned patches keep, or that of a bin."""
        patches = np.concatenate([_cut(part[:, None], self.settings.patch) for part in parts])[:, 0]
        patches = patches[np.isfinite(patches).any(axis=1) & ~np.isinf(patches).any(axis=1)]
        chosen = np.random.default_rng(self.settings.seed).permutation(len(patches))[:JUDGED]
        off = self._learned(patches[chosen], np.full(len(chosen), channel))[1]
        usual = np.quantile(off, 1 - self.settings.spelt, method="higher") if len(off) else 0
        return max(float(usual), self.scale.bound(channel).absolute)

    @property
    def size(self) -> int:
        """Shapes, bins and a missing sample, holes, cuts, GONE, SPELT."""
        return self._bins + self.settings.bins + 1 + 2 * self.settings.patch + 1

    @property
    def _bins(self) -> int:
        return math.prod(self.settings.levels)

    @property
    def _holes(self) -> int:
        return self._bins + self.settings.bins + 1

    @property
    def _cuts(self) -> int:
        """CUT of one sample; there are `patch` - 1 of them."""
        return self._holes + self.settings.patch

    @property
    def _gone(self) -> int:
        return self.size - 2

    @property
    def _spelt(self) -> int:
        return self.size - 1

    def error(self) -> dict[str, Bound]:
        """By the channel's name: of a learned patch, which is no less than that of a bin."""
        return {title: Bound(float(self.bound[n])) for n, title in enumerate(self.head.titles())}

    def _learned(self, patches: NDArray[np.float32], channels: Integers) -> tuple[Integers, Float64]:
        """The numbers (N, D) of patches (N, P), and by how much the worst sample of each is off (N,)."""
        known = np.isfinite(patches)
        units = (patches - self.centre[channels, None]) / self.spread[channels, None]
        numbers = self.net.code(_filled(units), channels)
        with np.errstate(invalid="ignore"):
            off = np.abs(self._values(numbers, channels).astype(np.float64) - patches)
        return numbers, np.where(np.isnan(patches), 0, np.where(known, off, np.inf)).max(axis=1, initial=0)

    def _values(self, numbers: Integers, channels: Integers) -> NDArray[np.float32]:
        units = self.net.patches(numbers, channels)
        values = units * self.spread[channels, None] + self.centre[channels, None]
        return np.clip(values, -LARGEST, LARGEST).astype(np.float32)

    def codes(self, signal: Series, notes: list[str]) -> Codes:
        positions = self.head.positions(signal)
        width, patch = len(positions), self.settings.patch
        if not width or not len(signal):
            return np.zeros(0, np.int64)
        patches = _cut(signal.values, patch).reshape(-1, patch)  # (times * C, P)
        channels = np.tile(np.array(positions), len(patches) // width)
        missing = np.isnan(patches)
        gone = missing.all(axis=1)
        numbers, off = self._learned(patches, channels)
        holes = missing.sum(axis=1)
        spelt = ~gone & ((off > self.bound[channels]) | (self.settings.codes + holes > 1 + patch))
        learned = ~gone & ~spelt
        taken = np.where(gone, 1, np.where(spelt, 1 + patch, self.settings.codes + holes))
        at = np.cumsum(taken) - taken
        codes = np.zeros(int(taken.sum()), np.int64)
        codes[at[gone]], codes[at[spelt]] = self._gone, self._spelt
        for n, shape in enumerate(self._joined(numbers[learned]).T):
            codes[at[learned] + n] = shape
        row, sample = np.nonzero(missing & learned[:, None])
        before = (missing.cumsum(axis=1) - 1)[row, sample]
        codes[at[row] + self.settings.codes + before] = self._holes + sample
        self._spell(signal, patches, np.flatnonzero(spelt), at, positions, codes, notes)
        if spelt.any():
            notes.append(f"{signal.name}: {spelt.sum()} of {len(patches)} patches are spelt, sample by sample")
        over = len(signal) % patch
        return np.append(codes, self._cuts + over - 1) if over else codes

    def _spell(
        self,
        signal: Series,
        patches: NDArray[np.float32],
        spelt: Integers,
        at: Integers,
        positions: list[int],
        codes: Codes,
        notes: list[str],
    ) -> None:
        """Writes the bins of the patches `spelt` behind their places in `codes`."""
        for n, position in enumerate(positions):
            own = spelt[spelt % len(positions) == n]
            found, outside = self.scale.code(patches[own].reshape(-1), position)
            codes[at[own, None] + 1 + np.arange(self.settings.patch)] = self._bins + found.reshape(
                -1, self.settings.patch
            )
            if outside:
                low, high = self.scale.edges[position, 0], self.scale.edges[position, -1]
                notes.append(
                    f"{signal.name}: {outside} spelt samples of {signal.channels[n]} lie outside of {low:g} to "
                    f"{high:g} {signal.units[n]}, cut to that"
                )

    @cached_property
    def _places(self) -> Integers:
        """What each of a token's numbers counts."""
        return np.cumprod([1, *self.settings.levels[:-1]])

    def _joined(self, numbers: Integers) -> Codes:
        """Shapes (N, codes) of numbers (N, D)."""
        shapes: Codes = (numbers.reshape(-1, self.settings.codes, len(self.settings.levels)) * self._places).sum(axis=2)
        return shapes

    def _parted(self, shapes: Codes) -> Integers:
        numbers: Integers = shapes[:, :, None] // self._places % np.array(self.settings.levels)
        return numbers.reshape(len(shapes), len(self.net.levels))

    def signal(self, codes: Codes, about: About, notes: list[str]) -> Series:
        if not about.channels:
            raise SignalError(f"{about.name}: tokens of a series without channels; give a header that names some")
        width, patch = len(about.channels), self.settings.patch
        empty = Series(about.name, np.zeros((0, width), np.float32), 1.0, about.channels, about.units)
        positions = np.array(self.head.positions(empty))
        read = _Read(self, codes.tolist())
        count = len(read.shapes)
        if read.broken:
            notes.append(f"{about.name}: {read.broken} of {count} patches are broken, what they lack is missing")
        if read.stray:
            notes.append(f"{about.name}: {read.stray} tokens belong to no patch, left out")
        channels = positions[np.arange(count) % width]
        shapes = np.array(read.shapes, np.int64).reshape(count, self.settings.codes)
        bins = np.array(read.bins, np.int64).reshape(count, patch)
        learned = shapes[:, 0] >= 0
        values = np.full((count, patch), np.nan, np.float32)
        values[learned] = self._values(self._parted(shapes[learned]), channels[learned])
        for position in positions:
            own = ~learned & (channels == position)
            values[own] = self.scale.value(bins[own].reshape(-1), int(position)).reshape(-1, patch)
        for row, sample in read.holes:
            values[row, sample] = np.nan
        over = count % width
        if over:
            notes.append(f"{about.name}: {over} of {width} channels at the last patch, left out")
        table = values[: count - over].reshape(-1, width, patch).transpose(0, 2, 1).reshape(-1, width)
        return series_of(np.ascontiguousarray(table[: len(table) - read.less] if not over else table), None, about)


class _Read:
    """Patches, whatever the codes say: `shapes` (n, codes), -1 of one that is none; `bins` (n, P) of those, -1 where no
    sample was said; `holes`: (patch, sample) pairs; `less`: samples that the last patch does not have."""

    def __init__(self, codec: Patch, codes: list[int]) -> None:
        settings, shape, hole = codec.settings, codec._bins, codec._holes
        none, empty = [-1] * settings.codes, [-1] * settings.patch
        self.shapes: list[list[int]] = []
        self.bins: list[list[int]] = []
        self.holes: list[tuple[int, int]] = []
        self.broken = self.stray = self.less = 0
        at = 0
        while at < len(codes):
            code, at = codes[at], at + 1
            if code < shape or code == codec._spelt:
                low, high, most = (shape, hole, settings.patch) if code >= shape else (0, shape, settings.codes - 1)
                stop = at
                while stop < len(codes) and stop < at + most and (low <= codes[stop] < high or codes[stop] < 0):
                    stop += 1
                said, at = codes[at:stop], stop
                if code >= shape:
                    whole = len(said) == most
                    self.shapes.append(none)
                    self.bins.append([max(bin - low, -1) for bin in said] + [-1] * (most - len(said)))
                else:
                    whole = len(said) == most and min(code, *said, code) >= 0
                    self.shapes.append([code, *said] if whole else none)
                    self.bins.append(empty)
                self.broken += not whole
            elif code == codec._gone:
                self.shapes.append(none)
                self.bins.append(empty)
            elif hole <= code < codec._cuts and self.shapes:
                self.holes.append((len(self.shapes) - 1, code - hole))
            elif code >= codec._cuts and at == len(codes):
                self.less = settings.patch - (code - codec._cuts + 1)
            else:
                self.stray += 1


def _cut(values: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """Patches (times, C, P) of values (T, C), the last one filled up with its last value."""
    full = np.pad(values, ((0, -len(values) % patch), (0, 0)), mode="edge") if len(values) else values
    return np.ascontiguousarray(full.reshape(-1, patch, values.shape[1]).transpose(0, 2, 1))


def _filled(patches: Float64) -> Float64:
    """Each patch (N, P) with a line between what stands before and behind numbers that are none."""
    known = np.isfinite(patches)
    filled = np.where(known, patches, 0.0)
    where = np.arange(patches.shape[1])
    for n in np.flatnonzero(~known.all(axis=1) & known.any(axis=1)).tolist():
        filled[n] = np.interp(where, where[known[n]], patches[n, known[n]])
    return filled


def _run(values: NDArray[np.float64], patch: int) -> NDArray[np.float32]:
    """Values (n,) with what is missing filled, and at least a patch long."""
    filled = _filled(values[None])[0]
    return np.pad(filled, (0, max(0, patch - len(filled))), mode="edge").astype(np.float32)
