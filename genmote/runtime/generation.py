"""One text in the making: what the model is fed next, and what its logits turn into, alone or in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError
from genmote.models.tokenizer import StreamDecoder
from genmote.runtime.grammar import Constraint, Grammar
from genmote.runtime.sample import Sampler, Sampling, token_logprobs, top_logprobs
from genmote.runtime.speculate import Guesser, PromptLookup
from genmote.runtime.stops import Stops

if TYPE_CHECKING:
    from genmote.models.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "stop_string", "context", "grammar", "cancelled"]
Segment = Sequence[int] | NDArray[np.float32]  # token ids, or embeddings (N, D)
Prompt = str | Sequence[int] | Sequence[Segment | str] | NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it."""

    prompt: Prompt
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    speculate: bool = False  # guess tokens (a draft model, else prompt lookup): the same text in fewer steps
    logprobs: bool = False
    top_logprobs: int = 0  # alternatives for each token
    ignore_eos: bool = False  # go on through end-of-text tokens (for timing)

    def __post_init__(self) -> None:
        faults = []
        if isinstance(self.max_tokens, bool) or not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            faults.append(f"max_tokens={self.max_tokens!r}: use a whole number of at least 1")
        if (
            isinstance(self.top_logprobs, bool)
            or not isinstance(self.top_logprobs, int)
            or not 0 <= self.top_logprobs <= 1000
        ):
            faults.append(f"top_logprobs={self.top_logprobs!r}: use a whole number from 0 to 1000")
        if faults:
            raise SpecError("; ".join(faults))
        Stops(self.stop)


@dataclass(slots=True)
class Piece:
    """One token's share of the text. `text` may be empty (half a character, a possible stop string) or hold more.

    The last piece has a `finish_reason`; its `token` is None when the model ended the text.
    """

    text: str
    token: int | None
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Result:
    """A finished text. Rates are in tokens per second; the first token's time is prompt work, the others' is decode."""

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in the session's cache
    prefill_s: float
    first_token_ms: float
    decode_s: float
    steps: int  # forward passes after the prompt
    drafted: int
    accepted: int
    seed: int
    evicted: int = 0  # rows that a layer of the KV cache has evicted, on average over the layers
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None

    @property
    def decode_tokens(self) -> int:
        """Tokens of the text."""
        return len(self.tokens)

    @property
    def prefill_tokens_per_s(self) -> float:
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first, over the time since the first."""
        return max(0, len(self.tokens) - 1) / self.decode_s if self.decode_s > 0 else 0.0


class Generation:
    """The state of one text: feed the model `feed()`, then `take` the logits of its last `wanted` rows.

    After `take`, the cache must forget the last `rejected` rows: guesses that did not hold.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        context: int,
        constraint: Constraint | None = None,
        guesser: Guesser | None = None,
    ) -> None:
        """`prompt`: ids of all prompt rows (below 0: embeddings); `context`: how many rows a cache may hold;
        `guesser`: who guesses where the request wants it (None: prompt lookup)."""
        self.request = request
        self.sampler = Sampler(request.sampling, prompt)
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.rejected = 0
        self.guesser: Guesser | None = None
        if request.speculate:
            self.guesser = guesser or PromptLookup()
            self.guesser.extend(prompt)
        self._pending: list[int] = []  # joined the text, not yet fed
        self._draft: list[int] = []
        self._vocab_size = tokenizer.vocab_size  # the model may compute more logits: padding, which means nothing
        self._ends = frozenset() if request.ignore_eos else tokenizer.eog_ids
        self._room = context - len(prompt)  # tokens that can still be fed
        self._stream = StreamDecoder(tokenizer)
        self._stops = Stops(request.stop)
        self._constraint = constraint
        self._force = constraint is not None and not request.logprobs
        self._started = False

    @property
    def wanted(self) -> int:
        """How many of the last rows' logits `take` needs."""
        return 1 + len(self._draft)

    def feed(self, most: int) -> list[int]:
        """The next rows: tokens that the model has not seen, then guesses, as long as all are `most` at most."""
        if self.guesser is not None:
            made = len(self.tokens)
            room = min(self.request.max_tokens - made - 1, self._room - made, most - len(self._pending))
            self._draft = self.guesser.draft(max(0, room))
        return self._pending + self._draft

    def take(self, logits: NDArray[np.float32]) -> list[Piece]:
        """Tokens from the logits (wanted, V) of the last rows fed: one, plus one for each guess that held."""
        pieces: list[Piece] = []
        draft, self._draft = self._draft, []
        self._pending = []
        accepted = 0
        if not self._started:
            self._started = True
            if self._force_tokens(pieces):
                return pieces
        for row, guess in zip(logits[:, : self._vocab_size], [*draft, None], strict=True):
            allowed = None if self._constraint is None else self._constraint.allowed()
            token = self.sampler.sample(row, allowed)
            pieces.append(self._join(token, row))
            forced = self.finish_reason is None and self._force_tokens(pieces)
            if token == guess:
                accepted += 1
                self._pending.pop(0)  # the model has seen it as a guess
            if token != guess or forced or self.finish_reason is not None:
                break
        self.rejected = len(draft) - accepted
        if self.guesser is not None:
            self.guesser.judge(len(draft), accepted)
        return pieces

    def cancel(self) -> Piece:
        """End here; gives the text that was held back."""
        self.finish_reason = "cancelled"
        return Piece(self._rest(), None, finish_reason="cancelled")

    def _force_tokens(self, pieces: list[Piece]) -> bool:
        """Join what the grammar leaves no choice about."""
        if self._constraint is None or not self._force:
            return False
        forced = self._constraint.forced()
        for token in forced:
            pieces.append(self._join(token, None))
            if self.finish_reason is not None:
                break
        return bool(forced)

    def _join(self, token: int, row: NDArray[np.float32] | None) -> Piece:
        """The token becomes part of the text, or ends it."""
        if token in self._ends:
            self.finish_reason = "stop"
            return Piece(self._rest(), None, finish_reason=self.finish_reason)
        self.tokens.append(token)
        self._pending.append(token)
        self.sampler.accept(token)
        if self.guesser is not None:
            self.guesser.extend((token,))
        piece = Piece(self._stops.push(self._stream.push(token)), token)
        if row is not None and (self.request.logprobs or self.request.top_logprobs):
            piece.logprob = float(token_logprobs(row[None], np.array([token]))[0])
            piece.top_logprobs = top_logprobs(row, self.request.top_logprobs)
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._stops.found is not None:
            self.finish_reason = "stop_string"
        elif self._constraint is not None and self._constraint.complete:
            self.finish_reason = "grammar"
        elif len(self.tokens) >= self.request.max_tokens:
            self.finish_reason = "length"
        elif len(self.tokens) > self._room:
            self.finish_reason = "context"
        if self.finish_reason is not None:
            piece.text += self._rest()
            piece.finish_reason = self.finish_reason
        return piece

    def _rest(self) -> str:
        """Text that was held back, once nothing can follow. A stop string may be complete only now."""
        if self._stops.found is not None:
            return ""
        text = self._stops.push(self._stream.flush())
        if self._stops.found is not None:
            self.finish_reason = "stop_string"
            return text
        return text + self._stops.flush()


