"""Lines of computed facts for a prompt: a small language model reads a number out of words better than out of
embeddings. Of the facts that `facts.py` computes they have those that a question may be about, in the very words of an
answer (`wording.said`). What is not so (no gaps, no steps) is not told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from genmote.describe import wording
from genmote.describe.facts import NO, Fact, between, facts
from genmote.signals.kinds import Frames, Records, Series, Signal

MOST = 32  # facts of a line
WHOLE = 2  # channels of a signal of which all is told, whatever the question
BRIEF = ("commonest", "mean")  # what is told of each field of a table where the question names none


def lines(signals: Sequence[Signal], question: str) -> list[str]:
    """A line for each signal, and where there are two series one more, of what they are to each other. Deterministic.

    >>> import numpy as np
    >>> from genmote.signals.kinds import Series
    >>> ramp = Series("a", np.arange(40, dtype=np.float32)[:, None], 1.0, ("level",), ("m",))
    >>> lines([ramp], "Which way does it go?")[0][:62]
    'duration 40 s, channels 1, rate 1.00 Hz; level: unit m, mean 2'
    """
    found = [_line(signal, question) for signal in signals]
    if len(signals) == 2 and all(isinstance(signal, Series) for signal in signals):
        first, second = (signal for signal in signals if isinstance(signal, Series))
        found.append(_grouped(list(between(first, second))[:MOST]))
    return found


def _line(signal: Signal, question: str) -> str:
    """Facts of the signal as a whole, and of the channels that the question names; of all of them where they are
    few."""
    names = _channels(signal)
    asked = [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question)]
    shown = set(names if len(names) <= WHOLE else asked)
    # An encoder does not see what the words of a table are.
    brief = BRIEF if isinstance(signal, Records) and not shown else ()
    own = [n for n, name in enumerate(names) if name in shown]  # the others' are not computed
    found = (fact for fact in facts(signal, own) if fact.word != NO)
    told = [fact for fact in found if _of(fact) <= shown or fact.about in brief]
    return _grouped(told[:MOST])


def _channels(signal: Signal) -> Sequence[str]:
    if isinstance(signal, Frames):
        return ()
    return [field.name for field in signal.fields] if isinstance(signal, Records) else signal.channels


def _of(fact: Fact) -> set[str]:
    """The channels that a fact is of."""
    return {fact.slots[key] for key in ("channel", "other") if key in fact.slots}


def _grouped(told: Sequence[Fact]) -> str:
    """Facts in the order of what they are of, that of the whole first."""
    groups: dict[str, list[str]] = {"": []}
    for fact in told:
        of = " and ".join(fact.slots[key] for key in ("channel", "other") if key in fact.slots)
        word = f" {fact.slots['word']}" if "word" in fact.slots else ""
        name = fact.about.replace("_hz", "").replace("_", " ")
        groups.setdefault(of, []).append(f"{name}{word} {wording.said(fact)}")
    return "; ".join(f"{of}: {', '.join(some)}" if of else ", ".join(some) for of, some in groups.items() if some)
