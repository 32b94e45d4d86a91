"""Prompt-lookup decoding (Saxena 2023): guess the next tokens from an earlier place in the same text.

The guess is checked in one batch: each guessed token is accepted while it is the token that would have been drawn
anyway. So the text is the same as without guessing; only the steps are fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class SpeculationCount:
    """What guessing brought: `steps_saved` = accepted tokens that needed no step of their own."""

    drafted: int = 0
    accepted: int = 0

    @property
    def steps_saved(self) -> int:
        return self.accepted


class PromptLookup:
    """Guesses continuations of a growing text by its last n-gram's latest earlier occurrence.

    The guess grows while guesses hold, shrinks when they fail, and pauses after repeated failure: a failed guess costs
    a larger batch for nothing.

    >>> lookup = PromptLookup()
    >>> lookup.extend([1, 2, 3, 4, 1, 2, 3])
    >>> lookup.draft(limit=2)
    [4, 1]
    """

    def __init__(self, *, longest: int = 3, shortest: int = 2, max_draft: int = 16) -> None:
        self.longest, self.shortest, self.max_draft = longest, shortest, max_draft
        self.count = SpeculationCount()
        self._text: list[int] = []
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(longest + 1)]  # [n][n-gram] → next place
        self._width = 4
        self._failures = 0
        self._pause = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Append to the text. The n-grams that end before its last token become findable."""
        for token in tokens:
            end = len(self._text)
            for n in range(self.shortest, min(self.longest, end) + 1):
                self._after[n][tuple(self._text[end - n :])] = end
            self._text.append(token)

    def draft(self, limit: int) -> list[int]:
        """Up to `limit` guessed tokens, none when nothing matches or guessing is paused."""
        if self._pause > 0:
            self._pause -= 1
            return []
        room = min(limit, self._width, self.max_draft)
        for n in range(min(self.longest, len(self._text)), self.shortest - 1, -1):
            place = self._after[n].get(tuple(self._text[-n:]))
            if place is not None:
                period = len(self._text) - place  # a guess beyond the end repeats itself, as such texts do
                guess = [self._text[place + i % period] for i in range(room)]
                stop = next((i for i, token in enumerate(guess) if token < 0), len(guess))  # rows of embeddings
                return guess[:stop]
        return []

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
