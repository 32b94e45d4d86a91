"""The governor: looks at the machine's condition between passes and acts within stated bounds.

What it may do, in this order of cost. None but the last changes a single bit of what the model says:

- **forget finished texts** that were kept for prompts that begin alike: those are read again
- **give memory back**: weights that were pinned are streamed from the disk instead, and pinned again when there is room
- **fewer threads**: when other programs want the cores, when the chip is hot, when the battery runs low
- **rest** between passes: when the chip stays hot, or the machine does nothing but wait for memory; for a bounded time
- **a shorter KV cache**: loses something, so only where `Bounds.kv_tokens` allows it, and it is told as a loss

Each change is a `Decision`: what was seen, what was done, why, when. A condition must last before it is acted upon and
must be gone for longer before the step is taken back; a step that had to be repeated soon is taken back later each
time.

>>> from genmote.device.sensors import Memory, Seen
>>> class Full:  # sensors that show a machine with nothing left
...     def read(self): return Seen(memory=Memory(1 << 20, 100 << 20, "this machine"))
>>> governor = Governor(Full(), Levers(shrink=lambda count: count), Bounds())
>>> governor.check()
>>> governor.decisions[0].did, governor.decisions[0].lossless
('gave back 7.3 MB of pinned weights: they are read from the disk now', True)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict
from dataclasses import dataclass as plain
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from genmote.device.sensors import Battery, Heat, Memory, Processor, Seen
from genmote.errors import SpecError
from genmote.runtime.eviction import LEAST_ROWS
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine
    from genmote.runtime.experts import ExpertCache
    from genmote.runtime.streaming import Streaming

LOOK_S = 0.25  # between two looks
QUICK_S = 0.05  # while memory is short
REST_S = 1.0  # one rest: short, so that a cancelled text ends soon
_ROOMY_S = 10.0  # for which there must be room before weights are pinned again; longer where that was too early
_LOG = 1000  # decisions kept


class Looks(Protocol):
    """What the governor sees with: `device.sensors.Sensors`."""

    def read(self) -> Seen: ...


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far the governor may go, and where each condition begins."""

    min_threads: int = setting("fewest threads", default=1)
    max_rest_s: float = setting("longest rest in a row, seconds; 0: never rest", default=30.0)
    kv_tokens: int | None = setting("fewest tokens that the KV cache may be cut to (lossy); none: never", default=None)
    memory_low: float = setting("share of the memory limit below which weights are given back", default=0.03)
    memory_high: float = setting("share of the memory limit that is to be left then", default=0.08)
    stall: float = setting("share of the time that tasks may wait for memory", default=0.10)
    waited: float = setting("share of their time that our threads may wait for a core", default=0.25)
    cool_c: float = setting("degrees below the limit at which the chip counts as cool again", default=5.0)
    battery_low: float = setting("percent of the battery below which half the threads do", default=20.0)

    def faults(self) -> Iterable[str]:
        if self.min_threads < 1:
            yield f"min_threads={self.min_threads}, wanted at least 1"
        if not 0 <= self.max_rest_s <= 3600:
            yield f"max_rest_s={self.max_rest_s:g}, wanted 0 to 3600"
        if self.kv_tokens is not None and self.kv_tokens < LEAST_ROWS:
            yield f"kv_tokens={self.kv_tokens}, wanted at least {LEAST_ROWS}"
        if not 0 < self.memory_low < self.memory_high < 1:
            yield f"memory_low={self.memory_low:g}, memory_high={self.memory_high:g}: wanted 0 < low < high < 1"
        for name in ("stall", "waited"):
            if not 0 < getattr(self, name) <= 1:
                yield f"{name}={getattr(self, name):g}, wanted above 0, at most 1"
        if not 0 < self.cool_c <= 50:
            yield f"cool_c={self.cool_c:g}, wanted above 0, at most 50"
        if not 0 <= self.battery_low <= 100:
            yield f"battery_low={self.battery_low:g}, wanted 0 to 100"


