"""Lossless coding of whole numbers, many channels side by side, by predictors and probabilities that learn as they go.

For each sample:

1. Least squares over the channel's own past and the other channels (of those coded before it also their present),
   forgetting slowly, predict it; three longer normalised gradient predictors (256, 32 and 16 samples) add what is left
   (the cascade of Ghido and Tabus, "Sparse modeling for lossless audio compression", IEEE TASLP 21 (2013), and of
   MPEG-4 ALS, ISO/IEC 14496-3).
2. A mixture of Laplace's and logistic distributions, whose widths follow the errors at three speeds and whose shares
   follow how well each did, tells how probable each error is.
3. The error is coded in binary decisions (is it 0, its sign, its size in powers of two, its bits). The mixture's
   probability of each is mixed in the logistic domain with counters in five contexts (Mahoney, "Adaptive weighing of
   context models for lossless data compression", Florida Tech CS-2005-16), so that what no smooth distribution knows
   (values that never occur, a value that stays) is learned too. An arithmetic coder writes the decisions.

A model that has seen such recordings may help, in three ways: what it expects of the sample is one more number that
the least squares predict from; its probability of each decision is one more input of the mixing; and a channel may
begin with the correlations, weights and counters that were learnt on other recordings (`practice.py`).

Everything is doubles and whole numbers in one fixed order, with `exp` and `log` of our own: what one machine wrote
every other reads. `native/series_coder.cpp` does it fast; `_twin.py` is its twin, some hundred times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals import _twin

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
STATE_SIZE = _twin.STATE_SIZE  # numbers that a channel learns
NO_LOGITS = np.zeros((0, 0), np.float32)
CHANNELS = 64  # at most
LIMIT = 1 << 48  # samples lie below it, and above minus it


def encode(samples: Integers) -> bytes:
    """The bytes that `decode` makes samples (T, C) of. SignalError for none or more than 64 channels, or numbers of 48
    bits and more."""
    _, channels = _checked(samples.shape)
    if samples.size and max(int(samples.max()), -int(samples.min())) >= LIMIT:
        raise SignalError(
            f"samples up to {np.abs(samples.astype(float)).max():.3g}: wanted numbers of less than 48 bits"
        )
    native = _native()
    if native is not None:
        coded: bytes = native.encode_samples(np.ascontiguousarray(samples, np.int64))
        return coded
    made = coder(np.array(samples, np.int64), Help.none(channels))
    made.go(NO_LOGITS)
    return bytes(made.finish())


def decode(coded: bytes, rows: int, channels: int) -> Integers:
    """Samples (rows, channels) of what `encode` made. Damaged bytes give other samples: keep a checksum."""
    _checked((rows, channels))
    native = _native()
    if native is not None:
        samples = np.zeros((rows, channels), np.int64)
        native.decode_samples(np.frombuffer(coded, np.uint8), samples)
        return samples
    samples = np.zeros((rows, channels), np.int64)
    coder(samples, Help.none(channels), coded).go(NO_LOGITS)
    return samples


@dataclass(frozen=True, eq=False)
class Help:
    """What channels are coded with beside their samples: see `_twin.SeriesCoder`."""

    told: list[int]
    cuts: Floats
    practised: list[int]
    moments: Floats
    cross: Floats
    states: Floats

    @classmethod
    def none(cls, channels: int) -> Help:
        wide = len(_twin.sources(0, channels)) + 1
        none, nothing = [-1] * channels, np.zeros((0, 0))
        return cls(none, nothing, none, np.zeros((0, wide, wide)), np.zeros((0, wide)), np.zeros((0, _twin.STATE_SIZE)))


def coder(samples: Integers, help_: Help, coded: bytes | None = None) -> Any:
    """What codes samples (rows, channels) as far as a model's logits reach, or fills them in with what was coded."""
    _checked(samples.shape)
    native = _native()
    made: Any = _twin.SeriesCoder if native is None else native.SeriesCoder
    data = coded if coded is None or native is None else np.frombuffer(coded, np.uint8)
    return made(samples, help_.told, help_.cuts, help_.practised, help_.moments, help_.cross, help_.states, coded=data)


def _checked(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or not 1 <= shape[1] <= CHANNELS:
        raise SignalError(f"samples of shape {shape}: wanted (rows, channels) with 1 to {CHANNELS} channels")
    return shape[0], shape[1]


def _native() -> Any:
    try:
        from genmote.ops import _native as module
    except ImportError:
        return None
    return module
