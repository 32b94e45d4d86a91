"""Idle sessions, and how many there may be where a plan counts them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from genmote.runtime.fake import fake_engine
from genmote.runtime.pool import SessionPool
from genmote.runtime.prompt import Rows
from genmote.runtime.session import Session


def used(pool: SessionPool, ids: list[int], active: list[Session]) -> Session:
    session = pool.take(Rows(ids), active)
    session.prefill(ids)
    return session


@pytest.mark.parametrize("planned", [None, 1, 2, 3])
def test_no_more_sessions_than_the_plan_counts(planned: int | None) -> None:
    """Texts that begin alike and others, up to as many at a time as are planned."""
    with fake_engine() as engine:
        plan: Any = None if planned is None else SimpleNamespace(sessions=planned)
        engine.plan = plan
        most = planned or 3
        pool = SessionPool(engine, keep=most)
        active: list[Session] = []
        for number in range(40):
            begin = [1, 2, 3, 4] if number % 3 else [50 + number]
            active.append(used(pool, [*begin, number % 7, number % 5, 9], active))
            assert planned is None or len(active) + len(pool._idle) <= planned
            if len(active) == most:
                pool.give(active.pop(number % most))
                assert len(pool._idle) <= most
        assert len({id(session) for session in [*active, *pool._idle]}) == len(active) + len(pool._idle)


def test_what_a_planned_pool_gives_is_as_cached_as_before() -> None:
    with fake_engine() as engine:
        engine.plan = SimpleNamespace(sessions=1)  # type: ignore[assignment]
        pool = SessionPool(engine, keep=1)
        first = used(pool, [1, 2, 3, 4, 5, 6], [])
        pool.give(first)
        again = pool.take(Rows([1, 2, 9]), [])
        assert again is first and len(again) == 2, "the beginning that is shared stays"
