"""Whether a question is for a sensor that the signals have: what it asks for, by its words, beside what channels are
called and counted in.

A channel whose name and unit tell nothing ("sensor 1", in V) may be anything: then it is left to the model.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from genmote.registry import listed
from genmote.signals.kinds import Frames, Records, Series, Signal

FILE = Path(__file__).parent / "sensors.toml"
OPEN_UNITS = frozenset(("", "1", "%", "V", "mV", "µV", "counts", "a.u.", "raw"))  # of which nothing follows
# Fields of rows whose words may be of any sensor.
OPEN_FIELDS = re.compile(r"entity|state|sensor|topic|value|message|device|reading|metric", re.IGNORECASE)
LEADS = r"I{2,3}|[aA]V[RLF]|V[1-9]R?"
# The lead I, and not who asks.
LEAD_I = r"(?i:\b(?:of|is|does|call|in|for|lead|was|has|with|from|to|between|and|that|where)) I\b|\bI(?=[?.,:;])"
NUMBERED = re.compile(r"\b(?:lead|channel|column|sensor|axis)\s+(aV[RLF]|[A-Za-z]{0,3}\d{1,3}|[A-Z]{1,3}|[xyz])\b")


class Sensor(NamedTuple):
    asked: re.Pattern[str]
    told: re.Pattern[str]


@lru_cache
def _file() -> dict[str, Any]:
    with open(FILE, "rb") as file:
        return tomllib.load(file)


@lru_cache
def table() -> dict[str, Sensor]:
    """What may be asked for, by its name."""
    return {
        name: Sensor(_words([row["asked"]]), re.compile(row["told"], re.IGNORECASE))
        for name, row in _file()["of"].items()
    }


@lru_cache
def _patterns(name: str) -> re.Pattern[str]:
    return _words(_file()[name])


def _words(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)


def needs_shape(question: str) -> bool:
    """Whether a flat line or noise, which have a level, a length and a rate, do not answer the question."""
    return _patterns("shape").search(question) is not None


def names(signal: Signal) -> list[str]:
    """What its channels or fields are called."""
    if isinstance(signal, Frames):
        return []
    return [field.name for field in signal.fields] if isinstance(signal, Records) else list(signal.channels)


def measures(signal: Signal, what: str) -> bool:
    """Whether a channel measures it, by its name or unit, or by the name of the recording or its modality."""
    told = table()[what].told
    return any(told.search(text) for text in (*names(signal), *_units(signal), *_called(signal)))


def lacking(signals: Sequence[Signal], question: str) -> str:
    """What the question asks for and no signal has, as a reason that it cannot be answered; nothing where there is no
    such thing, or one of the signals may have it."""
    if any(isinstance(signal, Frames) for signal in signals):
        return ""
    here = [name for signal in signals for name in names(signal)]
    for name in sorted(filter(None, here), key=len, reverse=True):
        question = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "\0", question)
    if _patterns("untold").search(question):
        return "no recording of sensors says that"
    has = f"it has {listed(here)}"
    for name in _siblings(here, question):
        return f"the recording has no {name}: {has}"
    for what, sensor in table().items():
        if sensor.asked.search(question) and not any(measures(signal, what) or _open(signal) for signal in signals):
            return f"the recording measures no {what}: {has}"
    return ""


def foreign(signal: Signal, trained: Collection[str]) -> bool:
    """Whether none of its channels is like one of those that a model was trained on, whose names these are: called the
    same, or measuring half of the same things, as far as the names tell."""
    taught = {name.casefold() for name in trained}
    sorts = {sort for name in trained if (sort := _sort(name))}
    own = {name.casefold(): _sort(name) for name in names(signal)}
    like = [
        name in taught or any(2 * len(sort & one) >= len(sort | one) for one in sorts) for name, sort in own.items()
    ]
    return bool(own) and not any(like) and not (isinstance(signal, Series) and _open(signal))


@lru_cache(maxsize=1024)
def _sort(name: str) -> frozenset[str]:
    return frozenset(what for what, one in table().items() if one.told.search(name))


def _units(signal: Signal) -> list[str]:
    if isinstance(signal, Frames):
        return []
    return [field.unit for field in signal.fields] if isinstance(signal, Records) else list(signal.units)


def _called(signal: Signal) -> list[str]:
    return [signal.name, signal.labels.get("modality", "").replace("-", " ")]


def _open(signal: Signal) -> bool:
    """Whether it may measure what its names do not tell: a series with such a channel; rows of which no field is known,
    or that tell of things of any kind."""
    known = [bool(_sort(name)) for name in names(signal)]
    if isinstance(signal, Records):
        return not any(known) or any(map(OPEN_FIELDS.search, names(signal)))
    return any(not one and unit in OPEN_UNITS for one, unit in zip(known, _units(signal), strict=True))


def _siblings(here: Sequence[str], question: str) -> Iterator[str]:
    """Channels that the question names and that are not there, though others of their kind are: V3 beside V1 and V2,
    the lead I of an ECG, z beside x and y; or that it calls a lead or a channel."""
    plain = {name.casefold() for name in here}
    plain |= {name.casefold().removeprefix("lead ") for name in here}
    patterns = {pattern for name in here if (pattern := _alike(name))}
    if any(re.fullmatch(rf"(?:lead )?(?:I|{LEADS})", name) for name in here):
        patterns.add(LEADS)
        if "i" not in plain and re.search(LEAD_I, question):
            yield "lead I"
    for pattern in sorted(patterns):
        yield from (match[0] for match in re.finditer(rf"(?<![\w.-])(?:{pattern})(?![\w-]|\.\d)", question))
    for match in NUMBERED.finditer(question):
        counted = match[1].isdigit() and int(match[1]) <= len(here)  # the second channel, whatever it is called
        if match[1].casefold() not in plain and not counted:
            yield match[0]


def _alike(name: str) -> str:
    """A pattern of names of the same kind, or nothing."""
    if match := re.fullmatch(r"(.*[\s_-]|[A-Za-z]|)([xyzuvw])", name):
        return re.escape(match[1]) + ("[xyzuvw]" if match[1] else "[xyz]")
    if match := re.fullmatch(r"(.*\D)\d{1,2}", name):
        return re.escape(match[1]) + r"\d{1,2}"
    if match := re.fullmatch(r"(?:left|right|front|rear|upper|lower)(\s.+)", name):
        return "(?:left|right|front|rear|upper|lower)" + re.escape(match[1])
    return ""
