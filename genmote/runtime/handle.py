"""A text that another thread generates: read it by iteration, by `async for`, or by a callback."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from genmote.errors import GenmoteError
from genmote.runtime.generation import Piece, Result

Event = Piece | GenmoteError  # the last is a piece with a finish_reason, or the error that ended the text


class Handle:
    """Pieces of a text as they come, from any thread. One reader."""

    def __init__(self, wake: Callable[[], None], deliver: Callable[[Event], None] | None, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0  # of the prompt, found in a cache; known with the first piece
        self.submitted = time.perf_counter()
        self.cancelled = False
        self.ended = False
        self._wake, self._deliver = wake, deliver
        self._events: deque[Event] = deque()
        self._change = threading.Condition()
        self._listener: Callable[[], None] | None = None
        self._result: Result | None = None
        self._error: GenmoteError | None = None

    def cancel(self) -> None:
        """Stop soon; may be called at any time, from any thread, more than once. The text ends with "cancelled"."""
        self.cancelled = True
        self._wake()

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end; raises the error that ended the text, TimeoutError after `timeout_s`."""
        with self._change:
            if not self._change.wait_for(lambda: self.ended, timeout_s):
                raise TimeoutError(f"the text was not finished after {timeout_s} s")
        if self._error is not None:
            raise self._error
        assert self._result is not None  # set before the last piece
        return self._result

    def __iter__(self) -> Iterator[Piece]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._events)
                event = self._events.popleft()
            if isinstance(event, GenmoteError):
                raise event
            yield event
            if event.finish_reason is not None:
                return

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Without blocking the event loop; leaving early cancels the text."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def listen() -> None:
            try:
                loop.call_soon_threadsafe(arrived.set)
            except RuntimeError:  # the loop has closed: nobody is left to read
                self.cancel()

        with self._change:
            self._listener = listen
        try:
            while True:
                while not self._events:
                    await arrived.wait()
                    arrived.clear()
                event = self._events.popleft()
                if isinstance(event, GenmoteError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            if not self.ended:
                self.cancel()

    # -- for the thread that generates --------------------------------------------------------------------------------
    def put(self, event: Event) -> None:
        """Add an event; after the last one nothing more is taken."""
        if self.ended:
            return
        with self._change:
            if isinstance(event, GenmoteError):
                self._error = event
                self.ended = True
            else:
                self.ended = event.finish_reason is not None
            if self._deliver is None:
                self._events.append(event)
            listener = self._listener
            self._change.notify_all()
        if listener is not None:
            listener()
        if self._deliver is not None:
            try:
                self._deliver(event)
            except Exception:  # whoever listened is gone: so is the need for the text
                self.cancelled = True

    def result_found(self, result: Result) -> None:
        self._result = result
