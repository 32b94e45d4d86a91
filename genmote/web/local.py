"""The engine of this process as the HTTP rooms' backend: one `Scheduler`, whose thread runs all texts in one batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genmote.runtime.generation import FinishReason, Request
from genmote.runtime.generation import Piece as EnginePiece
from genmote.runtime.handle import Event
from genmote.runtime.prompt import Rows
from genmote.runtime.sample import token_logprobs, top_logprobs
from genmote.runtime.scheduler import Scheduler
from genmote.runtime.session import Session
from genmote.web.backend import Piece, TokenProb

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine

_FINISH: dict[FinishReason, str] = {"length": "length", "context": "length", "cancelled": "cancelled"}  # else: stop
_LOGITS = 1 << 22  # logits of a prompt held at once when it is scored: 16 MB
_UNLIMITED = 1 << 30  # how many may wait is the service's business


class LocalBackend:
    """An engine that is served. `names`: the id that it is served by, then others that mean it.

    Closing it leaves the engine open.
    """

    def __init__(self, engine: Engine, names: Sequence[str], *, slots: int) -> None:
        self.engine, self.names, self.slots = engine, names, slots
        self.context, self.vocab_size = engine.context, engine.config.vocab_size
        self.template = None if engine.chat_template is None else engine.chat_template.tool_source
        path = engine.model_path
        self.created = int(path.stat().st_mtime if path is not None else time.time())
        self._scheduler = Scheduler(engine, max_sessions=slots, queue_limit=_UNLIMITED)

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        tokens = self.engine.tokenizer.encode(text, bos=False, start=begin)
        first = self.engine.begin_token if begin else None
        return tokens if first is None else [first, *tokens]

    def token_bytes(self, token: int) -> bytes:
        return bytes(self.engine.tokenizer.token_bytes(token))

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        return self.engine.chat_prompt(messages, tools=tools)

    def submit(self, job: Request, deliver: Callable[[Piece], None]) -> Callable[[], None]:
        submitted = threading.Event()
        begun = False

        def forward(event: Event) -> None:
            nonlocal begun
            submitted.wait()  # `handle` is known: the thread may be faster than this one
            if not isinstance(event, EnginePiece):
                deliver(Piece(error=event))
                return
            cached = 0 if begun else handle.cached_tokens
            begun = True
            deliver(_piece(event, cached))

        if self.engine.draft is not None:  # as where a text is generated without a server
            job = replace(job, speculate=True)
        handle = self._scheduler.submit(job, forward)
        submitted.set()
        return handle.cancel

    def embed(self, tokens: Sequence[int], check: Callable[[], None]) -> Sequence[float]:
        return [float(x) for x in self.engine.embed(tokens, progress=lambda done, all_rows: check())]

    def score(self, tokens: Sequence[int], top: int, check: Callable[[], None]) -> Sequence[TokenProb]:
        rows, session = self.engine.rows(tokens), Session(self.engine)
        found = [TokenProb(rows.ids[0], None)]
        step = max(1, _LOGITS // self.vocab_size)
        for start in range(0, len(rows) - 1, step):
            check()
            found += self._scored(session, rows, start, min(start + step, len(rows) - 1), top)
        return found

    def _scored(self, session: Session, rows: Rows, start: int, stop: int, top: int) -> list[TokenProb]:
        """Log-probabilities of the tokens after rows [start, stop)."""
        logits = session.extend(rows, start, stop, stop - start)  # (N, V)
        if logits is None:
            return []
        targets = np.array(rows.ids[start + 1 : stop + 1], np.int64)
        own = token_logprobs(logits, targets)
        return [
            TokenProb(int(token), float(p), top_logprobs(row, top))
            for token, p, row in zip(targets, own, logits, strict=True)
        ]

    def load(self) -> Mapping[str, int]:
        return self._scheduler.load()

    def close(self) -> None:
        self._scheduler.close()


def _piece(piece: EnginePiece, cached: int) -> Piece:
    probs = []
    if piece.token is not None and piece.logprob is not None:
        probs = [TokenProb(piece.token, piece.logprob, piece.top_logprobs or ())]
    finish = None if piece.finish_reason is None else _FINISH.get(piece.finish_reason, "stop")
    return Piece(piece.text, int(piece.token is not None), probs, cached, finish)


def names_of(model: str, path: Path | None, name: str | None = None) -> list[str]:
    """What a request may call the model: `name` as it was given, else the model's own; and by its file.

    >>> names_of("models/tiny.gguf", Path("models/tiny.gguf"))
    ['tiny', 'models/tiny.gguf', 'tiny.gguf']
    >>> names_of("models/tiny.gguf", None, "gpt-4.gguf")
    ['gpt-4.gguf', 'tiny', 'models/tiny.gguf']
    """
    plain = Path(model).stem if model.endswith(".gguf") and not model.startswith("hf:") else model
    others = [plain, model] + ([path.stem, path.name] if path is not None else [])
    return list(dict.fromkeys([name or plain, *others]))
