"""How late drift detectors see a step of drawn losses, from which the one that `adapt` takes by default was chosen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.bench import Bench
from benchmarks.record import AT_MOST, Row
from genmote.tune.drift._base import named
from genmote.tune.watch import Watch

STEPS = (1.0, 1.5, 2.0, 3.0, 5.0)  # standard deviations
BEFORE, AFTER, DRAWS = 120, 200, 40  # losses, and draws of each kind
OTHER = "adwin:every=8"


def measure(bench: Bench) -> Iterator[Row]:
    """A row a step: the longest delay of the default detector, beside adwin's."""
    for step in STEPS:
        ours, peer = ([float(each) for each in delays(name, step)] for name in (Watch().detector, OTHER))
        yield Row(
            name=f"a step of {step:g} standard deviations of drawn losses is seen after, the latest of {len(ours)}",
            measure="tune_delay",
            value=max(ours),
            value_unit="losses",
            asked=None,
            sense=AT_MOST,
            unit="losses",
            ours=max(ours),
            ours_samples=ours,
            peer_name=OTHER,
            peer=max(peer),
            peer_samples=peer,
            note=f"{AFTER}: not seen at all",
        )


def delays(name: str, step: float) -> Iterator[int]:
    """Of normal losses, and of exponential ones: after how many the step is seen, AFTER where it is not."""
    for kind in ("standard_normal", "standard_exponential"):
        for seed in range(DRAWS):
            draw, detector, seen = np.random.default_rng([seed, 7]), named(name), AFTER
            losses = getattr(draw, kind)(BEFORE + AFTER)
            losses[BEFORE:] += step
            for number, loss in enumerate(losses.tolist()):
                if detector.update(loss) and number >= BEFORE:
                    seen = number - BEFORE + 1
                    break
            yield seen
