"""The ASGI app: rooms mount their routes here; this file gives all of them one guard, one error shape and one log.

A room is a function that returns routes; its endpoints find the engine in ``request.app.service``.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Message, Receive, Scope, Send

from genmote.errors import GenmoteError
from genmote.web.guard import Guard
from genmote.web.problem import Problem, problem_of, shutting_down
from genmote.web.service import Gone, Service

Log = Callable[[str], None]


class App:
    """The whole server: the rooms' routes and ``GET /health``.

    Checks who asks, answers what an endpoint raises, and writes a line for each request, without anybody's text.
    Endpoints may leave numbers for that line in ``request.scope["note"]``.
    """

    def __init__(self, service: Service, guard: Guard, rooms: Sequence[BaseRoute], log: Log) -> None:
        self.service, self.guard, self.log = service, guard, log
        self.router = Router([Route("/health", health, methods=["GET"]), *rooms], redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        status = 0
        note: dict[str, Any] = {}
        scope["app"], scope["note"] = self, note

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = Headers(scope=scope)
            self.guard.check_site(headers)
            if scope["path"] != "/health":
                self.guard.check_key(headers)
            await self.router(scope, receive, watched)
        except Gone:
            status = 499  # as others log it; nobody is left to be told
        except (Exception, asyncio.CancelledError) as error:
            if not isinstance(error, Problem | GenmoteError | HTTPException | asyncio.CancelledError):
                self.log(traceback.format_exc().rstrip())
            if not status:
                await _problem(error, scope).response()(scope, receive, watched)
        self.log(_line(scope, status, note, time.monotonic() - started))


def _problem(error: BaseException, scope: Scope) -> Problem:
    """What the client is told."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, GenmoteError):
        return problem_of(error)
    if isinstance(error, asyncio.CancelledError):
        return shutting_down()
    if isinstance(error, HTTPException):  # starlette's own: no such path, or another method
        path = scope["path"][:120]
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            message = f"{scope['method'][:20]} is not for {path}: use {allowed}"
            return Problem(405, message, code="method_not_allowed", headers=error.headers)
        known = "/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /health"
        message = f"there is nothing at {path}: the OpenAI API is {known}"
        return Problem(error.status_code, message, code="not_found")
    return Problem(500, "an error inside the server: its log says more")


def _line(scope: Scope, status: int, note: dict[str, Any], seconds: float) -> str:
    """One request: the path is shown as it came over the wire, which has no control characters."""
    path = scope.get("raw_path", b"").decode("ascii", "replace")[:120]
    parts = [time.strftime("%H:%M:%S"), (scope.get("client") or ("-",))[0], scope["method"][:20], path, str(status)]
    parts += [f"{name}={note[name]}" for name in ("prompt", "cached", "generated") if name in note]
    return " ".join(parts) + f" {seconds:.3f}s"


async def health(request: Request) -> Response:
    """Whether the server lives; how busy it is only to those who may ask."""
    app: App = request.app
    service = app.service
    body: dict[str, Any] = {"status": "ok"}
    if app.guard.knows(request.headers):
        body |= {
            "model": service.backend.names[0],
            "context": service.backend.context,
            "slots": service.backend.slots,
            "queue": service.queue,
            "open": service.open,
            **service.backend.load(),
        }
    return JSONResponse(body)
