"""What compressing cost: the compressed model beside the original, on the same text, both in the engine.

Perplexity is llama.cpp's (`runtime/measures.py`). A perplexity is one of tokens: where the vocabularies differ, bits
per byte are what compares; both models then read the same bytes, each in tokens of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ContextError, SpecError
from genmote.models.gguf import ModelFile
from genmote.runtime.measures import text_logits
from genmote.runtime.session import Session

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine

Floats = NDArray[np.float64]
MOST_NATS = 700.0  # a token: more is no perplexity that a float can hold
Progress = Callable[[int, int], None]  # windows done, and in all

PARTS = {  # what a tensor's name ends in or contains → the part that it belongs to
    "token_embd": "embedding",
    "position_embd": "embedding",
    "ffn_norm": "norms",
    "attn_norm": "norms",
    "_norm": "norms",
    "attn_": "attention",
    "ffn_": "feed-forward",
}


@dataclass(frozen=True)
class Loss:
    """How one model predicts a text."""

    perplexity: float
    bits_per_byte: float
    tokens: int  # that were scored


@dataclass(frozen=True)
class Comparison:
    """Two models on the same bytes. `kl` and `agreement` are None where their vocabularies differ."""

    original: Loss
    compressed: Loss
    kl: float | None  # mean over tokens of KL(original || compressed), nats
    agreement: float | None  # share of tokens for which both have the same likeliest
    windows: int
    context: int

    @property
    def perplexity_ratio(self) -> float | None:
        """None where the vocabularies differ: their tokens are not the same things."""
        if self.kl is None:
            return None
        return self.compressed.perplexity / self.original.perplexity


@dataclass(frozen=True)
class Sizes:
    """A model file's bytes: in all, of each part's tensors, and bits for each of the tensors' numbers."""

    total: int
    parts: dict[str, int]
    bits_per_weight: float


def sizes(model: ModelFile) -> Sizes:
    """Where a model file's bytes are."""
    parts: dict[str, int] = {}
    numbers = 0
    for info in model.tensors.values():
        part = next((part for mark, part in PARTS.items() if mark in info.name), "other")
        part = "head" if info.name == "output.weight" else part
        parts[part] = parts.get(part, 0) + info.nbytes
        numbers += math.prod(info.shape)
    return Sizes(model.nbytes, parts, 8 * sum(parts.values()) / max(1, numbers))


def compare(
    original: Engine,
    compressed: Engine,
    text: str,
    *,
    context: int = 512,
    windows: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Both models on `text`, cut into windows of `context` of the original's tokens (at most `windows`); the second
    half of each is scored. Where the vocabularies differ, both score the same whole characters. Raises ContextError and
    SpecError for a text, context or count that cannot be."""
    if not 4 <= context <= min(original.context, compressed.context):
        raise ContextError(f"context={context}: use windows of 4 to {min(original.context, compressed.context)} tokens")
    tokens = original.tokenizer.encode(text, bos=False)
    count = whole_windows(tokens, context)
    if windows is not None and windows < 1:
        raise SpecError(f"windows={windows}: use at least 1, or None for the whole text")
    count = min(count, windows or count)
    same = _same_tokens(original, compressed)
    sides = [_Side(original, "the original"), _Side(compressed, "the compressed model")]
    divergence: list[Floats] = []
    agreed: list[NDArray[np.bool_]] = []
    for window in range(count):
        ids = tokens[window * context : (window + 1) * context]
        first = context // 2 + 1
        if same:
            for ours, theirs in zip(sides[0].read(ids, first), sides[1].read(ids, first), strict=True):
                divergence.append((np.exp(ours) * (ours - theirs)).sum(axis=1))
                agreed.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
            for side in sides:
                side.bytes += sum(map(len, map(original.tokenizer.token_bytes, ids[first:])))
        else:
            before, scored = characters(list(map(original.tokenizer.token_bytes, ids)), first)
            for side in sides:
                side.read_text(before, scored)
        if progress is not None:
            progress(window + 1, count)
    return Comparison(
        sides[0].loss(),
        sides[1].loss(),
        float(np.concatenate(divergence).mean()) if divergence else None,
        float(np.concatenate(agreed).mean()) if agreed else None,
        count,
        context,
    )


def whole_windows(tokens: Sequence[int], context: int, name: str = "the text") -> int:
    """How many there are in a text of these tokens; SpecError for none."""
    if len(tokens) < context:
        raise SpecError(f"{name} has {len(tokens)} tokens, one window takes {context}: give a longer text")
    return len(tokens) // context


def characters(tokens: Sequence[bytes], first: int) -> tuple[str, str]:
    """The text of `tokens` before number `first`, and from there on. A character that tokens share belongs to where it
    begins; one that the ends cut in two is left out.

    >>> characters([b"\\x82", b"a", b"\\xc3", b"\\xa4", b"b", b"\\xe2\\x82"], 3)
    ('aä', 'b')
    """
    data = b"".join(tokens)
    cut = len(b"".join(tokens[:first]))
    while cut < len(data) and data[cut] & 0xC0 == 0x80:
        cut += 1
    return data[:cut].decode("utf-8", "ignore"), data[cut:].decode("utf-8", "ignore")


def _same_tokens(a: Engine, b: Engine) -> bool:
    count = a.tokenizer.vocab_size
    if count != b.tokenizer.vocab_size or a.config.vocab_size != b.config.vocab_size:
        return False
    return all(a.tokenizer.token_bytes(token) == b.tokenizer.token_bytes(token) for token in range(count))


class _Side:
    """One of the models, and how it has predicted so far."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.session, self.name = engine, Session(engine), name
        self.nats, self.tokens, self.bytes = 0.0, 0, 0

    def read(self, ids: Sequence[int], first: int) -> Iterator[Floats]:
        """Log-probabilities (n, V) float64 of all tokens, for the places from `first` on, some at a time."""
        window = list(ids)
        if self.engine.begin_token is not None:
            window[0] = self.engine.begin_token  # as llama.cpp does
        for at, logits in text_logits(self.engine, window, first, self.session):
            logprobs = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
            logprobs -= np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
            self.nats -= float(logprobs[np.arange(len(logits)), window[at : at + len(logits)]].sum())
            self.tokens += len(logits)
            yield logprobs

    def read_text(self, before: str, scored: str) -> None:
        """Score a text after another, in tokens of this model's own."""
        encode = self.engine.tokenizer.encode
        rest = encode(scored, bos=False, start=False)
        room = max(1, self.engine.context + 1 - len(rest))
        head = encode(before, bos=False, start=False)[-room:]
        if head and rest:
            for _ in self.read([*head, *rest], len(head)):
                pass
            self.bytes += len(scored.encode())

    def loss(self) -> Loss:
        if not self.tokens:
            raise SpecError("no whole character of the text is scored: use a larger context")
        mean = self.nats / self.tokens
        if not mean < MOST_NATS:
            raise SpecError(f"{self.name} predicts this text with no finite numbers: it is damaged, or a step broke it")
        return Loss(math.exp(mean), self.nats / math.log(2) / max(1, self.bytes), self.tokens)
