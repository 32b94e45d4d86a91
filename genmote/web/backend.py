"""What the HTTP rooms ask of an engine: a narrow protocol, so that tests serve a fake and other rooms a remote one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from genmote.errors import GenmoteError
from genmote.runtime.generation import Request


@dataclass(frozen=True)
class TokenProb:
    """One token with its natural log-probability and the likeliest tokens at its place, best first."""

    token: int
    logprob: float | None  # None: a prompt's first token, which nothing predicts
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Piece:
    """The next part of a text. The last one has `finish`; `error` says that the engine failed instead."""

    text: str = ""
    tokens: int = 0  # generated since the piece before, shown in `text` or not
    probs: Sequence[TokenProb] = ()  # of these tokens, where the job asked
    cached: int = 0  # prompt tokens taken from an earlier prompt's prefix, told once
    finish: str | None = None  # "stop" | "length" | "cancelled"
    error: GenmoteError | None = None

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


class Backend(Protocol):
    """An engine that generates for several sessions at once in a thread of its own. Calls do not block for long."""

    names: Sequence[str]  # the served model's id, then other names that mean it
    created: int  # seconds since 1970 of the model file
    context: int  # tokens that prompt and text may take together
    vocab_size: int
    slots: int  # texts that are generated at the same time
    template: str | None  # source of the chat template that is used with tools, if the model has one

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """Token ids, with the model's begin token (where it has one) if `begin`. Text of special tokens means them."""
        ...

    def token_bytes(self, token: int) -> bytes: ...

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer. Raises `TemplateError`."""
        ...

    def submit(self, job: Request, deliver: Callable[[Piece], None]) -> Callable[[], None]:
        """Start or queue a job. `deliver` is called from the engine's thread, last with a `last` piece, whatever
        happens; the returned function cancels (and may be called at any time, from any thread, more than once).
        Raises `GenmoteError`, `GrammarError` for a schema that cannot be used."""
        ...

    def embed(self, tokens: Sequence[int], check: Callable[[], None]) -> Sequence[float]:
        """The text's embedding, unit length. Blocks; called in a worker thread. Calls `check` after each part of the
        work: it raises where nobody waits for the result any more."""
        ...

    def score(self, tokens: Sequence[int], top: int, check: Callable[[], None]) -> Sequence[TokenProb]:
        """Log-probabilities of each token after those before it; otherwise as `embed`."""
        ...

    def load(self) -> Mapping[str, int]:
        """How busy it is now: {"active": texts being generated, "waiting": jobs without a slot}."""
        ...

    def close(self) -> None:
        """Cancel what runs and end the thread; may be called more than once."""
        ...
