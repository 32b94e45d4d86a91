"""uvicorn's HTTP protocol with limits on what a connection may hold up.

uvicorn itself waits without end for a request's head, and for a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from genmote.web.problem import Problem

HEAD_WAIT_S = 15.0  # from the connection, or a request's first byte, to the end of its head
READ_WAIT_S = 60.0  # how long a client may leave a full send buffer unread
CONNECTIONS = 256  # open at once; more are closed


class Protocol(H11Protocol):
    """One connection."""

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._head_timer)
        self._stop(self._read_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_WAIT_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop(self._read_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Bytes that are no HTTP request are answered in the API's error shape too."""
        body = json.dumps(Problem(400, f"{msg} Send an HTTP/1.1 request.", code="invalid_http").body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        parts: list[Any] = [
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is under way: only close
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_WAIT_S, self._no_head)

    def _no_head(self) -> None:
        self._head_timer = None
        self.transport.abort()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
