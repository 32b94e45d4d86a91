"""Between the event loop and the engine's thread: a limit on what may wait, and texts that arrive piece by piece.

Nothing polls: the engine's thread wakes the loop with each piece. A request that ends early, for whatever reason,
cancels its jobs, and their slots go to whoever waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from genmote.errors import GenmoteError, ServeError
from genmote.runtime.generation import Request as Job
from genmote.web.backend import Backend, Piece
from genmote.web.problem import Problem, problem_of, shutting_down

T = TypeVar("T")
Check = Callable[[], None]


class Gone(Exception):
    """The client has closed its connection: nobody waits for an answer."""


class Service:
    """An engine and who may use it: at most `backend.slots` jobs at work and `queue` more waiting. A request that is
    being read, its template written and its grammar compiled, counts as one.

    `body_limit` is in bytes, `body_wait_s` is how long a client may take to send its body.
    """

    def __init__(self, backend: Backend, *, queue: int, body_limit: int, body_wait_s: float = 30.0) -> None:
        self.backend, self.queue = backend, queue
        self.body_limit, self.body_wait_s = body_limit, body_wait_s
        self._open = 0  # places taken
        self._lock = threading.Lock()
        self._closed = False
        # For tokenizers, templates and schemas, off the event loop: a slow one must not keep all others waiting.
        self._clerks = ThreadPoolExecutor(2, "genmote-clerk")
        self._measurers = ThreadPoolExecutor(2, "genmote-measure")

    @property
    def room(self) -> int:
        return self.backend.slots + self.queue

    @property
    def open(self) -> int:
        return self._open

    def admit(self, jobs: int) -> None:
        """Take `jobs` places, or raise `Problem` 429."""
        with self._lock:
            if self._open + jobs > self.room:
                wait_s = max(1, self._open // self.backend.slots)
                raise Problem(
                    429,
                    f"busy: {self.backend.slots} texts are being generated and {self.queue} may wait; "
                    f"try again in {wait_s} s",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(wait_s)},
                )
            self._open += jobs

    def release(self, jobs: int = 1) -> None:
        """Give back places. Any thread may call it."""
        with self._lock:
            self._open -= jobs

    async def clerk(self, work: Callable[[], T]) -> T:
        """Run short work, such as a tokenizer's, off the event loop. It takes a place meanwhile; errors of the engine
        come out as `Problem`."""
        self.admit(1)
        return await self.errand(self._clerks, work, 1)

    async def compute(self, work: Callable[[Check], T]) -> T:
        """Run long work of the engine, such as a request's embeddings. It takes a place. What `work` is given it must
        call often: that raises where nobody waits for the result any more."""
        self.admit(1)
        return await self.measure(work, 1)

    async def measure(self, work: Callable[[Check], T], places: int = 0) -> T:
        """`compute` in `places` that the caller has."""
        left = threading.Event()

        def check() -> None:
            if left.is_set():
                raise Gone
            if self._closed:
                raise ServeError("the server is shutting down: try again later")

        try:
            return await self.errand(self._measurers, lambda: work(check), places)
        finally:
            left.set()

    async def errand(self, pool: ThreadPoolExecutor | None, work: Callable[[], T], places: int = 0) -> T:
        """Run work in a pool (None: the clerks'); gives back `places` when it has ended, or will never begin."""
        try:
            future = (pool or self._clerks).submit(work)
        except RuntimeError:  # the pool takes no more
            self.release(places)
            raise shutting_down() from None
        future.add_done_callback(lambda _: self.release(places))
        try:
            return await asyncio.wrap_future(future)
        except GenmoteError as error:
            raise problem_of(error) from error

    def close(self) -> None:
        """End the engine's work; may be called more than once."""
        self._closed = True
        for pool in (self._clerks, self._measurers):
            pool.shutdown(wait=False, cancel_futures=True)
        self.backend.close()


class Texts:
    """The texts of one request, as an async context manager over ``(choice, piece)``; leaving it cancels the rest.

    Entering takes the places of all jobs (`measured`: at least one), or raises `Problem` 429. The texts begin when they
    are iterated over.
    Raises the engine's error as a `Problem`. Afterwards (and meanwhile) `generated` and `cached` count tokens, also in
    `note`, for the log.
    """

    def __init__(self, service: Service, jobs: Sequence[Job], note: dict[str, Any], *, measured: bool = False) -> None:
        self._service, self._jobs, self._note = service, jobs, note
        self._held = max(len(jobs), int(measured))  # places
        self._begun = False
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._cancels: list[Callable[[], None]] = []
        self._left = False
        self._lock = threading.Lock()  # between `_submit` in the clerk's thread and `__aexit__`
        self.generated = 0
        self.cached = 0

    async def __aenter__(self) -> Self:
        self._service.admit(self._held)
        return self

    async def measure(self, work: Callable[[Check], T]) -> T:
        """Run long work in this request's places, before the texts begin."""
        return await self._service.measure(work)

    def _submit(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._left:
                return
            self._begun = True
        done = 0
        try:
            for choice, job in enumerate(self._jobs):
                cancel = self._service.backend.submit(job, self._deliverer(loop, choice))
                done += 1
                with self._lock:
                    self._cancels.append(cancel)
                    left = self._left
                if left:  # the client went away meanwhile
                    cancel()
        finally:
            self._service.release(self._held - done)

    def _deliverer(self, loop: asyncio.AbstractEventLoop, choice: int) -> Callable[[Piece], None]:
        def deliver(piece: Piece) -> None:
            if piece.last:
                self._service.release()
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is left to hear it
                loop.call_soon_threadsafe(self._queue.put_nowait, (choice, piece))

        return deliver

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._left = True
            cancels = list(self._cancels)
        if not self._begun:
            self._service.release(self._held)
        for cancel in cancels:
            cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        loop, open_texts = asyncio.get_running_loop(), len(self._jobs)
        await self._service.errand(None, lambda: self._submit(loop))
        while open_texts:
            choice, piece = await self._queue.get()
            self.generated += piece.tokens
            self.cached += piece.cached
            self._note.update(generated=self.generated, cached=self.cached)
            if piece.error is not None:
                raise problem_of(piece.error)
            if piece.finish == "cancelled":
                raise shutting_down()
            open_texts -= piece.last
            yield choice, piece


async def read_body(request: Request, service: Service) -> bytes:
    """The request's body. Raises `Problem` 413 when it is over the limit, 408 when it takes too long, or `Gone`."""
    limit = service.body_limit
    too_large = Problem(
        413, f"the body is over {limit} bytes: send less", code="body_too_large", headers={"Connection": "close"}
    )
    declared = request.headers.get("content-length", "")
    if "expect" in request.headers and declared.isdigit() and int(declared) > limit:
        raise too_large  # the client waits for leave to send: not given
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(service.body_wait_s):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                size += len(message["body"])
                if size <= limit:
                    parts.append(message["body"])
                elif size > 16 * limit:
                    raise too_large
                # A body somewhat over the limit is read and dropped, so that the client gets to read the answer.
                if not message["more_body"]:
                    break
    except TimeoutError:
        raise Problem(
            408,
            f"the body did not arrive within {service.body_wait_s:g} s",
            code="timeout",
            headers={"Connection": "close"},
        ) from None
    if size > limit:
        raise too_large
    return b"".join(parts)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away first (then raises `Gone`).

    The body must have been read: what the client sends next is its end.
    """

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
