"""What can be said by a rule, before a model is asked: that there is nothing to tell from a signal, or that it is not
of what the question asks for.

A model that is to tell of everything will tell something of a flat line, too, and of a heart to a thermometer; a rule
does not. A flat line and noise still have a level, a length and a rate: what they have not is a shape. So they are
refused where a question needs one: a report, a label, a heart's rate.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genmote.describe import sensors
from genmote.registry import listed
from genmote.signals.kinds import Series, Signal

LEAST_THERE = 0.5  # part of a channel's samples
LEAST_SAMPLES = 4  # fewer have no shape
NOISE_SAMPLES = 64  # fewer say nothing of noise
MOST_LAGS = 64
SMOOTH = 0.5  # correlation of samples side by side in means of two
ONE, ALL = 6.0, 3.0  # how far beyond what noise has a channel may be, and all channels together; standard errors
FLAT, NOISE = "is a flat line", "is noise alone: its samples have nothing to do with one another"


@dataclass(frozen=True)
class Quality:
    """`why`: what keeps anything from being told of the signals, in words, or nothing. `unusable`: channels of which
    no shape can be told, by name, with the reason."""

    why: str = ""
    unusable: dict[str, str] = field(default_factory=dict)


def check(
    signals: Sequence[Signal], question: str = "", *, shape: bool | None = None, trained: Collection[str] = ()
) -> Quality:
    """Looks at all signals that a question is about. Where none measures what it asks for, every channel of one is
    unusable, or all that the question names, nothing can be told. `shape`: whether the question needs one (None: by its
    words). `trained`: channels that a model was trained on, where its reports and labels are of such signals alone."""
    asked = _named(signals, question)
    plain = question
    for name in asked:  # a channel may be called heart rate
        plain = plain.replace(name, "")
    needs = sensors.needs_shape(plain) if shape is None else shape
    found: dict[str, str] = {}
    refused: dict[str, str] = {}
    why = sensors.lacking(signals, question)
    if needs and trained and not why and all(sensors.foreign(signal, trained) for signal in signals):
        here = listed((name for signal in signals for name in sensors.names(signal)), 4)
        why = f"the model was trained on other channels ({listed(trained, 4)}): the recording has {here}"
    for number, signal in enumerate(signals, 1):
        if not isinstance(signal, Series):
            continue
        gone = {name: reason for n, name in enumerate(signal.channels) if (reason := _gone(signal, n))}
        unusable = gone | _shapeless(signal, gone)
        own = {name: unusable[name] for name in signal.channels if name in unusable}
        found |= own
        bad = own if needs else gone
        refused |= bad
        if bad and len(bad) == len(signal.channels) and not why:
            reasons, told = set(bad.values()), "; ".join(f"{name} {reason}" for name, reason in bad.items())
            if len(bad) > 1 and len(reasons) == 1:
                told = f"the signal {reasons.pop()}"
            why = (f"signal {number}: " if len(signals) > 1 else "") + told
    if not why and asked and all(name in refused for name in asked):
        why = "; ".join(f"{name} {refused[name]}" for name in asked)
    return Quality(why, found)


def note(quality: Quality) -> str:
    """What is told beside an answer where some channels are unusable."""
    return listed(f"{name} {why}" for name, why in quality.unusable.items())


def _named(signals: Sequence[Signal], question: str) -> list[str]:
    """Channels that a question names, as words of their own."""
    names = {name for signal in signals if isinstance(signal, Series) for name in signal.channels if name}
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


def _shapeless(series: Series, gone: dict[str, str]) -> dict[str, str]:
    """Of the other channels those that are flat or too short, and those of noise: either each is like noise by itself,
    or all that are left are together, which tells it better (a phone at rest is no noise, though one of its axes may
    look like it)."""
    flat: dict[str, str] = {}
    beyond: dict[str, float] = {}
    for n, name in enumerate(series.channels):
        if name in gone:
            continue
        known = _known(series, n)
        if len(known) < LEAST_SAMPLES:
            flat[name] = f"has too few samples for a shape: {len(known)}"
        elif np.ptp(known) == 0:
            flat[name] = FLAT
        else:
            beyond[name] = _beyond_noise(known)
    noise = [name for name, excess in beyond.items() if excess <= ALL]
    if beyond and max(beyond.values()) <= ONE:
        together = sum(beyond.values()) / len(beyond) ** 0.5
        if together <= ALL:
            noise = [*beyond]
        elif len(noise) == len(beyond):
            noise.remove(max(noise, key=beyond.__getitem__))
    return flat | dict.fromkeys(noise, NOISE)


def _beyond_noise(values: NDArray[np.float64]) -> float:
    """How many standard errors the squares of the autocorrelation from the second lag on are above those of noise, by
    Ljung and Box, "On a measure of lack of fit in time series models", Biometrika 65 (1978) 297-303. Noise may be white
    or the means of two samples that follow each other, of which the autocorrelation varies more (Bartlett's formula).
    Infinite for too few samples, or where samples side by side go together in another way."""
    count = len(values)
    if count < NOISE_SAMPLES:
        return np.inf
    centred = values - values.mean()
    lags = min(MOST_LAGS, count // 4)
    sums = np.fft.irfft(np.abs(np.fft.rfft(centred, 2 * count)) ** 2)[: lags + 1]
    first, *others = sums[1:] / sums[0]
    if not -4 / count**0.5 <= first <= SMOOTH + 4 / count**0.5:
        return np.inf
    squares = np.square(others) * (count + 2) / (count - np.arange(2, lags + 1))
    ratio = count * float(squares.mean()) / (1 + 2 * first**2)  # 1 in noise
    return float((ratio - 1) * (len(others) / 2) ** 0.5)
