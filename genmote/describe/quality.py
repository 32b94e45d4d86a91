"""What can be said of a signal's quality by a rule, before a model is asked: that there is nothing to tell from it.

A model that is to tell of everything will tell something of a flat line, too; a rule does not. A flat line and noise
still have a level, a length and a rate: what they have not is a shape. So they are refused where a question needs one:
a report, a label, a heart's rate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genmote.registry import listed
from genmote.signals.kinds import Series, Signal

LEAST_THERE = 0.5  # part of a channel's samples
NOISE_SAMPLES = 256  # fewer say nothing of noise
LAGS = 8  # samples over which noise forgets itself
LOUD = 4.0  # standard errors of a correlation of noise
STEADY = 30.0  # Hz: slower samples may well have nothing to do with one another
SHAPE = re.compile(
    r"\b(heart|beats?|beating|bpm|pulse rate|rhythm|arrhythmi\w*|(ir)?regular(ly)?|activity|exercises?|gestures?|"
    r"repetitions|squats?|diagnos\w*|classify|class|labels?|report|findings?|befund\w*|summari[sz]e|summary|"
    r"expert|condition|healthy|normal|abnormal)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quality:
    """`why`: what keeps anything from being told of the signals, in words, or nothing. `unusable`: channels of which
    no shape can be told, by name, with the reason."""

    why: str = ""
    unusable: dict[str, str] = field(default_factory=dict)


def check(signals: Sequence[Signal], question: str = "", *, shape: bool | None = None) -> Quality:
    """Looks at all signals that a question is about. Where every channel of one is unusable, or all that the question
    names, nothing can be told. `shape`: whether the question needs one (None: by its words)."""
    asked = _named(signals, question)
    plain = question
    for name in asked:  # a channel may be called heart rate
        plain = plain.replace(name, "")
    needs = SHAPE.search(plain) is not None if shape is None else shape
    found: dict[str, str] = {}
    refused: dict[str, str] = {}
    for number, signal in enumerate(signals, 1):
        if not isinstance(signal, Series):
            continue
        own, hard = dict[str, str](), dict[str, str]()
        for n, name in enumerate(signal.channels):
            if why := _gone(signal, n):
                hard[name] = own[name] = why
            elif why := _shapeless(signal, n):
                own[name] = why
        found |= own
        bad = own if needs else hard
        refused |= bad
        if bad and len(bad) == len(signal.channels):
            reasons, told = set(bad.values()), "; ".join(f"{name} {why}" for name, why in bad.items())
            if len(bad) > 1 and len(reasons) == 1:
                told = f"the signal {reasons.pop()}"
            return Quality((f"signal {number}: " if len(signals) > 1 else "") + told, found)
    if asked and all(name in refused for name in asked):
        return Quality("; ".join(f"{name} {refused[name]}" for name in asked), found)
    return Quality("", found)


def note(quality: Quality) -> str:
    """What is told beside an answer where some channels are unusable."""
    return listed(f"{name} {why}" for name, why in quality.unusable.items())


def _named(signals: Sequence[Signal], question: str) -> list[str]:
    """Channels that a question names, as words of their own."""
    names = {name for signal in signals if isinstance(signal, Series) for name in signal.channels}
    # As they are written: channel I is not the i of "is it".
    return sorted(name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", question))


def _known(series: Series, channel: int) -> NDArray[np.float64]:
    values = series.values[:, channel].astype(np.float64)
    return np.asarray(values[np.isfinite(values)])


def _gone(series: Series, channel: int) -> str:
    there, count = len(_known(series, channel)), len(series)
    if there and there >= LEAST_THERE * count:
        return ""
    return f"has no sample for {100 * (1 - there / max(1, count)):.0f}% of the time"


def _shapeless(series: Series, channel: int) -> str:
    there = _known(series, channel)
    if len(there) > 1 and np.ptp(there) == 0:
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