@plain(frozen=True)
class Levers:
    """What can be moved; None: this engine has no such lever.

    `forget()` drops what is only kept for later prompts and tells how many bytes it were. `shrink(count)` gives back
    about `count` bytes of pinned weights and tells how many it gave, `grow(count)` takes at most so many again and
    tells how many. `kv_tokens(count)` lets each text hold at most so many rows of keys and values from now on, and
    tells whether that is fewer than before.
    """

    threads: Callable[[int], None] | None = None
    max_threads: int = 1
    forget: Callable[[], int] | None = None
    shrink: Callable[[int], int] | None = None
    grow: Callable[[int], int] | None = None
    kv_tokens: Callable[[int], bool] | None = None


def levers(engine: Engine) -> Levers:
    """The levers that this engine has."""
    ops = engine.decoder.ops
    limit = getattr(ops, "limit_threads", None)
    stream = engine.streaming
    return Levers(
        threads=limit,
        max_threads=1 if limit is None else engine.threads,
        forget=lambda: sum(pool.trim() for pool in list(engine.pools)),
        shrink=None if stream is None else lambda count: _shrink(stream, engine.experts, count),
        grow=None if stream is None else lambda count: _grow(stream, engine.experts, count),
        kv_tokens=engine.limit_kv,
    )


def _shrink(stream: Streaming, experts: ExpertCache | None, count: int) -> int:
    """Give back `count` bytes: of the cache of experts first, each of which is used in few passes, then of pinned
    weights. The ring takes memory with the first byte that is streamed, so it is given back too."""
    gave = experts.shrink(count) if experts is not None else 0
    if gave >= count:
        return gave
    ring = 0 if stream.streamed_bytes else stream.ring_bytes
    return gave + max(0, stream.shrink(count - gave + ring) - ring)


def _grow(stream: Streaming, experts: ExpertCache | None, count: int) -> int:
    """Take at most `count` bytes again, in the other order."""
    took = stream.grow(count)
    return took + (experts.grow(count - took) if experts is not None else 0)


