"""Windows of recordings whose label is the same all over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from genmote.signals.kinds import Series


def windows(series: Series, seconds: float, step: float | None = None) -> Iterator[Series]:
    """Parts of so many seconds, one each `step` seconds (else one after another); what is left at the end is shorter
    and not told."""
    length, apart = round(seconds * series.rate_hz), round((step or seconds) * series.rate_hz)
    for start in range(0, len(series) - length + 1, max(1, apart)):
        yield series.part(start, start + length)


def runs(labels: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Stretches [start, stop) of one label.

    >>> list(runs(["a", "a", "b"]))
    [(0, 2, 'a'), (2, 3, 'b')]
    """
    start = 0
    for at in range(1, len(labels) + 1):
        if at == len(labels) or labels[at] != labels[start]:
            yield start, at, labels[start]
            start = at
