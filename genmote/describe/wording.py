"""How questions are asked and answers given: the wordings of `wordings.toml`, and numbers in words.

Each kind of question has wordings for training and others, held out, that training never sees.
"""

from __future__ import annotations

import math
import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from genmote.describe.facts import NO, YES, Fact
from genmote.errors import SpecError

FILE = Path(__file__).parent / "wordings.toml"
OPENED = 0.3  # of the questions begin with an opener
# A unit of time, its seconds, and up to how many seconds it is used.
TIMES = (
    ("ms", 1e-3, 0.1),
    ("s", 1.0, 120.0),
    ("min", 60.0, 7200.0),
    ("h", 3600.0, 172800.0),
    ("days", 86400.0, math.inf),
)


@lru_cache
def table() -> dict[str, Any]:
    """The wordings as they stand in the file."""
    with open(FILE, "rb") as file:
        return tomllib.load(file)


def kinds() -> list[str]:
    """The kinds of questions that have wordings."""
    return list(table()["ask"])


def questions(about: str, held_out: bool = False, claim: bool = False) -> list[str]:
    """The wordings of a kind of question, of training or those held out. SpecError for an unknown kind."""
    if about not in table()["ask"]:
        raise SpecError(f"about={about!r}: there is no wording for such a question; known: {', '.join(kinds())}")
    key = ("claim_held_out" if held_out else "claim") if claim else "held_out" if held_out else "questions"
    return list(table()["ask"][about].get(key, []))


def opened(question: str, random: np.random.Generator, held_out: bool) -> str:
    """The question, sometimes with an opener before it."""
    opener = str(random.choice(table()["openers"]["held_out" if held_out else "questions"]))
    return opener + question if random.random() < OPENED else question


def question(
    about: str, slots: dict[str, str], random: np.random.Generator, held_out: bool, claim: bool = False
) -> str:
    """One wording, filled in."""
    wording = str(random.choice(questions(about, held_out, claim)))
    return opened(_filled(wording, slots), random, held_out)


def answer(fact: Fact, random: np.random.Generator, short: float = 0.7) -> str:
    """The fact in words: the shortest wording in a share `short` of the cases."""
    wordings = table()["ask"][fact.about][fact.word if fact.choices == (YES, NO) else "answers"]
    brief = len(wordings) == 1 or random.random() < short
    wording = wordings[0] if brief else str(random.choice(wordings[1:]))
    return _filled(wording, {**fact.slots, "word": fact.word, "value": said(fact)})


def said(fact: Fact) -> str:
    """The fact's number with its unit; of a category its word."""
    return fact.word or number(fact.value, fact.unit, fact.tolerance)


def _filled(wording: str, slots: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: slots[match[1]], wording)


def number(value: float, unit: str = "", tolerance: float = 0.0) -> str:
    """A number with its unit, rounded to within its tolerance; times in the unit that suits their length.

    >>> number(23.2114, "°C", 0.4), number(5400, "s", 300), number(0.84, "s", 0.08), number(7, "", 0)
    ('23.2 °C', '90 min', '0.84 s', '7')
    """
    if unit == "s":
        size = abs(value) or (tolerance if math.isfinite(tolerance) else 0.0)  # 0 of days is no "0 ms"
        unit, scale = next((name, scale) for name, scale, below in TIMES if size < below)
        value, tolerance = value / scale, tolerance / scale
    text = _rounded(value, tolerance)
    return f"{text} {unit}" if unit else text


def _rounded(value: float, tolerance: float) -> str:
    if value == 0:
        return "0"
    if not tolerance > 0:
        return f"{value:.0f}" if value == round(value) else f"{value:.6g}"
    digits = math.ceil(-math.log10(tolerance)) if tolerance < 1e300 else 0
    if digits > 5 or abs(value) >= 1e7:  # what is tiny or huge is told with its power of ten
        return f"{value:.{max(0, digits + math.floor(math.log10(abs(value) or 1)))}e}"
    return f"{round(value, digits) + 0.0:.{max(0, digits)}f}"  # + 0: no "-0"
