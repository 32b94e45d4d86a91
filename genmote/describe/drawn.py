"""Drawn signals and questions about them, without end and under no licence: what an encoder first learns to read.

A series is a sum of a level, a trend, oscillations, a step, bursts and noise, of any rate, length and number of
channels, in the name and unit of something that is measured. `held_out`: other quantities and other shapes than in
training, and the wordings that training never sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from genmote.describe import asking, cannot
from genmote.describe.examples import Example
from genmote.describe.measure import Floats
from genmote.signals import synthetic
from genmote.signals.kinds import Field, Records, Series, Signal

Draw = np.random.Generator
RATES_HZ = (1 / 3600, 1 / 600, 1 / 300, 1 / 60, 1 / 30, 0.1, 0.5, 1, 2, 5, 10, 20, 25, 50, 100, 125, 200, 250, 360, 500)
PACED = 0.15  # of the waves change their pace in the middle
SHORTEST, LONGEST = 64, 2000  # samples
RECORDS = ("flows", "attack", "authentication", "smart-home", "food-intake", "error-log")


class Quantity(NamedTuple):
    """Something that is measured: usual level and spread, and the step of its sensor."""

    name: str
    unit: str
    level: float
    spread: float
    step: float


TRAINED = (
    Quantity("temperature", "°C", 21, 4, 0.01),
    Quantity("outdoor temperature", "°C", 8, 9, 0.1),
    Quantity("humidity", "%", 45, 12, 0.1),
    Quantity("CO2", "ppm", 700, 250, 1),
    Quantity("light", "lx", 300, 200, 1),
    Quantity("pressure", "hPa", 1013, 8, 0.1),
    Quantity("power", "W", 400, 300, 1),
    Quantity("voltage", "V", 230, 3, 0.1),
    Quantity("current", "A", 4, 3, 0.01),
    Quantity("heart rate", "bpm", 80, 20, 1),
    Quantity("oxygen saturation", "%", 96, 1.5, 1),
    Quantity("arterial pressure", "mmHg", 95, 20, 0.5),
    Quantity("pulse", "counts", 500, 120, 1),
    Quantity("lead II", "mV", 0, 0.3, 0.005),
    Quantity("acceleration", "g", 0.4, 0.6, 0.001),
    Quantity("x", "g", 0, 0.5, 0.001),
    Quantity("y", "g", 0.5, 0.5, 0.001),
    Quantity("z", "m/s²", 9.8, 3, 0.01),
    Quantity("rotation", "rad/s", 0, 1.5, 0.001),
    Quantity("speed", "m/s", 12, 6, 0.1),
    Quantity("steering angle", "deg", 0, 15, 0.1),
    Quantity("throttle", "%", 30, 20, 0.5),
    Quantity("force Fz", "N", -5, 15, 0.1),
    Quantity("torque", "N·m", 0.5, 2, 0.01),
    Quantity("RSRP", "dBm", -95, 9, 1),
    Quantity("SNR", "dB", 12, 7, 0.1),
    Quantity("download rate", "Mbit/s", 45, 25, 0.1),
    Quantity("packets", "1/s", 120, 80, 1),
    Quantity("steps", "1/h", 400, 350, 1),
    Quantity("gaze x", "px", 900, 300, 0.1),
    Quantity("pupil", "mm", 3.5, 0.6, 0.01),
    Quantity("sound level", "dB", 50, 9, 0.1),
    Quantity("strain", "", 0, 1, 0.001),
    Quantity("sensor 1", "", 100, 40, 1),
    Quantity("channel A", "V", 1.2, 0.7, 0.001),
)
HELD_OUT = (
    Quantity("wind speed", "m/s", 5, 3, 0.1),
    Quantity("soil moisture", "%", 30, 8, 0.1),
    Quantity("flow rate", "L/min", 18, 7, 0.1),
    Quantity("respiration", "mL", 300, 160, 1),
    Quantity("skin conductance", "µS", 4, 1.8, 0.01),
    Quantity("fan speed", "rpm", 1800, 500, 1),
    Quantity("latency", "ms", 40, 20, 0.1),
    Quantity("battery voltage", "V", 3.8, 0.15, 0.001),
    Quantity("NOx", "µg/m³", 60, 30, 0.1),
    Quantity("glucose", "mmol/L", 6.1, 1.6, 0.1),
    Quantity("grip force", "N", 80, 40, 0.1),
    Quantity("altitude", "m", 420, 60, 0.1),
)


def _sine(phase: Floats) -> Floats:
    return np.asarray(np.sin(2 * np.pi * phase))


def _harmonics(phase: Floats) -> Floats:
    return np.asarray(0.8 * np.sin(2 * np.pi * phase) + 0.35 * np.sin(4 * np.pi * phase + 0.7))


def _pulses(phase: Floats) -> Floats:
    """A steep beat and a slow fall."""
    at = phase % 1
    return np.asarray(4 * (at / 0.12) * np.exp(1 - at / 0.12) * 0.5 - 0.8)


def _square(phase: Floats) -> Floats:
    return np.asarray(np.where(phase % 1 < 0.5, 1.0, -1.0), np.float64)


def _saw(phase: Floats) -> Floats:
    return np.asarray(2 * (phase % 1) - 1)


def _spiky(phase: Floats) -> Floats:
    """As of an ECG: a narrow peak, and a round wave after it."""
    at = phase % 1
    return np.asarray(3 * np.exp(-0.5 * ((at - 0.3) / 0.02) ** 2) + 0.6 * np.exp(-0.5 * ((at - 0.6) / 0.06) ** 2) - 0.3)


WAVES: tuple[Callable[[Floats], Floats], ...] = (_sine, _harmonics, _pulses, _spiky)
WAVES_HELD_OUT: tuple[Callable[[Floats], Floats], ...] = (_square, _saw)
SHAPES = ("trend", "wave", "step", "bursts", "walk", "noise", "wave and trend", "wave and bursts", "trend and bursts")
SHAPES_HELD_OUT = ("wave and step", "ramp", "wave", "trend and bursts", "step", "bursts")


def shape(random: Draw, count: int, held_out: bool) -> Floats:
    """A course (T,) of about unit spread."""
    kind = str(random.choice(SHAPES_HELD_OUT if held_out else SHAPES))
    t = np.linspace(0, 1, count)
    x: Floats = float(random.choice((0.05, 0.15, 0.4))) * random.normal(size=count)
    if "trend" in kind:
        bend = random.choice((0.6, 1.0, 1.0, 1.6))
        x += float(random.choice((-1, 1))) * random.uniform(1.5, 3) * (t**bend - 0.5)
    if kind == "ramp":  # it rises or falls for a part of the time only
        start, stop = np.sort(random.uniform(0, 1, 2))
        x += float(random.choice((-1, 1))) * 2.5 * (np.clip((t - start) / max(0.2, stop - start), 0, 1) - 0.5)
    if "wave" in kind:
        waves = WAVES_HELD_OUT if held_out else WAVES
        cycles = float(np.exp(random.uniform(np.log(4.2), np.log(min(40, count / 12)))))
        wave = waves[int(random.integers(len(waves)))]
        wander = 1 + 0.02 * np.cumsum(random.normal(size=count)) / np.sqrt(count)
        if random.random() < PACED:
            wander[count // 2 :] *= float(random.choice((0.65, 1.5)))
        x += random.uniform(0.8, 1.3) * wave(np.cumsum(wander) / count * cycles + random.uniform())
    if "step" in kind:
        x += float(random.choice((-1, 1))) * random.uniform(1.5, 4) * (t > random.uniform(0.15, 0.85))
    if "bursts" in kind:
        width = max(1.5, count * random.uniform(0.003, 0.012))
        for at in _apart(random, int(random.integers(1, 8)), count, 6 * width + count / 25):
            x += (
                float(random.choice((-1, 1, 1)))
                * random.uniform(7, 14)
                * np.exp(-0.5 * ((np.arange(count) - at) / width) ** 2)
            )
    if kind == "walk":
        x += np.cumsum(random.normal(size=count)) / np.sqrt(count) * 3
    return x


def _apart(random: Draw, count: int, length: int, least: float) -> list[float]:
    """Up to `count` places in [0, length) that are at least so far from each other."""
    found: list[float] = []
    for at in random.uniform(0.03 * length, 0.97 * length, 4 * count):
        if len(found) < count and all(abs(at - other) > least for other in found):
            found.append(float(at))
    return found


def series(random: Draw, held_out: bool = False) -> Series:
    """One drawn series, of 1 to 6 channels that are independent, follow each other, or follow late."""
    count = int(np.exp(random.uniform(np.log(SHORTEST), np.log(LONGEST))))
    rate = float(random.choice(RATES_HZ))
    known = HELD_OUT if held_out else TRAINED
    width = int(random.choice((1, 2, 3, 4, 6), p=(0.4, 0.25, 0.2, 0.1, 0.05)))
    one_unit = width > 1 and random.random() < 0.4
    first = known[int(random.integers(len(known)))]
    if one_unit:
        names = _numbered(random, first, width)
        kinds = [first._replace(name=name) for name in names]
    else:
        kinds = [known[n] for n in random.choice(len(known), width, replace=False)]
    leader = shape(random, count + count // 5, held_out)
    columns = []
    for kind in kinds:
        how = "own" if width == 1 else str(random.choice(("own", "own", "follow", "against", "late", "late")))
        x = shape(random, count, held_out) if how == "own" else leader[count // 10 :][:count].copy()
        if how == "late":
            late = int(random.integers(max(2, count // 40), max(3, count // 11)))
            x = leader[count // 10 - late :][:count].copy()
        x *= -1 if how == "against" else 1
        x += 0.05 * random.normal(size=count)
        level = kind.level + kind.spread * random.normal() * 0.7
        scale = kind.spread * float(np.exp(random.normal(0, 0.7))) * 0.6
        x = level + scale * x
        if kind.level >= kind.spread > 0:  # what is never below 0
            x += max(0.0, -float(x.min()))
        columns.append(np.round(x / kind.step) * kind.step)
    values = np.stack(columns, axis=1)
    _faults(random, values)
    channels, units = tuple(kind.name for kind in kinds), tuple(kind.unit for kind in kinds)
    return Series("drawn", values.astype(np.float32), rate, channels, units)


def _numbered(random: Draw, first: Quantity, width: int) -> list[str]:
    """Names of several channels of one quantity."""
    ways = (
        [f"{first.name} {n + 1}" for n in range(width)],
        [f"{first.name} {'xyzuvw'[n]}" for n in range(width)],
        [f"{place} {first.name}" for place in ("left", "right", "front", "rear", "upper", "lower")[:width]],
    )
    return ways[int(random.integers(len(ways)))]


def _faults(random: Draw, values: Floats) -> None:
    """Sometimes a gap, or a channel that hangs for a while."""
    count, width = values.shape
    if random.random() < 0.12:
        at, column = int(random.uniform(0, 0.6) * count), int(random.integers(width))
        values[at : at + int(random.uniform(0.25, 0.4) * count), column] = values[at, column]
    if random.random() < 0.15:
        for _ in range(int(random.integers(1, 3))):
            at = int(random.uniform(0, 0.85) * count)
            length = max(1, int(random.uniform(0.01, 0.13) * count))
            values[at : at + length, : int(random.integers(1, width + 1))] = np.nan


def pair(random: Draw, held_out: bool = False) -> tuple[Series, Series]:
    """Two series of the same channels: of the second, level, spread, length and tempo are changed or not."""
    first = series(random, held_out)
    changed = first.values.astype(np.float64)
    if random.random() < 0.4 and len(changed) > 160:  # every second sample: twice as fast and half as long
        changed = changed[::2]
    middle = np.nanmean(changed, axis=0) if np.isfinite(changed).any(axis=0).all() else 0.0
    width = np.nanstd(first.values, axis=0) + 1e-9
    factor = float(random.choice((0.4, 1.0, 1.0, 2.5)))
    changed = middle + factor * (changed - middle) + width * float(random.choice((-2.0, 0.0, 0.0, 2.0)))
    length = len(changed) if random.random() < 0.5 else int(random.uniform(0.5, 1.0) * len(changed))
    changed = changed[: max(SHORTEST, length)]
    other = replace(first, values=changed.astype(np.float32))
    return (first, other) if random.random() < 0.5 else (other, first)


def records(random: Draw) -> Records:
    """Rows that follow each other out of one of the drawn tables."""
    found = synthetic.draw(str(random.choice(RECORDS)), int(random.integers(1 << 31)))
    assert isinstance(found, Records)
    length = int(random.integers(min(8, len(found)), min(200, len(found)) + 1))
    start = int(random.integers(0, len(found) - length + 1))
    kept = [n for n, field in enumerate(found.fields) if field.type != "text"]
    fields: tuple[Field, ...] = tuple(found.fields[n] for n in kept)
    return replace(found, fields=fields, columns=tuple(found.columns[n] for n in kept)).part(start, start + length)


def stream(seed: int = 0, *, held_out: bool = False, each: int = 3) -> Iterator[Example]:
    """Examples without end, the same for the same seed: `each` questions of a series, then the next series; among them
    pairs of series, tables, captions, and questions that have no answer. Yes and no come equally often."""
    random = np.random.default_rng([seed, held_out])
    balance = asking.Balance()
    number = 0
    while True:
        group = f"drawn {seed} {number}"
        for example in _some(random, held_out, each, group):
            if balance.takes(example):
                yield example
        number += 1


def _some(random: Draw, held_out: bool, each: int, group: str) -> list[Example]:
    kind = float(random.random())
    if kind < 0.12:
        return asking.questions(pair(random, held_out), random, most=each, held_out=held_out, group=group)
    signal: Signal = records(random) if kind < 0.2 else series(random, held_out)
    found = asking.questions([signal], random, most=each, held_out=held_out, group=group)
    if random.random() < 0.25 and (told := asking.caption(signal, random, held_out=held_out, group=group)):
        found.append(told)
    if random.random() < 0.4:
        found.append(cannot.any_of(signal, random, held_out=held_out, group=group))
    return found
