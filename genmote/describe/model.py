"""A model that describes signals, ready to run; nothing here needs PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.describe import file as parts_of
from genmote.describe import prompt
from genmote.describe.file import Found, Task
from genmote.describe.prompt import Facts
from genmote.errors import SpecError
from genmote.fetch import Progress, quiet
from genmote.models.encoder import Encoder
from genmote.models.patches import BINS, Patches
from genmote.registry import listed
from genmote.runtime.footprint import trim
from genmote.runtime.prompt import Rows
from genmote.runtime.sample import log_softmax, token_logprobs
from genmote.signals.kinds import Signal

if TYPE_CHECKING:
    from genmote.runtime.engine import Engine
    from genmote.runtime.session import Session
    from genmote.runtime.stream import Stream

Float64 = NDArray[np.float64]
SPANS = 8  # stretches of a signal that are hidden one after the other


@dataclass(frozen=True)
class Labels:
    """What `classify` found: probabilities by label, and `label`, the likeliest, or None where that is less likely
    than `confidence`."""

    probabilities: dict[str, float]
    label: str | None
    confidence: float
    calibrated: bool  # by examples held out


@dataclass(frozen=True)
class Evidence:
    """How much less likely (in nats) an answer is without what is in a stretch of a signal, in seconds from its
    beginning."""

    signal: int
    start_s: float
    stop_s: float
    nats: float


class Describer:
    """The language model, its adapter, and the encoder in front of it."""

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        ops: str | None = None,
        isa: str | None = None,
        memory: int | str | None = None,
        context: int | None = None,
        progress: Progress = quiet,
    ) -> Describer:
        """A model by its TOML file, or by the name of one that comes with the package; the settings are
        `Engine.load`'s. ModelNameError for no such file, ModelFileError for parts that are not there, not what the TOML
        names, or do not fit each other."""
        from genmote.runtime.engine import Engine

        found = parts_of.find(path, progress=progress)
        engine = Engine.load(
            found.language,
            adapter=found.adapter,
            threads=threads,
            ops=ops,
            isa=isa,
            memory=memory,
            context=context,
            progress=progress,
        )
        return cls(engine, Encoder.load(found.encoder, engine.decoder.ops), found)

    def __init__(self, engine: Engine, encoder: Encoder, found: Found) -> None:
        encoder.check(engine.config.width, found.encoder.path.name, found.language.name)
        self.engine, self.encoder, self.found, self.parts = engine, encoder, found, found.parts

    def __enter__(self) -> Describer:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.engine.close()

    def prompt(
        self, signals: Sequence[Signal], question: str, patches: Sequence[Patches] | None = None
    ) -> list[list[int] | NDArray[np.float32]]:
        """What the engine is given: token ids, and embeddings between them. `patches`: the signals as the encoder reads
        them, where that is known. SpecError for no question, SignalError for what is empty or of frames."""
        seen = [self.encoder.patches(signal) for signal in signals] if patches is None else patches
        said = prompt.tokens(self.engine.tokenizer, prompt.pieces(signals, question, self._facts))
        found = [self.encoder.embed(seen[part]) if isinstance(part, int) else part for part in said]
        self.engine.tokenizer.release()  # what that took is given back before the language model's weights come
        trim()
        return found

    @property
    def _facts(self) -> Facts | None:
        if not self.parts.facts:
            return None
        from genmote.describe.factline import lines

        return lines

    def stream(self, signals: Sequence[Signal], question: str, **options: Any) -> Stream:
        """The answer in pieces, as `Engine.stream` gives them; its first token begins with a space."""
        return self.engine.stream(self.prompt(signals, question), **options)

    def ask(self, signals: Sequence[Signal], question: str, **options: Any) -> str:
        """The answer to a question about signals."""
        return self.engine.generate(self.prompt(signals, question), **options).text.strip()

    # -- likelihoods ---------------------------------------------------------------------------------------------------
    def likelihoods(
        self, segments: Sequence[Any], answers: Sequence[Sequence[int]], session: Session | None = None
    ) -> Float64:
        """Log-probability (nats) of each answer's tokens after the prompt, (len(answers),)."""
        session = session or self.engine.session()
        rows = self.engine.rows(segments)
        first = session.prefill(rows)
        found = np.zeros(len(answers))
        for n, tokens in enumerate(answers):
            session.truncate(len(rows))
            logits = first[None]
            if len(tokens) > 1:
                more = session.extend(Rows(tokens), 0, len(tokens) - 1, len(tokens) - 1)
                assert more is not None  # rows were asked for
                logits = np.concatenate([logits, more])
            found[n] = token_logprobs(logits, np.array(tokens, np.int64)).sum()
        return found

    def task(self, about: str | None) -> Task:
        """The task of that name, or the only one. SpecError where there is none such, or several."""
        known = {task.about: task for task in self.parts.tasks}
        if about in known:
            return known[about]
        if about is None and len(known) == 1:
            return next(iter(known.values()))
        if not known:
            raise SpecError("this model was taught no labels: name some with --labels, and a question with --question")
        wanted = "several tasks, and none is named" if about is None else f"no task is called {about!r}"
        raise SpecError(f"{wanted}: this model knows {listed(known)}; choose one with --task")

    def classify(self, signals: Sequence[Signal], task: Task, *, confidence: float | None = None) -> Labels:
        """How likely each of a task's labels is, as the answer to its question."""
        limit = self.parts.confidence if confidence is None else confidence
        shares = np.exp(log_softmax(self.label_nats(signals, task) / task.temperature))
        best = int(shares.argmax())
        found = {label: float(share) for label, share in zip(task.labels, shares, strict=True)}
        return Labels(found, task.labels[best] if shares[best] >= limit else None, limit, task.examples > 0)

    def label_nats(self, signals: Sequence[Signal], task: Task) -> Float64:
        """Log-probability of each of a task's labels as the answer to its question, (labels,)."""
        said = [prompt.answer(self.engine.tokenizer, label) for label in task.labels]
        return self.likelihoods(self.prompt(signals, task.question), said)

    def evidence(self, signals: Sequence[Signal], question: str, said: str, *, spans: int = SPANS) -> list[Evidence]:
        """What of the signals moved an answer: each signal's time in `spans` stretches, which are hidden from the
        encoder in turn (occlusion: Zeiler & Fergus 2014, arXiv 1311.2901); the most telling first. A line of facts in
        the prompt stays."""
        seen = [self.encoder.patches(signal) for signal in signals]
        tokens = [prompt.answer(self.engine.tokenizer, said)]
        session = self.engine.session()
        whole = float(self.likelihoods(self.prompt(signals, question, seen), tokens, session)[0])
        found: list[Evidence] = []
        for n, one in enumerate(seen):
            edges = np.unique(np.linspace(0, len(one.spans_s), spans + 1).round().astype(int))
            for start, stop in pairwise(edges.tolist()):
                without = [*seen[:n], hidden(one, start, stop), *seen[n + 1 :]]
                nats = float(self.likelihoods(self.prompt(signals, question, without), tokens, session)[0])
                times = float(one.spans_s[start, 0]), float(one.spans_s[stop - 1, 1])
                found.append(Evidence(n, *times, whole - nats))
        return sorted(found, key=lambda one: -one.nats)


def hidden(patches: Patches, start: int, stop: int) -> Patches:
    """The same with nothing in slots [start, stop), as where samples are missing."""
    rows = patches.rows.copy()
    rows[:-1, start:stop, : 2 * BINS] = 0
    rows[:-1, start:stop, 2 * BINS + 16 : 2 * BINS + 30] = 0  # what features say of the slot alone
    return replace(patches, rows=rows)
