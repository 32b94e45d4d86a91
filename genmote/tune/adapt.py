"""A model that adapts itself: a stream's losses are watched, and a change of them starts a bounded training whose
adapter is taken only if it is better.

Each example of the stream is read once, with the adapter that is in use; its loss goes to a drift detector
(`tune/drift/`). When the losses have risen, examples since then are gathered; when there are enough, and the device's
time, battery and temperature allow, the adapter learns from three of four of them and from a few from before, against
forgetting. It is taken if it is better by `gain` on every fourth one, which it has not learnt from, and not worse by
more than `guard_loss` on the guard set, or else three quarters of what was learnt, or half of it; otherwise all stays
as it was. What was taken learns on when there are twice the examples since the change, and again, while that is better.
What happens is told to a journal (`tune/journal.py`), which keeps every adapter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genmote.device.sensors import Seen
from genmote.errors import SpecError
from genmote.models.decoder import Decoder
from genmote.tune import batches
from genmote.tune.drift._base import Detector, named
from genmote.tune.examples import Examples
from genmote.tune.learnt import Numbers
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer
from genmote.tune.watch import Watch

LEAST_GUARD = 8  # examples of the stream's own from before a change, without which nothing guards
RETRIES = 2  # after a refusal, each with twice the examples
SHARES = (1.0, 0.75, 0.5)  # of what was learnt, of which the first that is taken is

One = tuple[NDArray[Any], NDArray[np.bool_]]  # an example's tokens, and which are to be learnt


class Looks(Protocol):
    """What conditions are seen with: `device.sensors.Sensors`."""

    def read(self) -> Seen: ...


@dataclass(frozen=True)
class Event:
    """What happened at an example (the first is 1): `what` is drift, eased, postponed, accepted or refused."""

    what: str
    example: int
    values: dict[str, Any]

    def __str__(self) -> str:
        """A line in words.

        >>> str(Event("drift", 125, {"since": 121, "chance": 6.5e-05, "loss_before": 1.13, "loss_since": 4.09}))
        'example 125: harder since example 121: 4.0900 instead of 1.1300 nats a token (by chance: 6.5e-05 at most)'
        >>> str(Event("postponed", 9, {"why": "it is 12 o'clock, outside of 22-6"}))
        "example 9: learning waits: it is 12 o'clock, outside of 22-6"
        """
        v = self.values
        if self.what == "postponed":
            told = f"learning waits: {v['why']}"
        elif self.what in ("drift", "eased"):
            told = "harder" if self.what == "drift" else "easier"
            told += f" since example {v['since']}: {_change(v['loss_before'], v['loss_since'])} nats a token"
            told += f" (by chance: {v['chance']:.2g} at most)"
        else:
            why = f": {v['why']}" if "why" in v else ""
            told = f"{'a new adapter is taken' if self.what == 'accepted' else 'what was learnt is not taken'}{why}; "
            told += f"nats a token of recent examples {_change(v['recent_before'], v['recent_after'])}"
            if v["guard_before"] is not None:
                told += f", of the guard set {_change(v['guard_before'], v['guard_after'])}"
            told += (
                f"; {v['examples']} examples and {v['replayed']} from before, {v['steps']} steps, {v['seconds']:g} s"
            )
            told += f", stopped: {v['stopped']}" if "stopped" in v else ""
            told += f", {v['share']:.0%} of what was learnt" if v["share"] != 1 else ""
        return f"example {self.example}: {told}"


class Adapting:
    """Watches a stream and adapts to it. `numbers`: the adapter in use; `state` is plain data to go on from."""

    def __init__(
        self,
        decoder: Decoder,
        tuning: Tuning,
        watch: Watch | None = None,
        *,
        numbers: Numbers | None = None,
        guard: Examples | None = None,
        sensors: Looks | None = None,
        hour: Callable[[], int] = lambda: time.localtime().tm_hour,
        clock: Callable[[], float] = time.monotonic,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        """`tuning`: of one training; `guard`: what must stay known, beside what the stream itself showed."""
        self.watch = watch or Watch()
        self.decoder, self.tuning, self.guard = decoder, tuning, guard
        self.detector: Detector = named(self.watch.detector)
        self.trainer = Trainer(decoder, tuning, numbers=numbers)
        self.seen = 0
        self.loss = math.nan  # of the last example
        self.recent: list[One] = []
        self.losses: list[float] = []  # of the recent ones
        self.before: list[One] = []  # a sample of what is no longer recent
        self.left = 0  # how many examples are no longer recent
        self.changed: int | None = None  # the first example after a change that is not adapted to yet
        self.needed, self.tries = self.watch.enough, 0
        self.taken = 0  # adapters since that change
        self.trained = 0  # rows that went through trainings
        self.trained_s = 0.0
        self._postponed: str | None = None
        self._sensors, self._hour, self._clock, self._progress = sensors, hour, clock, progress

    @property
    def numbers(self) -> Numbers:
        return self.trainer.numbers

    def see(self, tokens: NDArray[Any], learnt: NDArray[np.bool_]) -> list[Event]:
        """Take the stream's next example in; what happened because of it."""
        one = (np.asarray(tokens, np.int32), np.asarray(learnt, bool))
        loss = self.loss = self.trainer.judge(_together([one]))
        self.seen += 1
        self.recent.append(one)
        self.losses.append(loss)
        if len(self.recent) > self.watch.recent:
            self._leave(self.recent.pop(0))
            self.losses.pop(0)
        events = []
        if math.isfinite(loss) and self.detector.update(loss):
            events.append(self._changed())
        if self.changed is not None and self.seen - self.changed + 1 >= self.needed:
            events.extend(self._may_learn())
        return events

    def _use(self, numbers: Numbers) -> None:
        """Go on with another adapter: the losses with the one before say nothing of it."""
        self.trainer = Trainer(self.decoder, self.tuning, numbers=numbers)
        self.losses = [math.nan] * len(self.recent)
        self.detector.reset()
        self.tries, self.taken, self.needed = 0, self.taken + 1, 2 * self.needed
        if self.needed > self.watch.recent:
            self.changed = None

    def _leave(self, one: One) -> None:
        """Keep it among those from before, with the chance that each of them had (Vitter 1985)."""
        self.left += 1
        if len(self.before) < self.watch.replay:
            self.before.append(one)
            return
        at = int(np.random.default_rng([self.tuning.seed, 3, self.left]).integers(self.left))
        if at < len(self.before):
            self.before[at] = one

    def _changed(self) -> Event:
        """The detector saw a change: of the losses upward it is one to adapt to."""
        change = self.detector.change
        assert change is not None
        earliest = max(0, len(self.recent) - (change.at - change.since + 1))
        split = _step(self.losses, earliest)
        since = self.seen - len(self.recent) + 1 + split
        then, now = _mean(self.losses[:split]), _mean(self.losses[split:])
        worse = not now < then
        if not worse and self.taken:
            pass  # that is what was taken for
        elif not worse:
            self.changed = None  # it was for a while
        elif self.changed is None or self.taken:
            self.changed = since
            self.needed, self.tries, self.taken = self.watch.enough, 0, 0
        values = {"since": since, "chance": change.chance, "loss_before": _plain(then), "loss_since": _plain(now)}
        return Event("drift" if worse else "eased", self.seen, values)

    def _may_learn(self) -> Iterable[Event]:
        why = self._forbidden()
        if why is not None:
            if self._postponed is None:  # told once
                self._postponed = why
                yield Event("postponed", self.seen, {"why": why})
            return
        self._postponed = None
        yield self._learn()

    def _forbidden(self) -> str | None:
        return self.watch.forbidden(Seen() if self._sensors is None else self._sensors.read(), self._hour())

    def _learn(self) -> Event:
        """One training, and whether it is taken."""
        began, oldest = self._clock(), self.seen - len(self.recent) + 1
        assert self.changed is not None
        split = max(0, self.changed - oldest)
        after, earlier = self.recent[split:], self.recent[:split]
        judged = _together(after[3::4])
        old = [*self.before, *earlier]
        guard, again = self.guard, old
        if guard is None:
            guard, again = (_together(old[::2]), old[1::2]) if len(old) >= 2 * LEAST_GUARD else (None, old)
        learnt = [one for n, one in enumerate(after) if n % 4 != 3]
        draw = np.random.default_rng([self.tuning.seed, 4, self.seen]).permutation(len(again))[: len(learnt)]
        material = _together([*learnt, *(again[n] for n in draw)])
        trainer = Trainer(
            self.decoder,
            replace(self.tuning, seed=(self.tuning.seed + self.seen) % (1 << 32)),
            numbers={name: array.copy() for name, array in self.numbers.items()},
        )
        values: dict[str, Any] = {"since": self.changed, "examples": len(learnt), "replayed": len(draw)}
        values["steps"], stopped = self._train(trainer, material, began)
        self.trained_s += self._clock() - began
        learnt_all = {name: array.copy() for name, array in trainer.numbers.items()}
        for share in SHARES:
            for name, array in trainer.numbers.items():
                array[...] = self.numbers[name] + np.float32(share) * (learnt_all[name] - self.numbers[name])
            values |= {"share": share, **self._judged(trainer, judged, guard)}
            if (why := self._refusal(values)) is None or values["recent_after"] is None:
                break
        if stopped:
            values["stopped"] = stopped
        values["seconds"] = round(self._clock() - began, 2)
        if why is None:
            self._use(trainer.numbers)
            return Event("accepted", self.seen, values)
        self.tries += 1
        self.needed = min(2 * self.needed, self.watch.recent)
        if self.taken:
            self.changed = None  # what was taken is as good as it gets
        elif self.tries > RETRIES:
            self.changed = None
            self.detector.reset()  # the losses' level is new
        return Event("refused", self.seen, {"why": why, **values})

    def _judged(self, trainer: Trainer, judged: Examples, guard: Examples | None) -> dict[str, float | None]:
        """The losses before and after a training, in nats a token."""
        figures = {
            "recent_before": self.trainer.judge(judged),
            "recent_after": trainer.judge(judged),
            "guard_before": self.trainer.judge(guard) if guard is not None else None,
            "guard_after": trainer.judge(guard) if guard is not None else None,
        }
        return {name: _plain(value) for name, value in figures.items()}

    def _train(self, trainer: Trainer, material: Examples, began: float) -> tuple[int, str | None]:
        """How many steps were made, and what ended them before their time."""
        for step in range(1, self.tuning.steps + 1):
            if self._clock() - began > self.watch.max_seconds:
                return step - 1, f"after {self.watch.max_seconds:g} s"
            if why := self._forbidden():
                return step - 1, why
            some = batches.chosen(len(material), self.tuning.batch, step - 1, trainer.tuning.seed)
            try:
                trainer.step(material, some, step)
            except FloatingPointError as fault:
                return step - 1, str(fault)
            self.trained += sum(map(material.rows, some))
            self._progress("adapting, steps", step, self.tuning.steps)
        return self.tuning.steps, None

    def _refusal(self, values: dict[str, Any]) -> str | None:
        """Why what was learnt is not taken, if so."""
        recent, after = values["recent_before"], values["recent_after"]
        if after is None:
            return "its loss is no number"
        if recent is not None and after > recent * (1 - self.watch.gain):
            return f"loss on recent examples {after:.4f} instead of {recent:.4f}: not better by {self.watch.gain:.0%}"
        guarded, then = values["guard_before"], values["guard_after"]
        if guarded is not None and (then is None or then > guarded + self.watch.guard_loss):
            told = "no number" if then is None else f"{then:.4f}"
            return (
                f"loss on the guard set {told} instead of {guarded:.4f}: worse by over {self.watch.guard_loss:g} nats"
            )
        return None

    # -- to go on later -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All but the numbers, as plain data (JSON)."""
        return {
            "seen": self.seen,
            "recent": [_listed(one) for one in self.recent],
            "losses": [_plain(loss) for loss in self.losses],
            "before": [_listed(one) for one in self.before],
            "left": self.left,
            "changed": self.changed,
            "needed": self.needed,
            "tries": self.tries,
            "taken": self.taken,
            "detector": self.detector.state(),
        }

    def restore(self, state: dict[str, Any]) -> bool:
        """Go on from a `state`; whether the detector does too: one of other settings begins anew. Raises KeyError,
        TypeError, ValueError or IndexError for what is no state."""
        self.recent = [_read(one) for one in state["recent"]]
        self.losses = [math.nan if loss is None else float(loss) for loss in state["losses"]]
        self.before = [_read(one) for one in state["before"]]
        self.seen, self.left = int(state["seen"]), int(state["left"])
        self.changed, self.needed, self.tries = state["changed"], int(state["needed"]), int(state["tries"])
        self.taken = int(state.get("taken", 0))  # which folders of the first days do not have
        if state["detector"] is None:
            return True
        try:
            self.detector.restore(state["detector"])
        except SpecError:
            return False
        return True


