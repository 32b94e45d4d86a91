"""Recently used sessions, kept for the next prompt that begins alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from genmote.runtime.prompt import Rows
from genmote.runtime.session import Session

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine


class SessionPool:
    """At most `keep` idle sessions, and with a plan no more than it counts, those in use included; the least recently
    used goes first. Used from one thread at a time, but for `trim`, which the governor may call between two passes."""

    def __init__(self, engine: Engine, keep: int) -> None:
        self.engine, self.keep = engine, keep
        engine.pools.add(self)
        self._idle: list[Session] = []  # oldest first

    def take(self, rows: Rows, active: Iterable[Session] = ()) -> Session:
        """A session for the prompt, holding as much of its beginning as any session here or in `active` does.

        A session that goes on with its own text is taken; where only a beginning is shared (a system prompt), that part
        is copied, so that the other text stays cached too.
        """
        with self.engine.lock:
            return self._take(rows, active)

    def _take(self, rows: Rows, active: Iterable[Session]) -> Session:
        active = list(active)
        best, shared = self._longest(rows, active)
        made = self.engine.plan
        beside = self.keep if made is None else max(0, made.sessions - len(active) - 1)  # that may stay idle meanwhile
        full = len(self._idle) >= self.keep > 0 or len(self._idle) > beside
        if best is None:
            session = self._idle.pop(0) if full else Session(self.engine)
            session.truncate(0)
        elif best in self._idle and (2 * shared >= len(best) or full):
            self._idle.remove(best)
            session = best
        else:
            del self._idle[: max(0, len(self._idle) - beside)]
            session = best.fork(shared)
        del self._idle[: max(0, len(self._idle) - beside)]
        session.match(rows)
        return session

    def give(self, session: Session) -> None:
        """Back from use, whatever state it is in."""
        with self.engine.lock:
            self._idle.append(session)
            del self._idle[: max(0, len(self._idle) - self.keep)]

    def clear(self) -> None:
        with self.engine.lock:
            self._idle.clear()

    def trim(self) -> int:
        """Forget all but the latest, whose place the next text takes; how many bytes of keys and values they held."""
        with self.engine.lock:
            count = sum(session.nbytes for session in self._idle[:-1])
            del self._idle[:-1]
        return count

    def _longest(self, rows: Rows, active: Iterable[Session]) -> tuple[Session | None, int]:
        best: Session | None = None
        longest = 0
        for session in [*self._idle, *active]:
            shared = session.shared(rows)
            if shared > longest:
                best, longest = session, shared
        return best, longest
