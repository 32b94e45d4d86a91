"""A session: one text's KV cache and the rows it holds. Alone or several in one batch, with equal results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ContextError, SpecError
from genmote.ops.protocol import KVCache, Span
from genmote.runtime import eviction, saved
from genmote.runtime.eviction import Evictor
from genmote.runtime.footprint import trim
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
        self._evictor: Evictor | None = None  # with the cache, where the engine evicts
        self._whole = True  # False: interrupted while rows were evicted

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def current(self) -> bool:
        """Whether the rows held were computed with the adapters and the kind of cache that are now set."""
        return self._version == self.engine.version

    @property
    def nbytes(self) -> int:
        """Bytes of the KV cache's rows."""
        return 0 if self._cache is None else self._cache.nbytes

    @property
    def floor(self) -> int:
        """Rows before this one cannot be gone back to: some of them were evicted."""
        return 0 if self._evictor is None else max(self._evictor.done, 0 if self._cache is None else self._cache.floor)

    @property
    def ahead(self) -> int:
        """How many rows may be run at once: up to the next eviction."""
        evictor, setting = self._evictor, self.engine.eviction
        if evictor is None and (setting is None or (self._cache is not None and not self.current)):
            return self.engine.context  # nothing is evicted, or the setting is for other texts than this
        if self._cache is None:
            self.ready(0)
            return self.ahead
        if evictor is None or (evictor.eviction != setting is not None and self.current):
            # The setting came while the text was made (the governor's): this session is cut from here on.
            evictor = self._evictor = self.engine.evictor()
            evictor.begin(self._cache.position)
        left = evictor.next - len(self.ids)
        return left or evictor.eviction.block

    @property
    def evicted(self) -> int:
        """How many rows a layer has evicted, on average over the layers."""
        if self._cache is None or not self.floor:
            return 0
        lengths = self._cache.lengths
        return len(self.ids) - round(sum(lengths) / len(lengths))

    def prefill(
        self, prompt: Rows | Sequence[int], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Hold exactly the prompt; logits (V,) of its last row. A cached beginning is not run again; `progress` is told
        how many of the other rows were run, and of how many."""
        rows = prompt if isinstance(prompt, Rows) else Rows(prompt)
        held = self.match(rows)
        logits: Any = None
        if progress is not None:
            progress(0, len(rows) - held)
        while len(self) < len(rows):
            start, stop = len(self), min(len(self) + min(self.engine.chunk, self.ahead), len(rows))
            logits = self.extend(rows, start, stop, int(stop == len(rows)))
            if progress is not None:
                progress(stop - held, len(rows) - held)
        if logits is None:
            raise ContextError("the prompt has no rows: give at least one token")
        return np.asarray(logits[0])

    def match(self, rows: Rows) -> int:
        """Forget what is not a beginning of the prompt; how many of its rows are held. The last is always run anew,
        for its logits."""
        if not self.current:  # other adapters, another kind of cache: the old keys and values mean nothing
            self._forget()
            self._version = self.engine.version
        keep = min(self.shared(rows), max(0, len(rows) - 1))
        self.truncate(keep)
        return keep

    def shared(self, rows: Rows) -> int:
        """How many rows of the prompt's beginning are held and can be gone on from; 0 where some were evicted since."""
        if not self.current or not self._whole:
            return 0
        if (
            self._cache is not None
            and (None if self._evictor is None else self._evictor.eviction) != self.engine.eviction
        ):
            return 0  # from before rows were evicted so: a text that begins now holds what it would hold then
        found = common_prefix(self.ids, rows.ids)
        return found if min(found, len(rows) - 1) >= self.floor else 0

    def extend(self, rows: Rows, start: int, stop: int, wanted: int) -> NDArray[np.float32] | None:
        """Run rows [start, stop) after those held; logits (wanted, V) of the last ones.

        Where rows are evicted in between, an exception leaves what was run until then.
        """
        found: list[NDArray[np.float32]] = []
        while start < stop:
            with self.engine.lock:
                self.engine.between_passes()
                end = min(start + self.ahead, stop)
                here = min(end - start, max(0, wanted - (stop - end)))
                logits = run_batch(self.engine, [Work(self, rows, start, end, here)])[0]
            if logits is not None:
                found.append(logits)
            start = end
        return np.concatenate(found) if len(found) > 1 else found[0] if found else None

    def step(self, token: int) -> NDArray[np.float32]:
        """Append a token; the next token's logits (V,)."""
        with self.engine.lock:
            self.engine.between_passes()
            return np.asarray(self.feed([token], 1)[0])

    def feed(self, tokens: list[int], wanted: int) -> NDArray[np.float32]:
        """Append tokens; logits (wanted, V) of the last ones. Those that are not more than what is `ahead` go in one
        pass; the caller has seen to what is to be done before it (`Engine.between_passes`)."""
        rows = Rows(tokens)
        if len(rows) <= self.ahead:
            logits = run_batch(self.engine, [Work(self, rows, 0, len(rows), wanted)])[0]
        else:
            logits = self.extend(rows, 0, len(rows), wanted)
        assert logits is not None  # rows were asked for
        return logits

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on. Raises SpecError for a length below `floor`, other than 0."""
        if length >= len(self.ids) and self._whole:
            return
        if length == 0 and (self.floor or not self._whole):
            self._forget()  # what is left of the cache is of no use to another text
        elif length < self.floor:
            raise SpecError(
                f"rows before {self.floor} were evicted: cannot go back to {length}; start over, with 0 rows"
            )
        del self.ids[length:]
        if self._cache is not None and self._cache.position > len(self.ids):
            self._cache.truncate(len(self.ids))

    def _forget(self) -> None:
        """Hold nothing, not even the cache's memory."""
        self._cache = self._evictor = None
        self._whole = True
        self.ids.clear()

    def ready(self, more: int) -> KVCache:
        """The cache, agreeing with `ids` (a call may have been interrupted) and with room for `more` rows: what is to
        be evicted before the next row is."""
        need = len(self.ids) + more
        if need > self.engine.context:
            raise ContextError(f"the text has {need} tokens, {self.engine.context_limit}")
        if not self._whole:
            raise SpecError("the session was interrupted while it evicted rows: truncate it to 0 and start over")
        cache = self._cache
        if cache is None:
            cache, self._evictor = self.engine.cache()
            self._cache = cache
        if cache.position > len(self.ids):
            cache.truncate(len(self.ids))
        evictor = self._evictor
        if evictor is not None and more:
            if cache.position == evictor.next:
                self._evict(cache, evictor)
            if need > evictor.next:
                raise SpecError(f"{more} rows at once, the next eviction is after {self.ahead}: run so many at most")
        return cache

    def _evict(self, cache: KVCache, evictor: Evictor) -> None:
        streaming = self.engine.streaming
        if streaming is not None:
            trim()  # what passes and samplers have left in the heap
            streaming.make_room(count=evictor.scratch_bytes)
        cut = evictor.choose(cache)
        self._whole = False
        evictor.apply(cache, cut)
        self._whole = True
        if streaming is not None:
            trim()  # weights may have it again

    @contextlib.contextmanager
    def running(self, tokens: list[int]) -> Iterator[Span]:
        """While the block runs these tokens through the model and advances the cache; then the session holds them."""
        cache = self.ready(len(tokens))
        try:
            yield Span(cache, 0, len(tokens))
            self.ids += tokens
        except BaseException:
            self.ready(0)
            raise

    def fork(self, length: int) -> Session:
        """A new session that holds the first `length` rows: a copy, far cheaper than running them."""
        other = Session(self.engine)
        if length and self._cache is not None:
            cache = self.ready(0)
            other._take(self.ids[:length], lambda to: to.copy_from(cache, length), self._scores())
        return other

    def save(self, path: str | Path) -> None:
        """Write the rows held to a file that `restore` takes in any later process with the same model and settings."""
        state = {} if self._cache is None else {**self.ready(0).streamed(len(self.ids)), **self._scores()}
        saved.write(Path(path), self.engine.identity(), self.ids, state)

    def restore(self, path: str | Path) -> None:
        """Hold what was saved, instead of what is held. Raises SpecError for another model's file, ModelFileError for a
        damaged one, ContextError for one that does not fit."""
        ids, state = saved.read(Path(path), self.engine.identity())
        if self.current:
            self.truncate(0)
        else:
            self._forget()
        self._version = self.engine.version
        if ids:
            eviction.check(state, self.engine.eviction)
            try:
                self._take(ids, lambda to: to.restore(state, state.let_go), state)
            except (ValueError, KeyError, TypeError) as error:
                raise saved.damaged(Path(path), str(error)) from None

    def _scores(self) -> dict[str, NDArray[Any]]:
        """What eviction goes by."""
        return {} if self._evictor is None else self._evictor.export()

    def _take(self, ids: list[int], fill: Callable[[KVCache], None], scores: Mapping[str, NDArray[Any]]) -> None:
        """Hold rows that `fill` puts into the cache, in an empty session."""
        if len(ids) > self.engine.context:
            raise ContextError(f"the text has {len(ids)} tokens, {self.engine.context_limit}")
        cache = self.ready(0)
        streaming = self.engine.streaming
        try:
            with self.engine.lock:
                if streaming is not None:
                    streaming.make_room(min(len(ids), cache.capacity))
                fill(cache)
            if self._evictor is not None:
                self._evictor.restore(scores)
        except BaseException:
            self._cache = self._evictor = None
            raise
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

    A session may be in `works` once, with no more rows than it has `ahead`: hold the engine's lock from where that was
    asked, after `Engine.between_passes`. After an exception all sessions hold what they held.
    """
    with engine.lock:
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
