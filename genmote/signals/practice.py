"""What the coder of samples learnt of other recordings, so that it need not begin from nothing.

Of channels by their names: how they go together over time (mean products, from which the least squares' own follow for
any choice of channels), how large errors are; and of all together the weights and counters of its mixing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals import _twin
from genmote.signals.adaptive import Help
from genmote.signals.state import built, flat

Floats = NDArray[np.float64]
STRENGTH = 0.01  # of mean products, beside those of the block: as if so large a part of an endless past had been seen
COUNTED = 20.0  # what a counter that was practised is taken to have seen
COARSE = 16.0  # steps of a counter's log odds
VERSION = 1


@dataclass(frozen=True)
class Plane:
    """A plane of whole numbers: which of the practised channels it holds (-1: none), how much of its unit one is, and
    which row of the cuts a model tells of (-1: none)."""

    channel: int = -1
    step: float = 1.0
    told: int = -1


@dataclass(frozen=True, eq=False)
class Practice:
    """`products[a, b, lag]`: the mean of channel a at t times channel b at t - lag, in their units; `told[a, b, lag]`
    the same of what the model told of a at t; `told_twice[a]` of that by itself."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    step: NDArray[np.float64]  # (C,) of the whole numbers that it was learnt on, in the unit
    products: NDArray[np.float32]  # (C, C, lags)
    told: NDArray[np.float32]  # (C, C, lags)
    told_twice: NDArray[np.float32]  # (C,)
    widths: NDArray[np.float32]  # (C, 4), in units
    weights: NDArray[np.float32]  # mixing of decisions, long predictors, shares
    counters: NDArray[np.uint8]  # log odds in steps of 1 / COARSE around 128; 0: never seen

    def __post_init__(self) -> None:
        count, lags = len(self.channels), self.products.shape[-1]
        shapes = [(count,), (count, count, lags), (count, count, lags), (count,), (count, 4), (_weights(),)]
        came: list[NDArray[Any]] = [self.step, self.products, self.told, self.told_twice, self.widths, self.weights]
        if (
            len(self.units) != count
            or [x.shape for x in came] != shapes
            or self.counters.shape != (_twin.PARTS_OF_STATE["counters"],)
        ):
            raise SignalError("a practice whose parts do not fit together: the model file is damaged; practise again")
        if not all(np.isfinite(x).all() for x in came) or not (self.step > 0).all() or not (self.widths > 0).all():
            raise SignalError("a practice with numbers that are none: the model file is damaged; practise again")

    def at(self, channel: str, unit: str) -> int:
        """Which of the channels it is; -1: none."""
        pairs = list(zip(self.channels, self.units, strict=True))
        return pairs.index((channel, unit)) if (channel, unit) in pairs else -1

    def _products(self, planes: Sequence[Plane], number: int) -> tuple[Floats, Floats]:
        """(inputs, inputs) and (inputs,): what the least squares begin with. Each is one product of float64."""
        sources = _twin.sources(number, len(planes))
        plane = planes[number]
        channel = np.array([planes[n].channel for n, _ in sources])
        lag = np.array([i for _, i in sources])
        there = channel >= 0
        channel = np.maximum(channel, 0)
        scale = np.where(there, 1 / np.array([planes[n].step for n, _ in sources]), 0.0)
        products, told = self.products.astype(np.float64), self.told.astype(np.float64)
        a, b = channel[:, None], channel[None]
        later = lag[None] - lag[:, None]
        both = np.where(later >= 0, products[a, b, np.maximum(later, 0)], products[b, a, np.maximum(-later, 0)])
        wide = len(sources) + 1
        moments, cross = np.zeros((wide, wide)), np.zeros(wide)
        moments[:-1, :-1] = both * (STRENGTH * scale[:, None] * scale[None])
        cross[:-1] = products[plane.channel, channel, lag] * (STRENGTH / plane.step * scale)
        if plane.told >= 0:
            beside = told[plane.channel, channel, lag] * (STRENGTH / plane.step * scale)
            moments[-1, :-1] = moments[:-1, -1] = beside
            square = STRENGTH / (plane.step * plane.step)
            moments[-1, -1] = float(self.told_twice[plane.channel]) * square
            cross[-1] = told[plane.channel, plane.channel, 0] * square
        return moments, cross

    def _state(self, plane: Plane) -> Floats:
        state = np.zeros(_twin.STATE_SIZE)
        parts = _twin.split(state)  # views
        parts["mix"][:], parts["far"][:], parts["shares"][:] = _split_weights(self.weights.astype(np.float64))
        parts["widths"][:] = self.widths[plane.channel].astype(np.float64) / plane.step
        own = self.step[plane.channel]
        fits = abs(plane.step - own) <= 0.01 * own  # counters know values by their size in steps
        parts["counters"][:] = ODDS[self.counters] if fits else 0.5
        parts["counted"][:] = np.where((self.counters > 0) & fits, COUNTED, 0.0)
        return state

    def state(self) -> dict[str, Any]:
        """All that `from_state` needs, as plain values."""
        return {"version": np.uint32(VERSION), **flat(self)}


def from_state(state: Mapping[str, Any]) -> Practice:
    """SignalError for what is none."""
    if state.get("version") != VERSION:
        raise SignalError(
            f"a practice of version {state.get('version')!r}, this genmote reads {VERSION}; practise again"
        )
    return built(Practice, state)


def help_of(practised: Practice | None, planes: Sequence[Plane], cuts: Floats) -> Help:
    """For planes coded together, and the cuts (n, bins + 1) of those that a model tells of."""
    none = replace(Help.none(len(planes)), told=[plane.told for plane in planes], cuts=cuts)
    own = [n for n, plane in enumerate(planes) if plane.channel >= 0]
    if practised is None or not own or _twin.past_of(len(planes)) >= practised.products.shape[-1]:
        return none
    found = [practised._products(planes, n) for n in own]
    moments, cross = (np.ascontiguousarray(np.stack(part)) for part in zip(*found, strict=True))
    states = np.stack([practised._state(planes[n]) for n in own])
    at = [own.index(n) if n in own else -1 for n in range(len(planes))]
    return replace(none, practised=at, moments=moments, cross=cross, states=states)


def lags_of(channels: int) -> int:
    """How many lags are kept: enough for any choice of few channels."""
    return 33 if channels <= 8 else 17 if channels <= 24 else 9


def coarse(probabilities: Floats, counted: Floats) -> NDArray[np.uint8]:
    """Counters as bytes."""
    odds = np.log(probabilities / (1 - probabilities))
    return np.where(counted > 0, np.clip(np.rint(odds * COARSE) + 128, 1, 255), 0).astype(np.uint8)


def _weights() -> int:
    return sum(_twin.PARTS_OF_STATE[key] for key in ("mix", "far", "shares"))


def _split_weights(weights: Floats) -> list[Floats]:
    sizes = [_twin.PARTS_OF_STATE[key] for key in ("mix", "far", "shares")]
    return np.split(weights, np.cumsum(sizes)[:-1])


ODDS = np.array([0.5] + [1 / (1 + _twin.exponential(-(n - 128) / COARSE)) for n in range(1, 256)])
