"""POST /v1/completions: text that continues a prompt.

https://platform.openai.com/docs/api-reference/completions/create
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from genmote.runtime.generation import Request as Job
from genmote.web.backend import Backend, TokenProb
from genmote.web.fields import Body, kind, parse, wrong
from genmote.web.openai.options import Options, read_options, room_for, shown, token_ids, token_text, usage
from genmote.web.problem import Problem
from genmote.web.service import Check, Service, Texts, read_body, while_connected
from genmote.web.sse import EventStream

_MAX_TOKENS = 16  # the API's default


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, and as text where it came as such; then its first `hidden` tokens are the model's own."""

    ids: list[int]
    text: str | None = None
    hidden: int = 0


@dataclass(frozen=True)
class Plan:
    """A request, read and ready to run: `options.n` texts for each prompt, choices in the order of the prompts."""

    options: Options
    prompts: list[Prompt]
    jobs: list[Job]  # none when no token is wanted
    echo: bool
    logprobs: int | None  # alternatives for each token

    @property
    def measured(self) -> bool:
        """Whether the prompts' own log-probabilities are asked for."""
        return self.echo and self.logprobs is not None

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)


async def completions(request: Request) -> Response:
    service: Service = request.app.service
    body = parse(await read_body(request, service))
    plan = await while_connected(request.receive, service.clerk(lambda: read(body, service)))
    request.scope["note"]["prompt"] = plan.prompt_tokens
    head = {
        "id": "cmpl-" + secrets.token_hex(12),
        "object": "text_completion",
        "created": int(time.time()),
        "model": plan.options.model,
    }
    texts = Texts(service, plan.jobs, request.scope["note"], measured=plan.measured)
    if plan.options.stream:
        return EventStream(_chunks(service, texts, plan, head))
    return JSONResponse(await while_connected(request.receive, _whole(service, texts, plan, head)))


def read(body: Body, service: Service) -> Plan:
    """Raises `Problem` for what cannot be served. Runs the tokenizer, so not on the event loop."""
    backend = service.backend
    options = read_options(body, service)
    if body.has("suffix"):
        raise Problem(400, "suffix is not supported: leave it out", param="suffix", code="unsupported")
    if body.integer("best_of", options.n, 1, 2**31 - 1) != options.n:
        raise wrong("best_of", f"{body.raw('best_of')}", f"n ({options.n}), or nothing")
    prompts = read_prompts(body, "prompt", backend)
    if len(prompts) * options.n > service.room:
        raise wrong(
            "prompt", f"{len(prompts)} prompts, {options.n} texts each", f"at most {service.room} texts together"
        )
    wanted = body.integer("max_tokens", _MAX_TOKENS, 0, 2**31 - 1)
    logprobs = body.optional_integer("logprobs", 0, 20)
    jobs = []
    for prompt in prompts:
        if not prompt.ids:
            raise Problem(400, "the prompt is empty: give text to continue", param="prompt", code="invalid_value")
        room = room_for(len(prompt.ids), max(wanted, 1), backend, "prompt")
        job = Job(
            prompt.ids,
            max_tokens=room,
            sampling=options.sampling,
            stop=options.stop,
            logprobs=logprobs is not None,
            top_logprobs=logprobs or 0,
        )
        jobs += options.jobs(job)
    return Plan(options, prompts, jobs if wanted else [], body.boolean("echo"), logprobs)


def read_prompts(body: Body, name: str, backend: Backend) -> list[Prompt]:
    """A prompt or input field: a text, a list of texts, token ids, or a list of lists of them."""
    value = body.raw(name)
    wanted = "text, a list of texts, token ids, or a list of lists of token ids"
    if value is None:
        raise Problem(400, f"{name} is missing: give {wanted}", param=name, code="missing")
    hidden = len(backend.encode(""))
    if isinstance(value, str):
        return [Prompt(backend.encode(value), value, hidden)]
    if not isinstance(value, list):
        raise wrong(name, kind(value), wanted)
    if not value:
        raise wrong(name, "an empty list", wanted)
    if isinstance(value[0], int):
        return [Prompt(token_ids(value, name, backend.vocab_size))]
    found = []
    for index, item in enumerate(value):
        if isinstance(item, str):
            found.append(Prompt(backend.encode(item), item, hidden))
        elif isinstance(item, list):
            found.append(Prompt(token_ids(item, f"{name}[{index}]", backend.vocab_size)))
        else:
            raise wrong(f"{name}[{index}]", kind(item), wanted)
    return found


