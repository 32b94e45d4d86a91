"""Several texts in one batch: each step runs one pass over the next rows of every text at work (continuous batching,
Yu et al. 2022). A text's tokens are the same as alone.

Fairness: every running text takes part in every step, and newcomers' prompts go in slices beside them, so nobody waits
for another's long prompt. Newcomers share a step's slice evenly. What finishes, fails or is cancelled frees its place
at the next step.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.errors import GenmoteError, ServeError, SpecError
from genmote.runtime.generation import Account, Generation, Piece, Request, Result
from genmote.runtime.handle import Event, Handle
from genmote.runtime.pool import SessionPool
from genmote.runtime.prompt import Rows
from genmote.runtime.session import BESIDE, Session, Work, run_batch

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine


class QueueFull(ServeError):
    """All places are taken and as many texts wait as may."""


class _Text:
    """A text at work: its generation, its session, and how many rows of its prompt have been run."""

    def __init__(self, handle: Handle, generation: Generation, rows: Rows) -> None:
        self.handle, self.generation, self.rows = handle, generation, rows
        self.session: Session | None = None
        self.account: Account | None = None
        self.at = 0
        self.feed: list[int] = []  # tokens of the text that are still to be run before the next is drawn


_Failed = tuple[_Text, Exception]


class Scheduler:
    """Runs texts for many clients with one engine, in one thread of its own.

    `max_sessions` texts at a time, `queue_limit` more may wait; `keep` finished sessions stay cached for prompts that
    begin alike. Close it, or use it in a `with` statement.
    """

    def __init__(
        self, engine: Engine, *, max_sessions: int = 4, queue_limit: int = 64, keep: int | None = None
    ) -> None:
        faults = [
            f"{name}={value!r}: use a whole number of at least {low}"
            for name, value, low in (("max_sessions", max_sessions, 1), ("queue_limit", queue_limit, 0))
            if isinstance(value, bool) or not isinstance(value, int) or value < low
        ]
        if faults:
            raise SpecError("; ".join(faults))
        self.engine, self.max_sessions, self.queue_limit = engine, max_sessions, queue_limit
        self.steps = 0
        self._pool = SessionPool(engine, max_sessions if keep is None else keep)
        self._waiting: deque[_Text] = deque()
        self._active: list[_Text] = []
        self._change = threading.Condition()
        self._closing = self._draining = False
        self._thread = threading.Thread(target=self._loop, name="genmote-scheduler", daemon=True)
        self._thread.start()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, request: Request, deliver: Callable[[Event], None] | None = None) -> Handle:
        """Start a text, or queue it. Read the handle, or give `deliver`, which is called from the scheduler's thread
        with each piece, last with one that has a `finish_reason`, or with the error that ended the text.

        Raises what is wrong with the request (ContextError, GrammarError, SpecError), QueueFull, and ServeError when
        closed.
        """
        rows = self.engine.rows(request.prompt)
        constraint = None if request.grammar is None else self.engine.constraint(request.grammar)
        generation = Generation(
            request, self.engine.tokenizer, rows.ids, self.engine.context, constraint, self.engine.guesser(request)
        )
        handle = Handle(self._wake, deliver, len(rows))
        with self._change:
            if self._closing or self._draining:
                raise ServeError("the scheduler is closed: make a new one")
            if len(self._waiting) + len(self._active) >= self.max_sessions + self.queue_limit:
                raise QueueFull(
                    f"{self.max_sessions} texts are being generated and {self.queue_limit} wait: try again later"
                )
            self._waiting.append(_Text(handle, generation, rows))
            self._change.notify()
        return handle

    def load(self) -> dict[str, int]:
        """{"active": texts at work, "waiting": texts without a place}."""
        with self._change:
            return {"active": len(self._active), "waiting": len(self._waiting)}

    def close(self, *, drain: bool = False) -> None:
        """Take no more texts; cancel the present ones (`drain`: finish them first) and end the thread."""
        with self._change:
            if drain:
                self._draining = True
            else:
                self._closing = True
            self._change.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        with self._change:
            self._change.notify()

    # -- the thread ---------------------------------------------------------------------------------------------------
    def _loop(self) -> None:
        while True:
            with self._change:
                while not (self._active or self._waiting or self._closing or self._draining):
                    self._change.wait()
                if self._closing or (self._draining and not self._active and not self._waiting):
                    break
            try:
                self._admit()
                self._step()
            except Exception as error:  # nothing here should fail; if it does, nobody may wait for ever
                for text in list(self._active):
                    self._end(text, error)
        with self._change:
            left = [*self._active, *self._waiting]
            self._waiting.clear()
        for text in left:
            self._cancel(text)
        self._pool.clear()

    def _admit(self) -> None:
        """Give free places to those who wait, first come first served."""
        with self._change:
            gone = [text for text in self._waiting if text.handle.cancelled]
            for text in gone:
                self._waiting.remove(text)
            entering = []
            while self._waiting and len(self._active) < self.max_sessions:
                text = self._waiting.popleft()
                self._active.append(text)
                entering.append(text)
        for text in gone:
            self._cancel(text)
        for text in entering:
            try:
                sessions = [other.session for other in self._active if other.session is not None]
                text.session = self._pool.take(text.rows, sessions)
                text.at = text.handle.cached_tokens = len(text.session)
                text.account = Account(text.generation, len(text.rows), text.at, text.handle.submitted)
            except Exception as error:
                self._end(text, error)

    def _step(self) -> None:
        for text in [text for text in self._active if text.handle.cancelled]:
            self._cancel(text)
        with self.engine.lock:
            self.engine.between_passes()
            works, failed = self._works()
            began = time.perf_counter()
            try:
                done = run_batch(self.engine, [work for _, work in works]) if works else []
            except Exception:
                done, more = self._one_by_one(works)
                failed += more
        now = time.perf_counter()
        for text, error in failed:
            self._end(text, error)
        if not works:
            return
        self.steps += 1
        for (text, work), logits in zip(works, done, strict=True):
            self._take(text, work, logits, began, now)

    def _works(self) -> tuple[list[tuple[_Text, Work]], list[_Failed]]:
        """The rows of the next step: of each running text its next token (and guesses), of newcomers a slice; and the
        texts that cannot go on, such as one whose draft model failed."""
        works: list[tuple[_Text, Work]] = []
        failed: list[_Failed] = []
        newcomers = []
        for text in self._active:
            assert text.session is not None
            if text.at < len(text.rows):
                newcomers.append(text)
                continue
            try:
                ahead = text.session.ahead
                tokens = text.feed or text.generation.feed(ahead)
            except Exception as error:
                failed.append((text, error))
                continue
            text.feed = tokens[ahead:]  # guesses are never among these
            wanted = 0 if text.feed else text.generation.wanted
            works.append((text, Work(text.session, Rows(tokens[:ahead]), 0, len(tokens[:ahead]), wanted)))
        budget = min(BESIDE, self.engine.chunk) if works else self.engine.chunk
        for place, text in enumerate(newcomers):
            assert text.session is not None
            share = min(-(-budget // (len(newcomers) - place)), len(text.rows) - text.at, text.session.ahead)
            if share > 0:
                stop = text.at + share
                works.append((text, Work(text.session, text.rows, text.at, stop, int(stop == len(text.rows)))))
                budget -= share
        return works, failed

    def _one_by_one(self, works: list[tuple[_Text, Work]]) -> tuple[list[NDArray[np.float32] | None], list[_Failed]]:
        """After a batch failed: find out whose rows are at fault; only those texts end."""
        done: list[NDArray[np.float32] | None] = []
        failed: list[_Failed] = []
        for text, work in works:
            try:
                done += run_batch(self.engine, [work])
            except Exception as error:
                done.append(None)
                failed.append((text, error))
        return done, failed

    def _take(self, text: _Text, work: Work, logits: NDArray[np.float32] | None, began: float, now: float) -> None:
        """Put the logits of a text's rows to use."""
        if text.handle.ended or text.session is None or text.account is None:
            return
        try:
            if work.rows is text.rows:
                text.at = work.stop
                text.account.prefill_s += now - began
            else:
                text.account.steps += 1
            if logits is None:
                return
            pieces = text.generation.take(logits)
            if text.generation.rejected:
                text.session.truncate(len(text.session) - text.generation.rejected)
            text.account.evicted = text.session.evicted
            text.account.add(pieces, now)
        except Exception as error:
            self._end(text, error)
            return
        self._deliver(text, pieces)
        if text.generation.finish_reason is not None:
            self._end(text, None)

    def _cancel(self, text: _Text) -> None:
        piece = text.generation.cancel()
        if text.account is not None:
            text.account.add([piece], time.perf_counter())
        self._deliver(text, [piece])
        self._end(text, None)

    def _deliver(self, text: _Text, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.finish_reason is not None:
                text.handle.result_found(self._result(text))
            text.handle.put(piece)

    def _result(self, text: _Text) -> Result:
        account = text.account or Account(text.generation, len(text.rows), 0, text.handle.submitted)
        return account.result()

    def _end(self, text: _Text, error: Exception | None) -> None:
        """Free the text's place and tell of its error."""
        with self._change:
            if text in self._active:
                self._active.remove(text)
        if text.session is not None:
            self._pool.give(text.session)
            text.session = None
        if error is not None:
            known = error if isinstance(error, GenmoteError) else GenmoteError(f"the engine failed: {error!r}")
            known.__cause__ = None if known is error else error
            text.handle.put(known)
