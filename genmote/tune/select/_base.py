"""What every way to choose examples stands on: of N examples, the `count` that are worth most to learn from.

A member of this folder is a frozen dataclass of settings with one verb, `pick`. It sees examples as token rows, and
asks for what it wants measured of them: how a model reads them, how that changes while a pilot learns, their
gradients. A measure is taken when it is first asked for, and once for all methods. What a model cannot measure (NaN)
is left out before a method sees it.

>>> texts = [(np.array([1, 2, n]), np.array([False, True, True])) for n in range(10)]
>>> chosen = choose(texts, 3, "random", seed=1)
>>> chosen.indices.tolist(), chosen.notes
([4, 5, 9], [])
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote import registry
from genmote.errors import SpecError
from genmote.spec import member
from genmote.tune.examples import ONE_ANSWER

ROOM = "genmote.tune.select"
UNMEASURED = ("random", "dedup", "balance")  # ways that take no model
KEPT_STATES = 4  # of an example, that a reading keeps
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Texts(Protocol):
    """N examples (`tune/examples.py` has the trainer's): the tokens of each, and which of them are to be learnt. The
    first one never is, since nothing says it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.bool_]]: ...


@dataclass(frozen=True)
class Reading:
    """How a model reads N examples."""

    losses: Floats  # (N,) mean nats of the tokens that are to be learnt
    errors: Floats  # (N,) mean length of (probabilities - what came), over those tokens (EL2N, Paul et al. 2021)
    right: NDArray[np.bool_]  # (N,) whether each of those tokens was the most probable one
    hidden: NDArray[np.float32]  # (N, D) mean of the final states
    states: NDArray[np.float16]  # (N, KEPT_STATES, D) final states that say tokens which are to be learnt, of length 1
    said: NDArray[np.int32]  # (N, KEPT_STATES) those tokens; -1: there are fewer

    def part(self, left: Indices) -> Reading:
        return Reading(*(getattr(self, field.name)[left] for field in fields(self)))


class Probe(Protocol):
    """What measures examples by a model; `_probe.py` has the engine's. All is of the examples `of`, in their order."""

    def read(self, of: Indices) -> Reading:
        """By the model as it is."""
        ...

    def follow(self, of: Indices) -> list[Reading]:
        """By the model as it is, then at each stage of a pilot that learns from a few of the examples."""
        ...

    def gradients(self, of: Indices) -> tuple[Floats, Floats]:
        """Of the loss, by an adapter's weights after the pilot, projected at random: of the examples (n, P) and of
        those that are held out (V, P)."""
        ...


class Unmeasured(Exception):
    """Some examples have no finite measure."""

    def __init__(self, where: Indices, what: str) -> None:
        super().__init__(what)
        self.where, self.what = where, what


@dataclass(frozen=True)
class Seen:
    """The examples that a method chooses among, by their numbers `of` in all of them, and what can be measured."""

    examples: Texts
    of: Indices
    probe: Probe | None
    measured: dict[str, Any]  # by name, of `of`
    random: np.random.Generator
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.of)

    def tokens(self, n: int) -> NDArray[Any]:
        return self.examples[int(self.of[n])][0]

    def reading(self) -> Reading:
        """By the model as it is."""
        reading: Reading = self._measure("reading", lambda probe: probe.read(self.of))
        self._finite(reading.losses, "a loss")
        self._finite(reading.hidden, "a state")
        return reading

    def readings(self) -> list[Reading]:
        """By the model as it is, then at each stage of a pilot."""
        readings: list[Reading] = self._measure("readings", lambda probe: probe.follow(self.of))
        for reading in readings:
            self._finite(reading.losses, "a loss")
            self._finite(reading.errors, "an error")
        return readings

    def gradients(self) -> tuple[Floats, Floats]:
        """Of these (n, P) and of what is held out (V, P)."""
        here: Floats
        held_out: Floats
        here, held_out = self._measure("gradients", lambda probe: probe.gradients(self.of))
        self._finite(here, "a gradient")
        if not np.isfinite(held_out).all():
            raise SpecError("gradients of what is held out are not finite: the model or those examples are damaged")
        return here, held_out

    def _probe(self, what: str) -> Probe:
        if self.probe is None:
            raise SpecError(f"{what} takes a model to measure by: give one, or choose by {' or '.join(UNMEASURED)}")
        return self.probe

    def _measure(self, name: str, take: Any) -> Any:
        if name not in self.measured:
            self.measured[name] = take(self._probe(name))
        return self.measured[name]

    def _finite(self, values: NDArray[Any], what: str) -> None:
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(self), -1)).all(axis=1))
        if len(bad):
            raise Unmeasured(bad, what)

    def without(self, bad: Indices) -> Seen:
        """Those that are left, with what was measured of them."""
        return self.part(np.delete(np.arange(len(self)), bad))

    def part(self, left: Indices) -> Seen:
        """Some of them, with what was measured of them."""
        measured = {name: _part(value, left) for name, value in self.measured.items()}
        return Seen(self.examples, self.of[left], self.probe, measured, self.random, self.notes)


