"""What the verbs that load a model share: its flags, finding its file, loading the engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Bar, check_place, note, size
from genmote.errors import GrammarError, SpecError, UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine
    from genmote.runtime.governor import Bounds
    from genmote.runtime.sample import Sampling
    from genmote.runtime.session import Session


# Of flags that `genmote plan` has too.
EVICT = (
    "which rows of keys and values go, such as snapkv: see genmote eval kv (default with --kv-tokens: "
    "expected+retrieval)"
)
KV_TOKENS = "rows of them that a layer may hold, or a share of the context (default with --evict: a quarter of it)"
KV_SPILL = "folder for keys and values of old rows, where memory is short"


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """The model, and what computes it."""

    model: str = setting("a model's name (fetched if it is not here) or path", positional=True)
    adapter: tuple[str, ...] = setting("a LoRA adapter's path, or PATH:SCALE; may be repeated", default=())
    ops: str | None = setting("op set: native, numpy or torch (default: the fastest here)", default=None)
    isa: str | None = setting("instruction set of the native kernels (default: the best here)", default=None)
    threads: int | None = setting("threads (default: one a physical core)", default=None)
    context: int | None = setting("most tokens of prompt and text (default: the model's own)", default=None)
    accelerator: str | None = setting("device of PyTorch that computes, such as cuda (--ops torch)", default=None)
    device_memory: str | None = setting("memory there for weights, such as 2GB; more are streamed", default=None)
    host_memory: str | None = setting("RAM for weights that do not fit there; the rest stays in the file", default=None)
    memory: str | None = setting(
        "keep to so much memory in all, such as 150MB: weights beyond it are read by need", default=None
    )


@dataclass(frozen=True, kw_only=True)
class ModelFlags(EngineFlags):
    """The model, and how it is run."""

    kv: str | None = setting(
        "keys and values as f16, int8, int4; auto: fewer bits where --memory needs it", default=None
    )
    evict: str | None = setting(EVICT, default=None)
    kv_tokens: float | None = setting(KV_TOKENS, default=None)
    kv_spill: str | None = setting(KV_SPILL, default=None)
    governor: bool = setting("watch memory, cores, heat and battery, act within bounds, tell each step", default=False)
    governor_kv: int | None = setting("tokens of keys and values the governor may cut to (lossy)", default=None)
    draft: str | None = setting("a smaller model with the same tokens, which guesses them", default=None)


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are drawn, and what constrains them."""

    max_tokens: int = setting("most tokens to generate", default=128, short="-n")
    temperature: float = setting("0 takes the likeliest token; higher is freer", default=0.0)
    top_k: int = setting("keep the K likeliest tokens; 0 keeps all", default=0)
    top_p: float = setting("keep the fewest tokens that reach this probability", default=1.0)
    min_p: float = setting("keep tokens at least this times as likely as the likeliest", default=0.0)
    repetition_penalty: float = setting("divide the logits of recent tokens by this", default=1.0)
    seed: int | None = setting("number that fixes the random draws", default=None)
    stop: tuple[str, ...] = setting("text that ends the generation; may be repeated", default=())
    schema: Path | None = setting("JSON schema that the text must fit", default=None)
    grammar: Path | None = setting("grammar (.lark or .gbnf) that the text must fit", default=None)
    speculate: bool = setting(
        "guess tokens from the prompt (--draft: by a model): the same text in fewer steps", default=False
    )

    def faults(self) -> Iterable[str]:
        """What is wrong with the values, for `spec` to list with what else is wrong on the command line."""
        try:
            self.sampling()
        except SpecError as fault:
            return [str(fault)]
        return []

    def sampling(self) -> Sampling:
        """How tokens are drawn. Raises SpecError."""
        from genmote.runtime.sample import Sampling

        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the engine. Raises UserError and GrammarError for files that cannot be used."""
        from genmote.runtime.grammar import Grammar

        grammar = schema = None
        if self.grammar is not None:
            make = Grammar.gbnf if self.grammar.suffix == ".gbnf" else Grammar.lark
            grammar = make(read_text(self.grammar))
            grammar.check()
        if self.schema is not None:
            schema = read_schema(self.schema)
            Grammar.json_schema(schema).check()
        if grammar is not None and schema is not None:
            raise UserError("--schema and --grammar are each a constraint of the whole text: give one of them")
        return {
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "json_schema": schema,
            "grammar": grammar,
            "speculate": self.speculate or None,  # a draft model guesses unasked
            "sampling": self.sampling(),
        }


@dataclass(frozen=True, kw_only=True)
class PrefixFlags:
    """The work on a prompt, kept in a file."""

    prefix: Path | None = setting("a file of --save-prefix: a prompt that begins alike is not read again", default=None)
    save_prefix: Path | None = setting("keep the work on the prompt in this file, for --prefix", default=None)

    def check_prefix(self) -> None:
        """Raise UserError for files that are not there or cannot be written: to be asked before the work."""
        if self.prefix is not None and not self.prefix.is_file():
            raise UserError(f"--prefix {self.prefix}: no such file; make it with --save-prefix")
        if self.save_prefix is not None:
            check_place(self.save_prefix, "--save-prefix")

    def session(self, engine: Engine) -> Session:
        """A session that holds what the file does."""
        session = engine.session()
        if self.prefix is not None:
            session.restore(self.prefix)
        return session


def find(name: str) -> Path:
    """The file that a model's name means, fetched with a progress bar if it is not here."""
    from genmote.models.store import resolve

    with Bar() as bar:
        return resolve(name, progress=bar)