@plain(frozen=True)
class Decision:
    """One step: `at_s` after the start (and the time of day, UTC), what was `seen`, what it `did` and `why`."""

    at_s: float
    time: str
    sensor: str
    seen: str
    did: str
    why: str
    lossless: bool = True

    def values(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        told = "" if self.lossless else "; THIS CAN CHANGE THE TEXT"
        return f"governor: {self.at_s:.1f} s: {self.sensor}: {self.seen}: {self.did} ({self.why}){told}"


class _Steps:
    """How many steps a condition has taken, with hysteresis: one more for each `patience_s` that it lasts, one less
    for each `calm_s` that it is gone; where a step taken back had to be taken anew soon, calm must last twice as
    long."""

    def __init__(self, most: int, patience_s: float, calm_s: float) -> None:
        self.taken, self.most = 0, most
        self._patience_s, self._least_calm_s, self._calm_s = patience_s, calm_s, calm_s
        self._bad_since: float | None = None
        self._good_since: float | None = None
        self._taken_back_at = -1e9

    def look(self, now: float, *, bad: bool, good: bool) -> int:
        """+1, 0 or -1: the change."""
        self._bad_since = (now if self._bad_since is None else self._bad_since) if bad else None
        self._good_since = (now if self._good_since is None else self._good_since) if good and not bad else None
        if self._bad_since is not None and now - self._bad_since >= self._patience_s and self.taken < self.most:
            soon = now - self._taken_back_at < 2 * self._calm_s
            self._calm_s = min(60.0, 2 * self._calm_s) if soon else self._least_calm_s
            self._bad_since = now
            self.taken += 1
            return 1
        if self._good_since is not None and now - self._good_since >= self._calm_s and self.taken:
            self._good_since = self._taken_back_at = now
            self.taken -= 1
            return -1
        return 0


class Governor:
    """Call `check` between passes; it looks at most each `LOOK_S` and moves the levers. `tell` gets each decision."""

    def __init__(
        self,
        sensors: Looks,
        levers: Levers,
        bounds: Bounds | None = None,
        *,
        tell: Callable[[Decision], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.sensors, self.levers, self.bounds = sensors, levers, bounds or Bounds()
        if faults := list(self.bounds.faults()):
            raise SpecError("governor: " + "; ".join(faults))
        self.decisions: deque[Decision] = deque(maxlen=_LOG)
        self.rested_s = 0.0
        self.given_back_bytes = 0
        self.threads = levers.max_threads
        self._tell, self._clock, self._sleep = tell, clock, sleep
        self._began = clock()
        self._next = self._began
        spare = max(0, levers.max_threads - self.bounds.min_threads) if levers.threads else 0
        self._crowded = _Steps(spare, 0.75, 3.0)
        self._hot = _Steps(spare + (self.bounds.max_rest_s > 0), 2.0, 10.0)
        self._weak = _Steps(1, 0.0, 30.0)
        self._stalled = _Steps(1 if self.bounds.max_rest_s > 0 else 0, 1.0, 3.0)
        self._roomy_since: float | None = None
        self._roomy_s = _ROOMY_S
        self._grew_at = self._short_at = -1e9
        self._rest_left_s = self.bounds.max_rest_s
        self._helpless = False

    def check(self) -> None:
        """Look, if it is time, and act. Called between passes, from one thread at a time."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + LOOK_S
        seen = self.sensors.read()
        self._memory(now, seen.memory)
        why = self._heat(now, seen.heat) or self._processors(now, seen.processor) or self._battery(now, seen.battery)
        self._threads(why)
        self._rest(seen)

    # -- memory -------------------------------------------------------------------------------------------------------

    def _memory(self, now: float, memory: Memory | None) -> None:
        if memory is None:
            return
        low, high = (round(share * memory.limit_bytes) for share in (self.bounds.memory_low, self.bounds.memory_high))
        seen = f"{_size(memory.left_bytes)} of {_size(memory.limit_bytes)} left ({memory.of})"
        stalled = memory.stall is not None and memory.stall > self.bounds.stall
        if memory.left_bytes < low or stalled:
            self._roomy_since = None
            if now - self._grew_at < 2 * self._roomy_s:  # that was too early
                self._roomy_s = min(60.0, 2 * self._roomy_s)
            elif now - self._short_at > 2 * self._roomy_s:
                self._roomy_s = _ROOMY_S
            self._grew_at, self._short_at = -1e9, now
            why = f"below {_size(low)}, wanted {_size(high)}"
            if stalled:
                seen += f", {_waits(memory)}"
                why = why if memory.left_bytes < low else f"over {100 * self.bounds.stall:.0f}%"
            self._give_back(max(high - memory.left_bytes, high - low), seen, why)
            self._next = now + QUICK_S
            return
        surplus = memory.left_bytes - high
        if surplus >= 0:
            self._helpless = False
        if not self.given_back_bytes or surplus < high - low:
            self._roomy_since = None
        elif self._roomy_since is None:
            self._roomy_since = now
        elif now - self._roomy_since >= self._roomy_s and self.levers.grow is not None:
            self._roomy_since = self._grew_at = now
            took = self.levers.grow(min(self.given_back_bytes, surplus // 2))
            if took > 0:
                self.given_back_bytes = max(0, self.given_back_bytes - took)
                self._decide(
                    "memory", seen, f"pinned {_size(took)} of weights again", "there has been room for a while"
                )

    def _give_back(self, wanted: int, seen: str, why: str) -> None:
        forgot = self.levers.forget() if self.levers.forget is not None else 0
        if forgot > 0:
            self._decide(
                "memory", seen, f"forgot {_size(forgot)} of finished texts: prompts that begin alike are read anew", why
            )
        # Further texts take as much again: what was forgotten does not count.
        gave = self.levers.shrink(wanted) if self.levers.shrink is not None else 0
        if gave > 0:
            self.given_back_bytes += gave
            self._helpless = False
            self._decide(
                "memory", seen, f"gave back {_size(gave)} of pinned weights: they are read from the disk now", why
            )
        if gave >= wanted // 2:  # what is left to do shows at the next look
            return
        most, cut = self.bounds.kv_tokens, self.levers.kv_tokens
        if most is not None and cut is not None and cut(most):
            did = f"texts hold the keys and values of {most} tokens from now on, the latest"
            self._decide("memory", seen, did, why, lossless=False)
            return
        if gave <= 0 and forgot <= 0 and not self._helpless:
            self._helpless = True
            self._decide("memory", seen, "nothing: no pinned weights are left to give back", why)

    # -- threads ------------------------------------------------------------------------------------------------------

    def _processors(self, now: float, processor: Processor | None) -> tuple[str, str, str] | None:
        if processor is None:
            return None
        waited = processor.waited or 0.0
        crowded = waited > self.bounds.waited or (processor.throttled or 0.0) > self.bounds.waited
        # A thread more finds a core only where one stands idle.
        change = self._crowded.look(now, bad=crowded, good=(processor.idle or 0.0) >= 0.9)
        if not change:
            return None
        seen = f"our threads waited {100 * waited:.0f}% of their time for a core, {processor.idle or 0:.1f} cores idle"
        if processor.throttled:
            seen += f", held by the CPU quota {100 * processor.throttled:.0f}%"
        return "processor", seen, "others want the cores" if change > 0 else "a core has been idle for a while"

    def _heat(self, now: float, heat: Heat | None) -> tuple[str, str, str] | None:
        if heat is None:
            return None
        change = self._hot.look(now, bad=heat.margin_c <= 0, good=heat.margin_c >= self.bounds.cool_c)
        why = "too hot" if change > 0 else "cool again"
        return ("temperature", str(heat), why) if change else None

    def _battery(self, now: float, battery: Battery | None) -> tuple[str, str, str] | None:
        if battery is None:
            return None
        low = battery.discharging and battery.percent <= self.bounds.battery_low
        change = self._weak.look(now, bad=low, good=not low)
        why = f"below {self.bounds.battery_low:.0f}%" if change > 0 else "powered again"
        return ("battery", f"{battery.name} {battery.percent:.0f}%", why) if change else None

    def _threads(self, why: tuple[str, str, str] | None) -> None:
        if self.levers.threads is None or why is None:
            return
        most = self.levers.max_threads
        fewer = max(self._crowded.taken, self._hot.taken, most - (most + 1) // 2 if self._weak.taken else 0)
        wanted = max(min(self.bounds.min_threads, most), most - fewer)
        if wanted != self.threads:
            self.levers.threads(wanted)
            before, self.threads = self.threads, wanted
            sensor, seen, reason = why
            self._decide(sensor, seen, f"{before} → {wanted} threads", reason)

    # -- rest ---------------------------------------------------------------------------------------------------------

    def _rest(self, seen: Seen) -> None:
        """Stand still for a moment where fewer threads did not cool the chip, or where memory is all that is waited
        for; at most `max_rest_s` in a row, then the work goes on whatever is seen."""
        spare = self._hot.most - 1
        hot = seen.heat is not None and self._hot.most > 0 and self._hot.taken > spare
        memory = seen.memory
        thrashing = memory is not None and memory.stall is not None and memory.stall > 3 * self.bounds.stall
        calm = memory is None or (memory.stall or 0.0) < self.bounds.stall
        self._stalled.look(self._clock(), bad=thrashing and self._helpless, good=calm)
        if not (hot or self._stalled.taken):
            self._rest_left_s = self.bounds.max_rest_s
            return
        if self._rest_left_s <= 0:
            return
        sensor = "temperature" if hot else "memory"
        told = str(seen.heat) if hot else _waits(memory)
        if self._rest_left_s == self.bounds.max_rest_s:
            self._decide(
                sensor, told, f"rests {REST_S:g} s between passes", f"for {self.bounds.max_rest_s:g} s at most"
            )
        took = min(REST_S, self._rest_left_s)
        self._sleep(took)
        self._next = self._clock()
        self.rested_s += took
        self._rest_left_s -= took
        if self._rest_left_s <= 0:
            self._decide(sensor, told, "goes on without rest", f"rested {self.bounds.max_rest_s:g} s, the most allowed")

    def _decide(self, sensor: str, seen: str, did: str, why: str, *, lossless: bool = True) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        decision = Decision(round(self._clock() - self._began, 3), now, sensor, seen, did, why, lossless)
        self.decisions.append(decision)
        if self._tell is not None:
            self._tell(decision)


def _waits(memory: Memory | None) -> str:
    stall = memory.stall if memory is not None else None
    return f"tasks waited for memory {100 * (stall or 0):.0f}% of the time"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
