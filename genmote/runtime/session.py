"""A session: one text's KV cache and the rows it holds. Alone or several in one batch, with equal results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ContextError
from genmote.ops.protocol import KVCache, Span
from genmote.runtime import saved
from genmote.runtime.prompt import Rows, common_prefix

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine

CHUNK = 512  # rows of a prompt run at once: more gain nothing, and memory grows with them
BESIDE = 64  # rows run at once where other texts wait: near the full speed, and a short wait


class Session:
    """The rows that a model has seen in one text. `ids` are their token ids (below 0: embeddings).

    After an exception, Ctrl-C included, the session holds what it held before the call.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ids: list[int] = []
        self._version = engine.version
        self._cache: KVCache | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def current(self) -> bool:
        """Whether the rows held were computed with the adapters that are now set."""
        return self._version == self.engine.version

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache's rows."""
        return 0 if self._cache is None else self._cache.nbytes

    def prefill(self, prompt: Rows | Sequence[int]) -> NDArray[np.float32]:
        """Hold exactly the prompt; logits (V,) of its last row. A cached beginning is not run again."""
        rows = prompt if isinstance(prompt, Rows) else Rows(prompt)
        self.match(rows)
        logits: Any = None
        while len(self) < len(rows):
            start, stop = len(self), min(len(self) + CHUNK, len(rows))
            logits = self.extend(rows, start, stop, int(stop == len(rows)))
        if logits is None:
            raise ContextError("the prompt has no rows: give at least one token")
        return np.asarray(logits[0])

    def match(self, rows: Rows) -> int:
        """Forget what is not a beginning of the prompt; how many of its rows are held. The last is always run anew,
        for its logits."""
        if not self.current:  # other adapters: the old keys and values mean nothing
            self.truncate(0)
            self._version = self.engine.version
        keep = min(common_prefix(self.ids, rows.ids), max(0, len(rows) - 1))
        self.truncate(keep)
        return keep

    def extend(self, rows: Rows, start: int, stop: int, wanted: int) -> NDArray[np.float32] | None:
        """Run rows [start, stop) after those held; logits (wanted, V) of the last ones."""
        return run_batch(self.engine, [Work(self, rows, start, stop, wanted)])[0]

    def step(self, token: int) -> NDArray[np.float32]:
        """Append a token; the next token's logits (V,)."""
        return np.asarray(self.feed([token], 1)[0])

    def feed(self, tokens: list[int], wanted: int) -> NDArray[np.float32]:
        """Append tokens; logits (wanted, V) of the last ones."""
        with self.engine.lock:
            self.engine.between_passes()
            cache = self.ready(len(tokens))
            count = len(tokens)
            picked: Any = "last" if wanted == 1 else range(count - wanted, count)
            try:
                logits = self.engine.decoder.forward(tokens, [Span(cache, 0, count)], logits=picked)
                self.ids += tokens
            except BaseException:
                self.ready(0)
                raise
        assert logits is not None  # rows were asked for
        return logits

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on."""
        if length < len(self.ids):
            del self.ids[length:]
        if self._cache is not None and self._cache.position > len(self.ids):
            self._cache.truncate(len(self.ids))

    def ready(self, more: int) -> KVCache:
        """The cache, agreeing with `ids` (a call may have been interrupted) and with room for `more` rows."""
        need = len(self.ids) + more
        if need > self.engine.context:
            raise ContextError(f"the text has {need} tokens, {self.engine.context_limit}")
        cache = self._cache
        if cache is None:
            # The whole context at once: a cache takes memory as rows arrive, and to grow it would hold it twice.
            cache = self._cache = self.engine.decoder.cache(self.engine.context)
        if cache.position > len(self.ids):
            cache.truncate(len(self.ids))
        return cache

    def fork(self, length: int) -> Session:
        """A new session that holds the first `length` rows: a copy, far cheaper than running them."""
        other = Session(self.engine)
        if length and self._cache is not None:
            other.ready(length).restore(self._cache.export(length))
            other.ids = self.ids[:length]
        return other

    def save(self, path: str | Path) -> None:
        """Write the rows held to a file that `restore` takes in any later process with the same model."""
        state = {} if self._cache is None else self.ready(0).export()
        saved.write(Path(path), self.engine.identity(), self.ids, state)

    def restore(self, path: str | Path) -> None:
        """Hold what was saved, instead of what is held. Raises SpecError for another model's file, ModelFileError for a
        damaged one, ContextError for one that does not fit."""
        ids, state = saved.read(Path(path), self.engine.identity())
        self.truncate(0)
        self._version = self.engine.version
        if ids:
            cache = self.ready(len(ids))
            try:
                cache.restore(state)
            except (ValueError, KeyError, TypeError) as error:
                raise saved.damaged(Path(path), str(error)) from None
            self.ids = ids


@dataclass(frozen=True, slots=True)
class Work:
    """Rows [start, stop) of a prompt to run in `session`, and how many of the last rows' logits are wanted."""

    session: Session
    rows: Rows
    start: int
    stop: int
    wanted: int


def run_batch(engine: Engine, works: Sequence[Work]) -> list[NDArray[np.float32] | None]:
    """Run the rows of several sessions in one pass; each work's logits (wanted, V), None where none are wanted.

    A session may be in `works` once. After an exception all sessions hold what they held.
    """
    with engine.lock:
        engine.between_passes()
        spans: list[Span] = []
        picked: list[int] = []
        at = 0
        for work in works:
            count = work.stop - work.start
            spans.append(Span(work.session.ready(count), at, count))
            at += count
            picked.extend(range(at - work.wanted, at))
        embedded = any(work.rows.embeds(work.start, work.stop) for work in works)
        parts = [work.rows.inputs(engine.decoder, work.start, work.stop, embedded=embedded) for work in works]
        try:
            logits = engine.decoder.forward(
                parts[0] if len(parts) == 1 else np.concatenate(parts), spans, logits=picked or None
            )
            for work in works:
                work.session.ids += work.rows.ids[work.start : work.stop]
        except BaseException:
            for work in works:
                work.session.ready(0)
            raise
    results: list[NDArray[np.float32] | None] = []
    at = 0
    for work in works:
        results.append(logits[at : at + work.wanted] if logits is not None and work.wanted else None)
        at += work.wanted
    return results