class Choice:
    """One text in the making, with the API's log-probability lists. An echoed prompt comes first."""

    def __init__(self, backend: Backend, plan: Plan, index: int) -> None:
        self._backend, self._plan, self.index = backend, plan, index
        self._length = 0  # characters so far, of the tokens
        self.finish: str | None = None

    def echoed(self, scored: Sequence[Sequence[TokenProb]]) -> dict[str, Any]:
        """The prompt as this choice's first part; `scored` holds each prompt's log-probabilities where asked for."""
        number = self.index // self._plan.options.n
        prompt = self._plan.prompts[number]
        text = prompt.text
        if text is None:
            text = b"".join(map(self._backend.token_bytes, prompt.ids)).decode("utf-8", "replace")
        return self.part(text, scored[number][prompt.hidden :] if scored else ())

    def part(self, text: str, probs: Sequence[TokenProb] = (), finish: str | None = None) -> dict[str, Any]:
        self.finish = finish
        return {
            "index": self.index,
            "text": text,
            "logprobs": self._lists(probs) if self._plan.logprobs is not None else None,
            "finish_reason": finish,
        }

    def _lists(self, probs: Sequence[TokenProb]) -> dict[str, Any]:
        tokens = [token_text(self._backend, prob.token) for prob in probs]
        offsets = []
        for token in tokens:
            offsets.append(self._length)
            self._length += len(token)
        tops = [
            None if prob.logprob is None else {token_text(self._backend, t): shown(p) for t, p in prob.top}
            for prob in probs
        ]
        return {
            "tokens": tokens,
            "token_logprobs": [shown(prob.logprob) for prob in probs],
            "top_logprobs": tops if self._plan.logprobs else None,
            "text_offset": offsets,
        }


async def _parts(service: Service, texts: Texts, plan: Plan) -> AsyncGenerator[dict[str, Any]]:
    """The choices' parts in the order in which they come to be."""
    backend = service.backend
    choices = [Choice(backend, plan, i) for i in range(len(plan.prompts) * plan.options.n)]

    def score(check: Check) -> list[Sequence[TokenProb]]:
        return [backend.score(prompt.ids, plan.logprobs or 0, check) for prompt in plan.prompts]

    async with texts:
        scored = await texts.measure(score) if plan.measured else []
        if plan.echo:
            for choice in choices:
                yield choice.echoed(scored)
        async for index, piece in texts:
            if piece.text or piece.probs or piece.last:
                yield choices[index].part(piece.text, piece.probs, piece.finish)
    if not plan.jobs:
        for choice in choices:
            yield choice.part("", finish="length")


async def _whole(service: Service, texts: Texts, plan: Plan, head: dict[str, Any]) -> dict[str, Any]:
    found: dict[int, dict[str, Any]] = {}
    async for part in _parts(service, texts, plan):
        whole = found.setdefault(part["index"], part)
        if whole is not part:
            whole["text"] += part["text"]
            whole["finish_reason"] = part["finish_reason"]
            if whole["logprobs"] is not None:
                for key, values in part["logprobs"].items():
                    whole["logprobs"][key] = values if values is None else (whole["logprobs"][key] or []) + values
    return {**head, "choices": [found[index] for index in sorted(found)], "usage": _usage(plan, texts)}


async def _chunks(service: Service, texts: Texts, plan: Plan, head: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    tail: dict[str, Any] = {"usage": None} if plan.options.include_usage else {}
    async with aclosing(_parts(service, texts, plan)) as parts:
        async for part in parts:
            yield {**head, "choices": [part], **tail}
    if plan.options.include_usage:
        yield {**head, "choices": [], "usage": _usage(plan, texts)}


def _usage(plan: Plan, texts: Texts) -> dict[str, Any]:
    return usage(plan.prompt_tokens, texts.generated, texts.cached)
