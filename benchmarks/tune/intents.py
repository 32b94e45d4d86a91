"""Agent commands and their intents: "Shut off the lights in the den" → light.turn_off. Out of home-llm's piles (MIT;
`SOURCE.txt` beside the data): each phrase that is there, and each template for one device, with a device of its kind.
Of each intent's phrases a third is to test with, a sixth to choose settings with, the rest to learn from."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.signals.sets import folder
from benchmarks.tune import answers
from benchmarks.tune.answers import Pair

SEED = 0
DEALT = ("learn", "test", "learn", "development", "learn", "test")  # an intent's phrases in turn


def write(into: Path) -> dict[str, Path]:
    """The files of examples. ContestantError where the data are not here."""
    draw, intents = random.Random(SEED), defaultdict[str, list[str]](list)
    for phrase, intent in dict.fromkeys(_phrases(draw)):
        intents[intent].append(phrase)
    parts: dict[str, list[Pair]] = {part: [] for part in answers.PARTS}
    for intent in sorted(intents):
        draw.shuffle(intents[intent])
        for n, phrase in enumerate(intents[intent]):
            parts[DEALT[n % len(DEALT)]].append((phrase, intent))
    for pairs in parts.values():
        draw.shuffle(pairs)
    return answers.write(into, **parts)


def _phrases(draw: random.Random) -> Iterator[Pair]:
    for row in _rows("specific_actions"):
        yield row["phrase"], row["service_name"]
    devices = defaultdict[str, list[str]](list)
    for row in _rows("device_names"):
        devices[row["device_name"].split(".")[0]].append(row["description"])
    for row in _rows("templated_actions"):
        kind, phrase = row["device_type"], row["phrase"]
        if phrase.count("<") == 1 and "<device_name>" in phrase and kind in devices:
            yield phrase.replace("<device_name>", draw.choice(devices[kind])), f"{kind}.{row['service']}"


def _rows(pile: str) -> Iterator[dict[str, str]]:
    with (folder("home_llm_piles_en") / f"pile_of_{pile}.csv").open(encoding="utf-8") as file:
        yield from csv.DictReader(file)
