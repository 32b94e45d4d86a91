"""The real engine behind the server: scheduler, sampling, grammars; only the model is a fake that echoes."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from genmote.models.chat import ChatTemplate
from genmote.runtime.engine import Engine
from genmote.runtime.fake import fake_engine
from genmote.web.local import LocalBackend, names_of
from genmote.web.openai.tools import LISTED, dialect_of

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


TEMPLATE = "{# tools #}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\n' }}{% endfor %}assistant:"


def engine(**settings: Any) -> Engine:
    made = fake_engine(**settings)
    made.chat_template = ChatTemplate(TEMPLATE)
    return made


@pytest.fixture
def serving(start: Callable[..., Any]) -> Callable[..., Any]:
    def begin(slots: int = 4, queue: int = 16, **settings: Any) -> Any:
        return start(LocalBackend(engine(**settings), ["echo"], slots=slots), queue=queue)

    return begin


def test_text_is_the_engine_s(serving: Any) -> None:
    running = serving()
    answer = running.post(TEXT, {"prompt": "ab ab", "max_tokens": 5, "temperature": 0})[1]
    assert answer["choices"][0]["text"] == " ab a"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 5,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    again = running.post(TEXT, {"prompt": "ab ab", "max_tokens": 5, "temperature": 0})[1]
    assert again["choices"][0]["text"] == " ab a"
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 5


def test_eight_clients_on_four_slots_get_what_each_gets_alone(serving: Any, client: Any) -> None:
    requests = [
        {"prompt": f"number {i} of {'x' * i * 40} again {i}", "max_tokens": 60, "temperature": (i % 3) / 2, "seed": i}
        for i in range(8)
    ]
    alone = []
    for request in requests:
        with fake_engine(sure=2.0) as one:
            alone.append(one.generate(request["prompt"], **{k: v for k, v in request.items() if k != "prompt"}).text)
    running = serving(sure=2.0)
    api = client(running)

    def ask(i: int) -> str:
        chunks = api.completions.create(model="echo", stream=True, **requests[i])
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone
    assert len(set(alone)) == 8
    assert running.settles(open=0, active=0, waiting=0)


def test_seed_gives_the_same_text_again(serving: Any) -> None:
    running = serving(sure=0.0)
    ask = {"prompt": "ab", "max_tokens": 20, "n": 2, "seed": 5}
    first, second = (running.post(TEXT, ask)[1]["choices"] for _ in range(2))
    assert [choice["text"] for choice in first] == [choice["text"] for choice in second]
    assert first[0]["text"] != first[1]["text"]


def test_stop_strings(serving: Any) -> None:
    answer = serving().post(TEXT, {"prompt": "one two one", "max_tokens": 50, "temperature": 0, "stop": "ne on"})[1]
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (" o", "stop")


def test_context_bounds_the_text(serving: Any) -> None:
    running = serving(context=64)
    answer = running.post(TEXT, {"prompt": "ab ab", "max_tokens": 1000, "temperature": 0})[1]
    assert answer["usage"]["total_tokens"] == 64 and answer["choices"][0]["finish_reason"] == "length"
    status, answer, _ = running.post(CHAT, {"messages": [{"role": "user", "content": "x" * 100}]})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "context_length_exceeded", "messages")


def test_logprobs_are_the_model_s(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmote.web.local._LOGITS", 64 * 258)
    running = serving(sure=6.0)
    made = running.post(TEXT, {"prompt": "ab ab", "max_tokens": 4, "temperature": 0, "logprobs": 2})[1]["choices"][0]
    for logprob, top in zip(made["logprobs"]["token_logprobs"], made["logprobs"]["top_logprobs"], strict=True):
        assert logprob == pytest.approx(max(top.values())) and logprob < 0 and len(top) == 2
    # The same text as a prompt scores the same, in this order: echoed tokens after the first.
    text = "ab ab" + made["text"]
    scored = running.post(TEXT, {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1})[1]["choices"][0]
    assert scored["text"] == text == "".join(scored["logprobs"]["tokens"])
    assert scored["logprobs"]["token_logprobs"][5:] == pytest.approx(made["logprobs"]["token_logprobs"], abs=1e-5)
    with engine(sure=6.0) as one:
        assert scored["logprobs"]["token_logprobs"] == pytest.approx(one.score(text).logprobs, abs=1e-6)
    long = running.post(TEXT, {"prompt": "abc" * 70, "max_tokens": 0, "echo": True, "logprobs": 1})[1]["choices"][0]
    with engine(sure=6.0) as one:  # more rows than are scored at once
        assert long["logprobs"]["token_logprobs"] == pytest.approx(one.score("abc" * 70).logprobs, abs=1e-6)


def test_embeddings(serving: Any) -> None:
    data = serving().post(EMBED, {"input": ["ab", [97, 98]]})[1]["data"]
    with engine() as one:
        assert data[0]["embedding"] == pytest.approx(list(one.embed("ab")))
        assert data[1]["embedding"] == pytest.approx(list(one.embed([97, 98])))
    assert math.hypot(*data[0]["embedding"]) == pytest.approx(1)


def test_schema_binds_the_text(serving: Any) -> None:
    pytest.importorskip("llguidance", reason="grammars need llguidance")
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    running = serving(sure=0.0)
    for seed in range(8):
        ask = {"messages": [{"role": "user", "content": "hi"}], "response_format": form, "seed": seed}
        choice = running.post(CHAT, ask)[1]["choices"][0]
        value = json.loads(choice["message"]["content"])
        assert set(value) == {"a", "b"} and value["a"] <= 99 and value["b"] in "xy"
        assert choice["finish_reason"] == "stop"


def test_required_tool_is_called_by_a_model_that_knows_nothing(serving: Any) -> None:
    pytest.importorskip("llguidance", reason="grammars need llguidance")
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "parameters": {
                    "type": "object",
                    "properties": {"room": {"$ref": "#/$defs/Room"}},
                    "required": ["room"],
                    "additionalProperties": False,
                    "$defs": {"Room": {"enum": [room]}},
                },
            },
        }
        for name, room in (("lamp", "hall"), ("heater", "attic"))
    ]
    running = serving(sure=0.0)
    seen = set()
    for seed in range(12):
        ask = {"messages": [{"role": "user", "content": "hi"}], "tools": tools, "tool_choice": "required", "seed": seed}
        choice = running.post(CHAT, ask)[1]["choices"][0]
        call = choice["message"]["tool_calls"][0]["function"]
        assert json.loads(call["arguments"]) == {"room": {"lamp": "hall", "heater": "attic"}[call["name"]]}
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        seen.add(call["name"])
    assert seen == {"lamp", "heater"}


def test_schema_that_cannot_be_used(serving: Any) -> None:
    pytest.importorskip("llguidance", reason="grammars need llguidance")
    running = serving()
    for schema in ({"type": "no-such-type"}, {"$ref": "#/$defs/none"}):
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        status, answer, _ = running.post(
            CHAT, {"messages": [{"role": "user", "content": "x"}], "response_format": form}
        )
        assert (status, answer["error"]["code"]) == (400, "invalid_schema"), answer
    assert running.settles(open=0)


def test_leaving_during_a_long_prompt_frees_the_slot(serving: Any) -> None:
    running = serving(slots=1, context=200_000)
    body = json.dumps({"prompt": "abcdefg" * 20_000, "max_tokens": 10_000, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert running.settles(active=1)
    assert running.settles(open=0, active=0)
    assert running.post(TEXT, {"prompt": "ab ab", "max_tokens": 3, "temperature": 0})[1]["choices"][0]["text"] == " ab"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input": ["abc" * 30_000] * 10}),
        (TEXT, {"prompt": "abc" * 30_000, "echo": True, "logprobs": 0, "max_tokens": 0}),
    ],
    ids=["embeddings", "echo"],
)
def test_leaving_ends_what_is_measured(
    serving: Any, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr("genmote.web.local._LOGITS", 64 * 258)
    running = serving(context=100_000)
    decoder = running.service.backend.engine.decoder
    body = json.dumps(fields).encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as raw:
        raw.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert running.settles(open=1)
        while not decoder.steps:
            time.sleep(0.01)
    assert running.settles(open=0)
    time.sleep(0.5)  # the part that was under way
    done = decoder.steps
    time.sleep(0.3)
    assert decoder.steps == done


def test_others_come_through_beside_many_texts(serving: Any) -> None:
    """An embedding and a scored prompt need the engine between the steps of the texts at work."""
    running = serving(slots=2)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            running.post(TEXT, {"prompt": "ab ab", "max_tokens": 200})

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert running.post(EMBED, {"input": "ab"})[0] == 200
            assert running.post(TEXT, {"prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": 0})[0] == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_base_model_says_so(start: Any) -> None:
    running = start(LocalBackend(fake_engine(), ["echo"], slots=1))
    status, answer, _ = running.post(CHAT, {"messages": [{"role": "user", "content": "hi"}]})
    assert (status, answer["error"]["code"]) == (400, "no_chat_template")


def test_a_template_for_tools_says_how_calls_are_written() -> None:
    one = fake_engine()
    one.chat_template = ChatTemplate("plain", tool_source="{{ tools | tojson }} [TOOL_CALLS]")
    backend = LocalBackend(one, ["echo"], slots=1)
    try:
        assert backend.template is not None and dialect_of(backend.template) is LISTED
        offered = [{"type": "function", "function": {"name": "on"}}]
        text = bytes(backend.chat_prompt([{"role": "user", "content": "hi"}], offered)[1:])
        assert json.loads(text.removesuffix(b"[TOOL_CALLS]")) == offered
    finally:
        backend.close()


def test_names() -> None:
    assert names_of("smollm2-135m", None) == ["smollm2-135m"]
    assert names_of("hf:org/repo/file.gguf", None) == ["hf:org/repo/file.gguf"]
    assert names_of("smollm2-135m", None, "a.gguf") == ["a.gguf", "smollm2-135m"]


def test_ending_does_not_wait_for_a_long_prompt_to_be_scored(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmote.web.local._LOGITS", 64 * 258)
    running = serving(context=100_000)
    ask = {"prompt": "abc" * 30_000, "echo": True, "logprobs": 0, "max_tokens": 0}
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(running.post(TEXT, ask)))
    asking.start()
    assert running.settles(open=1)
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 10
    asking.join()
    assert answers[0][0] == 503 and answers[0][1]["error"]["code"] == "shutting_down"
