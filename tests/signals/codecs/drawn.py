"""Signals for every codec's tests, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from genmote.signals.kinds import Grid, Series, Signal

Draw = Callable[[int], Signal]


def waves(seed: int) -> Series:
    """Three channels of floats, some missing, some far out."""
    draw = np.random.default_rng(seed)
    values = draw.standard_t(3, (draw.integers(1, 60), 3)).astype(np.float32)
    values[draw.random(values.shape) < 0.05] = np.nan
    values[0] = (1, 2, 3)
    return Series("waves", values, 50.0, ("x", "y", "z"), ("g",) * 3, labels={"who": str(seed % 2)})


def counts(seed: int) -> Series:
    """Two channels of whole numbers."""
    draw = np.random.default_rng(seed)
    grid = Grid(draw.integers(-500, 500, (draw.integers(1, 60), 2)), np.array([0.5, 2.0]), np.array([0.0, 1.0]))
    return Series("counts", grid.values(), 50.0, ("I", "II"), ("mV",) * 2, grid=grid)


# For each codec: signals that it takes, and settings.
CASES: dict[str, list[tuple[Draw, dict[str, Any]]]] = {
    "bins": [
        (waves, {"bins": 16, "labels": ("who",)}),
        (waves, {"spacing": "quantile", "within": "centre", "tail": 0.1}),
        (counts, {"exact": True, "bins": 16}),
        (counts, {"exact": True, "difference": False}),
    ],
}
EACH = [(name, draw, settings) for name, cases in CASES.items() for draw, settings in cases]
