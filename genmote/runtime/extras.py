"""What takes memory within a budget and was not planned: a grammar's tables, other adapters, logits of many rows.

Weights make room for it, so the text stays the same and only gets slower. What would not even fit without weights in
memory is refused before anything is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from genmote.errors import BudgetError
from genmote.models.config import Config
from genmote.runtime import footprint
from genmote.runtime.plan import Plan
from genmote.runtime.streaming import Room, Streaming


class Extras:
    """What one engine has taken beside its plan, by what it is for. Threads may share it."""

    def __init__(
        self,
        made: Plan,
        streaming: Streaming,
        room: Room,
        config: Config,
        lock: AbstractContextManager[Any],
        planned: Mapping[str, int] | None = None,
    ) -> None:
        """`lock`: whoever computes holds it. `planned`: what is in the plan already, by what it is for."""
        self.made, self.streaming, self.room, self.config, self._lock = made, streaming, room, config, lock
        self._planned = planned or {}
        self._taken: dict[str, int] = {}
        self._adapters = made.parts["adapters"]

    @property
    def left(self) -> int:
        """Bytes that can still be taken: what the plan leaves free, and weights in memory."""
        made = self.made
        free = self.room.budget_bytes - made.predicted_bytes
        ring = 0 if made.streams else self.streaming.ring_bytes  # it takes memory with the first weight that goes
        return max(free, free + made.pinned_bytes - ring) - sum(self._taken.values())

    def least(self, what: str, count: int) -> int | None:
        """The smallest budget with which `what` could take `count` bytes in all; None where it can in this one."""
        lacking = self._beside(what, count) - self._taken.get(what, 0) - self.left
        return self.room.budget_bytes + lacking if lacking > 0 else None

    def _beside(self, what: str, count: int) -> int:
        """What of `count` bytes is not in the plan."""
        return max(0, count - self._planned.get(what, 0))

    def take(self, what: str, count: int) -> None:
        """From now on `what` (a plural) takes `count` bytes in all, which come to stay. Raises BudgetError."""
        whole, count = count, self._beside(what, count)
        if self._taken.get(what) == count:
            return  # without waiting for the lock
        with self._lock:
            more, left = count - self._taken.get(what, 0), self.left
            if (least := self.least(what, whole)) is not None:
                budget = self.room.budget_bytes
                raise BudgetError(
                    f"{what} take {-(-more // 1_000_000)} MB more, and {budget / 1e6:.0f} MB of memory leave "
                    f"{max(0, left) / 1e6:.0f} MB: the least is {-(-least // 1_000_000)} MB, or a shorter context",
                    least,
                )
            self._taken[what] = count
            if more > 0:
                self.streaming.make_room(count=more)

    @contextlib.contextmanager
    def adapters(self, count: int) -> Iterator[None]:
        """The block puts adapters of `count` bytes in the place of those that are set, which stay until then. Raises
        BudgetError before it."""
        made, before = self.made, self._adapters
        planned = made.parts["adapters"]
        scratch = 0 if planned else step_bytes(self.config, made)  # the plan is for blocks without adapters

        def more(size: int) -> int:
            return max(0, size - planned) + (scratch if size else 0)

        self.take("adapters", more(before + count))
        try:
            yield
            self._adapters = count
        finally:
            footprint.trim()  # what is gone makes room for weights again
            self.take("adapters", more(self._adapters))
            scratch = scratch if self._adapters else 0
            self.streaming.keep_to(replace(self.room, activation_bytes=self.room.activation_bytes + scratch))

    def rows_of_logits(self, most_bytes: int) -> int:
        """Of how many rows logits may be computed at once, in `most_bytes` and in what weights can make room for (they
        do so as such a pass begins)."""
        few = min(most_bytes, self.room.budget_bytes // 16, self.left // 2)
        return max(1, few // self.room.logits_bytes)


def step_bytes(config: Config, made: Plan) -> int:
    """Scratch memory that blocks take more when they are computed in single steps, as those with adapters are."""
    fused, steps = (
        footprint.activation_bytes(config, made.chunk_rows, 1, made.threads, steps=steps) for steps in (False, True)
    )
    return max(0, steps - fused)
