"""Baselines that need no model: the majority, the nearest neighbour, numbers as text."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.describe import baselines
from genmote.describe.labelled import Labelled
from genmote.errors import ExamplesError
from genmote.signals.kinds import Field, Records, Series


def wave(hz: float, seed: int = 0, count: int = 400, **more: str) -> Labelled:
    t = np.arange(count) / 50
    x = np.sin(2 * np.pi * hz * t) + 0.2 * np.random.default_rng(seed).normal(size=count)
    return Labelled(Series("w", np.stack([x, -x], 1).astype(np.float32), 50.0, ("a", "b"), ("g", "g")), **more)  # type: ignore[arg-type]


def test_majority() -> None:
    train = [wave(1, n, group=str(n), report=report) for n, report in enumerate(("x", "y", "y"))]
    assert baselines.majority(train).report == "y"
    labelled = [Labelled(train[0].signal, "1", labels=own) for own in (("a",), ("b", "c"), ("b", "c"))]
    assert baselines.most_frequent_labels(labelled) == ("b", "c") == baselines.majority(labelled).labels
    with pytest.raises(ExamplesError, match="there is no recording to learn from: wanted at least one"):
        baselines.majority([])


def test_the_nearest_is_of_the_same_kind() -> None:
    train = [wave(hz, n, group=str(n), report=str(hz)) for n, hz in enumerate((1, 3, 7) * 8)]
    near = baselines.Nearest(train)
    assert [near.to(wave(hz, 90, group="x").signal).report for hz in (1, 3, 7)] == ["1", "3", "7"]
    assert near.to(train[4].signal) is train[4], "itself is the nearest"
    with pytest.raises(ExamplesError, match="there is no recording to learn from: wanted at least one"):
        baselines.Nearest([])


def test_signals_with_gaps_flat_lines_and_fewer_channels_have_neighbours() -> None:
    train = [wave(hz, n, group=str(n), report=str(hz)) for n, hz in enumerate((1, 3))]
    near = baselines.Nearest(train)
    gone = Series("g", np.full((400, 2), np.nan, np.float32), 50.0, ("a", "b"), ("g", "g"))
    one = Series("o", np.zeros((400, 1), np.float32), 50.0, ("a",), ("g",))
    shorter = wave(3, 5, count=70, group="x").signal
    assert all(near.to(signal) in train for signal in (gone, one, shorter))


def test_records_have_neighbours() -> None:
    def rows(service: str, size: float) -> Records:
        columns = (np.array([service] * 5, object), np.full(5, size))
        return Records("r", (Field("service", "category"), Field("size", "number", "B")), columns)

    train = [Labelled(rows("dns", 60), "1", labels=("a",)), Labelled(rows("http", 9000), "2", labels=("b",))]
    near = baselines.Nearest(train)
    assert near.to(rows("http", 5000)).labels == ("b",) and near.to(rows("dns", 80)).labels == ("a",)


def test_numbers_as_text() -> None:
    values = np.arange(2000, dtype=np.float32).reshape(1000, 2)
    values[:20, 0] = np.nan
    told = baselines.as_numbers(Series("s", values, 10.0, ("x", "y"), ("V", "")), 100)
    head, x, y = told.splitlines()
    assert head == "1000 samples at 10 Hz (100 s), each number the mean of 20."
    assert x.startswith("x (V): missing 59 99 ") and y.startswith("y: 20 60 ") and len(y.split()) == 51
    fields = (Field("service", "category"), Field("size", "integer", "B"))
    rows = Records("r", fields, (np.array(["dns", None, "http"], object), np.array([0, 2, 3])))
    assert baselines.as_numbers(rows).splitlines() == ["3 rows:", "service,size (B)", "dns,0", ",2", "http,3"]
    assert baselines.as_numbers(rows, 4).splitlines()[0] == "3 rows, the first 2:"
