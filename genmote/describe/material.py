"""Examples as the encoder and the language model read them while they learn: questions of the same signals together, as
what is read of these need be read once then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from genmote.describe import prompt
from genmote.describe.examples import Example
from genmote.models.encoder import Form
from genmote.models.gguf import ModelFile
from genmote.models.patches import Patches, patches
from genmote.models.tokenizer import load_tokenizer
from genmote.signals.kinds import Signal

if TYPE_CHECKING:
    from genmote.describe.settings import Training

Talk = tuple[Example, ...]  # questions about the same signals, one after the other
Piece = tuple[list[int] | int, bool]  # token ids or the number of a signal, and whether it is an answer
HELD_BYTES = 400 << 20  # of signals as the encoder reads them, kept


def talks(examples: Iterable[Example]) -> Iterator[Talk]:
    """Examples that follow each other and are of the same signals, together."""
    for _, some in groupby(examples, key=lambda example: tuple(map(id, example.signals))):
        yield tuple(some)


class Material:
    """What of the `kept` examples is made is kept for the next time."""

    def __init__(self, kept: Sequence[Example], file: ModelFile, form: Form, training: Training) -> None:
        self.kept = {id(example): example for example in kept}
        self.kept_signals = {id(signal): signal for example in kept for signal in example.signals}
        self.form = form
        self.tokenizer = load_tokenizer(file)
        self.facts: prompt.Facts | None = None
        if training.facts:
            from genmote.describe.factline import lines

            self.facts = lines
        self._patches: dict[int, Patches] = {}
        self._bytes = 0
        self._said: dict[tuple[int, ...], list[Piece]] = {}

    def patches(self, signal: Signal) -> Patches:
        if (found := self._patches.get(id(signal))) is not None:
            return found
        made = patches(signal, self.form.slots, self.form.join)
        if id(signal) in self.kept_signals and self._bytes + made.rows.nbytes < HELD_BYTES:
            self._patches[id(signal)] = made
            self._bytes += made.rows.nbytes
        return made

    def said(self, talk: Talk) -> list[Piece]:
        """The prompt of the first question, its answer, the next question, its answer, …: the first as it is asked
        when the model runs."""
        key = tuple(map(id, talk))
        if (found := self._said.get(key)) is not None:
            return found
        asked = [example.question for example in talk]
        parts = prompt.pieces(talk[0].signals, asked[0], self.facts, also=asked[1:])
        made: list[Piece] = [(part, False) for part in prompt.tokens(self.tokenizer, parts)]
        for n, example in enumerate(talk):
            if n:
                more = self.tokenizer.encode(prompt.asked(example.question), bos=False, special=False, start=False)
                made.append((more, False))
            made.append((prompt.answer(self.tokenizer, example.answer), True))
        if all(one in self.kept for one in key):
            self._said[key] = made
        return made

    def embeddings(self, signal: Signal) -> int:
        """How many embeddings a signal has."""
        return len(self.patches(signal).spans_s) // self.form.join

    def rows(self, talk: Talk) -> int:
        """How long a talk is, as rows of the language model."""
        parts = [part for part, _ in self.said(talk)]
        return sum(self.embeddings(talk[0].signals[p]) if isinstance(p, int) else len(p) for p in parts)

    def fitting(self, talk: Talk, context: int) -> Talk:
        """The talk without the last questions that `context` rows do not hold."""
        while talk and self.rows(talk) > context:
            talk = talk[:-1]
        return talk
