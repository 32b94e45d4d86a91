"""Each wrong request ends in one 4xx answer in the API's error shape that names the fault; the server lives on."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from typing import Any

import pytest

from genmote.errors import GenmoteError, GrammarError
from genmote.web.backend import Piece
from genmote.web.fake import ScriptedBackend
from genmote.web.problem import Problem
from genmote.web.service import Service

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ASK = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "lamp"}}


def asking(**fields: Any) -> dict[str, Any]:
    return {**ASK, **fields}


def saying(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi", **fields}]}


# path, body, param, a part of the message
WRONG: list[tuple[str, Any, str | None, str]] = [
    (CHAT, b"{", None, "is not JSON"),
    (CHAT, b"", None, "is not JSON"),
    (CHAT, b"\xff\xfe", None, "is not JSON"),
    (CHAT, b"[1]", None, "the body is a list: send one JSON object"),
    (CHAT, b"null", None, "the body is null"),
    (CHAT, b'{"temperature": NaN}', None, "NaN is no JSON number"),
    (CHAT, b'{"temperature": -Infinity}', None, "-Infinity is no JSON number"),
    (CHAT, b"[" * 100_000, None, "nests too deeply"),
    (CHAT, b'{"seed": ' + b"9" * 5000 + b"}", None, "is not JSON"),
    (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "half a surrogate pair"),
    (
        CHAT,
        b'{"temperature": 1e999, "messages": []}',
        "temperature",
        "temperature: got inf, wanted a number from 0 to 2",
    ),
    (CHAT, {}, "messages", "messages is missing"),
    (CHAT, {"messages": []}, "messages", "got an empty list"),
    (CHAT, {"messages": "hi"}, "messages", "got a string, wanted a list"),
    (CHAT, {"messages": ["hi"]}, "messages[0]", "got a string, wanted an object"),
    (CHAT, {"messages": [{"content": "hi"}]}, "messages[0].role", "messages[0].role is missing"),
    (CHAT, saying(role="king"), "messages[0].role", "got 'king', wanted one of assistant"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "content is missing"),
    (CHAT, saying(content=5), "messages[0].content", "got an integer"),
    (CHAT, saying(content=["a"]), "messages[0].content[0]", "got a string, wanted an object"),
    (CHAT, saying(content=[{"type": "image_url"}]), "messages[0].content[0].type", "wanted text"),
    (CHAT, saying(content=[{"type": "text"}]), "messages[0].content[0].text", "text is missing"),
    (CHAT, saying(role="assistant", tool_calls=[{}]), "messages[0].tool_calls[0].function", "function is missing"),
    (CHAT, asking(model=5), "model", "got an integer, wanted a string"),
    (CHAT, asking(temperature=-1), "temperature", "got -1, wanted a number from 0 to 2"),
    (CHAT, asking(temperature="hot"), "temperature", "got a string"),
    (CHAT, asking(temperature=True), "temperature", "got a boolean"),
    (CHAT, asking(top_p=1.1), "top_p", "from 0 to 1"),
    (CHAT, asking(top_k=-1), "top_k", "got -1"),
    (CHAT, asking(min_p=2), "min_p", "got 2"),
    (CHAT, asking(repetition_penalty=0), "repetition_penalty", "got 0"),
    (CHAT, asking(presence_penalty=3), "presence_penalty", "from -2 to 2"),
    (CHAT, asking(frequency_penalty=-3), "frequency_penalty", "from -2 to 2"),
    (CHAT, asking(seed=1.5), "seed", "got 1.5, wanted an integer"),
    (CHAT, asking(seed=2**64), "seed", "wanted an integer from"),
    (CHAT, asking(n=0), "n", "got 0, wanted an integer from 1 to 8"),
    (CHAT, asking(n=9), "n", "got 9"),
    (CHAT, asking(stream="yes"), "stream", "wanted true or false"),
    (CHAT, asking(stream_options=1), "stream_options", "wanted an object"),
    (CHAT, asking(stop=[1]), "stop", "wanted a string or a list of strings"),
    (CHAT, asking(stop=["x"] * 17), "stop", "got 17 strings"),
    (CHAT, asking(max_tokens=0), "max_tokens", "got 0"),
    (CHAT, asking(max_completion_tokens=-1), "max_completion_tokens", "got -1"),
    (CHAT, asking(logit_bias={"x": 1}), "logit_bias", "got token 'x'"),
    (CHAT, asking(logit_bias={"256": 1}), "logit_bias", "token ids from 0 to 255"),
    (CHAT, asking(logit_bias={"1": 101}), "logit_bias.1", "from -100 to 100"),
    (CHAT, asking(logprobs=3), "logprobs", "wanted true or false"),
    (CHAT, asking(top_logprobs=2), "top_logprobs", "needs logprobs: true"),
    (CHAT, asking(logprobs=True, top_logprobs=21), "top_logprobs", "from 0 to 20"),
    (CHAT, asking(response_format={"type": "xml"}), "response_format.type", "one of json_object, json_schema, text"),
    (CHAT, asking(response_format={"type": "json_schema"}), "response_format.json_schema.schema", "is missing"),
    (CHAT, asking(tools={}), "tools", "got an object, wanted a list"),
    (CHAT, asking(tools=[{"type": "retrieval"}]), "tools[0].type", "one of function"),
    (CHAT, asking(tools=[{"type": "function"}]), "tools[0].function", "is missing"),
    (CHAT, asking(tools=[{"function": {"name": "a b"}}]), "tools[0].function.name", "letters, digits"),
    (CHAT, asking(tools=[{"function": {"name": "a", "parameters": 1}}]), "tools[0].function.parameters", "an object"),
    (CHAT, asking(tool_choice="required"), "tool_choice", "needs tools"),
    (CHAT, asking(tools=[TOOL], tool_choice="maybe"), "tool_choice", "got 'maybe'"),
    (CHAT, asking(tools=[TOOL], tool_choice=3), "tool_choice", "got an integer"),
    (CHAT, asking(tools=[TOOL], tool_choice={"function": {"name": "x"}}), "tool_choice", "one of the tools: lamp"),
    (CHAT, asking(functions=[]), "functions", "use tools"),
    (CHAT, saying(content="x" * 5000), "messages", "takes 5006 tokens and the context holds 4096"),
    (TEXT, {}, "prompt", "prompt is missing"),
    (TEXT, {"prompt": 5}, "prompt", "got an integer"),
    (TEXT, {"prompt": []}, "prompt", "got an empty list"),
    (TEXT, {"prompt": ""}, "prompt", "the prompt is empty"),
    (TEXT, {"prompt": [256]}, "prompt", "got 256, wanted token ids from 0 to 255"),
    (TEXT, {"prompt": [1, "a"]}, "prompt", "got a string, wanted token ids"),
    (TEXT, {"prompt": [[True]]}, "prompt[0]", "got a boolean"),
    (TEXT, {"prompt": ["a", {}]}, "prompt[1]", "got an object"),
    (TEXT, {"prompt": ["a"] * 9}, "prompt", "at most 8 texts together"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    (TEXT, {"prompt": "a", "best_of": 2}, "best_of", "got 2, wanted n (1)"),
    (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs", "got 21"),
    (TEXT, {"prompt": "a" * 4096}, "prompt", "takes 4096 tokens"),
    (EMBED, {}, "input", "input is missing"),
    (EMBED, {"input": ""}, "input", "an empty text"),
    (EMBED, {"input": ["a", ""]}, "input", "an empty text"),
    (EMBED, {"input": [[]]}, "input", "an empty list of tokens"),
    (EMBED, {"input": ["a"] * 2049}, "input", "at most 2048"),
    (EMBED, {"input": "a" * 4097}, "input", "takes 4096 tokens"),
    (EMBED, {"input": "a", "dimensions": 8}, "dimensions", "not supported"),
    (EMBED, {"input": "a", "encoding_format": "hex"}, "encoding_format", "one of base64, float"),
]


def test_every_wrong_request(start: Any) -> None:
    running = start(ScriptedBackend())
    for path, body, param, message in WRONG:
        status, answer, _ = running.post(path, body)
        seen = (path, body if len(str(body)) < 300 else "...", status, answer)
        assert status == 400, seen
        assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}, seen
        error = answer["error"]
        assert error["type"] == "invalid_request_error" and message in error["message"], seen
        assert error["param"] == param and "\n" not in error["message"], seen
    assert running.post(CHAT, ASK)[0] == 200
    assert running.load()["open"] == 0 and not running.service.backend.jobs[1:]


VALUES = [
    None,
    True,
    -1,
    0,
    2,
    1.5,
    1e308,
    2**70,
    "",
    "x",
    "\x00\ud83d\ude00",
    [],
    [1],
    ["a"],
    [[1]],
    [[]],
    {},
    {"a": 1},
    {"1": 1},
]
FULL = {
    CHAT: asking(
        model="scripted",
        temperature=1,
        top_p=1,
        top_k=1,
        min_p=0,
        seed=1,
        n=1,
        stop="x",
        stream=False,
        max_tokens=5,
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=1,
        logit_bias={"1": 1},
        tools=[TOOL],
        tool_choice="auto",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        stream_options={"include_usage": True},
        presence_penalty=0,
        frequency_penalty=0,
    ),
    TEXT: {"prompt": "a", "max_tokens": 3, "logprobs": 1, "echo": True, "best_of": 1, "suffix": None, "n": 1},
    EMBED: {"input": "a", "encoding_format": "float", "dimensions": None},
}


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in items for place in _places(inner, (*at, key)))]


def _with(value: Any, place: tuple[Any, ...], put: Any) -> Any:
    if not place:
        return put
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[place[0]] = _with(value[place[0]], place[1:], put)
    return changed


@pytest.mark.parametrize("path", FULL)
def test_no_value_in_any_place_is_the_server_s_fault(start: Any, path: str) -> None:
    """Every field of a full request takes every odd value: the answer is 200 or 4xx in the API's shape."""
    running = start(ScriptedBackend())
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    for place in _places(FULL[path]):
        for value in VALUES:
            connection.request("POST", path, json.dumps(_with(FULL[path], place, value)))
            response = connection.getresponse()
            raw = response.read()
            assert response.status < 500, (place, value, raw)
            if response.status != 200:
                assert set(json.loads(raw)["error"]) == {"message", "type", "param", "code"}, (place, value, raw)
    connection.close()
    assert running.load()["open"] == 0


