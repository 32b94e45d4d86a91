"""Stop strings across token borders: text that may yet become a stop string is held back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from genmote.errors import SpecError


class Stops:
    """Cuts a text, given in pieces, before the stop string that is complete first (of those that end together, the
    longest).

    However the text is cut into pieces, the outcome is the same.

    >>> stops = Stops(["END"])
    >>> stops.push("the E"), stops.push("ND of")
    ('the ', '')
    >>> stops.found
    'END'
    """

    def __init__(self, stops: str | Sequence[str] | None = None) -> None:
        if not isinstance(stops, Iterable | None):
            raise SpecError(f"stop={stops!r}: use text, a list of texts, or None")
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops or ())
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise SpecError(f"stop={stop!r}: a stop string is text of at least one character")
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """What may be shown after `text` came. Once a stop string is found, nothing more."""
        if not self.stops:
            return text
        if self.found is not None:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start, stop) for stop in self.stops if (start := text.find(stop)) >= 0]
        if ends:
            _, start, self.found = min(ends)
            self._held = ""
            return text[:start]
        held = self._open_suffix(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """The held text, at the end of generation."""
        text, self._held = self._held, ""
        return text

    def _open_suffix(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(len(stop) for stop in self.stops) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0