def load(flags: ModelFlags, *, chat: bool = False) -> Engine:
    """The engine that the flags describe; `chat`: for conversations."""
    from genmote import Engine

    with Bar() as bar:
        engine = Engine.load(
            flags.model,
            adapter=[scaled(text) for text in flags.adapter] or None,
            ops=flags.ops,
            isa=flags.isa,
            threads=flags.threads,
            context=flags.context,
            draft=flags.draft,
            progress=bar,
            accelerator=flags.accelerator,
            device_memory=flags.device_memory,
            host_memory=flags.host_memory,
            memory=flags.memory,
            kv=flags.kv,
            evict=flags.evict,
            kv_tokens=flags.kv_tokens,
            kv_spill=flags.kv_spill,
            chat=chat,
        )
    if flags.kv_tokens is not None and flags.kv_tokens >= engine.context:
        note(f"--kv-tokens {flags.kv_tokens:g} has no effect: the context has {engine.context} tokens, no row goes")
    tell_plan(engine)
    if (bounds := bounds_of(flags)) is not None:
        engine.govern(bounds, tell=lambda decision: note(str(decision)))
    return engine


def reading(bar: Bar) -> Callable[[int, int], None]:
    """Shows on a late bar how much of a prompt has been read; its line ends with the prompt."""

    def tell(done: int, total: int) -> None:
        bar("reading the prompt, tokens", done, total)
        if done == total:
            bar.close()

    return tell


def tell_plan(engine: Engine) -> None:
    """What a budget costs, on standard error: in one line what is only slower, then each step that changes the text."""
    made = engine.plan
    if made is not None:
        kept = [step for step in made.steps if step not in made.lossy]
        if kept:
            note(f"within {size(made.budget_bytes or 0)}: {'; '.join(kept)}")
    for step in engine.lossy:
        note(f"the text may change: {step}")


def budget_figures(engine: Engine) -> dict[str, Any]:
    """What was planned, what was read and what was lost, for --json; nothing without a budget and such settings."""
    told = {"lossy": engine.lossy} if engine.lossy else {}
    if engine.plan is None:
        return told
    read = None if engine.streaming is None else engine.streaming.reader.bytes_read
    return {"budget_bytes": engine.plan.budget_bytes, "plan": engine.plan.values(), "weights_read_bytes": read} | told


def bounds_of(flags: ModelFlags) -> Bounds | None:
    """How far the governor may go; None where none was asked for."""
    from genmote.runtime.governor import Bounds

    if not flags.governor:
        if flags.governor_kv is not None:
            raise UserError(
                "--governor-kv bounds the governor: give --governor too, or --kv-tokens to cut from the start"
            )
        return None
    return Bounds(kv_tokens=flags.governor_kv)


def scaled(text: str) -> tuple[str, float]:
    """`PATH:SCALE` or `PATH`, whose scale is 1.

    >>> scaled("style.gguf:0.5"), scaled("C:style.gguf")
    (('style.gguf', 0.5), ('C:style.gguf', 1.0))
    """
    path, colon, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


def read_schema(path: Path) -> str:
    """A JSON schema's text; what is no JSON is a `GrammarError` with its place in the file."""
    text = read_text(path)
    try:
        json.loads(text)
    except json.JSONDecodeError as fault:
        raise GrammarError(f"{path}, line {fault.lineno} column {fault.colno}: {fault.msg}; wanted JSON") from None
    except RecursionError:
        raise GrammarError(f"{path} is nested too deep: wanted a JSON schema") from None
    return text


def read_text(path: Path) -> str:
    """A text file's content, ``-`` for standard input; what cannot be read is a `UserError`."""
    name = "standard input" if str(path) == "-" else path
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise UserError("standard input is closed: pipe a text in, or name a file")
            raw = sys.stdin.buffer.read()
        else:
            raw = path.read_bytes()
        return raw.decode("utf-8")  # as it is: CR LF is part of a text that is measured
    except OSError as fault:
        raise UserError(f"{name} cannot be read ({fault.strerror}): wanted a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text: wanted a text file") from None
