"""Patches as few whole numbers, and back: finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505) between
two small networks, which `_fsq_fit.py` trains.

The same bits everywhere, in whatever order a machine sums: weights are multiples of 1 / WEIGHTS below 8, what they are
multiplied with multiples of 1 / GRID below MOST, so that float64 holds every sum exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.ops import exact

WEIGHTS, GRID, MOST = 4096, 1024, 1024.0
CHUNK = 4096  # patches at a time
Float64 = NDArray[np.float64]
Integers = NDArray[np.int64]


def on_grid(x: Float64) -> Float64:
    """The nearest multiples of 1 / GRID between -MOST and MOST."""
    return np.rint(np.clip(x, -MOST, MOST) * GRID) / GRID


@dataclass(frozen=True, eq=False)
class Layers:
    """From I numbers of a channel to O: two hidden layers of H rectified units, the last layer sees the input, too.
    All in units of 1 / WEIGHTS."""

    first: NDArray[np.int16]  # (I, H)
    channel: NDArray[np.int16]  # (C, H), added by channel
    second: NDArray[np.int16]  # (H + 1, H), the last row is added
    last: NDArray[np.int16]  # (H + I + 1, O), likewise

    def fits(self, inputs: int, outputs: int, channels: int) -> bool:
        """Whether the weights have the shapes of a network between such numbers."""
        hidden = self.first.shape[-1]
        shapes = (inputs, hidden), (channels, hidden), (hidden + 1, hidden), (hidden + inputs + 1, outputs)
        return tuple(weights.shape for weights in (self.first, self.channel, self.second, self.last)) == shapes

    @cached_property
    def _weights(self) -> list[Float64]:
        return [weights / WEIGHTS for weights in (self.first, self.channel, self.second, self.last)]

    def __call__(self, x: Float64, channels: Integers) -> Float64:
        """(N, I) on the grid, and the channel (N,) of each, to (N, O)."""
        first, channel, second, last = self._weights
        hidden = on_grid(np.maximum(x @ first + channel[channels], 0))
        hidden = on_grid(np.maximum(hidden @ second[:-1] + second[-1], 0))
        outputs: Float64 = np.concatenate([hidden, x], axis=1) @ last[:-1] + last[-1]
        return outputs


@dataclass(frozen=True, eq=False)
class Net:
    """Between patches (N, P), in units of each channel's spread, and whole numbers (N, D), from 0 to `levels` (D,)."""

    levels: tuple[int, ...]
    encoder: Layers
    decoder: Layers

    def check(self, patch: int, channels: int) -> None:
        """Raises SignalError where the weights are of other shapes."""
        count = len(self.levels)
        if not (self.encoder.fits(patch, count, channels) and self.decoder.fits(count, patch, channels)):
            raise SignalError(
                f"a codec with networks that are not between patches of {patch} samples of {channels} channels and "
                f"{count} numbers: write the model file again"
            )

    @cached_property
    def _half(self) -> Float64:
        return (np.array(self.levels, np.float64) - 1) / 2

    def code(self, patches: Float64, channels: Integers) -> Integers:
        """The numbers of patches: those that the encoder names, each moved by one where that comes nearer."""
        parts = [np.zeros((0, len(self.levels)), np.int64)]
        for at in range(0, len(patches), CHUNK):
            parts.append(self._code(on_grid(patches[at : at + CHUNK]), channels[at : at + CHUNK]))
        return np.concatenate(parts)

    def _code(self, x: Float64, channels: Integers) -> Integers:
        bent = exact.tanh(self.encoder(x, channels).astype(np.float32)).astype(np.float64)
        found = np.rint((bent + 1) * self._half).astype(np.int64)
        best = self._distance(found, x, channels)
        for n, level in enumerate(self.levels):
            before = found[:, n].copy()
            for step in (-1, 1):
                tried = found.copy()
                tried[:, n] = np.clip(before + step, 0, level - 1)
                distance = self._distance(tried, x, channels)
                nearer = distance < best
                found[nearer], best = tried[nearer], np.where(nearer, distance, best)
        return found

    def _distance(self, numbers: Integers, x: Float64, channels: Integers) -> Float64:
        """Squares on the grid, whose sum (N,) is exact."""
        distance: Float64 = (on_grid(self._patches(numbers, channels) - x) ** 2).sum(axis=1)
        return distance

    def patches(self, numbers: Integers, channels: Integers) -> Float64:
        """(N, P) of numbers (N, D)."""
        width = self.decoder.last.shape[1]
        parts = [np.zeros((0, width))]
        for at in range(0, len(numbers), CHUNK):
            parts.append(self._patches(numbers[at : at + CHUNK], channels[at : at + CHUNK]))
        return np.concatenate(parts)

    def _patches(self, numbers: Integers, channels: Integers) -> Float64:
        return self.decoder(on_grid(numbers / self._half - 1), channels)
