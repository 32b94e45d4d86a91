"""The official `openai` client, unchanged, against a server that says what it is told to."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from genmote.web.fake import ScriptedBackend

ASK = [{"role": "user", "content": "hi"}]
LAMP = {
    "type": "function",
    "function": {
        "name": "lamp",
        "description": "Switch the lamp",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
}


def saying(*pieces: str, **settings: Any) -> ScriptedBackend:
    return ScriptedBackend(lambda job: pieces, **settings)


def test_models(start: Any, client: Any) -> None:
    api = client(start(saying()))
    assert [model.id for model in api.models.list()] == ["scripted"]
    assert api.models.retrieve("scripted").created == 1_700_000_000
    assert api.models.retrieve("scripted.gguf").id == "scripted"


def test_chat_whole(start: Any, client: Any) -> None:
    backend = saying("Hel", "lo", "!")
    answer = client(start(backend)).chat.completions.create(model="scripted", messages=ASK, max_completion_tokens=50)
    assert answer.choices[0].message.content == "Hello!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (8, 3, 11)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert backend.jobs[0].max_tokens == 50


def test_chat_streamed_says_the_same(start: Any, client: Any) -> None:
    api = client(start(saying("Hel", "", "lo", "!")))
    chunks = list(api.chat.completions.create(model="scripted", messages=ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_streamed_usage(start: Any, client: Any) -> None:
    api = client(start(saying("a", "b")))
    options = {"model": "scripted", "stream": True, "stream_options": {"include_usage": True}}
    for chunks in (
        list(api.chat.completions.create(messages=ASK, **options)),
        list(api.completions.create(prompt="12345678", **options)),
    ):
        assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 10
        assert all(chunk.usage is None for chunk in chunks[:-1])


def test_several_choices_draw_from_seeds_that_count_up(start: Any, client: Any) -> None:
    backend = ScriptedBackend(lambda job: ["seed ", str(job.sampling.seed)])
    api = client(start(backend))
    answer = api.chat.completions.create(model="scripted", messages=ASK, n=3, seed=7)
    assert [choice.message.content for choice in answer.choices] == ["seed 7", "seed 8", "seed 9"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 6)
    texts = ["", "", ""]
    for chunk in api.chat.completions.create(model="scripted", messages=ASK, n=3, seed=7, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["seed 7", "seed 8", "seed 9"]


def test_sampling_reaches_the_engine(start: Any, client: Any) -> None:
    backend = saying("x")
    client(start(backend)).chat.completions.create(
        model="scripted",
        messages=ASK,
        temperature=0.3,
        top_p=0.9,
        seed=-5,
        stop=["END", "STOP"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"65": -100, "66": 5},
        extra_body={"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2, "no_such_field": [1]},
    )
    job = backend.jobs[0]
    s = job.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.seed) == (0.3, 0.9, 40, 0.1, -5)
    assert (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) == (1.2, 0.5, -0.5)
    assert dict(s.logit_bias) == {65: -100.0, 66: 5.0}
    assert job.stop == ("END", "STOP")
    assert job.max_tokens == backend.context - 8  # all that the context still holds


def test_defaults_are_the_api_s(start: Any, client: Any) -> None:
    backend = saying("x")
    api = client(start(backend))
    api.completions.create(model="scripted", prompt="abc")
    job = backend.jobs[0]
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.seed) == (1.0, 1.0, None)
    assert (job.max_tokens, job.stop, job.grammar, job.logprobs) == (16, (), None, False)


def test_length(start: Any, client: Any) -> None:
    api = client(start(saying("a", "b", "c")))
    answer = api.chat.completions.create(model="scripted", messages=ASK, max_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("ab", "length")


def test_chat_logprobs(start: Any, client: Any) -> None:
    api = client(start(saying("h", "é")))
    answer = api.chat.completions.create(model="scripted", messages=ASK, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert [entry.token for entry in content] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == "hé"
    assert content[0].logprob == -0.5
    assert [top.logprob for top in content[0].top_logprobs] == [-0.5, -9999.0]  # JSON has no -inf
    chunks = api.chat.completions.create(model="scripted", messages=ASK, logprobs=True, top_logprobs=2, stream=True)
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
    assert streamed == content


def test_completions_in_order_of_prompts(start: Any, client: Any) -> None:
    backend = ScriptedBackend(lambda job: [bytes(job.prompt).decode().upper()])
    api = client(start(backend))
    answer = api.completions.create(model="scripted", prompt=["one", "two"], n=2)
    assert [choice.text for choice in answer.choices] == ["ONE", "ONE", "TWO", "TWO"]
    assert answer.usage.prompt_tokens == 6
    assert api.completions.create(model="scripted", prompt=[111, 110]).choices[0].text == "ON"
    assert [c.text for c in api.completions.create(model="scripted", prompt=[[111], [110]]).choices] == ["O", "N"]


def test_completion_echo_and_logprobs(start: Any, client: Any) -> None:
    api = client(start(saying("cd")))
    options = {"model": "scripted", "prompt": "ab", "echo": True, "logprobs": 1}
    choice = api.completions.create(**options).choices[0]
    assert choice.text == "abcd"
    assert choice.logprobs.tokens == ["a", "b", "c", "d"]
    assert choice.logprobs.token_logprobs == [None, -1.0, -0.5, -0.5]
    assert choice.logprobs.text_offset == [0, 1, 2, 3]
    assert choice.logprobs.top_logprobs[:2] == [None, {"b": -1.0}]
    streamed = list(api.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abcd"
    assert streamed[-1].choices[0].finish_reason == "stop"
    scored = api.completions.create(**options, max_tokens=0).choices[0]
    assert (scored.text, scored.logprobs.tokens, scored.finish_reason) == ("ab", ["a", "b"], "length")
    assert api.completions.create(model="scripted", prompt=[97, 98], echo=True).choices[0].text == "abcd"


def test_embeddings_as_numbers_and_as_bytes(start: Any, client: Any) -> None:
    running = start(saying())
    api = client(running)
    answer = api.embeddings.create(model="scripted", input=["a", "bcd"])  # the client asks for base64 by itself
    assert [row.embedding[2] for row in answer.data] == [1.0, 3.0]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4, 4)
    floats = api.embeddings.create(model="scripted", input=[97, 98], encoding_format="float").data[0].embedding
    raw = running.post("/v1/embeddings", {"input": "ab", "encoding_format": "base64"})[1]["data"][0]["embedding"]
    assert list(struct.unpack("<3f", base64.b64decode(raw))) == floats


@pytest.mark.parametrize("cut", [1, 3, 7, 1000])
@pytest.mark.parametrize("streamed", [False, True])
def test_tool_call_out_of_text(start: Any, client: Any, cut: int, streamed: bool) -> None:
    text = 'I will.\n<tool_call>\n{"name": "lamp", "arguments": {"on": true}}\n</tool_call>'
    backend = saying(*(text[i : i + cut] for i in range(0, len(text), cut)))
    api = client(start(backend))
    content, calls, finish = _ask(api, streamed, tools=[LAMP])
    assert (content, finish) == ("I will.\n", "tool_calls")
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("lamp", {"on": True})]
    assert calls[0]["id"].startswith("call_")
    assert backend.conversations[0][1] == (LAMP,)
    assert backend.jobs[0].grammar is None


def _ask(api: Any, streamed: bool, **options: Any) -> tuple[str | None, list[dict[str, str]], str]:
    """(content, calls, finish reason) of a chat answer, streamed or whole."""
    if not streamed:
        choice = api.chat.completions.create(model="scripted", messages=ASK, **options).choices[0]
        calls = [
            {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for call in choice.message.tool_calls or ()
        ]
        return choice.message.content, calls, choice.finish_reason
    content, found, finish = "", {}, ""
    for chunk in api.chat.completions.create(model="scripted", messages=ASK, stream=True, **options):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or ():
            entry = found.setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
            entry["name"] += call.function.name or ""
            entry["arguments"] += call.function.arguments or ""
    return content or None, [found[index] for index in sorted(found)], finish


def test_two_calls(start: Any, client: Any) -> None:
    one = '<tool_call>{"name": "lamp", "arguments": {"on": %s}}</tool_call>\n'
    api = client(start(saying(one % "true", one % "false")))
    for streamed in (False, True):
        content, calls, finish = _ask(api, streamed, tools=[LAMP])
        assert [json.loads(call["arguments"])["on"] for call in calls] == [True, False]
        assert not content and finish == "tool_calls"
        assert calls[0]["id"] != calls[1]["id"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "lamp"}}])
def test_required_tool_is_constrained(start: Any, client: Any, choice: Any) -> None:
    other = {"type": "function", "function": {"name": "other"}}
    backend = saying('{"name": "lamp", "argu', 'ments": {"on": false}}')
    api = client(start(backend))
    for streamed in (False, True):
        content, calls, finish = _ask(api, streamed, tools=[LAMP, other], tool_choice=choice)
        assert not content and finish == "tool_calls"
        assert json.loads(calls[0]["arguments"]) == {"on": False}
    job = backend.jobs[0]
    assert bytes(job.prompt).endswith(b"<tool_call>\n")
    assert job.grammar is not None and job.grammar.kind == "json_schema"
    assert ("other" in job.grammar.text) == (choice == "required")
    assert [tool["function"]["name"] for tool in backend.conversations[0][1]] == (
        ["lamp", "other"] if choice == "required" else ["lamp"]
    )


def test_required_call_cut_short_is_text(start: Any, client: Any) -> None:
    api = client(start(saying('{"name": "la', 'mp"')))
    content, calls, finish = _ask(api, False, tools=[LAMP], tool_choice="required", max_tokens=1)
    assert (content, calls, finish) == ('{"name": "la', [], "length")


def test_tool_choice_none_hides_the_tools(start: Any, client: Any) -> None:
    backend = saying('<tool_call>{"name": "lamp", "arguments": {}}</tool_call>')
    content, calls, finish = _ask(client(start(backend)), False, tools=[LAMP], tool_choice="none")
    assert content and not calls and finish == "stop"
    assert backend.conversations[0][1] is None


def test_tool_results_reach_the_template(start: Any, client: Any) -> None:
    backend = saying("It is on.")
    api = client(start(backend))
    call = {"id": "call_1", "type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
    api.chat.completions.create(
        model="scripted",
        tools=[LAMP],
        messages=[
            {"role": "developer", "content": "Be brief."},
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {
                "role": "tool",
                "tool_call_id": "call_1",
                "content": [{"type": "text", "text": "do"}, {"type": "text", "text": "ne"}],
            },
        ],
    )
    messages = backend.conversations[0][0]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool"]
    assert messages[2]["tool_calls"][0]["function"] == {"name": "lamp", "arguments": {"on": True}}
    assert messages[2]["content"] == "" and messages[3]["content"] == "done"


def test_template_without_tools_is_told_in_text(start: Any, client: Any) -> None:
    backend = saying("It is on.", template="no such thing")
    call = {"id": "call_1", "type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
    client(start(backend)).chat.completions.create(
        model="scripted",
        tools=[LAMP],
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        ],
    )
    messages, tools = backend.conversations[0]
    assert tools is None
    assert messages[0]["content"].startswith("Be brief.\n\n") and json.dumps(LAMP["function"]) in messages[0]["content"]
    assert messages[1]["content"] == '<tool_call>\n{"name": "lamp", "arguments": {"on": true}}\n</tool_call>'
    assert messages[2] == {"role": "user", "content": "<tool_response>\ndone\n</tool_response>"}


def test_response_format(start: Any, client: Any) -> None:
    backend = saying("{}")
    api = client(start(backend))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    api.chat.completions.create(model="scripted", messages=ASK, response_format=form)
    api.chat.completions.create(model="scripted", messages=ASK, response_format={"type": "json_object"})
    api.chat.completions.create(model="scripted", messages=ASK, response_format={"type": "text"})
    grammars = [job.grammar for job in backend.jobs]
    assert json.loads(grammars[0].text) == schema and json.loads(grammars[1].text) == {"type": "object"}
    assert grammars[2] is None


def test_response_format_beside_tools_allows_either(start: Any, client: Any) -> None:
    backend = saying('{"name": "lamp", ', '"arguments": {"on": true}}')
    api = client(start(backend))
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "title": "answer"}}}
    content, calls, finish = _ask(api, True, tools=[LAMP], response_format=form)
    assert not content and calls[0]["name"] == "lamp" and finish == "tool_calls"
    assert [s.get("title", "call") for s in json.loads(backend.jobs[0].grammar.text)["anyOf"]] == ["answer", "call"]


def test_parsed_helper_of_the_client(start: Any, client: Any) -> None:
    """`client.chat.completions.parse` sends a pydantic model's schema and reads the answer into it."""
    pydantic = pytest.importorskip("pydantic")

    class Reading(pydantic.BaseModel):  # type: ignore[misc,name-defined]
        celsius: float
        room: str

    backend = saying('{"celsius": 21.5, ', '"room": "hall"}')
    answer = client(start(backend)).chat.completions.parse(model="scripted", messages=ASK, response_format=Reading)
    assert answer.choices[0].message.parsed == Reading(celsius=21.5, room="hall")


def test_errors_are_the_client_s_own(start: Any, client: Any) -> None:
    import openai

    api = client(start(saying()))
    with pytest.raises(openai.NotFoundError) as missing:
        api.chat.completions.create(model="gpt-9", messages=ASK)
    assert missing.value.code == "model_not_found" and "scripted" in str(missing.value)
    with pytest.raises(openai.BadRequestError) as bad:
        api.chat.completions.create(model="scripted", messages=ASK, temperature=9)
    assert bad.value.param == "temperature"
