"""Guessing the next tokens, so that several come out of one pass over the weights.

A guess is checked in one batch: each guessed token is accepted while it is the token that would have been drawn
anyway. So the text is the same as without guessing; only the steps are fewer. Two guessers: an earlier place in the
same text (prompt lookup, Saxena 2023), and a smaller model (speculative decoding, Leviathan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genmote.errors import SpecError

if TYPE_CHECKING:
    from genmote.models.tokenizer import Tokenizer
    from genmote.runtime.engine import Engine


MOST_GUESSES = 16  # of one pass


@dataclass
class SpeculationCount:
    """What guessing brought: `steps_saved` = accepted tokens that needed no step of their own."""

    drafted: int = 0
    accepted: int = 0

    @property
    def steps_saved(self) -> int:
        return self.accepted


class Guesser:
    """Guesses continuations of a growing text; a member writes `guess`.

    The guess grows while guesses hold, shrinks when they fail, and pauses after repeated failure: a failed guess costs
    a larger batch for nothing.
    """

    def __init__(self, *, max_draft: int = MOST_GUESSES) -> None:
        self.max_draft = max_draft
        self.count = SpeculationCount()
        self._width = 4
        self._failures = 0
        self._pause = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Append to the text."""
        raise NotImplementedError

    def guess(self, room: int) -> list[int]:
        """At most `room` tokens (1 or more) that may come next."""
        raise NotImplementedError

    def draft(self, limit: int) -> list[int]:
        """Up to `limit` guessed tokens, none when there is nothing to guess from or guessing is paused."""
        if self._pause > 0:
            self._pause -= 1
            return []
        room = min(limit, self._width, self.max_draft)
        return self.guess(room) if room > 0 else []

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn from one checked guess."""
        if not drafted:
            return
        self.count.drafted += drafted
        self.count.accepted += accepted
        if accepted == drafted:
            self._width = min(self.max_draft, self._width * 2)
        else:
            self._width = max(2, accepted + 1)
        if accepted:
            self._failures = 0
        else:
            self._failures += 1
            if self._failures > 1:
                self._pause = min(32, 2**self._failures)


class PromptLookup(Guesser):
    """Guesses what followed the latest earlier occurrence of the text's last n-gram.

    >>> lookup = PromptLookup()
    >>> lookup.extend([1, 2, 3, 4, 1, 2, 3])
    >>> lookup.draft(limit=2)
    [4, 1]
    """

    def __init__(self, *, longest: int = 3, shortest: int = 2, max_draft: int = MOST_GUESSES) -> None:
        super().__init__(max_draft=max_draft)
        self.longest, self.shortest = longest, shortest
        self._text: list[int] = []
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(longest + 1)]  # [n][n-gram] → next place

    def extend(self, tokens: Sequence[int]) -> None:
        """Append to the text. The n-grams that end before its last token become findable."""
        for token in tokens:
            end = len(self._text)
            for n in range(self.shortest, min(self.longest, end) + 1):
                self._after[n][tuple(self._text[end - n :])] = end
            self._text.append(token)

    def guess(self, room: int) -> list[int]:
        for n in range(min(self.longest, len(self._text)), self.shortest - 1, -1):
            place = self._after[n].get(tuple(self._text[-n:]))
            if place is not None:
                period = len(self._text) - place  # a guess beyond the end repeats itself, as such texts do
                guess = [self._text[place + i % period] for i in range(room)]
                stop = next((i for i, token in enumerate(guess) if token < 0), len(guess))  # rows of embeddings
                return guess[:stop]
        return []


class DraftModel(Guesser):
    """Guesses what a smaller model with the same tokens finds likeliest.

    Where a pass over the large model's weights is dear (they are streamed from a disk), the small model's own passes
    cost next to nothing.
    """

    def __init__(self, small: Engine, *, max_draft: int = MOST_GUESSES) -> None:
        """`small`: the engine of the model that guesses; its tokens must be those of the text (`check_tokens`)."""
        super().__init__(max_draft=max_draft)
        self._small, self._session = small, small.session()
        self._text: list[int] = []
        self._blind = False

    def extend(self, tokens: Sequence[int]) -> None:
        self._text += tokens
        self._blind = self._blind or any(token < 0 for token in tokens)  # embeddings are another model's own

    def guess(self, room: int) -> list[int]:
        room = min(room, self._small.context - len(self._text) + 1)  # the last guess is not run
        if self._blind or room < 1:
            return []
        logits = self._session.prefill(self._text)  # what is held of the text, earlier guesses included, stays
        found: list[int] = []
        while True:
            # Padding beyond the vocabulary means nothing.
            found.append(int(logits[: self._small.tokenizer.vocab_size].argmax()))
            if len(found) == room:
                return found
            logits = self._session.step(found[-1])


def check_tokens(small: Tokenizer, large: Tokenizer) -> None:
    """Raise SpecError unless both tokenizers mean the same by every token id."""
    sizes = small.vocab_size, large.vocab_size
    if sizes[0] != sizes[1] or any(small.token_bytes(i) != large.token_bytes(i) for i in range(sizes[0])):
        raise SpecError(
            f"the draft model has other tokens ({sizes[0]}) than the model it drafts for ({sizes[1]}): "
            "use a smaller model of the same family"
        )