def test_unknown_model_path_and_method(start: Any) -> None:
    running = start(ScriptedBackend())
    for status, answer in (
        running.post(CHAT, asking(model="gpt-9"))[:2],
        running.post(EMBED, {"model": "gpt-9", "input": "a"})[:2],
        running.ask("GET", "/v1/models/gpt-9")[:2],
    ):
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert answer["error"]["message"] == "model 'gpt-9' is not served here: use 'scripted'"
    status, answer, _ = running.ask("GET", "/v2/%0a%1b[31mred")
    assert (status, answer["error"]["code"]) == (404, "not_found")
    status, answer, headers = running.ask("GET", CHAT)
    assert (status, answer["error"]["code"], headers["allow"]) == (405, "method_not_allowed", "POST")
    assert "use POST" in answer["error"]["message"]
    assert running.ask("DELETE", "/v1/models")[0] == 405
    assert all(line.isprintable() for line in running.log)


def test_base_model_has_no_chat(start: Any) -> None:
    status, answer, _ = start(ScriptedBackend(template=None)).post(CHAT, ASK)
    assert (status, answer["error"]["code"]) == (400, "no_chat_template")
    assert "use /v1/completions" in answer["error"]["message"]


def test_body_limit(start: Any) -> None:
    running = start(ScriptedBackend(), body_limit=1000)
    status, answer, headers = running.post(CHAT, b" " * 1001)
    assert (status, answer["error"]["code"], headers["connection"]) == (413, "body_too_large", "close")
    assert answer["error"]["message"] == "the body is over 1000 bytes: send less"
    assert running.post(CHAT, json.dumps(ASK).encode().ljust(1000))[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    connection.request("POST", CHAT, iter([b" " * 600, b" " * 600]), encode_chunked=True)  # no length told
    assert connection.getresponse().status == 413
    connection.close()


def test_endless_body_is_cut_off(start: Any) -> None:
    running = start(ScriptedBackend(), body_limit=1000)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n")
        answer = _until_closed(raw, b"x" * 8192)
    assert answer.startswith(b"HTTP/1.1 413 ")


def _until_closed(raw: socket.socket, feed: bytes = b"") -> bytes:
    """All that comes until the other side closes, sending `feed` again and again meanwhile."""
    got = b""
    raw.settimeout(0.05 if feed else 20)
    for _ in range(2000):
        try:
            if feed and not got:
                raw.sendall(feed)
            part = raw.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionError, BrokenPipeError):
            return got
        if not part:
            return got
        got += part
    raise AssertionError("the server never closed")


