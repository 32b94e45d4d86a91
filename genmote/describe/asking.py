"""Questions and answers out of facts: one example for a fact, yes and no in equal parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from genmote.describe import wording
from genmote.describe.examples import Example, bare
from genmote.describe.facts import NO, YES, Fact, between, facts
from genmote.describe.measure import FALLING, RISING
from genmote.signals.kinds import Series, Signal

CHANNELS = 3  # of which facts are computed, where there are more
CLAIMED = 0.25  # of the questions that have such wordings are asked as a claim: is it rising?
TOLD = ("mean", "lowest", "highest", "trend", "when_highest", "period", "burst_count", "when_step", "heart_rate")


def ask(
    signals: Sequence[Signal], fact: Fact, random: np.random.Generator, *, held_out: bool = False, group: str = ""
) -> Example:
    """A question whose answer is the fact, in a wording of training or in one held out."""
    own = tuple(bare(signal) for signal in signals)
    if fact.word and random.random() < CLAIMED and wording.questions(fact.about, held_out, claim=True):
        return _claim(own, fact, random, held_out, group)
    question = wording.question(fact.about, fact.slots, random, held_out)
    answer = wording.answer(fact, random)
    about = fact.about, fact.choices, group, held_out
    return Example(own, question, answer, *about, fact.value, fact.unit if not fact.word else "", fact.tolerance)


def _claim(own: tuple[Signal, ...], fact: Fact, random: np.random.Generator, held_out: bool, group: str) -> Example:
    """Whether it is what somebody takes it to be: which it is in half of the cases."""
    own_words = [one for one in fact.choices if one in fact.word.split(", ") or one == fact.word]
    others = [one for one in fact.choices if one not in own_words]
    if fact.about == "trend":  # nobody asks whether something is "no clear trend"
        own_words, others = ([one for one in words if one in (RISING, FALLING)] for words in (own_words, others))
    is_so = bool(own_words) and (random.random() < 0.5 or not others)
    guess = str(random.choice(own_words if is_so else others))
    question = wording.question(fact.about, {**fact.slots, "guess": guess}, random, held_out, claim=True)
    return Example(own, question, YES if is_so else NO, fact.about, (YES, NO), group, held_out)


def questions(
    signals: Sequence[Signal],
    random: np.random.Generator,
    *,
    most: int | None = None,
    kinds: Collection[str] | None = None,
    held_out: bool = False,
    group: str = "",
    known: Iterable[Fact] = (),
) -> list[Example]:
    """Examples of one signal, or of two that are compared: one of each kind of fact, of `most` kinds drawn at random,
    or of those in `kinds`. Of a signal with many channels a few are drawn. `known`: facts from elsewhere."""
    found = [*known]
    if len(signals) == 1:
        width = len(signals[0].channels) if isinstance(signals[0], Series) else 0
        drawn = random.choice(width, CHANNELS, replace=False).tolist() if width > CHANNELS else None
        found += facts(signals[0], drawn)
    elif len(signals) == 2 and all(isinstance(signal, Series) for signal in signals):
        first, second = (signal for signal in signals if isinstance(signal, Series))
        found += between(first, second)
    by_kind: dict[str, list[Fact]] = {}
    for fact in found:
        if kinds is None or fact.about in kinds:
            by_kind.setdefault(fact.about, []).append(fact)
    order = [str(kind) for kind in random.permutation(sorted(by_kind))][:most]
    # One fact of a kind: else a recording of 12 channels is asked for 12 means.
    chosen = [by_kind[kind][int(random.integers(len(by_kind[kind])))] for kind in order]
    return [ask(signals, fact, random, held_out=held_out, group=group) for fact in chosen]


def caption(signal: Signal, random: np.random.Generator, *, held_out: bool = False, group: str = "") -> Example | None:
    """A sentence or two about one channel of a signal; None where nothing is known of any."""
    by_channel: dict[str, list[Fact]] = {}
    width = len(signal.channels) if isinstance(signal, Series) else 0
    for fact in facts(signal, [int(random.integers(width))] if width else None):
        if "channel" in fact.slots and "other" not in fact.slots and (fact.about in TOLD or fact.word == YES):
            by_channel.setdefault(fact.slots["channel"], []).append(fact)
    if not by_channel:
        return None
    channel = str(random.choice(sorted(by_channel)))
    told = {fact.about: fact for fact in by_channel[channel]}
    parts = []
    if "mean" in told:
        ends = [wording.said(told[about]) for about in ("lowest", "highest")]
        parts.append(f"{channel} is {wording.said(told['mean'])} on average, from {ends[0]} to {ends[1]}")
    sentences = {"trend": "{}", "period": "it repeats every {}", "when_step": "its level jumps after {}"}
    sentences |= {"when_highest": "it is highest after {}", "burst_count": "events that stand out: {}"}
    parts += [text.format(wording.said(told[about])) for about, text in sentences.items() if about in told]
    if "flat" in told:
        parts.append("it stands still for long")
    question = wording.question("caption", {"channel": channel}, random, held_out)
    return Example((bare(signal),), question, "; ".join(parts) + ".", "caption", group=group, held_out=held_out)


class Balance:
    """Keeps yes and no in equal parts: `takes` says of each example in turn whether it may stay. Of a kind that has
    only come with one of the two answers a few are taken at first."""

    def __init__(self, ahead: int = 2) -> None:
        self.ahead = ahead
        self._counts: Counter[tuple[str, bool]] = Counter()

    def takes(self, example: Example) -> bool:
        if example.choices != (YES, NO):
            return True
        yes = example.answer.lower().startswith(YES)
        if self._counts[example.about, yes] - self._counts[example.about, not yes] >= self.ahead:
            return False
        self._counts[example.about, yes] += 1
        return True


def balanced(examples: Iterable[Example]) -> Iterator[Example]:
    """Those of the examples that leave yes and no in equal parts, for each kind of question."""
    balance = Balance()
    return (example for example in examples if balance.takes(example))
