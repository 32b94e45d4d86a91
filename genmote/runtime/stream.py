"""One text on its own: prefill, then feed and take until it ends. The batch form of this loop is `scheduler.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from genmote.errors import SpecError
from genmote.runtime.generation import Account, Generation, Piece, Request, Result
from genmote.runtime.prompt import Rows
from genmote.runtime.session import Session

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine


class Stream:
    """Iterates over the pieces of one text. Leaving it early (`break`, `close`, Ctrl-C) leaves the engine as usable as
    before; `result` then holds what came."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        session: Session | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._engine, self._request, self._session, self._progress = engine, request, session, progress
        self._account: Account | None = None
        self._pieces = self._run(engine.rows(request.prompt))

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()

    @property
    def result(self) -> Result:
        """The text so far, finished or not."""
        if self._account is None:
            raise SpecError("the stream has not begun: take a piece first")
        return self._account.result()

    def _run(self, rows: Rows) -> Generator[Piece]:
        engine, request = self._engine, self._request
        started = time.perf_counter()
        constraint = None if request.grammar is None else engine.constraint(request.grammar)
        generation = Generation(
            request, engine.tokenizer, rows.ids, engine.context, constraint, engine.guesser(request)
        )
        session = self._session
        if session is None:
            with engine.lock:
                session = engine.pool.take(rows)
        try:
            account = self._account = Account(generation, len(rows), session.match(rows), started)
            before = time.perf_counter()
            logits = session.prefill(rows, self._progress)[None]
            account.prefill_s = time.perf_counter() - before
            while True:
                pieces = generation.take(logits)
                if generation.rejected:
                    session.truncate(len(session) - generation.rejected)
                account.evicted = session.evicted
                account.add(pieces, time.perf_counter())
                yield from pieces
                if generation.finish_reason is not None:
                    return
                with engine.lock:
                    engine.between_passes()
                    tokens = generation.feed(session.ahead)
                    logits = session.feed(tokens, generation.wanted)
                account.steps += 1
        finally:
            if self._session is None:
                with engine.lock:
                    engine.pool.give(session)
