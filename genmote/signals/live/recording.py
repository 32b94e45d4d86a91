"""Pieces that go on arriving, as files that are whole at any time: what a kill costs is what has not been written yet.

A topic has a file of its own: `NAME.csv` the first, `NAME-2.csv` the second, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from genmote.errors import SignalError, UserError
from genmote.signals import container, writing
from genmote.signals.kinds import Records, Series
from genmote.signals.reading import joined

BLOCK_S, BLOCK_VALUES = 10.0, 1 << 16  # a .gmsc gets a block this often, or where so many values wait, of all topics
SUFFIXES = (".csv", ".gmsc")


class Recorder:
    """Appends pieces to the files of their topics. `max_error`: of a .gmsc, as in `container.write`. UserError where
    there is such a file already."""

    def __init__(self, path: Path, *, max_error: float = 0.0) -> None:
        self.path, self.max_error = path, max_error
        self.files: dict[str, Path] = {}  # by topic
        self.rows: dict[str, int] = {}
        self._growing: dict[str, container.Growing] = {}
        self._waiting: dict[str, list[Series]] = {}
        self._values, self._since_s = 0, 0.0
        _absent(path)

    def add(self, topic: str, piece: Series | Records, now_s: float) -> None:
        """SignalError for what the file cannot hold; UserError where it cannot be written, or is there already."""
        table = self.path.suffix.lower() == ".csv"
        if isinstance(piece, Records) and not table:
            raise SignalError(f"{topic}: is records, which a .gmsc has no place for: record it as .csv")
        if topic not in self.files:
            self._begin(topic)
        if isinstance(piece, Records) or table:
            self._write(topic, len(piece), lambda: _append(self.files[topic], piece))
            return
        if not self._values:
            self._since_s = now_s
        waiting = self._waiting.setdefault(topic, [])
        if waiting and not _goes_on(waiting[-1], piece):
            self._block(topic)
        self._waiting.setdefault(topic, []).append(piece)
        self._values += piece.values.size
        if self._values >= BLOCK_VALUES:
            self.flush()

    def due(self, now_s: float) -> None:
        """Write what has waited for long enough."""
        if self._values and now_s - self._since_s >= BLOCK_S:
            self.flush()

    def flush(self) -> None:
        """Write all that waits."""
        for topic in list(self._waiting):
            self._block(topic)
        self._values = 0

    def _block(self, topic: str) -> None:
        pieces = self._waiting.pop(topic)
        whole = joined(list(pieces))
        assert isinstance(whole, Series)
        self._write(topic, len(whole), lambda: self._growing[topic].add(whole))

    def _write(self, topic: str, rows: int, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as fault:
            raise UserError(
                f"{self.files[topic]} cannot be written ({fault.strerror}): what came before is kept"
            ) from None
        self.rows[topic] += rows

    def _begin(self, topic: str) -> None:
        number = len(self.files) + 1
        path = self.path if number == 1 else self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}")
        _absent(path)
        self.files[topic], self.rows[topic] = path, 0
        self._growing[topic] = container.Growing(path, max_error=self.max_error)


def _absent(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path} is there already: name another file with --output, or take it away")


def _goes_on(before: Series, piece: Series) -> bool:
    """Whether two pieces can be one block."""
    assert before.grid is not None and piece.grid is not None
    return before.name == piece.name and np.array_equal(before.grid.step, piece.grid.step)


def _append(path: Path, piece: Series | Records) -> None:
    """Rows behind those of a table, in one write; the heads before the first."""
    began_s = 0.0 if isinstance(piece, Records) else piece.start_s or 0.0
    lines = writing.table(piece, began_s, heads=not path.exists())
    with open(path, "ab") as file:
        file.write(lines)
