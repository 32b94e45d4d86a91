"""What is measured of `adapt`: the arithmetic of its rows, and what is told where the recordings are not here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.bench import Bench
from benchmarks.signals import sets
from benchmarks.tune import adapt, delay
from genmote.tune.adapt import Event
from genmote.tune.follow import Followed


def one(number: int) -> tuple[Any, Any]:
    return np.array([number, number]), np.array([False, True])


@pytest.fixture
def regime() -> Any:
    later = [one(n) for n in range(400)]
    tuning = SimpleNamespace(steps=1)
    return SimpleNamespace(
        name="a", decoder=None, tuning=tuning, numbers=None, later=later, other=lambda name: later[:300], model="m"
    )


def test_a_change_is_judged_by_what_nobody_learnt_from(regime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def followed(regime: Any, stream: list[Any], judged: dict[str, list[Any]]) -> tuple[Followed, dict[str, float]]:
        seen.update(judged, stream=stream)
        told = Followed(Path("s"), "sha", losses=[1.0])
        told.events = [Event("drift", 50, {}), Event("drift", 136, {"since": 121})]
        return told, {"old_before": 1.0, "old_after": 1.01, "new_before": 4.0, "new_after": 2.2}

    def learnt(decoder: Any, tuning: Any, numbers: Any, some: list[Any], steps: int, each: Any) -> None:
        seen["again"] = some
        for step in range(1, steps + 1):
            each(step, SimpleNamespace(judge=lambda examples, step=step: {60: 3.0, 120: 2.0}.get(step, 2.5)))

    monkeypatch.setattr(adapt, "followed", followed)
    monkeypatch.setattr(adapt, "learnt", learnt)
    found = adapt.changed(Bench(quick=True), regime, "b")
    assert found["delay"] == 16, "the alarm before the change is none of it"
    assert found["new_retrained"] == 2.0, "the best of retraining"
    assert len(seen["stream"]) == adapt.BEFORE + adapt.AFTER and seen["again"] is not None
    learnt_from = [int(tokens[0]) for tokens, _ in seen["stream"][adapt.BEFORE :]]
    assert [int(tokens[0]) for tokens, _ in seen["new_"]] == list(range(200, 260)) and max(learnt_from) == 199
    assert not {int(t[0]) for t, _ in seen["old_"]} & {int(t[0]) for t, _ in seen["stream"][: adapt.BEFORE]}
    row = adapt.recovery(found)
    assert row.value == pytest.approx(90) and row.met and row.ours == 2.2 and row.peer == 2.0


def test_what_is_missing_is_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sets.NAMED, str(tmp_path))
    rows = list(adapt.measure(Bench(quick=True)))
    assert len(rows) == len(adapt.CHANGES) and all(row.value is None and "no recordings" in row.note for row in rows)


def test_delays_are_told_of_each_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delay, "DRAWS", 2)
    assert all(0 < each < 15 for each in delay.delays("page-hinkley", 5.0))
    assert list(delay.delays("adwin:every=500", 0.0)) == [delay.AFTER] * 4, "no alarm: not seen at all"
    rows = list(delay.measure(Bench(quick=True)))
    assert [row.value for row in rows] == sorted((row.value for row in rows), reverse=True) and len(rows) == 5