def _part(value: Any, left: Indices) -> Any:
    if isinstance(value, Reading):
        return value.part(left)
    if isinstance(value, tuple):
        return value[0][left], value[1]
    return [_part(one, left) for one in value]


@dataclass(frozen=True)
class Select:
    """One way to choose."""

    def pick(self, seen: Seen, count: int) -> Indices:
        """`count` different numbers below len(seen), which is at least `count`; in order of worth, best first, where
        the method knows one."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choice:
    """Which examples to learn from (sorted numbers), by which method, how long it took, and what is to be told."""

    indices: Indices
    method: str
    seconds: float
    notes: list[str]


def named(text: str) -> Select:
    """A way to choose by its name and settings: ``NAME[:FIELD=VALUE,...]``."""
    return member(ROOM, Select, text, what="way to choose examples", where=f"select {text!r}")


def names() -> list[str]:
    """The ways that there are."""
    return registry.names(ROOM)


def how_many(keep: float, total: int) -> int:
    """`keep`: a share of the examples (at most 1) or a number of them. SpecError where it is neither.

    >>> how_many(0.1, 250), how_many(40, 250)
    (25, 40)
    """
    if not (0 < keep <= 1 or (1 < keep < math.inf and keep == int(keep))):
        raise SpecError(f"keep={keep}: wanted a share such as 10%, or a whole number of examples")
    count = math.ceil(keep * total) if keep <= 1 else int(keep)
    if not total:
        raise SpecError("no examples to choose from: give a file with some")
    if count > total:
        raise SpecError(f"keep={count}: there are {total} examples; keep fewer, or all with 100%")
    return count


def choose(examples: Texts, count: int, method: str = "random", *, seed: int = 0, probe: Probe | None = None) -> Choice:
    """The `count` examples that are worth most; the same for the same seed. Raises SpecError where nothing can be
    chosen as asked."""
    began = time.monotonic()
    way = named(method)
    if not 1 <= count <= len(examples):
        raise SpecError(f"{count} of {len(examples)} examples: wanted at least 1, and no more than there are")
    seen = Seen(examples, np.arange(len(examples)), probe, {}, np.random.default_rng(seed))
    answers = [answer(*examples[n]) for n in range(len(examples))]
    seen = _left_out(seen, np.flatnonzero([not answer for answer in answers]), count, "nothing in them is to be learnt")
    if len(set(answers) - {b""}) == 1 and len(seen) > 1:
        seen.notes.append(ONE_ANSWER)
    while True:
        try:
            picked = way.pick(seen, count)
            break
        except Unmeasured as fault:
            seen = _left_out(seen, fault.where, count, f"the model gives {fault.what} that is no number")
    return Choice(np.sort(seen.of[picked]), method, time.monotonic() - began, seen.notes)


def answer(tokens: NDArray[Any], learnt: NDArray[np.bool_]) -> bytes:
    said: NDArray[np.int32] = np.asarray(tokens[1:], np.int32)[np.asarray(learnt[1:], bool)]
    return said.tobytes()


def _left_out(seen: Seen, bad: Indices, count: int, why: str) -> Seen:
    if not len(bad):
        return seen
    numbers = ", ".join(map(str, seen.of[bad[:5]] + 1)) + (", …" if len(bad) > 5 else "")
    if len(seen) - len(bad) < count:
        raise SpecError(
            f"{len(bad)} of {len(seen)} examples cannot be used ({numbers}: {why}): keep fewer than {count}"
        )
    seen.notes.append(f"{len(bad)} examples are left out ({numbers}): {why}")
    return seen.without(bad)
