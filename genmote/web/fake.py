"""A backend without a model, for tests of what stands on the server: it says what it is told to, piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genmote.runtime.generation import Request
from genmote.web.backend import Piece, TokenProb


class ScriptedBackend:
    """`script` gives the pieces of text for a job; `pace` is asked to wait before each, and may be an `Event.wait`.

    Tokens are bytes. A conversation becomes "role: content" lines. More than `slots` jobs wait for their turn.
    """

    names, created, vocab_size = ("scripted", "scripted.gguf"), 1_700_000_000, 256

    def __init__(
        self,
        script: Callable[[Request], Sequence[str]] = lambda job: ["Hello", " there"],
        *,
        slots: int = 4,
        context: int = 4096,
        template: str | None = "tools <tool_call>",
        pace: Callable[[], object] = lambda: None,
    ) -> None:
        self.script, self.slots, self.context, self.template, self.pace = script, slots, context, template, pace
        self.jobs: list[Request] = []
        self.conversations: list[tuple[Any, Any]] = []
        self._turn = threading.Semaphore(slots)
        self._count = {"active": 0, "waiting": 0}
        self._lock = threading.Lock()
        self._cancels: list[threading.Event] = []

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        self.conversations.append((messages, tools))
        return self.encode("\n".join(f"{m['role']}: {m['content']}" for m in messages))

    def submit(self, job: Request, deliver: Callable[[Piece], None]) -> Callable[[], None]:
        cancelled = threading.Event()
        self.jobs.append(job)
        self._cancels.append(cancelled)
        threading.Thread(target=self._run, args=(job, deliver, cancelled), daemon=True).start()
        return cancelled.set

    def _run(self, job: Request, deliver: Callable[[Piece], None], cancelled: threading.Event) -> None:
        with self._counted("waiting"):
            while not self._turn.acquire(timeout=0.01):
                if cancelled.is_set():
                    return deliver(Piece(finish="cancelled"))
        with self._counted("active"):
            made = 0
            try:
                for number, text in enumerate(self.script(job)):
                    self.pace()
                    if cancelled.is_set() or made == job.max_tokens:
                        return deliver(Piece(finish="cancelled" if cancelled.is_set() else "length"))
                    made += 1
                    probs = [TokenProb(t, -0.5, [(t, -0.5), (0, -float("inf"))]) for t in text.encode() if job.logprobs]
                    cached = len(job.prompt) // 2 if number == 0 else 0
                    deliver(Piece(text, 1, probs, cached))
                deliver(Piece(finish="stop"))
            finally:
                self._turn.release()

    def embed(self, tokens: Sequence[int], check: Callable[[], None]) -> Sequence[float]:
        self.pace()
        check()
        return [0.6, 0.8, float(len(tokens))]

    def score(self, tokens: Sequence[int], top: int, check: Callable[[], None]) -> Sequence[TokenProb]:
        self.pace()
        check()
        return [TokenProb(t, -1.0 if i else None, [(t, -1.0)] * min(top, 1)) for i, t in enumerate(tokens)]

    def load(self) -> Mapping[str, int]:
        return dict(self._count)

    def close(self) -> None:
        for cancelled in self._cancels:
            cancelled.set()

    def _counted(self, state: str) -> _Counted:
        return _Counted(self._count, state, self._lock)


class _Counted:
    """Counts those inside."""

    def __init__(self, counts: dict[str, int], state: str, lock: threading.Lock) -> None:
        self._counts, self._state, self._lock = counts, state, lock

    def __enter__(self) -> None:
        with self._lock:
            self._counts[self._state] += 1

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._counts[self._state] -= 1