class Account:
    """Gathers a text's pieces and times into a `Result`."""

    def __init__(self, generation: Generation, prompt_tokens: int, cached_tokens: int, started: float) -> None:
        self.generation, self.prompt_tokens, self.cached_tokens, self.started = (
            generation,
            prompt_tokens,
            cached_tokens,
            started,
        )
        self.prefill_s = 0.0
        self.first: float | None = None
        self.last = started
        self.steps = 0
        self.evicted = 0
        self.texts: list[str] = []
        self.logprobs: list[float] = []
        self.tops: list[list[tuple[int, float]]] = []

    def add(self, pieces: Sequence[Piece], now: float) -> None:
        if self.first is None and pieces:
            self.first = now
        self.last = now
        for piece in pieces:
            self.texts.append(piece.text)
            if piece.logprob is not None:
                self.logprobs.append(piece.logprob)
                self.tops.append(piece.top_logprobs or [])

    def result(self) -> Result:
        generation = self.generation
        count: Any = generation.guesser.count if generation.guesser is not None else None
        first = self.last if self.first is None else self.first
        return Result(
            text="".join(self.texts),
            tokens=generation.tokens,
            finish_reason=generation.finish_reason or "cancelled",
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            prefill_s=self.prefill_s,
            first_token_ms=(first - self.started) * 1e3,
            decode_s=self.last - first,
            steps=self.steps,
            drafted=count.drafted if count else 0,
            accepted=count.accepted if count else 0,
            seed=generation.sampler.seed,
            evicted=self.evicted,
            logprobs=self.logprobs if generation.request.logprobs else None,
            top_logprobs=self.tops if generation.request.logprobs else None,
        )