def rolled_back(state: dict[str, Any]) -> dict[str, Any]:
    """The `state` with which to go on with another adapter: without what was read with the one before."""
    return {**state, "recent": [], "losses": [], "changed": None, "taken": 0, "detector": None}


def _together(some: Sequence[One]) -> Examples:
    return Examples.of(some, np.int32)


def _listed(one: One) -> list[list[int]]:
    return [one[0].tolist(), np.flatnonzero(one[1]).tolist()]


def _read(listed: list[list[int]]) -> One:
    tokens = np.array(listed[0], np.int32)
    learnt = np.zeros(len(tokens), bool)
    learnt[listed[1]] = True
    return tokens, learnt


def _step(losses: Sequence[float], earliest: int) -> int:
    """Where, from `earliest` on, the losses before and after lie farthest apart for a step of the mean, by least
    squares. A detector tells of a change that began at the earliest then: what grew by chance before it counts, too.

    >>> _step([1.0, 1.1, 0.9, 1.2, 3.0, 3.1], 1)
    4
    """
    there = [n for n, loss in enumerate(losses) if math.isfinite(loss)]
    values = np.array([losses[n] for n in there])
    sums, count = np.cumsum(values), len(values)
    best, found = 0.0, earliest
    for k in range(1, count):
        apart = (sums[-1] - sums[k - 1]) / (count - k) - sums[k - 1] / k
        if there[k] >= earliest and (gain := float(apart**2) * k * (count - k)) > best:
            best, found = gain, there[k]
    return found


def _mean(losses: Sequence[float]) -> float:
    """Of those that are numbers; NaN for none."""
    known = [loss for loss in losses if math.isfinite(loss)]
    return float(np.mean(known)) if known else math.nan


def _change(before: float | None, now: float | None) -> str:
    then, after = ("no number" if value is None else f"{value:.4f}" for value in (before, now))
    return f"{after} instead of {then}"


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
