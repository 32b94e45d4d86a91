"""What a sequence of tokens begins with: what the signal is of, its rate, its channels, and what is said of it.

A header is START, the modality, the rate, each channel, and each label that the codec was told to write. Its tokens
come before all others in the vocabulary, so that a header ends where the first other token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.registry import listed
from genmote.signals.kinds import Frames, Records, Series, Signal

Tokens = NDArray[np.int32]
START, END, UNKNOWN = 0, 1, 2  # of a sequence: its beginning, its end, and what was not there when the codec was fitted
FIRST = 3
MODALITY = "modality"  # the label that says what a signal is of


@dataclass(frozen=True, eq=False)
class About:
    """What tokens do not tell of a signal. `times_s` (T,): of a series or of frames without a rate; of records, and
    where only the beginning matters, `start_s`. `step`, `zero` (C,): of whole numbers, where they are not those of the
    codec's fit."""

    name: str = "signal"
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    rate_hz: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    times_s: NDArray[np.float64] | None = None
    start_s: float | None = None
    step: NDArray[np.float64] | None = None
    zero: NDArray[np.float64] | None = None


def about(signal: Signal) -> About:
    """All that must be known beside the tokens to give a signal back."""
    if isinstance(signal, Records):
        start = None if signal.times_s is None else float(signal.times_s[0]) if len(signal) else 0.0
        return About(signal.name, labels=signal.labels, start_s=start)
    if isinstance(signal, Frames):
        return About(signal.name, signal.channels, signal.units, 0.0, signal.labels, signal.times_s)
    grid = signal.grid
    return About(
        signal.name,
        signal.channels,
        signal.units,
        signal.rate_hz,
        signal.labels,
        signal.times_s,
        step=None if grid is None else grid.step,
        zero=None if grid is None else grid.zero,
    )


@dataclass(frozen=True, eq=False)
class Header:
    """The names that were there when the codec was fitted: a token each. `rates_hz` ascending, 0: times of its own; a
    rate between them is written as the nearest in ratio."""

    modalities: tuple[str, ...]
    rates_hz: NDArray[np.float64]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    label_keys: tuple[str, ...]  # a key and a value for each label token
    label_values: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.units) or len(self.label_keys) != len(self.label_values):
            raise SignalError(
                "a codec whose names differ in number: wanted a unit for each channel, a value for each key"
            )

    @classmethod
    def fit(cls, signals: Sequence[Signal], labels: tuple[str, ...]) -> Header:
        """Of what is said of `signals`; of labels those alone that are called so in `labels`: a name in every header
        is learnt by heart by the model."""
        series = [signal for signal in signals if isinstance(signal, Series)]
        named = dict.fromkeys(pair for s in series for pair in zip(s.channels, s.units, strict=True))
        said = sorted({(key, s.labels[key]) for s in signals for key in labels if key in s.labels})
        return cls(
            tuple(sorted({_modality(signal) for signal in signals})),
            np.array(sorted({max(s.rate_hz, 0.0) for s in series}), np.float64),
            tuple(name for name, _ in named),
            tuple(unit for _, unit in named),
            tuple(key for key, _ in said),
            tuple(value for _, value in said),
        )

    @property
    def size(self) -> int:
        """Tokens below this are the header's."""
        return FIRST + len(self.modalities) + len(self.rates_hz) + len(self.channels) + len(self.label_keys)

    def titles(self) -> list[str]:
        """A name for each channel, with its unit where two have one name."""
        twice = len(set(self.channels)) < len(self.channels)
        pairs = zip(self.channels, self.units, strict=True)
        return [f"{name} [{unit}]" if twice else name for name, unit in pairs]

    def positions(self, signal: Series) -> list[int]:
        """Where in `channels` each channel of a series is. SignalError for one that was not there at the fit."""
        known = {pair: n for n, pair in enumerate(zip(self.channels, self.units, strict=True))}
        return [_known(signal, pair, known) for pair in zip(signal.channels, signal.units, strict=True)]

    def tokens(self, signal: Signal) -> Tokens:
        """The header of a signal."""
        found = [START, _at(self.modalities, _modality(signal), FIRST)]
        rates = FIRST + len(self.modalities)
        channels = rates + len(self.rates_hz)
        if isinstance(signal, Series):
            found.append(self._rate(signal.rate_hz, rates))
            found += [channels + n for n in self.positions(signal)]
        said = list(zip(self.label_keys, self.label_values, strict=True))
        keys = dict.fromkeys(self.label_keys)
        labels = channels + len(self.channels)
        found += [_at(said, (key, signal.labels[key]), labels) for key in keys if key in signal.labels]
        return np.array(found, np.int32)

    def _rate(self, rate_hz: float, first: int) -> int:
        own = np.flatnonzero((self.rates_hz > 0) == (rate_hz > 0))
        if not len(own):
            return UNKNOWN
        if rate_hz <= 0:
            return first + int(own[0])
        return first + int(own[np.abs(np.log(self.rates_hz[own] / rate_hz)).argmin()])

    def about(self, tokens: Tokens) -> About:
        """What a header says; what is UNKNOWN in it is left out."""
        rate_hz, names, units, labels = 0.0, [], [], {}
        for token in tokens.tolist():
            at = token - FIRST
            if at < 0:
                continue
            if at < len(self.modalities):
                labels[MODALITY] = self.modalities[at]
                continue
            at -= len(self.modalities)
            if at < len(self.rates_hz):
                rate_hz = float(self.rates_hz[at])
                continue
            at -= len(self.rates_hz)
            if at < len(self.channels):
                names.append(self.channels[at])
                units.append(self.units[at])
                continue
            at -= len(self.channels)
            if at >= len(self.label_keys):
                raise SignalError(f"token {token} in a header: wanted one below {self.size}; cut the header off there")
            labels[self.label_keys[at]] = self.label_values[at]
        return About(channels=tuple(names), units=tuple(units), rate_hz=rate_hz, labels=labels)


def _modality(signal: Signal) -> str:
    return signal.labels.get(MODALITY, type(signal).__name__.lower())


def _at(table: Sequence[object], item: object, first: int) -> int:
    return first + list(table).index(item) if item in table else UNKNOWN


def _known(signal: Series, pair: tuple[str, str], known: dict[tuple[str, str], int]) -> int:
    if pair not in known:
        told = listed(f"{name} [{unit}]" for name, unit in known)
        raise SignalError(
            f"{signal.name}: channel {pair[0]} [{pair[1]}] was not there when the codec was fitted, it knows "
            f"{told}; leave it out or fit a codec on it"
        )
    return known[pair]
