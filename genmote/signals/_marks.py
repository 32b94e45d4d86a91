"""Marks of a long recording, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from genmote.signals.kinds import Mark


def windows(marks: Sequence[Mark], total: int, most: int) -> Iterator[tuple[int, int, tuple[Mark, ...]]]:
    """Samples [start, stop) of `total`, at most `most` at once, and the marks that touch them, cut to them.

    `marks` are in order of their starts.

    >>> [*windows([Mark(1, 4, "walk")], 5, 3)]
    [(0, 3, (Mark(start=1, stop=3, label='walk', goes_on=True),)), \
(3, 5, (Mark(start=0, stop=1, label='walk', goes_on=False),))]
    """
    at, reaching = 0, list[Mark]()
    for start in range(0, total, most):
        stop = min(start + most, total)
        while at < len(marks) and (marks[at].start < stop or marks[at].start == marks[at].stop == stop == total):
            reaching.append(marks[at])
            at += 1
        yield start, stop, tuple(mark.part(start, stop) for mark in reaching)
        reaching = [mark for mark in reaching if mark.stop > stop]
