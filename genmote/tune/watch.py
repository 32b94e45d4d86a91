"""When a model adapts itself, and when it takes what it learnt: one dataclass for Python and the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.device.sensors import Seen


@dataclass(frozen=True, kw_only=True)
class Watch:
    """When to adapt, and when to take what was learnt."""

    detector: str = setting("drift detector and its settings, NAME[:FIELD=VALUE,...]", default="page-hinkley")
    recent: int = setting("last examples that are kept to learn from", default=200)
    enough: int = setting("examples since a change from which learning begins", default=48)
    replay: int = setting("examples from before that are kept, half to be learnt again, half to guard", default=96)
    gain: float = setting("share by which the loss on recent examples must fall", default=0.02)
    guard_loss: float = setting("nats a token by which the loss on the guard set may rise", default=0.1)
    max_seconds: float = setting("longest training", default=900.0)
    hours: str | None = setting("hours of the day in which training may run, such as 22-6 (default: any)", default=None)
    battery_low: float = setting("percent of a discharging battery below which nothing is trained", default=30.0)
    cool_c: float = setting("degrees below the chip's limit from which nothing is trained", default=5.0)

    def faults(self) -> Iterable[str]:
        if self.enough < 8 or self.recent < self.enough:
            yield f"enough={self.enough}, recent={self.recent}: wanted at least 8, and no fewer recent than enough"
        if self.replay < 0:
            yield f"replay={self.replay}, wanted 0 or more"
        if not 0 <= self.gain < 1 or not 0 <= self.guard_loss < math.inf:
            yield f"gain={self.gain}, guard_loss={self.guard_loss}: wanted such as 2% and 0.1"
        if not 0 < self.max_seconds < math.inf:
            yield f"max_seconds={self.max_seconds}, wanted more than 0"
        if not 0 <= self.battery_low <= 100 or not 0 <= self.cool_c <= 50:
            yield f"battery_low={self.battery_low}, cool_c={self.cool_c}: wanted 0 to 100 percent, 0 to 50 degrees"
        if self.hours is not None and _hours(self.hours) is None:
            yield f"hours={self.hours}, wanted such as 22-6"

    def forbidden(self, seen: Seen, hour: int) -> str | None:
        """Why nothing may be trained now, if so."""
        if self.hours is not None:
            first, last = _hours(self.hours) or (0, 24)
            if not (first <= hour < last if first < last else hour >= first or hour < last):
                return f"it is {hour} o'clock, outside of {self.hours}"
        battery, heat = seen.battery, seen.heat
        if battery is not None and battery.discharging and battery.percent < self.battery_low:
            return f"battery {battery.name} at {battery.percent:.0f}%, below {self.battery_low:.0f}%"
        if heat is not None and heat.margin_c < self.cool_c:
            return f"{heat}: nearer than {self.cool_c:.0f} degrees"
        return None


def _hours(text: str) -> tuple[int, int] | None:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        return None
    found = int(first), int(last)
    return found if found[0] != found[1] and max(found) <= 24 else None
