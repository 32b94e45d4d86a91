"""The fields that chat and text completions share: sampling, stops, how many, streaming.

https://platform.openai.com/docs/api-reference, and the fields that local servers added: `top_k`, `min_p`,
`repetition_penalty`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from genmote.errors import SpecError
from genmote.runtime.generation import Request as Job
from genmote.runtime.sample import Sampling
from genmote.web.backend import Backend, TokenProb
from genmote.web.fields import Body, kind, strings, wrong
from genmote.web.problem import Problem
from genmote.web.service import Service

_SEED = 2**63  # seeds lie in [-_SEED, _SEED)


@dataclass(frozen=True)
class Options:
    model: str
    sampling: Sampling
    stop: tuple[str, ...]
    n: int
    stream: bool
    include_usage: bool

    def jobs(self, job: Job) -> list[Job]:
        """`n` jobs from one; a given seed counts up, so that the texts differ and each can be had again."""
        if self.sampling.seed is None:
            return [job] * self.n
        seed = self.sampling.seed
        return [replace(job, sampling=replace(job.sampling, seed=seed + i)) for i in range(self.n)]


def read_options(body: Body, service: Service) -> Options:
    """Raises `Problem` for a model that is not served and for values out of range."""
    backend = service.backend
    streaming = body.object("stream_options")
    seed = body.optional_integer("seed", -_SEED, _SEED - 1)
    try:
        sampling = Sampling(
            temperature=body.number("temperature", 1.0, 0, 2),
            top_k=body.integer("top_k", 0, 0, 2**31 - 1),
            top_p=body.number("top_p", 1.0, 0, 1) or 1e-9,  # 0 means: only the likeliest
            min_p=body.number("min_p", 0.0, 0, 1),
            repetition_penalty=body.number("repetition_penalty", 1.0, 0.01, 10),
            presence_penalty=body.number("presence_penalty", 0.0, -2, 2),
            frequency_penalty=body.number("frequency_penalty", 0.0, -2, 2),
            logit_bias=_bias(body, backend.vocab_size),
            seed=seed,
        )
    except SpecError as error:
        raise Problem(400, str(error), code="invalid_value") from error
    return Options(
        model=served(body, backend),
        sampling=sampling,
        stop=strings(body, "stop", 16),
        n=body.integer("n", 1, 1, min(16, service.room)),
        stream=body.boolean("stream"),
        include_usage=streaming is not None and streaming.boolean("include_usage"),
    )


def served(body: Body, backend: Backend) -> str:
    """The served model's id; a request that names no model means it."""
    name = body.text("model", None)
    if name is not None and name not in backend.names:
        raise unknown_model(name, backend)
    return backend.names[0]


def unknown_model(name: str, backend: Backend) -> Problem:
    return Problem(
        404,
        f"model {name[:80]!r} is not served here: use {backend.names[0]!r}",
        param="model",
        code="model_not_found",
    )


def _bias(body: Body, vocab_size: int) -> dict[int, float]:
    """`logit_bias` as token id → number; JSON keys are strings."""
    found = body.object("logit_bias")
    if found is None:
        return {}
    bias = {}
    for key in found.data:
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise wrong("logit_bias", f"token {key[:20]!r}", f"token ids from 0 to {vocab_size - 1}")
        bias[int(key)] = found.number(key, 0.0, -100, 100)
    return bias


def room_for(prompt_tokens: int, wanted: int | None, backend: Backend, param: str) -> int:
    """How many tokens may be generated after a prompt: what was asked, at most what the context still holds.

    Raises `Problem` 400 when the prompt alone fills the context.
    """
    left = backend.context - prompt_tokens
    if left < 1:
        raise Problem(
            400,
            f"the prompt takes {prompt_tokens} tokens and the context holds {backend.context}: "
            "shorten the prompt, or serve with a larger --context",
            param=param,
            code="context_length_exceeded",
        )
    return left if wanted is None else min(wanted, left)


def usage(prompt: int, generated: int, cached: int) -> dict[str, Any]:
    """Token counts as the API reports them. A prompt counts once, however many texts continue it.

    >>> usage(10, 5, 8)["total_tokens"]
    15
    """
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": min(cached, prompt)},
    }


def token_text(backend: Backend, token: int) -> str:
    """A token as the API shows it: its text, or "bytes:\\xNN" where it is only a part of a character."""
    raw = backend.token_bytes(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def shown(logprob: float | None) -> float | None:
    """A log-probability as the API shows it: JSON knows no -inf, which stands as -9999."""
    return None if logprob is None else max(float(logprob), -9999.0)


def chat_logprob(backend: Backend, found: TokenProb) -> dict[str, Any]:
    """One entry of a chat choice's ``logprobs.content``."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        raw = backend.token_bytes(token)
        return {"token": token_text(backend, token), "logprob": shown(logprob), "bytes": list(raw)}

    return {**entry(found.token, found.logprob), "top_logprobs": [entry(*pair) for pair in found.top]}


def token_ids(value: list[Any], param: str, vocab_size: int) -> list[int]:
    """A prompt given as token ids."""
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
            got = str(item)[:20] if type(item) is int else kind(item)
            raise wrong(param, got, f"token ids from 0 to {vocab_size - 1}")
    return list(value)
