"""Whether an answer is right: numbers within their tolerance, categories by their names, refusals as such."""

from __future__ import annotations

import math
import re

from genmote.describe.examples import Example
from genmote.signals.kinds import Records, Signal

NUMBER = re.compile(r"(?<![\w.])[-−–]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
SECONDS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
REFUSED = re.compile(
    r"\b(cannot|can not|can't|could not|couldn't|unable to|not able to|impossible to|not possible to|no way to)\s+"
    r"(\w+\s+)?(tell|say|determine|answer|know|be (told|seen|determined|known|answered))\b"
    r"|\bnot (enough|sufficient) (information|data)\b",
    re.IGNORECASE,
)
# How else models say the same.
ALSO = {
    "rising": ("increasing", "increases", "rises", "going up", "goes up", "upward", "growing"),
    "falling": ("decreasing", "decreases", "falls", "going down", "goes down", "downward", "dropping", "declining"),
    "no clear trend": ("no trend", "neither", "stable", "level", "constant", "without a trend", "no overall trend"),
    "the first half": ("first half", "first"),
    "the second half": ("second half", "second"),
    "the first": ("first", "first one", "first recording"),
    "the second": ("second", "second one", "second recording"),
    "about the same": ("same", "equal", "no difference", "similar"),
    "faster": ("speeds up", "speeding up", "quicker"),
    "slower": ("slows down", "slowing down"),
    "steady": ("constant", "the same", "unchanged", "holds"),
    "independently": ("independent", "unrelated", "neither", "not related", "uncorrelated"),
    "in opposite directions": ("opposite", "opposite directions", "against each other"),
    "at the same time": ("same time", "simultaneously", "both at the same time", "neither"),
}
NEGATION = re.compile(r"(\bnot|n't|\bno|\bnor|\bneither)\s+(an?\s+|the\s+)?$", re.IGNORECASE)


def refused(text: str) -> bool:
    """Whether it says that it cannot tell.

    >>> refused("I cannot tell: the signal is flat."), refused("It is flat.")
    (True, False)
    """
    return REFUSED.search(text) is not None


def numbers(text: str, time: float = 0.0) -> list[float]:
    """The numbers in a text. With `time` above 0 they are times, in seconds: "2 min 30 s" is 150, and one without a
    unit is of `time` seconds.

    >>> numbers("about 1,200 steps, −3.5 less"), numbers("2 min 30 s", 1.0), numbers("2", 60.0)
    ([1200.0, -3.5], [150.0], [120.0])
    """
    found: list[float] = []
    end = -1  # of the number with a unit before, which the next may go on with
    for match in NUMBER.finditer(text):
        value = float(match[0].replace(",", "").replace("−", "-").replace("–", "-"))
        unit = re.match(r"\s*([A-Za-z]+)", text[match.end() :]) if time else None
        scale = SECONDS.get(unit[1].lower()) if unit else None
        if scale is None or unit is None:
            found.append(value * (time or 1.0))
            continue
        if end >= 0 and text[end : match.start()].strip(" ,") in ("", "and"):
            found[-1] += value * scale
        else:
            found.append(value * scale)
        end = match.end() + unit.end()
    return found


def mentioned(text: str, choices: tuple[str, ...]) -> set[str]:
    """Which of the choices a text names, longer names before shorter ones that are part of them. One that is denied
    ("not rising") is not named."""
    names = sorted(((name, choice) for choice in choices for name in (choice, *ALSO.get(choice, ()))), key=_longest)
    found: set[str] = set()
    left = text
    for name, choice in names:
        # A name may begin or end with a sign (°C, %), where a word's border is none.
        after = r"(?!\w)(?!\s[a-z])" if name == "I" else r"(?!\w)"  # the lead, not who speaks
        pattern = re.compile(rf"(?<!\w){re.escape(name)}{after}", re.IGNORECASE if name != "I" else 0)
        for match in pattern.finditer(left):
            if not NEGATION.search(left[: match.start()]):
                found.add(choice)
        left = pattern.sub(lambda match: "\0" * len(match[0]), left)
    return found


def _longest(pair: tuple[str, str]) -> int:
    return -len(pair[0])


def right(example: Example, text: str) -> bool:
    """Whether a model's answer `text` to the example's question is right.

    A refusal is right where the answer is one, and only there. With choices the text must name those that the answer
    names and no other; yes and no count by which comes first. A number is the first in the text, within the tolerance.
    Other answers must be the same but for case, punctuation and spaces.
    """
    if example.about == "cannot" or refused(text):
        return example.about == "cannot" and refused(text)
    names = {name for signal in example.signals for name in _names(signal)}
    if example.choices:  # a channel may be called sound level, or NO: then these words are no answer
        text, answer = (_without(names - {*example.choices}, said) for said in (text, example.answer))
    if example.choices == ("yes", "no"):
        first = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
        wanted = re.search(r"\b(yes|no)\b", answer, re.IGNORECASE)
        return first is not None and wanted is not None and first[1].lower() == wanted[1].lower()
    if example.choices:
        return mentioned(text, example.choices) == mentioned(answer, example.choices)
    if not math.isnan(example.value):
        text = _without({name for name in names if re.search(r"\d", name)}, text)  # "connections in 2 s"
        told = numbers(text, _seconds(example)) if example.unit in SECONDS else numbers(text)
        value, tolerance = (x * SECONDS.get(example.unit, 1.0) for x in (example.value, example.tolerance))
        return bool(told) and abs(told[0] - value) <= tolerance + 1e-6 * abs(value)
    return _plain(text) == _plain(example.answer)


def _seconds(example: Example) -> float:
    """Of the unit in which the example's answer tells a time."""
    unit = re.search(r"\d (\w+)", example.answer)
    return SECONDS.get(unit[1], 1.0) if unit else 1.0


def _names(signal: Signal) -> list[str]:
    return [field.name for field in signal.fields] if isinstance(signal, Records) else list(signal.channels)


def _without(names: set[str], text: str) -> str:
    """The text without these names, the longest first."""
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text)
    return text


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
