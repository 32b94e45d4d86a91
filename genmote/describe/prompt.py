"""A prompt of signals and a question: what training and running have in common, so that they are the same.

    Signal 1: temperature in °C, humidity in %, 0.0167 Hz, 2 days
    <embeddings>
    Question: What is the trend?
    Answer:

Neither a signal's name nor its labels are in it: they may tell the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from genmote.errors import SpecError
from genmote.signals.kinds import Records, Series, Signal

if TYPE_CHECKING:
    from genmote.models.tokenizer import Tokenizer

NAMED = 16  # channels that are named
Facts = Callable[[Sequence[Signal], str], list[str]]  # a line for each signal, and perhaps one of all


def pieces(
    signals: Sequence[Signal], question: str, facts: Facts | None = None, *, also: Sequence[str] = ()
) -> list[str | int]:
    """Texts, and between them the number (from 0) of the signal whose embeddings stand there. `also`: questions that
    come later, for which the facts are told, too. SpecError for no question or no signal."""
    question = " ".join(question.split())
    if not question:
        raise SpecError('the question is empty: ask something, such as "What is the trend?"')
    if not signals:
        raise SpecError("no signal to ask about: give at least one")
    found: list[str | int] = []
    lines = (
        [] if facts is None else [f"Facts: {line or 'none'}\n" for line in facts(signals, " ".join([question, *also]))]
    )
    text = ""
    for number, signal in enumerate(signals):
        found += [f"{text}Signal {number + 1}: {head(signal)}\n", number]
        text = "\n" + "".join(lines[number : number + 1])
    text += "".join(lines[len(signals) :])
    return [*found, text + asked(question)]


def asked(question: str) -> str:
    """A question, after which the answer comes."""
    return f"Question: {' '.join(question.split())}\nAnswer:"


def tokens(tokenizer: Tokenizer, parts: Sequence[str | int]) -> list[list[int] | int]:
    """The same with texts as token ids, the first after the model's begin token. Words are words: what looks like a
    control token is a text like any other."""
    found: list[list[int] | int] = []
    for n, part in enumerate(parts):
        if isinstance(part, int):
            found.append(part)
            continue
        ids = tokenizer.encode(part, bos=False, special=False, start=n == 0)
        begin = tokenizer.bos_id if tokenizer.add_bos and n == 0 else None
        found.append(ids if begin is None else [begin, *ids])
    return found


def answer(tokenizer: Tokenizer, text: str) -> list[int]:
    """What is to follow a prompt: the answer, and the model's end token or, where it has none, a new line."""
    ids = tokenizer.encode(" " + " ".join(text.split()), bos=False, special=False, start=False)
    return [*ids, *end(tokenizer)]


def end(tokenizer: Tokenizer) -> list[int]:
    if tokenizer.eos_id is not None:
        return [tokenizer.eos_id]
    return tokenizer.encode("\n", bos=False, special=False, start=False)


def head(signal: Signal) -> str:
    """A signal in a line: what it is of, how fast and how long.

    >>> import numpy as np
    >>> head(Series("a", np.zeros((5000, 2), np.float32), 500.0, ("I", "II"), ("mV", "mV")))
    'I, II in mV, 500 Hz, 10 s'
    """
    if isinstance(signal, Series):
        names, units = signal.channels, signal.units
        rate = f"{signal.rate_hz:.3g} Hz" if signal.rate_hz > 0 else f"{len(signal)} samples at times of their own"
        return f"{_listed(names, units)}, {rate}, {span(signal.duration_s)}"
    if isinstance(signal, Records):
        names, units = tuple(f.name for f in signal.fields), tuple(f.unit for f in signal.fields)
        times = signal.times_s
        lasts = "" if times is None or not len(times) else f", {span(float(times.max() - times.min()))}"
        return f"{len(signal)} rows of {_listed(names, units)}{lasts}"
    from genmote.errors import SignalError

    raise SignalError(f"{signal.name}: holds frames; series and records are described so far")


def span(seconds: float) -> str:
    """A length of time.

    >>> span(10.0), span(5400.0), span(172800.0)
    ('10 s', '1.5 h', '2 days')
    """
    for unit, size, least in (("days", 86400.0, 172_800.0), ("h", 3600.0, 3600.0), ("min", 60.0, 120.0)):
        if seconds >= least:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _listed(names: Sequence[str], units: Sequence[str]) -> str:
    shown = list(zip(names, units, strict=True))[:NAMED]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    if len(set(units)) == 1:
        return ", ".join(name for name, _ in shown) + more + (f" in {units[0]}" if units[0] else "")
    return ", ".join(f"{name} in {unit}" if unit else name for name, unit in shown) + more
