"""``genmote serve``: bind, load, serve, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from genmote import gate
from genmote.errors import ServeError
from genmote.web.app import App, Log
from genmote.web.backend import Backend
from genmote.web.guard import Guard
from genmote.web.http1 import Protocol
from genmote.web.openai.routes import routes
from genmote.web.service import Service

if TYPE_CHECKING:
    from genmote.runtime.engine import Adapters
    from genmote.runtime.governor import Bounds

DRAIN_S = 3.0  # after the first signal, how long texts under way may go on


@dataclass(frozen=True)
class Ready:
    """What is served, and where."""

    url: str
    model: str
    context: int
    slots: int

    def __str__(self) -> str:
        slots = f"{self.slots} slot{'s' * (self.slots != 1)}"
        return f"genmote serves {self.model} at {self.url}/v1 (context {self.context}, {slots})"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def announce(ready: Ready) -> None:
    print(ready, flush=True)


def serve(
    model: str,
    *,
    name: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    key: str | None = None,
    max_sessions: int = 4,
    queue: int = 16,
    body_limit: int = 4 * 1024 * 1024,
    context: int | None = None,
    threads: int | None = None,
    adapter: Adapters | None = None,
    ops: str | None = None,
    isa: str | None = None,
    accelerator: str | None = None,
    device_memory: str | None = None,
    host_memory: str | None = None,
    memory: str | None = None,
    kv: str | None = None,
    evict: str | None = None,
    kv_tokens: float | None = None,
    kv_spill: str | None = None,
    draft: str | None = None,
    governor: Bounds | None = None,
    progress: Callable[..., None] | None = None,
    ready: Callable[[Ready], None] = announce,
    log: Log = say,
) -> None:
    """Serve a model by name or path over the OpenAI HTTP API until SIGINT (`KeyboardInterrupt`) or SIGTERM (returns).

    Clients call the model `name` (None: as it is called here, a file by its stem).
    `key` (or GENMOTE_API_KEY) is what clients must send; without one only this machine is listened to. `max_sessions`
    texts are generated at the same time, `queue` more requests may wait, a body has at most `body_limit` bytes.
    `ready` is called once it listens, with the real port where `port` is 0. With `governor` the engine is governed
    within these bounds, and each decision goes to `log`. `memory` is what the process keeps to, the keys and values of
    all its texts included; `draft` guesses tokens, `kv_spill` takes cold rows, as for `Engine.load`. Raises
    `ServeError`, and what `Engine.load` raises.
    """
    from genmote.runtime.engine import Engine
    from genmote.web.local import LocalBackend, names_of

    asked = (("max_sessions", max_sessions, 1), ("queue", queue, 0), ("body_limit", body_limit, 1))
    faults = [f"{what}={value}, wanted at least {least}" for what, value, least in asked if value < least]
    if faults:
        raise ServeError("; ".join(faults))
    key = checked_key(host, key)
    with (
        bind(host, port, key) as bound,
        Engine.load(
            model,
            context=context,
            threads=threads,
            adapter=adapter,
            ops=ops,
            isa=isa,
            progress=progress,
            accelerator=accelerator,
            device_memory=device_memory,
            host_memory=host_memory,
            memory=memory,
            kv=kv,
            evict=evict,
            kv_tokens=kv_tokens,
            kv_spill=kv_spill,
            draft=draft,
            sessions=max_sessions,
        ) as engine,
    ):
        if engine.plan is not None:
            made, budget = engine.plan, engine.plan.budget_bytes or 0
            within = f"within {budget / 1e6:.1f} MB: {made.predicted_bytes / 1e6:.1f} MB planned"
            log("; ".join([within, *(step for step in made.steps if step not in made.lossy)]))
            if (least := engine.least_with_grammars()) is not None:
                log(
                    "requests with a JSON schema or a grammar will be refused: with its tables the least is "
                    f"{-(-least // 1_000_000)} MB (--memory), or a shorter --context"
                )
        for step in engine.lossy:
            log(f"the text may change: {step}")
        if governor is not None:
            engine.govern(governor, tell=lambda decision: log(str(decision)))
        backend = LocalBackend(engine, names_of(model, engine.model_path, name), slots=max_sessions)
        run(backend, bound, key=key, queue=queue, body_limit=body_limit, ready=ready, log=log)


def checked_key(host: str, key: str | None) -> str | None:
    """The key to ask for, from `key` or GENMOTE_API_KEY. Raises `ServeError` where one is needed and none is given."""
    if key is None:
        key = os.environ.get("GENMOTE_API_KEY") or None
    if key is None and not gate.is_loopback(host):
        raise ServeError(
            f"host {host} can be reached from other machines: set a key (--key or GENMOTE_API_KEY), or use 127.0.0.1"
        )
    if key is not None and (len(key) < 8 or not key.isprintable() or not key.isascii() or " " in key):
        raise ServeError("the key is unfit: use at least 8 ASCII characters without spaces")
    return key


def bind(host: str, port: int, key: str | None) -> socket.socket:
    """A bound socket that does not listen yet, so that clients are refused, not kept waiting, while the model loads."""
    if not 0 <= port <= 65535:
        raise ServeError(f"port {port} is none: use 1 to 65535, or 0 for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ServeError(f"host {host!r} is no address of this machine: use 127.0.0.1, or 0.0.0.0 for all") from None
    if key is None and not gate.is_loopback(str(address[0])):
        raise ServeError(f"host {host} means {address[0]}, not this machine: use 127.0.0.1, or set a key")
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # take over a port whose last connections are still fading
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ServeError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another --port, 0 for any free one"
        ) from None
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Tells when it listens, and ends the engine's work when it no longer does; everything else is uvicorn's."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready, self._on_end = on_ready, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._on_end()  # before the loop waits for worker threads, which a long prompt may keep busy


def make(
    backend: Backend,
    bound: socket.socket,
    *,
    key: str | None,
    queue: int,
    body_limit: int,
    ready: Callable[[Ready], None],
    log: Log,
) -> tuple[Server, Service]:
    """The server for a bound socket, not yet running."""
    service = Service(backend, queue=queue, body_limit=body_limit)
    app = App(service, Guard(key), routes(), log)
    # Its messages tell what the log lines already do; what endpoints raise, `App` answers and logs.
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=round(DRAIN_S),
    )
    told = Ready(url_of(bound), backend.names[0], backend.context, backend.slots)
    return Server(config, lambda: ready(told), service.close), service


def run(
    backend: Backend,
    bound: socket.socket,
    *,
    key: str | None,
    queue: int,
    body_limit: int,
    ready: Callable[[Ready], None],
    log: Log,
) -> None:
    """Serve until a signal; then texts under way get `DRAIN_S` seconds, a second Ctrl-C none."""
    server, service = make(backend, bound, key=key, queue=queue, body_limit=body_limit, ready=ready, log=log)
    try:
        with _terminable():
            asyncio.run(server.serve(sockets=[bound]))
    finally:
        service.close()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """uvicorn raises a signal again once it has shut down; SIGTERM must not end the process before our clean-up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    before = signal.signal(signal.SIGTERM, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
