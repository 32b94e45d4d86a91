"""A client that goes away frees its place: while its text comes, while it waits, and before any token came."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any

import pytest

from genmote.runtime.generation import Request as Job
from genmote.web.fake import ScriptedBackend
from genmote.web.service import Service, Texts

CHAT = "/v1/chat/completions"


def leave(raw: socket.socket, how: str) -> None:
    if how == "reset":
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    raw.close()


def connect(port: int, path: str, **fields: Any) -> socket.socket:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", **fields}).encode()
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    raw.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return raw


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("streamed", [False, True])
def test_while_the_text_comes(start: Any, path: str, streamed: bool, how: str) -> None:
    running = start(ScriptedBackend(lambda job: ["x"] * 1_000_000, pace=lambda: time.sleep(0.005), context=10_000_000))
    raw = connect(running.port, path, stream=streamed, max_tokens=1_000_000, n=2)
    if streamed:
        assert b"200 OK" in raw.recv(65536)
    assert running.settles(open=2, active=2)
    leave(raw, how)
    assert running.settles(open=0, active=0, waiting=0)
    assert running.logs(" 499 ")


def test_while_it_waits(start: Any) -> None:
    go = threading.Event()
    running = start(ScriptedBackend(slots=1, pace=lambda: go.wait(20)), queue=2)
    first = connect(running.port, CHAT)
    assert running.settles(active=1)
    second = connect(running.port, CHAT, stream=True)
    third = connect(running.port, CHAT)
    assert running.settles(open=3, waiting=2)
    leave(second, "close")
    leave(third, "reset")
    assert running.settles(open=1, waiting=0)
    go.set()
    got = b""
    while b"Hello there" not in got:
        part = first.recv(65536)
        assert part, got
        got += part
    first.close()


def test_before_any_token(start: Any) -> None:
    go = threading.Event()
    running = start(ScriptedBackend(pace=lambda: go.wait(20)))
    raw = connect(running.port, CHAT, stream=True)
    assert running.settles(active=1)
    leave(raw, "close")
    go.set()
    assert running.settles(open=0, active=0)


def test_while_the_job_is_being_submitted(start: Any) -> None:
    """The cancellation comes before there is anything to cancel."""

    class Slow(ScriptedBackend):
        entered, go = threading.Event(), threading.Event()

        def submit(self, job: Any, deliver: Any) -> Any:
            self.entered.set()
            self.go.wait(20)
            return super().submit(job, deliver)

    backend = Slow(lambda job: ["x"] * 4000, pace=lambda: time.sleep(0.01))
    running = start(backend)
    raw = connect(running.port, CHAT)
    assert backend.entered.wait(20)
    leave(raw, "close")
    assert running.logs(" 499 ")
    backend.go.set()
    assert running.settles(open=0, active=0)


def test_before_the_body_is_whole(start: Any) -> None:
    running = start(ScriptedBackend())
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
    assert running.settles(open=0)
    assert running.logs(" 499 ")


class Measuring(ScriptedBackend):
    """Measures until it is told that nobody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.ended = threading.Event(), threading.Event()

    def embed(self, tokens: Any, check: Any) -> Any:
        self.begun.set()
        try:
            for _ in range(4000):
                check()
                time.sleep(0.005)
        finally:
            self.ended.set()
        return [1.0]

    def score(self, tokens: Any, top: int, check: Any) -> Any:
        return self.embed(tokens, check)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input": ["a"] * 2048}),
        ("/v1/completions", {"echo": True, "logprobs": 0}),
        ("/v1/completions", {"echo": True, "logprobs": 0, "stream": True, "n": 2}),
        ("/v1/completions", {"echo": True, "logprobs": 0, "max_tokens": 0}),
    ],
    ids=["embeddings", "echo", "streamed echo", "echo alone"],
)
def test_while_a_text_is_measured(start: Any, path: str, fields: dict[str, Any]) -> None:
    backend = Measuring()
    running = start(backend)
    raw = connect(running.port, path, **fields)
    assert backend.begun.wait(20) and running.load()["open"] == fields.get("n", 1)
    leave(raw, "close")
    assert backend.ended.wait(5)
    assert running.settles(open=0)
    assert running.logs(" 499 ")
    assert not backend.jobs


def test_while_it_waits_for_a_clerk(start: Any) -> None:
    class Busy(ScriptedBackend):
        go = threading.Event()

        def chat_prompt(self, messages: Any, tools: Any) -> Any:
            assert self.go.wait(20)
            return super().chat_prompt(messages, tools)

    backend = Busy()
    running = start(backend)
    ask = {"messages": [{"role": "user", "content": "a"}]}
    working = [threading.Thread(target=running.post, args=(CHAT, ask)) for _ in range(2)]
    for one in working:
        one.start()
    assert running.settles(open=2)
    waiting = connect(running.port, CHAT)
    assert running.settles(open=3)
    leave(waiting, "close")
    assert running.settles(open=2)
    backend.go.set()
    for one in working:
        one.join(20)
    assert len(backend.jobs) == 2 and running.settles(open=0)


def test_before_its_texts_begin() -> None:
    """Cancelled while all clerks are busy with others: it is never submitted, and its places come back."""
    backend = ScriptedBackend()
    service = Service(backend, queue=4, body_limit=1)
    go = threading.Event()

    async def wait() -> None:
        async with Texts(service, [Job([1])] * 3, {}) as texts:
            async for _ in texts:
                pass

    async def main() -> None:
        busy = [asyncio.ensure_future(service.clerk(lambda: go.wait(20))) for _ in range(2)]
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0.05)
        assert service.open == 5
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert service.open == 2
        go.set()
        await asyncio.gather(*busy)

    asyncio.run(main())
    service.close()
    assert service.open == 0 and not backend.jobs


def test_others_go_on(start: Any, client: Any) -> None:
    running = start(ScriptedBackend(lambda job: ["x"] * 40, slots=2, pace=lambda: time.sleep(0.01)), queue=20)
    leavers = [connect(running.port, CHAT, stream=True) for _ in range(10)]
    stayer = client(running).chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    for raw in leavers:
        leave(raw, "reset")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stayer) == "x" * 40
    assert running.settles(open=0, active=0, waiting=0)
