"""What every drift detector stands on: a stream of numbers goes in one by one, and a change of it comes out.

A member of this folder is a dataclass of settings with two verbs: `fresh`, what it holds before the first value, and
`look`, which takes one value in and tells of a change. What it holds is plain data of a bounded size, so that a
detector outlives its process.

>>> detector = named("adwin")
>>> [n for n in range(400) if detector.update(0.2 if n < 200 else 0.8)]
[223]
>>> detector.change.since  # the first value after the change, by its estimate
201
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from genmote import registry
from genmote.errors import SpecError
from genmote.spec import member

ROOM = "genmote.tune.drift"
State = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A change of the stream: seen at value number `at`, which the stream had since number `since` (from 1, by the
    detector's estimate). `chance`: at most how probable, by the detector's own bound, a stream without a change is to
    look so."""

    at: int
    since: int
    chance: float


@dataclass
class Detector:
    """`update` says whether the stream has just changed; `change` is the last change, `seen` how many values came."""

    def __post_init__(self) -> None:
        self.seen = 0
        self.change: Change | None = None
        self._held = self.fresh()

    def fresh(self) -> State:
        """What is held before the first value: plain data."""
        raise NotImplementedError

    def look(self, held: State, value: float) -> tuple[int, float] | None:
        """Take one value into what is held. At a change: how many of the last values came after it, and its chance;
        what is held then goes on from the change."""
        raise NotImplementedError

    def update(self, value: float) -> bool:
        """Take the stream's next value; True where the stream has changed. SpecError, with nothing taken, for what is
        no finite number."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise SpecError(
                f"value {self.seen + 1} of the stream is {value!r}: a detector takes finite numbers; leave this one out"
            )
        found = self.look(self._held, number)
        self.seen += 1
        if found is not None:
            self.change = Change(self.seen, self.seen - found[0] + 1, found[1])
        return found is not None

    def reset(self) -> None:
        """Forget the stream: as new."""
        self.__post_init__()

    def state(self) -> State:
        """All that the detector is, as plain data (JSON)."""
        return {
            "detector": _name(self),
            "settings": asdict(self),
            "seen": self.seen,
            "change": None if self.change is None else asdict(self.change),
            "held": copy.deepcopy(self._held),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; SpecError, with nothing changed, where it is another detector's."""
        mine = {"detector": _name(self), "settings": asdict(self)}
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine:
            raise SpecError(f"the state of a detector is {theirs}, this one is {mine}: make it as it was, or reset it")
        try:
            seen, change = int(state["seen"]), None if state["change"] is None else Change(**state["change"])
            held = copy.deepcopy(state["held"])
            self.look(copy.deepcopy(held), 0.0)  # what cannot take a value is no state
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
            raise SpecError(f"the state of a detector ({_name(self)}) is damaged: reset it") from None
        self.seen, self.change, self._held = seen, change, held


def named(text: str) -> Detector:
    """A new detector by its name and settings: ``NAME[:FIELD=VALUE,...]``."""
    return member(ROOM, Detector, text, what="drift detector", where=f"detector {text!r}")


def names() -> list[str]:
    """The detectors that there are."""
    return registry.names(ROOM)


def _name(detector: Detector) -> str:
    return type(detector).__module__.rpartition(".")[2].replace("_", "-")
