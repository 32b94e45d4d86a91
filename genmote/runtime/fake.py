"""A model, tokenizer and engine in a few lines, for tests of what stands on the engine: no file, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.models.tokenizer import GrammarVocabulary
from genmote.ops.cache import nothing
from genmote.runtime.engine import Engine


class EchoTokenizer:
    """Bytes, then begin (256) and end (257)."""

    vocab_size, bos_id, eos_id, eog_ids = 258, 256, 257, frozenset({257})
    space_prefix = add_eos = False

    def __init__(self, add_bos: bool = True) -> None:
        self.add_bos = add_bos

    def encode(self, text: str, *, bos: bool | None = None, special: bool = True, start: bool = True) -> list[int]:
        return ([256] if (self.add_bos if bos is None else bos) else []) + list(text.encode())

    def control_spans(self, text: str) -> list[tuple[int, int, int]]:
        return []

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        return b"".join(self.token_bytes(i) for i in ids if i < 256 or special).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else (b"<s>", b"</s>")[token - 256]

    def is_special(self, token: int) -> bool:
        return token >= 256

    def tokens_for_grammar(self) -> GrammarVocabulary:
        return GrammarVocabulary([self.token_bytes(i) for i in range(258)], [256, 257], 257, 256, list)


class EchoCache:
    """Keeps a row's number; a row that should not be there changes every later logit."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length, self.position, self.floor = capacity, 0, 0, 0
        self.rows = np.zeros(capacity, np.int64)
        self.nbytes = 0

    def advance(self, count: int) -> None:
        self.truncate(self.position + count)

    def truncate(self, position: int) -> None:
        self.length = self.position = position

    def copy_from(self, other: EchoCache, position: int) -> None:
        self.restore(other.export(position))

    def export(self, position: int | None = None) -> dict[str, NDArray[Any]]:
        return {"k": self.rows[: self.length if position is None else position]}

    streamed = export

    def restore(self, state: dict[str, NDArray[Any]], done: Callable[[], None] = nothing) -> None:
        rows = state["k"]
        self.rows[: len(rows)] = rows
        self.length = self.position = len(rows)


class EchoDecoder:
    """Says after a token what came after it last time (or something odd), as sure as `sure`; a `Decoder` to the eye."""

    def __init__(self, sure: float = 20.0, vocab_size: int = 258, context: int = 4096) -> None:
        self.sure, self.steps, self.rows = sure, 0, 0
        self.config: Any = SimpleNamespace(vocab_size=vocab_size, context_length=context, width=4, n_layers=1)
        self.ops: Any = SimpleNamespace(name="fake", numpy=lambda x: x)
        self._noise = np.random.default_rng(0).standard_normal((64, vocab_size)).astype(np.float32)

    def cache(self, capacity: int) -> EchoCache:
        return EchoCache(capacity)

    def embed(self, tokens: Any) -> NDArray[np.float32]:
        return np.repeat(np.asarray(tokens, np.float32)[:, None], 4, 1)  # (N, 4)

    def forward(self, inputs: Any, spans: Any, *, logits: Any = "last") -> Any:
        x = self.run(inputs, spans)
        rows = [s.start + s.count - 1 for s in spans] if logits == "last" else logits
        for span in spans:
            span.cache.advance(span.count)
        return None if rows is None else self.head(x if rows == "all" else x[list(rows)])

    def hidden(self, inputs: Any, spans: Any, *, rows: Any = "all") -> Any:
        x = self.run(inputs, spans)
        for span in spans:
            span.cache.advance(span.count)
        return x[:, :1] + np.arange(4, dtype=np.float32)  # (N, 4)

    def run(self, inputs: Any, spans: Any, *, head: bool = False) -> NDArray[np.int64]:
        ids = np.asarray(inputs)
        ids = (ids if ids.ndim == 1 else ids[:, 0]).astype(np.int64)
        self.steps, self.rows = self.steps + 1, self.rows + len(ids)
        out = np.zeros((len(ids), 2), np.int64)  # what is said, and the noise it comes with
        for span in spans:
            for i in range(span.count):
                seen = span.cache.rows[: span.cache.length + i + 1]
                seen[-1] = ids[span.start + i]
                before = np.flatnonzero(seen[:-1] == seen[-1])
                mark = int((seen * np.arange(1, len(seen) + 1)).sum())
                out[span.start + i] = seen[before[-1] + 1] if len(before) else 97 + mark % 26, mark % 64
        return out

    def head(self, x: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = self._noise[x[:, 1]].copy()
        logits[np.arange(len(x)), x[:, 0]] += self.sure
        return logits


def fake_engine(context: int = 4096, **settings: Any) -> Engine:
    """An `Engine` around the echo model: `fake_engine().generate("ab ab")` goes on with " ab ab"."""
    decoder: Any = EchoDecoder(context=context, **settings)
    tokenizer: Any = EchoTokenizer()
    return Engine(decoder, tokenizer, context=context, identity="echo")
