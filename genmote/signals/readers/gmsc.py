"""Signals that are compressed (`../container.py`), as `genmote signal compress`, `generate` and `watch` write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from genmote.errors import SignalError
from genmote.signals import container
from genmote.signals.kinds import Series

SUFFIXES = (".gmsc",)


def knows(path: Path, head: bytes) -> bool:
    return head[:4] == container.MAGIC


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series]:
    name: str | None = None  # of the recording that is read
    alike = 0  # recordings before it of the same name
    for block in container.read(path, notes=notes):
        if block.name != name:
            name, alike = block.name, 0
        elif not block.continues:
            alike += 1
        piece = replace(block, name=f"{name} ({alike + 1})") if alike else block
        for start in range(0, len(piece), rows):
            yield piece.part(start, start + rows)
    if name is None:
        raise SignalError(f"{path}: holds no samples that are whole: wanted some")
