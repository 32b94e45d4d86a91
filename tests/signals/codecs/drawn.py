"""Signals for every codec's tests, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from genmote.signals.kinds import Field, Frames, Grid, Records, Series, Signal

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


def flows(seed: int) -> Records:
    """Rows of every type of field, each missing at times."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 40))
    words = np.array(draw.choice(["tcp", "udp", "icmp", f"rare{seed}", None], count), object)
    text = np.array([f"é line {n}" if n % 3 else None for n in range(count)], object)
    bytes_ = np.where(draw.random(count) < 0.1, np.nan, np.round(draw.lognormal(6, 3, count)))
    numbers = np.where(draw.random(count) < 0.1, np.nan, draw.normal(0, 1, count) * 10 ** draw.uniform(-9, 9, count))
    numbers[0] = 0
    columns = (words, text, draw.integers(0, 5, count), bytes_, numbers)
    names = ("protocol", "category"), ("message", "text"), ("flag", "integer"), ("bytes", "integer"), ("x", "number")
    fields = tuple(Field(name, type_) for name, type_ in names)  # type: ignore[arg-type]
    return Records("flows", fields, columns, 1.7e9 + np.cumsum(draw.exponential(1, count)), {"who": "me"})


def pictures(seed: int) -> Frames:
    """Small pictures of two channels."""
    draw = np.random.default_rng(seed)
    frames = [draw.integers(0, 256, (5, 7, 2), dtype=np.uint8) for _ in range(draw.integers(1, 4))]
    return Frames("pictures", "grid", frames, ("red", "depth"), ("", "m"), np.arange(float(len(frames))))


def clouds(seed: int) -> Frames:
    """A lidar's points with an intensity: a floor and walls, some points nowhere."""
    draw = np.random.default_rng(seed)
    frames = []
    for _ in range(2):
        count = int(draw.integers(50, 300))
        points = np.stack([draw.uniform(-40, 40, count), draw.uniform(-40, 40, count), draw.uniform(-2, 1, count)], 1)
        points[0] = np.nan
        frames.append(np.concatenate([points, draw.random((count, 1))], axis=1).astype(np.float32))
    return Frames("clouds", "points", frames, ("x", "y", "z", "intensity"), ("m", "m", "m", ""), labels={"who": "car"})


def logs(seed: int) -> Records:
    """Lines of a few programs, some of them missing, and another field."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(5, 40))
    forms = ("session {} opened for {}", "sent {} bytes to {}", "ready", "é: {} <*> {}  ", "")
    said = [forms[draw.integers(5)].format(draw.integers(9), draw.choice(["ann", "bob"])) for _ in range(count)]
    lines = np.array([None if draw.random() < 0.1 else line for line in said], object)
    fields = (Field("message", "text"), Field("pid", "integer"))
    return Records("logs", fields, (lines, draw.integers(0, 99, count)), np.cumsum(draw.exponential(9, count)))


# For each codec: signals that it takes, and settings.
CASES: dict[str, list[tuple[Draw, dict[str, Any]]]] = {
    "bins": [
        (waves, {"bins": 16, "labels": ("who",)}),
        (waves, {"spacing": "quantile", "within": "centre", "tail": 0.1}),
        (counts, {"exact": True, "bins": 16}),
        (counts, {"exact": True, "difference": False}),
    ],
    "patch": [
        (waves, {"steps": 20, "patch": 4, "codes": 1, "labels": ("who",)}),
        (waves, {"steps": 5, "patch": 5, "codes": 3, "levels": (3, 2), "bins": 16, "spelt": 0.3, "hidden": 4}),
        (counts, {"steps": 5, "patch": 16, "tail": 0.0, "spelt": 0.0, "seed": 3}),
    ],
    "fields": [
        (flows, {"labels": ("who",)}),
        (flows, {"spell": False, "text": "drop", "words": 2, "relative": 0.3, "bins": 8, "integers": 3}),
        (flows, {"spell": False, "wide": "spelt"}),
    ],
    "template": [
        (logs, {}),
        (logs, {"templates": 1, "words": 2, "relative": 0.2, "bins": 3}),
    ],
    "grid": [
        (pictures, {"bins": 16, "patch": 4, "tail": 0.1}),
        (pictures, {"spacing": "quantile", "within": "centre", "patch": 1}),
        (clouds, {"rows": 8, "columns": 32, "bins": 64, "labels": ("who",)}),
    ],
}
EACH = [(name, draw, settings) for name, cases in CASES.items() for draw, settings in cases]
