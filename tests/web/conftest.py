"""A server on a free port of this machine, in a thread of the test, around any backend."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server needs the extra: pip install 'genmote[server]'")
pytest.importorskip("uvicorn", reason="the server needs the extra: pip install 'genmote[server]'")

from genmote.web.backend import Backend
from genmote.web.server import Ready, bind, make
from genmote.web.service import Service


@dataclass
class Running:
    """A server at work. `ask` sends one request and gives (status, JSON body, headers)."""

    port: int
    service: Service
    stop: Callable[[], None]
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, raw, headers or {})
            response = connection.getresponse()
            text = response.read()
            found = {name.lower(): value for name, value in response.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text, found
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        return self.ask("POST", path, body)

    def load(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/health")[1])

    def settles(self, **wanted: int) -> bool:
        """Whether /health comes to show these numbers within seconds."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            load = self.load()
            if all(load[name] == value for name, value in wanted.items()):
                return True
            time.sleep(0.01)
        return False

    def logs(self, part: str) -> bool:
        """Whether a line with `part` comes to be in the log within seconds."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if any(part in line for line in list(self.log)):
                return True
            time.sleep(0.01)
        return False


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Starts servers: ``start(backend, key=None, queue=4, body_limit=…)``; all are stopped at the end."""
    servers: list[Running] = []

    def begin(
        backend: Backend, *, key: str | None = None, queue: int = 4, body_limit: int = 1 << 20, body_wait_s: float = 30
    ) -> Running:
        bound = bind("127.0.0.1", 0, key)
        told: list[Ready] = []
        listening = threading.Event()
        log: list[str] = []

        def ready(what: Ready) -> None:
            told.append(what)
            listening.set()

        server, service = make(backend, bound, key=key, queue=queue, body_limit=body_limit, ready=ready, log=log.append)
        service.body_wait_s = body_wait_s
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join(20)
            service.close()
            bound.close()
            assert not thread.is_alive()

        assert listening.wait(20)
        running = Running(int(told[0].url.rsplit(":", 1)[1]), service, stop, log)
        servers.append(running)
        return running

    yield begin
    for running in servers:
        running.stop()


@pytest.fixture
def client() -> Iterator[Callable[..., Any]]:
    """The official client for a running server: ``client(running)``."""
    openai = pytest.importorskip("openai", reason="the official client is not installed: pip install openai")
    made: list[Any] = []

    def connect(running: Running, key: str = "none", **options: Any) -> Any:
        made.append(openai.OpenAI(base_url=running.url + "/v1", api_key=key, max_retries=0, timeout=60, **options))
        return made[-1]

    yield connect
    for one in made:
        one.close()
