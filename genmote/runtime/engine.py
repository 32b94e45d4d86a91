"""The engine: a model file, its tokenizer and an op set, ready to generate.

>>> from genmote.runtime.fake import fake_engine
>>> with fake_engine() as engine:
...     engine.generate("ab ab", max_tokens=5).text
' ab a'
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ContextError, OpsError, SpecError, TemplateError
from genmote.ops.cache import KINDS
from genmote.runtime import footprint, loading
from genmote.runtime.eviction import Eviction, Evictor, eviction, lossy
from genmote.runtime.generation import Prompt, Request, Result
from genmote.runtime.grammar import Constraint, Grammar, GrammarVocabulary
from genmote.runtime.measures import Perplexity, Score, perplexity, text_logprobs, text_vector
from genmote.runtime.pool import SessionPool
from genmote.runtime.prompt import Rows
from genmote.runtime.sample import Sampling
from genmote.runtime.session import CHUNK, Session
from genmote.runtime.speculate import MOST_GUESSES, DraftModel, Guesser, PromptLookup
from genmote.runtime.stops import Stops
from genmote.runtime.stream import Stream

if TYPE_CHECKING:
    from genmote.models.chat import ChatTemplate
    from genmote.models.config import Config
    from genmote.models.decoder import Decoder
    from genmote.models.tokenizer import Tokenizer
    from genmote.ops.protocol import KVCache
    from genmote.runtime.accelerator import TierReport
    from genmote.runtime.experts import ExpertCache
    from genmote.runtime.extras import Extras
    from genmote.runtime.governor import Bounds, Decision, Governor
    from genmote.runtime.plan import Plan
    from genmote.runtime.streaming import Streaming

_TABLES = "a grammar's tables"

Adapters = str | os.PathLike[str] | Sequence[tuple[str | os.PathLike[str], float]]
Messages = Sequence[Mapping[str, Any]]


class Engine:
    """Generates, scores and embeds with one model. Methods may be called from several threads; they take turns.

    `Engine.load` makes one from a model's name or path. Close it, or use it in a `with` statement.
    """

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        adapter: Adapters | None = None,
        ops: str | None = None,
        isa: str | None = None,
        threads: int | None = None,
        context: int | None = None,
        draft: str | os.PathLike[str] | None = None,
        memory: int | str | None = None,
        sessions: int = 1,
        progress: Callable[..., None] | None = None,
        accelerator: str | None = None,
        device_memory: int | str | None = None,
        host_memory: int | str | None = None,
        kv: str | None = None,
        evict: str | None = None,
        kv_tokens: float | None = None,
        kv_spill: str | os.PathLike[str] | None = None,
        chat: bool = False,
    ) -> Engine:
        """A model by name (fetched first if it is not here) or path.

        `ops`: op set, None for GENMOTE_OPS or the fastest that runs here; `isa`: instruction set of the native kernels;
        `threads`: None for one a physical core; `context`: most tokens that prompt and text may take, None for what the
        model was trained for; `adapter`: a LoRA file, or several with their scales; `draft`: a smaller model with the
        same tokens, which guesses them (the same text in fewer passes); `memory`: bytes, or an amount such as "150MB",
        that the whole process keeps to with `sessions` texts at a time: weights that do not fit are read from the disk
        in every pass; `accelerator`: a
        device of PyTorch ("cuda"), whose weights take `device_memory` there, `host_memory` in RAM, the rest stays in
        the file (`runtime/accelerator.py`). Raises ModelNameError, ModelFileError, PullError, OpsError, SpecError,
        BudgetError.

        `kv`: how keys and values are kept, f16 (None), int8 or int4; `evict`: which rows of them go
        (``NAME[+LAYERS][:FIELD=VALUE,...]``, `runtime/evict/`), `kv_tokens`: how many rows a layer may hold, or which
        share of the context. These change what the model says; `lossy` tells how. `kv_spill`: a folder for cold rows,
        which leave the memory while their layer is not computed: the same text, slower (native op set). `chat`: a
        budget's plan counts the chat template's engine, which otherwise takes memory when it comes.
        """
        return loading.load(
            cls,
            model,
            adapter=adapter,
            ops=ops,
            isa=isa,
            threads=threads,
            context=context,
            draft=draft,
            memory=memory,
            sessions=sessions,
            progress=progress,
            accelerator=accelerator,
            device_memory=device_memory,
            host_memory=host_memory,
            kv=kv,
            evict=evict,
            kv_tokens=kv_tokens,
            kv_spill=kv_spill,
            chat=chat,
        )

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        chat_template: ChatTemplate | None = None,
        context: int | None = None,
        model_path: Path | None = None,
        identity: str | Callable[[], str] = "unnamed",
        threads: int = 1,
        load_ms: float = 0.0,
        kv: str | None = None,
        evict: str | None = None,
        kv_tokens: float | None = None,
        kv_spill: str | os.PathLike[str] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        """`identity` names the model's weights: a saved prefix is good for one identity only. `chunk`: rows of a prompt
        that are run at once."""
        trained = decoder.config.context_length
        if context is not None and (
            isinstance(context, bool) or not isinstance(context, int) or not 1 <= context <= trained
        ):
            raise SpecError(f"context={context!r}: this model takes 1 to {trained} tokens")
        self.decoder, self.tokenizer, self.chat_template = decoder, tokenizer, chat_template
        self.context = context or trained
        self.chunk = chunk
        self.model_path, self.threads, self.load_ms = model_path, threads, load_ms
        self.lock = threading.RLock()
        self.version = 0  # counts changes of adapters and cache: keys and values of another version mean nothing
        self.adapters: tuple[tuple[Path, float], ...] = ()
        self.draft: Engine | None = None  # a smaller model that guesses
        self.plan: Plan | None = None  # how a memory budget is kept
        self.streaming: Streaming | None = None
        self.extras: Extras | None = None  # what takes memory beside the plan
        self.experts: ExpertCache | None = None  # a mixture's, where not all of them are in memory
        if kv_spill is not None and decoder.ops.name != "native":
            raise OpsError(f"kv_spill with the {decoder.ops.name} op set: only the native one keeps rows on disk")
        self.kv_spill = kv_spill
        self.set_cache(kv=kv, evict=evict, kv_tokens=kv_tokens)
        self._identity = identity
        self.governor: Governor | None = None
        self.tiers: TierReport | None = None  # where the weights lie, with an accelerator
        self._base: Any = getattr(decoder, "weights", None)  # without adapters
        self.pools: weakref.WeakSet[SessionPool] = weakref.WeakSet()  # all that keep idle sessions
        self.pool = SessionPool(self, keep=1)
        self._vocabulary: GrammarVocabulary | None = None
        self._grammars = threading.Lock()  # its own: a large vocabulary takes a second, in which texts go on

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of cached texts and of what grammars needed; the weights go with the engine itself."""
        with self.lock:
            self.pool.clear()
            if self.draft is not None:
                self.draft.close()
        with self._grammars:
            self._vocabulary = None

    @property
    def config(self) -> Config:
        return self.decoder.config

    @property
    def ops_name(self) -> str:
        return self.decoder.ops.name

    @property
    def peak_rss_bytes(self) -> int:
        """Greatest resident memory of this process so far."""
        return loading.peak_rss_bytes()

    def set_cache(self, *, kv: str | None = None, evict: str | None = None, kv_tokens: float | None = None) -> None:
        """From now on keep keys and values so, see `load`; prompts are read anew. Raises SpecError."""
        found = eviction(evict, kv_tokens, self.context)
        if kv not in (None, *KINDS):
            raise SpecError(f"kv={kv!r}: keys and values are kept as {', '.join(KINDS)}, or auto")
        with self.lock:
            self.kv, self.eviction = kv or "f16", found
            self._kept: tuple[int, Eviction | None, list[int]] = (-1, None, [])
            self.version += 1

    @property
    def lossy(self) -> tuple[str, ...]:
        """What these settings lose of the model's accuracy, a line each."""
        return lossy(self.kv, self.eviction)

    def cache(self) -> tuple[KVCache, Evictor | None]:
        """An empty KV cache for one session, and what evicts its rows."""
        settings: dict[str, Any] = {} if self.kv == "f16" else {"kind": self.kv}
        if self.kv_spill is not None:
            settings["spill"] = self.kv_spill
        setting = self.eviction
        if setting is None:
            # The whole context at once: a cache takes memory as rows arrive, and to grow it would hold it twice.
            return self.decoder.cache(self.context, **settings), None
        evictor = self.evictor()
        capacity = min(self.context, max(evictor.kept) + setting.block)
        if setting.queries:
            settings["queries"] = setting.queries
        return self.decoder.cache(capacity, **settings), evictor

    def evictor(self) -> Evictor:
        """What evicts the rows of one session, where an eviction is set."""
        setting = self.eviction
        assert setting is not None
        with self.lock:
            if self._kept[:2] != (self.version, setting):
                self._kept = self.version, setting, setting.kept(self.decoder)
            kept = self._kept[2]
        return Evictor(setting, self.decoder, kept)

    def limit_kv(self, tokens: int) -> bool:
        """From now on each text holds at most `tokens` rows of keys and values: the first few and the latest. False
        where it holds no more already. This loses something: `lossy` then tells it."""
        limit = eviction("window", tokens, self.context)
        with self.lock:
            if limit is None or (self.eviction is not None and self.eviction.rows <= limit.rows):
                return False
            self.eviction = limit
        return True

    def identity(self) -> str:
        """Names the weights, adapters included."""
        own = self._identity if isinstance(self._identity, str) else self._identity()
        return own + "".join(f"+{loading.file_sha256(path)}*{scale:g}" for path, scale in self.adapters)

    def set_adapters(self, adapters: Adapters | None) -> None:
        """Put these LoRA adapters in the place of those that are set; None for none. Texts in the making go on with
        the new ones, prompts are read anew. Raises BudgetError where a memory budget has no room for them."""
        from genmote.models.lora import AdaptedWeights, read_lora

        files = loading.open_adapters(adapters or ())
        room: Any = contextlib.nullcontext()
        if self.extras is not None:
            room = self.extras.adapters(footprint.adapter_bytes(self.config, [file for _, _, file in files]))
        with self.lock, room:
            found = [(read_lora(file, self.config, self.decoder.ops), scale) for _, scale, file in files]
            weights = AdaptedWeights(self._base, found) if found else self._base
            if self.streaming is not None:
                self.streaming.rearrange(weights)
            self.decoder.weights = weights
            self.adapters = tuple((path, scale) for path, scale, _ in files)
            self.version += 1

    def govern(self, bounds: Bounds | None = None, *, tell: Callable[[Decision], None] | None = None) -> Governor:
        """From now on watch the machine's memory, processors, temperature and battery between passes, and act within
        `bounds` (`runtime/governor.py`); `tell` gets each decision. Raises SpecError for bounds that cannot be."""
        from genmote.device.sensors import Sensors
        from genmote.runtime.governor import Governor, levers

        with self.lock:
            self.governor = Governor(Sensors(), levers(self), bounds, tell=tell)
        return self.governor

    def between_passes(self) -> None:
        """What is to be done while no pass runs; called with the lock held."""
        if self.governor is not None:
            self.governor.check()

    # -- prompts ------------------------------------------------------------------------------------------------------
    def rows(self, prompt: Prompt) -> Rows:
        """Rows of a prompt: text, token ids, embeddings (N, D), or a list of such segments. Text at the beginning gets
        the model's begin token. Raises SpecError for what cannot be a prompt, ContextError where it is too long."""
        rows = Rows()
        vocab_size = self.config.vocab_size
        for number, segment in enumerate(_segments(prompt)):
            if isinstance(segment, str):
                rows.add_tokens(self._encode(segment, start=number == 0), vocab_size)
            elif isinstance(segment, np.ndarray) and segment.ndim != 1:
                rows.add_embeddings(segment, self.config.width)
            else:
                rows.add_tokens(segment, vocab_size)
        if not len(rows):
            raise SpecError("the prompt is empty, and this model has no begin token to start from: give some text")
        if len(rows) > self.context:
            raise ContextError(f"the prompt has {len(rows)} tokens, {self.context_limit}")
        return rows

    @property
    def context_limit(self) -> str:
        """The second half of an error: how long a text may be, and what to do."""
        most = self.config.context_length
        more = f", or load with a larger context (this model takes up to {most} tokens)" if self.context < most else ""
        return f"the context is {self.context}: shorten it{more}"

    def _encode(self, text: str, *, start: bool) -> list[int]:
        """A text that begins a prompt, after the begin token, or goes on with one; never an end token."""
        tokens = self.tokenizer.encode(text, bos=False, start=start)
        return [self.begin_token, *tokens] if start and self.begin_token is not None else tokens

    def chat_prompt(self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Token ids of a conversation in the model's own format, ready for the assistant's answer. What a message
        says stays text, whatever it looks like (see `models/contents.py`)."""
        if self.chat_template is None:
            raise TemplateError("this model has no chat template (it is a base model): use generate to continue a text")
        from genmote.models.chat import MEMORY_BYTES
        from genmote.models.contents import chat_tokens

        if self.extras is not None:
            self.extras.take("chat templates", MEMORY_BYTES)
        if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
            raise SpecError(f'messages={messages!r:.80}: use a list, such as [{{"role": "user", "content": "Hello"}}]')
        tokens = chat_tokens(self.chat_template, self.tokenizer, messages, tools=tools)
        begin = self.begin_token  # most templates write it themselves
        return tokens if begin is None or tokens[:1] == [begin] else [begin, *tokens]

    @property
    def begin_token(self) -> int | None:
        """The token that this model's texts begin with, if they do."""
        return self.tokenizer.bos_id if self.tokenizer.add_bos else None

    # -- texts --------------------------------------------------------------------------------------------------------
    def request(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 128,
        stop: str | Sequence[str] | None = None,
        json_schema: Mapping[str, Any] | bool | str | None = None,
        regex: str | None = None,
        grammar: Grammar | None = None,
        sampling: Sampling | None = None,
        speculate: bool | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        ignore_eos: bool = False,
        **settings: Any,
    ) -> Request:
        """A checked request; `settings` are fields of `Sampling` (temperature, top_k, top_p, min_p, seed, …).

        `speculate`: guess tokens, None for where there is a draft model.
        """
        if settings:
            known = {field.name for field in fields(Sampling)}
            unknown = sorted(set(settings) - known)
            if unknown or sampling is not None:
                wanted = f"unknown {', '.join(unknown)}" if unknown else "give sampling or its fields, not both"
                raise SpecError(f"{wanted}; settings of sampling are {', '.join(sorted(known))}")
            sampling = Sampling(**settings)
        rules = [rule for rule in (json_schema, regex, grammar) if rule is not None]
        if len(rules) > 1:
            raise SpecError("json_schema, regex and grammar are each a constraint of the whole text: give one of them")
        if json_schema is not None:
            grammar = Grammar.json_schema(json_schema)
        elif regex is not None:
            grammar = Grammar.regex(regex)
        if not isinstance(sampling, Sampling | None) or not isinstance(grammar, Grammar | None):
            raise SpecError(f"sampling={sampling!r}, grammar={grammar!r}: use a Sampling and a Grammar, or None")
        return Request(
            prompt,
            max_tokens,
            sampling or Sampling(),
            Stops(stop).stops,
            grammar,
            self.draft is not None if speculate is None else speculate,
            logprobs,
            top_logprobs,
            ignore_eos,
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        session: Session | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Stream:
        """Pieces of the text as they come; options as for `request`. Afterwards the stream has a `result`.

        Without a `session` of your own, the engine's keeps the last text, so that a prompt that begins alike is not
        read again. `progress` is told how many tokens of the prompt were read, of how many that must be.
        """
        return Stream(self, self.request(prompt, **options), session, progress)

    def generate(self, prompt: Prompt, *, session: Session | None = None, **options: Any) -> Result:
        """Continue the prompt; options as for `request`."""
        stream = self.stream(prompt, session=session, **options)
        for _ in stream:
            pass
        return stream.result

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> Result:
        """The assistant's answer to a conversation ({"role": …, "content": …} each)."""
        return self.generate(self.chat_prompt(messages, tools=tools), session=session, **options)

    def stream_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> Stream:
        """`chat`, in pieces."""
        return self.stream(self.chat_prompt(messages, tools=tools), session=session, **options)

    def session(self) -> Session:
        """A session of your own: its rows stay until you drop it."""
        return Session(self)

    def guesser(self, request: Request) -> Guesser | None:
        """Who guesses the tokens of a new text, where the request wants it: the draft model, or else the text itself.
        Each guess takes a row of logits."""
        if not request.speculate:
            return None
        most = MOST_GUESSES
        if self.extras is not None and self.plan is not None:
            most = min(most, max(1, self.extras.rows_of_logits(2**62) // self.plan.sessions))
        return PromptLookup(max_draft=most) if self.draft is None else DraftModel(self.draft, max_draft=most)

    def least_with_grammars(self) -> int | None:
        """The smallest `memory` with which a JSON schema or grammar would not be refused; None where none is here."""
        if self._vocabulary is not None or self.extras is None:
            return None
        return self.extras.least(_TABLES, GrammarVocabulary.memory_bytes(self.tokenizer.vocab_size))

    def constraint(self, grammar: Grammar) -> Constraint:
        """A grammar ready to constrain one text. Raises GrammarError, and BudgetError where its tables do not fit."""
        if self._vocabulary is None and self.extras is not None:
            self.extras.take(_TABLES, GrammarVocabulary.memory_bytes(self.tokenizer.vocab_size))
        with self._grammars:
            if self._vocabulary is None:
                self._vocabulary = GrammarVocabulary(self.tokenizer)
                footprint.trim()
            vocabulary = self._vocabulary
        return vocabulary.compile(grammar)

    # -- measures -----------------------------------------------------------------------------------------------------
    def _tokens(self, text: str | Sequence[int]) -> list[int]:
        """Token ids of what is to be measured."""
        tokens = self.rows(text).ids
        if min(tokens) < 0:
            raise SpecError("embeddings cannot be measured, they are no tokens: give text or token ids")
        return tokens

    def score(self, prompt: str | Sequence[int], continuation: str | Sequence[int] | None = None) -> Score:
        """Log-probabilities of the continuation's tokens after the prompt; without one, of the prompt's own tokens
        from the second on."""
        tokens = self._tokens(prompt)
        first = 1
        if continuation is not None:
            first = len(tokens)
            more = Rows()
            given = self._encode(continuation, start=False) if isinstance(continuation, str) else continuation
            more.add_tokens(given, self.config.vocab_size)
            tokens = tokens + more.ids
        return Score(tokens[first:], text_logprobs(self, tokens, first))

    def embed(
        self,
        text: str | Sequence[int],
        pooling: Literal["mean", "last"] = "mean",
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """A vector (D,) of unit length for the text: the mean of the model's final states, or the last one.
        `progress` is told how many tokens are done, and of how many; what it raises ends the work."""
        tokens = self._tokens(text)
        if isinstance(text, str) and self.tokenizer.add_eos and self.tokenizer.eos_id is not None:
            tokens.append(self.tokenizer.eos_id)  # models made for embeddings speak at a text's end
        return text_vector(self, tokens, pooling, progress)

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        context: int = 512,
        chunks: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Perplexity:
        """Perplexity of a text by llama.cpp's definition; `chunks` windows of `context` tokens, None for all."""
        if isinstance(text, str):
            tokens = self.tokenizer.encode(text, special=False)
        else:
            rows = Rows()
            rows.add_tokens(text, self.config.vocab_size)
            tokens = rows.ids
        return perplexity(self, tokens, bos=self.begin_token, context=context, chunks=chunks, progress=progress)


def _segments(prompt: Prompt) -> Sequence[Any]:
    if isinstance(prompt, str | np.ndarray):
        return [prompt]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise SpecError(
            f"a prompt of type {type(prompt).__name__}: give text, token ids, embeddings, or a list of these"
        )
    nested = any(isinstance(item, str | np.ndarray | Sequence) for item in prompt)
    return prompt if nested else [prompt]
