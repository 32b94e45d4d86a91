"""A line of computed facts for a prompt: a small language model reads a number out of words better than out of
embeddings. Of the facts that `facts.py` computes it has those that a question may be about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from genmote.describe.facts import Fact, facts
from genmote.signals.kinds import Frames, Records, Signal

MOST = 24  # facts of a line
WHOLE = 2  # channels of a signal of which all is told, whatever the question


def line(signal: Signal, question: str) -> str:
    """Facts of the signal as a whole, and of the channels that the question names; of all of them where they are few,
    or of the first where none is named. Deterministic; `none` where nothing clear can be said.

    >>> import numpy as np
    >>> from genmote.signals.kinds import Series
    >>> ramp = Series("a", np.arange(40, dtype=np.float32)[:, None], 1.0, ("level",), ("m",))
    >>> line(ramp, "Which way does it go?")[:56]
    'duration 40 s, channels 1, unit of level m, rate 1 Hz, g'
    """
    known = facts(signal)
    names = _channels(signal)
    asked = [name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question)]
    shown = set(names if len(names) <= WHOLE else asked or names[:1])
    told = [fact for fact in known if _about(fact, shown)]
    # What is of no channel first, then what is of those named.
    return ", ".join(_said(fact) for fact in told[:MOST]) or "none"


def _channels(signal: Signal) -> Sequence[str]:
    if isinstance(signal, Frames):
        return ()
    return [field.name for field in signal.fields] if isinstance(signal, Records) else signal.channels


def _about(fact: Fact, shown: set[str]) -> bool:
    of = {fact.slots[key] for key in ("channel", "other") if key in fact.slots}
    return of <= shown


def _said(fact: Fact) -> str:
    """A fact in few words.

    >>> _said(Fact("mean", value=36.55, unit="°C", slots={"channel": "skin"}))
    'mean of skin 36.5 °C'
    >>> _said(Fact("together", "together", slots={"channel": "a", "other": "b"}))
    'together of a and b together'
    """
    name = fact.about.replace("_hz", "").replace("_", " ")
    of = " and ".join(fact.slots[key] for key in ("channel", "other", "word") if key in fact.slots)
    what = fact.word or f"{fact.value:.3g}{' ' * bool(fact.unit)}{fact.unit}"
    return f"{name}{' of ' * bool(of)}{of} {what}"
