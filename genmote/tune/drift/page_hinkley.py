"""A sum of deviations from the mean that grows beyond a threshold (Page 1954, Biometrika 41; Hinkley 1971).

The deviations are counted in standard deviations of the stream so far, so that the settings fit any stream; with
`scale` they are counted in a unit of the caller's. One value alone is never a change: it counts for a fifth of the
threshold at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from genmote.spec import setting
from genmote.tune.drift._base import Detector, State


@dataclass
class PageHinkley(Detector):
    """Sees a jump of the mean soonest, in either direction; a slow change may pass for the mean itself."""

    tolerance: float = setting("deviation a value that counts for nothing", default=0.25)
    threshold: float = setting("sum of deviations that is a change", default=25.0)
    least: int = setting("values before the first alarm", default=30)
    keep: float = setting("share of the sum that is kept at each value", default=1.0)
    scale: float = setting("what a deviation is counted in; 0: in the stream's standard deviations", default=0.0)

    def faults(self) -> Iterator[str]:
        if not 0 <= self.tolerance < math.inf:
            yield f"tolerance={self.tolerance}, wanted 0 or more"
        if not 0 < self.threshold < math.inf:
            yield f"threshold={self.threshold}, wanted more than 0"
        if self.least < 2:
            yield f"least={self.least}, wanted at least 2"
        if not 0 < self.keep <= 1:
            yield f"keep={self.keep}, wanted above 0, at most 1"
        if not 0 <= self.scale < math.inf:
            yield f"scale={self.scale}, wanted a unit above 0, or 0"

    def fresh(self) -> State:
        # up, down: how far the sum is above its lowest, below its highest; since: values since it was there
        return {"count": 0, "mean": 0.0, "squares": 0.0, "up": 0.0, "down": 0.0, "up_since": 0, "down_since": 0}

    def look(self, held: State, value: float) -> tuple[int, float] | None:
        held["count"] += 1
        apart = value - held["mean"]
        held["mean"] += apart / held["count"]
        deviation = value - held["mean"]
        held["squares"] += apart * deviation
        if held["count"] < 2:
            return None
        unit = self.scale or math.sqrt(held["squares"] / (held["count"] - 1))
        if unit == 0:
            return None  # a stream that has not moved
        counted = max(-self.threshold / 5, min(self.threshold / 5, deviation / unit))
        for side, sign in (("up", 1.0), ("down", -1.0)):
            grown = self.keep * held[side] + sign * counted - self.tolerance
            held[side] = max(0.0, grown)
            held[side + "_since"] = held[side + "_since"] + 1 if grown > 0 else 0
        side = max("up", "down", key=lambda name: float(held[name]))
        if held["count"] < self.least or held[side] <= self.threshold:
            return None
        after, chance = held[side + "_since"], self._chance(held["count"])
        held.update(self.fresh())
        return after, chance

    def _chance(self, count: int) -> float:
        """Of a false alarm within so many values: by the mean run between two of them for a normal stream (Siegmund
        1985), on both sides."""
        a = 2 * self.tolerance * (self.threshold + 1.166)
        run = (self.threshold + 1.166) ** 2 if a < 1e-6 else (math.expm1(min(a, 700.0)) - a) / (2 * self.tolerance**2)
        return -math.expm1(-2 * count / max(run, 1.0))
