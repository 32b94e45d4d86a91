"""Three tasks of real examples, most of them much like others: commands to things, logs, what sensors of a room say.

Each is short prompts and short answers. `split` gives a part to learn from, one to choose settings by and one to
test with; no prompt is in two of them.
"""

from __future__ import annotations

import csv
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.signals.sets import folder

SEED, TESTED = 0, 150
LINE = 32  # characters of a log line
WINDOW, AT = 6, (0, 2, 3, 5)  # minutes of a caption, and those that are told of it
Pair = tuple[str, str]  # prompt, answer


def agent() -> list[Pair]:
    """home-llm's phrases for one thing, and eight fillings of each of its templates, as it makes its own set:
    "Turn on the hall lamp" → light.turn_on."""
    pile, draw = folder("home_llm_piles_en"), random.Random(SEED)
    things: dict[str, list[str]] = {}
    for row in _rows(pile / "pile_of_device_names.csv"):
        things.setdefault(row["device_name"].split(".")[0], []).append(row["description"].lower())
    fillings = {
        "color": "red green blue yellow purple orange white".split(),
        "brightness": [str(n) for n in range(5, 100, 5)],
        "duration": [row["name"] for row in _rows(pile / "pile_of_durations.csv")],
        "todo": (pile / "pile_of_todo_items.txt").read_text(encoding="utf-8").split("\n")[:-1],
        "temp_f": [str(n) for n in range(60, 80)],
        "temp_c": [str(n) for n in range(15, 26)],
        "humidity": [str(n) for n in range(20, 70, 5)],
        "fan_mode": "auto on low medium high".split(),
        "hvac_mode": "heat cool auto off dry".split(),
    }
    found = [(row["phrase"], row["service_name"]) for row in _rows(pile / "pile_of_specific_actions.csv")]
    for row in _rows(pile / "pile_of_templated_actions.csv"):
        kind = row["device_type"]
        for _ in range(0 if "|" in kind else 8):
            phrase = row["phrase"]
            for name, values in {**fillings, "device_name": things.get(kind, [])}.items():
                if f"<{name}>" in phrase:
                    phrase = phrase.replace(f"<{name}>", draw.choice(values))
            found.append((phrase, f"{kind}.{row['service']}"))
    return found


def logs() -> list[Pair]:
    """A line's beginning, of six systems (LogHub) → the system and the number of the line's template, of templates
    with ten such beginnings or more."""
    found = [
        (row["Content"][:LINE], f"{path.parent.name} {row['EventId']}")
        for path in sorted(folder("loghub_2k").glob("*/*_2k.log_structured.csv"))
        for row in _rows(path)
    ]
    unlike = Counter(template for _, template in set(found))
    return [pair for pair in found if unlike[pair[1]] >= 10]


def room() -> list[Pair]:
    """Six minutes of light and CO2 in an office (UCI Occupancy Detection), a value and its changes → a caption
    computed from them, with whether someone was there, which is told by a camera's pictures.

    Light is in units of 10 lux, CO2 of 5 ppm."""
    found = []
    for name in ("datatest", "datatraining", "datatest2"):
        rows = list(_rows(folder("occupancy_uci") / f"{name}.txt"))
        for start in range(0, len(rows) - WINDOW + 1, WINDOW):
            some = rows[start : start + WINDOW]
            light = [round(float(some[n]["Light"]) / 10) for n in AT]
            gas = [round(float(some[n]["CO2"]) / 5) for n in AT]
            lit = ("dark", "light goes on", "light goes off", "lit")[2 * (light[0] >= 5) + (light[-1] >= 5)]
            moved = gas[-1] - gas[0]
            trend = "rises" if moved > 1 else "falls" if moved < -1 else "steady"
            there = "occupied" if 2 * sum(row["Occupancy"] == "1" for row in some) > WINDOW else "empty"
            found.append((f"light {_told(light)} CO2 {_told(gas)}", f"{lit}, CO2 {trend}, {there}"))
    return found


TASKS: dict[str, tuple[str, Callable[[], list[Pair]], int]] = {  # title, pairs, how many to learn from
    "agent": ("agent commands", agent, 1600),
    "room": ("sensor captions", room, 500),
    "logs": ("log lines", logs, 1400),
}


def split(task: str) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """To learn from, to choose settings by, to test with. ContestantError where the data are not here."""
    _, pairs, count = TASKS[task]
    every = pairs()
    random.Random(SEED).shuffle(every)
    prompts = list(dict.fromkeys(prompt for prompt, _ in every))
    place = {prompt: n // TESTED for n, prompt in enumerate(prompts[: 2 * TESTED])}  # by prompts, not by pairs
    sides: tuple[list[Pair], ...] = ([], [], [])
    for prompt, answer in every:
        sides[2 - place.get(prompt, 2)].append((f"{prompt} =>", f" {answer}"))
    development, test = (list({pair[0]: pair for pair in side}.values()) for side in sides[1:])
    return sides[0][:count], development, test


def _told(values: list[int]) -> str:
    changes = [b - a for a, b in itertools.pairwise(values)]
    return " ".join([str(values[0]), *(f"{each:+d}" if each else "0" for each in changes)])


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)
