"""Questions that have no answer, and the answer that says so: flat lines, noise, no samples, channels that are not
there, sensors of another kind, and what no signal tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from genmote.describe import sensors, wording
from genmote.describe.examples import Example, bare
from genmote.signals.kinds import Series, Signal

CANNOT = "cannot"
# What a flat line or noise does not answer, though it has a mean and extremes.
NEEDS_SHAPE = ("heart_rate", "regular", "beats", "report", "label")
NEEDS_CHANNEL = ("mean", "highest", "lowest", "trend", "at_start", "at_end", "when_highest", "period", "range")
TASKS = ("activity", "exercise", "diagnosis", "gesture", "state")
STRANGERS = (
    "humidity",
    "skin temperature",
    "wind speed",
    "torque",
    "battery voltage",
    "lead V9",
    "soil moisture",
    "yaw",
)
STRANGERS_HELD_OUT = ("air pressure", "left pupil", "fan speed", "lead V7", "grip force", "rainfall")


def _example(
    signal: Signal, question: str, reason: str, random: np.random.Generator, held_out: bool, group: str, **slots: str
) -> Example:
    told = str(random.choice(wording.table()["cannot"][reason]))
    for name, text in slots.items():
        told = told.replace("{" + name + "}", text)
    answer = str(random.choice(wording.table()["cannot"]["answers"])).replace("{reason}", told)
    return Example((bare(signal),), question, answer, CANNOT, group=group, held_out=held_out)


def flat(series: Series, random: np.random.Generator) -> Series:
    """Of the same channels and length, each at one level."""
    known = np.isfinite(series.values)
    levels = np.where(known, series.values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    if random.random() < 0.5:
        levels = np.zeros_like(levels)
    return replace(series, values=np.broadcast_to(levels.astype(np.float32), series.values.shape).copy(), grid=None)


def noise(series: Series, random: np.random.Generator) -> Series:
    """Of the same channels and length, noise about the same level and of a like spread: white, or a little smooth."""
    shape = series.values.shape
    drawn = random.normal(size=shape)
    if random.random() < 0.3 and shape[0] > 8:
        drawn[1:] = (drawn[1:] + drawn[:-1]) / np.sqrt(2)
    known = np.isfinite(series.values)
    count = np.maximum(1, known.sum(axis=0))
    level = np.where(known, series.values, 0).sum(axis=0) / count
    width = np.sqrt((np.where(known, series.values - level, 0) ** 2).sum(axis=0) / count)
    width = np.where(width > 0, width, 1.0) * random.uniform(0.3, 3)
    return replace(series, values=(level + width * drawn).astype(np.float32), grid=None)


def empty(series: Series) -> Series:
    """Of the same channels and length, without any sample."""
    return replace(series, values=np.full_like(series.values, np.nan), grid=None)


def broken(
    series: Series,
    random: np.random.Generator,
    *,
    about: Sequence[str] = NEEDS_SHAPE,
    task: str = "",
    held_out: bool = False,
    group: str = "",
) -> Example:
    """A question of the kinds `about` on the series made flat, noise or empty."""
    reason = ("flat", "noise", "empty")[int(random.choice(3, p=(0.42, 0.42, 0.16)))]
    made = {"flat": lambda: flat(series, random), "noise": lambda: noise(series, random)}.get(
        reason, lambda: empty(series)
    )()
    slots = {"task": task or str(random.choice(TASKS)), "channel": str(random.choice(series.channels))}
    kinds = [*about, *NEEDS_CHANNEL] if reason == "empty" else [*about]
    question = wording.question(str(random.choice(kinds)), slots, random, held_out)
    return _example(made, question, reason, random, held_out, group)


def absent(signal: Signal, random: np.random.Generator, *, held_out: bool = False, group: str = "") -> Example:
    """A question about a channel that the signal does not have: of a series with several, mostly one that was taken
    out of it, such as a lead that fell off."""
    name = str(random.choice(_strangers(signal, held_out)))
    if isinstance(signal, Series) and len(signal.channels) > 1 and random.random() < 0.6:
        gone = int(random.integers(len(signal.channels)))
        name = signal.channels[gone]
        kept = [n for n in range(len(signal.channels)) if n != gone]
        channels, units = (tuple(names[n] for n in kept) for names in (signal.channels, signal.units))
        signal = replace(signal, values=signal.values[:, kept], channels=channels, units=units, grid=None)
    kinds = [kind for kind in NEEDS_CHANNEL if isinstance(signal, Series) or kind in ("mean", "highest", "lowest")]
    question = wording.question(str(random.choice(kinds)), {"channel": name}, random, held_out)
    return _example(signal, question, "channel", random, held_out, group, channel=name)


def _strangers(signal: Signal, held_out: bool) -> list[str]:
    """Names of no channel of the signal: none has all words of a channel's name, or is part of one, as temperature may
    be that of the skin."""
    here = [own for name in sensors.names(signal) if (own := set(name.lower().split()))]
    known = STRANGERS_HELD_OUT if held_out else STRANGERS
    words = {name: set(name.lower().split()) for name in known}
    found = [name for name in known if not any(own <= words[name] or own >= words[name] for own in here)]
    return found or ["channel 99"]


def elsewhere(
    signal: Signal, random: np.random.Generator, *, held_out: bool = False, group: str = ""
) -> Example | None:
    """A question for a sensor of another kind; None where every one that is known may fit."""
    names = sensors.names(signal)
    asked = [
        str(question)
        for one in wording.table()["elsewhere"]
        if not sensors.measures(signal, one["of"])
        for question in one["held_out" if held_out else "questions"]
    ]
    if not asked:
        return None
    question = wording.opened(str(random.choice(asked)), random, held_out)
    shown = ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")
    return _example(signal, question, "sensor", random, held_out, group, channels=shown)


def unanswerable(signal: Signal, random: np.random.Generator, *, held_out: bool = False, group: str = "") -> Example:
    """A question that no signal answers."""
    asked = wording.table()["cannot"]["unanswerable_held_out" if held_out else "unanswerable"]
    question = wording.opened(str(random.choice(asked)), random, held_out)
    return _example(signal, question, "question", random, held_out, group)


def any_of(
    signal: Signal,
    random: np.random.Generator,
    *,
    about: Sequence[str] = NEEDS_SHAPE,
    task: str = "",
    held_out: bool = False,
    group: str = "",
) -> Example:
    """One of all these, at random; `about` and `task` as of :func:`broken`."""
    kind = int(random.choice(4, p=(0.4, 0.2, 0.2, 0.2)))
    if kind == 0 and isinstance(signal, Series):
        return broken(signal, random, about=about, task=task, held_out=held_out, group=group)
    if kind == 1 and (found := elsewhere(signal, random, held_out=held_out, group=group)):
        return found
    if kind == 2:
        return absent(signal, random, held_out=held_out, group=group)
    return unanswerable(signal, random, held_out=held_out, group=group)
