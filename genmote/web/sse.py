"""Server-sent events: a stream of JSON objects, each a ``data:`` line, at the end ``data: [DONE]``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from genmote.web.problem import Problem, shutting_down
from genmote.web.service import while_connected


def event(data: Any) -> bytes:
    """
    >>> event({"a": 1})
    b'data: {"a":1}\\n\\n'
    """
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


class EventStream(Response):
    """Sends what `events` yields. A `Problem` before the first event is an ordinary answer, later an error event."""

    def __init__(self, events: AsyncGenerator[Any]) -> None:
        super().__init__(headers={"Cache-Control": "no-store"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._run(send))

    async def _run(self, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        started = False
        try:
            async for data in self._events:
                if not started:
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    started = True
                await write(event(data))
            await write(b"data: [DONE]\n\n", more=False)
        except Problem as problem:
            if not started:
                raise
            await write(event(problem.body()), more=False)
        except asyncio.CancelledError:
            if started:  # told to a client that is still there, which means that the server is shutting down
                await write(event(shutting_down().body()), more=False)
            raise
        finally:
            await self._events.aclose()
