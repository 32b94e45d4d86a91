"""What can be said of a signal's quality by a rule, before a model is asked: that there is nothing to tell from it.

A model that is to tell of everything will tell something of a flat line, too; a rule does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.registry import listed
from genmote.signals.kinds import Series, Signal

LEAST_THERE = 0.5  # part of a channel's samples
NOISE_SAMPLES = 256  # fewer say nothing of noise
LAGS = 8  # samples over which noise forgets itself
LOUD = 4.0  # standard errors of a correlation of noise
STEADY = 30.0  # Hz: slower samples may well have nothing to do with one another


@dataclass(frozen=True)
class Quality:
    """`why`: what keeps anything from being told of the signals, in words, or nothing. `unusable`: channels of which
    nothing can be told, by name, with the reason."""

    why: str = ""
    unusable: dict[str, str] | None = None


def check(signals: Sequence[Signal], question: str = "") -> Quality:
    """Looks at all signals that a question is about. Where every channel of one is unusable, or all that the question
    names, nothing can be told."""
    found: dict[str, str] = {}
    for number, signal in enumerate(signals, 1):
        if not isinstance(signal, Series):
            continue
        own = {name: why for n, name in enumerate(signal.channels) if (why := _fault(signal, n))}
        of = f"signal {number}: " if len(signals) > 1 else ""
        if len(own) == len(signal.channels):
            reasons, told = set(own.values()), "; ".join(f"{name} {why}" for name, why in own.items())
            if len(own) > 1 and len(reasons) == 1:
                told = f"the signal {reasons.pop()}"
            return Quality(of + told, own)
        found |= own
    asked = _named(signals, question)
    bad = [name for name in asked if name in found]
    if bad and len(bad) == len(asked):
        return Quality("; ".join(f"{name} {found[name]}" for name in bad), found)
    return Quality("", found)


def note(quality: Quality) -> str:
    """What is told beside an answer where some channels are unusable."""
    return listed(f"{name} {why}" for name, why in (quality.unusable or {}).items())


def _named(signals: Sequence[Signal], question: str) -> list[str]:
    """Channels that a question names, as words of their own."""
    names = {name for signal in signals if isinstance(signal, Series) for name in signal.channels}
    # Lower case alone would find channel I in every "I".
    return sorted(name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", question))


def _fault(series: Series, channel: int) -> str:
    values = series.values[:, channel].astype(np.float64)
    there = values[np.isfinite(values)]
    if len(there) < LEAST_THERE * len(values) or not len(there):
        part = 100 * (1 - len(there) / max(1, len(values)))
        return f"has no sample for {part:.0f}% of the time"
    if np.ptp(there) == 0 and len(there) > 1:
        return "is a flat line"
    if series.rate_hz >= STEADY and _noise(there):
        return "is noise alone: no sample has to do with the one before it"
    return ""


def _noise(values: NDArray[np.float64]) -> bool:
    """Whether no sample goes with those just before it."""
    if len(values) < NOISE_SAMPLES:
        return False
    centred = values - values.mean()
    power = float(centred @ centred)
    limit = LOUD / len(values) ** 0.5
    return all(abs(float(centred[lag:] @ centred[:-lag])) / power < limit for lag in range(1, LAGS + 1))