def test_refusal_comes_before_the_body_where_the_client_waits_for_leave(start: Any) -> None:
    running = start(ScriptedBackend(), body_limit=1000)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n"
        )
        assert _until_closed(raw).startswith(b"HTTP/1.1 413 ")


def test_slow_body(start: Any) -> None:
    running = start(ScriptedBackend(), body_wait_s=0.2)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        answer = _until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.2 s" in answer


def test_slow_head_is_dropped(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from genmote.web import http1

    monkeypatch.setattr(http1, "HEAD_WAIT_S", 0.3)
    running = start(ScriptedBackend())
    for first in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"):  # also after an answered request
        with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
            raw.sendall(first)
            if first:
                assert raw.recv(65536).startswith(b"HTTP/1.1 200 ")
            began = time.monotonic()
            raw.sendall(b"GET /health HT")
            raw.settimeout(0.1)
            closed = False
            while not closed and time.monotonic() - began < 10:
                try:
                    raw.sendall(b"T")  # trickling does not help
                    closed = raw.recv(10) == b""
                except TimeoutError:
                    continue
                except OSError:
                    closed = True
            assert closed


def test_client_that_does_not_read_is_dropped(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from genmote.web import http1

    monkeypatch.setattr(http1, "READ_WAIT_S", 0.3)
    running = start(ScriptedBackend(lambda job: ["x" * 100_000] * 4000, pace=lambda: time.sleep(0.01)))
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(_post(CHAT, {**ASK, "stream": True}))
        assert running.settles(active=1)
        assert running.settles(open=0, active=0)  # long before all is said
    assert running.logs(" 499 ")


def _post(path: str, body: Any) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def test_too_many_connections(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from genmote.web import http1

    monkeypatch.setattr(http1, "CONNECTIONS", 3)
    running = start(ScriptedBackend())
    held = [socket.create_connection(("127.0.0.1", running.port), timeout=20) for _ in range(3)]
    time.sleep(0.1)
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw, pytest.raises(OSError):
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if raw.recv(10) == b"":
            raise ConnectionResetError
    for one in held:
        one.close()
    assert running.settles(open=0)


def test_no_http(start: Any) -> None:
    running = start(ScriptedBackend())
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00 hello, tls?\r\n\r\n")
        answer = _until_closed(raw)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert running.ask("GET", "/health")[0] == 200


def test_queue_limit(start: Any) -> None:
    go = threading.Event()
    running = start(ScriptedBackend(slots=1, pace=lambda: go.wait(20)), queue=1)
    try:
        waiting = [threading.Thread(target=running.post, args=(CHAT, ASK)) for _ in range(2)]
        for one in waiting:
            one.start()
        assert running.settles(open=2, active=1, waiting=1)
        status, answer, headers = running.post(CHAT, ASK)
        assert (status, headers["retry-after"]) == (429, "2")
        assert answer["error"] == {
            "message": "busy: 1 texts are being generated and 1 may wait; try again in 2 s",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert running.post(CHAT, {**ASK, "stream": True})[0] == 429  # not an event stream
        assert running.post(EMBED, {"input": "a"})[0] == 429
    finally:
        go.set()
    for one in waiting:
        one.join(20)
    assert running.settles(open=0)
    assert running.post(CHAT, ASK)[0] == 200


def test_many_texts_of_one_request_take_one_place(start: Any) -> None:
    go = threading.Event()
    running = start(ScriptedBackend(slots=1, pace=lambda: go.wait(20)), queue=0)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(running.post(EMBED, {"input": ["a"] * 2048})))
    asking.start()
    assert running.settles(open=1)
    assert running.post(EMBED, {"input": "a"})[0] == 429
    go.set()
    asking.join(20)
    assert answers[0][0] == 200 and len(answers[0][1]["data"]) == 2048
    assert running.settles(open=0)
    assert running.post("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 1})[0] == 200


def test_what_is_being_read_counts(start: Any) -> None:
    """A slow template keeps its own request waiting, not the others, and cannot pile up requests without end."""
    go = threading.Event()

    class Slow(ScriptedBackend):
        def chat_prompt(self, messages: Any, tools: Any) -> Any:
            assert go.wait(20)
            return super().chat_prompt(messages, tools)

    running = start(Slow(slots=1), queue=2)
    ask = [threading.Thread(target=running.post, args=(CHAT, ASK)) for _ in range(3)]
    ask[0].start()
    assert running.settles(open=1)
    assert running.post("/v1/completions", {"prompt": "a"})[0] == 200
    for one in ask[1:]:
        one.start()
    assert running.settles(open=3)
    assert running.post("/v1/completions", {"prompt": "a"})[0] == 429
    go.set()
    for one in ask:
        one.join(20)
    assert running.settles(open=0)


def test_a_service_that_is_closed_takes_nothing() -> None:
    service = Service(ScriptedBackend(), queue=1, body_limit=1)
    service.close()
    for work in (service.clerk(lambda: 1), service.compute(lambda check: check())):
        with pytest.raises(Problem, match="the server is shutting down") as caught:
            asyncio.run(work)
        assert caught.value.status == 503 and service.open == 0


class Broken(ScriptedBackend):
    """Fails after a piece, or at once."""

    def __init__(self, error: GenmoteError, *, at_once: bool) -> None:
        super().__init__()
        self.error, self.at_once = error, at_once

    def submit(self, job: Any, deliver: Any) -> Any:
        if self.at_once:
            raise self.error
        deliver(Piece("well", 1))
        deliver(Piece(error=self.error))
        return lambda: None


def test_engine_errors(start: Any) -> None:
    broken = start(Broken(GenmoteError("the engine failed: it is on fire"), at_once=False))
    status, answer, _ = broken.post(CHAT, ASK)
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert answer["error"]["message"] == "the engine failed: it is on fire"
    status, stream, _ = broken.post(CHAT, {**ASK, "stream": True})
    events = [json.loads(line[6:]) for line in stream.decode().split("\n\n") if line]
    assert status == 200 and events[-1]["error"]["message"] == "the engine failed: it is on fire"
    assert broken.load()["open"] == 0
    refused = start(Broken(GrammarError("bad json_schema: no"), at_once=True))
    for body in (ASK, {**ASK, "stream": True}):
        status, answer, _ = refused.post(CHAT, body)
        assert (status, answer["error"]["code"]) == (400, "invalid_schema")
    assert refused.load()["open"] == 0


def test_fault_of_the_server_itself(start: Any) -> None:
    class Faulty(ScriptedBackend):
        def embed(self, tokens: Any, check: Any) -> Any:
            raise ZeroDivisionError("secret")

    running = start(Faulty())
    status, answer, _ = running.post(EMBED, {"input": "a"})
    assert status == 500 and "secret" not in answer["error"]["message"]
    assert running.logs("ZeroDivisionError")
    assert running.load()["open"] == 0


def test_log_line_without_the_prompt(start: Any) -> None:
    running = start(ScriptedBackend())
    running.post(CHAT, saying(content="my secret"))
    assert running.logs(" 127.0.0.1 POST /v1/chat/completions 200 prompt=15 cached=7 generated=2 ")
    assert "secret" not in "".join(running.log)
