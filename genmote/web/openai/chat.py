"""POST /v1/chat/completions: the next message of a conversation.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genmote.runtime.generation import Request as Job
from genmote.runtime.grammar import Grammar
from genmote.web.backend import Backend, Piece
from genmote.web.fields import Body, parse
from genmote.web.openai.messages import read_messages
from genmote.web.openai.options import Options, chat_logprob, read_options, room_for, usage
from genmote.web.openai.tools import (
    Call,
    CallReader,
    Dialect,
    Tools,
    call_schema,
    calls_in,
    dialect_of,
    either,
    read_tools,
    told,
)
from genmote.web.problem import Problem
from genmote.web.service import Service, Texts, read_body, while_connected
from genmote.web.sse import EventStream


@dataclass
class Choice:
    """One of the answers in the making. `push` gives what each piece adds to the message, as the API's deltas."""

    backend: Backend
    index: int
    tools: Tools
    reader: CallReader | None = None  # tells calls from text where the model is free to do either
    calls: list[dict[str, Any]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    _held: str = ""

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        parts: list[str | Call] = [piece.text] if piece.text else []
        if self.reader is not None:
            parts = self.reader.push(piece.text) + (self.reader.flush() if piece.last else [])
        elif self.tools.need == "required":  # the whole text is one call
            self._held += piece.text
            parts = []
            if piece.last:
                calls = calls_in(self._held, self.tools.callable)
                parts = [self._held] if calls is None else [*calls]
        self.logprobs += [chat_logprob(self.backend, prob) for prob in piece.probs]
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, str):
                self.text.append(part)
                deltas.append({"content": part})
            else:
                call = part.wire()
                deltas.append({"tool_calls": [{"index": len(self.calls), **call}]})
                self.calls.append(call)
        if piece.last:
            self.finish = "tool_calls" if self.calls and piece.finish == "stop" else piece.finish
        return deltas

    def message(self) -> dict[str, Any]:
        text = "".join(self.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.calls:
            message |= {"content": text if text.strip() else None, "tool_calls": self.calls}
        return message


@dataclass(frozen=True)
class Plan:
    """A request, read and ready to run."""

    options: Options
    tools: Tools
    jobs: list[Job]
    prompt_tokens: int
    logprobs: bool

    def choices(self, backend: Backend) -> list[Choice]:
        free = self.tools.offered and self.tools.need == "auto"
        return [
            Choice(backend, i, self.tools, CallReader(self.tools.callable) if free else None)
            for i in range(self.options.n)
        ]


async def chat_completions(request: Request) -> Response:
    service: Service = request.app.service
    body = parse(await read_body(request, service))
    plan = await while_connected(request.receive, service.clerk(lambda: read(body, service)))
    request.scope["note"]["prompt"] = plan.prompt_tokens
    head = {"id": "chatcmpl-" + secrets.token_hex(12), "created": int(time.time()), "model": plan.options.model}
    texts = Texts(service, plan.jobs, request.scope["note"])
    if plan.options.stream:
        return EventStream(_chunks(service.backend, texts, plan, head))
    return JSONResponse(await while_connected(request.receive, _whole(service.backend, texts, plan, head)))


def read(body: Body, service: Service) -> Plan:
    """Raises `Problem` for what cannot be served. Runs the tokenizer, so not on the event loop."""
    backend = service.backend
    options = read_options(body, service)
    messages = read_messages(body)
    tools = read_tools(body)
    dialect = dialect_of(backend.template)
    if backend.template is None:
        raise Problem(
            400,
            f"{backend.names[0]} has no chat template, it continues text: use /v1/completions, or serve a chat model",
            param="messages",
            code="no_chat_template",
        )
    if "tools" in backend.template:
        ids = backend.chat_prompt(messages, tools.offered or None)
    else:
        ids = backend.chat_prompt(told(messages, tools), None)
    if tools.need == "required":
        ids = [*ids, *backend.encode(dialect.prefix, begin=False)]
    top = body.optional_integer("top_logprobs", 0, 20)
    logprobs = body.boolean("logprobs")
    if top and not logprobs:
        raise Problem(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    wanted = body.optional_integer("max_completion_tokens", 1, 2**31 - 1)
    if wanted is None:
        wanted = body.optional_integer("max_tokens", 1, 2**31 - 1)
    job = Job(
        ids,
        max_tokens=room_for(len(ids), wanted, backend, "messages"),
        sampling=options.sampling,
        stop=options.stop,
        grammar=_grammar(body, tools, dialect),
        logprobs=logprobs,
        top_logprobs=top or 0,
    )
    return Plan(options, tools, options.jobs(job), len(ids), logprobs)


def _grammar(body: Body, tools: Tools, dialect: Dialect) -> Grammar | None:
    """What the text must be: a call, an object of the asked form, either, or (None) anything."""
    if tools.need == "required":
        return Grammar.json_schema(call_schema(tools, dialect))
    form = body.object("response_format")
    kind = form.choice("type", "text", ["text", "json_object", "json_schema"]) if form else "text"
    if form is None or kind == "text":
        return None
    schema: dict[str, Any] = {"type": "object"}
    if kind == "json_schema":
        given = form.object("json_schema")
        inner = given.object("schema") if given else None
        if inner is None:
            at = "response_format.json_schema.schema"
            raise Problem(400, f"{at} is missing: give a JSON schema", param=at, code="missing")
        schema = inner.data
    return Grammar.json_schema(either([schema, call_schema(tools, dialect)]) if tools.offered else schema)


async def _whole(backend: Backend, texts: Texts, plan: Plan, head: dict[str, Any]) -> dict[str, Any]:
    choices = plan.choices(backend)
    async with texts:
        async for index, piece in texts:
            choices[index].push(piece)
    return {
        **head,
        "object": "chat.completion",
        "choices": [
            {
                "index": choice.index,
                "message": choice.message(),
                "logprobs": {"content": choice.logprobs, "refusal": None} if plan.logprobs else None,
                "finish_reason": choice.finish,
            }
            for choice in choices
        ],
        "usage": usage(plan.prompt_tokens, texts.generated, texts.cached),
    }


async def _chunks(backend: Backend, texts: Texts, plan: Plan, head: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    base = {**head, "object": "chat.completion.chunk"}
    tail: dict[str, Any] = {"usage": None} if plan.options.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, probs: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": probs, "finish_reason": finish}
        return {**base, "choices": [choice], **tail}

    choices = plan.choices(backend)
    begun: set[int] = set()
    async with texts:
        async for index, piece in texts:
            choice = choices[index]
            shown = len(choice.logprobs)
            deltas = choice.push(piece)
            if index not in begun:
                begun.add(index)
                yield chunk(index, {"role": "assistant", "content": None if choice.calls else ""})
            if plan.logprobs and piece.probs:
                deltas = deltas or [{}]
            for delta in deltas:
                probs = choice.logprobs[shown:] if plan.logprobs else []
                shown = len(choice.logprobs)
                yield chunk(index, delta, probs={"content": probs, "refusal": None} if probs else None)
            if piece.last:
                yield chunk(index, {}, choice.finish)
    if plan.options.include_usage:
        yield {**base, "choices": [], "usage": usage(plan.prompt_tokens, texts.generated, texts.cached)}
