"""What every measure is given: how much to do, the peers that could be built, the files, and a line of progress."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import files
from benchmarks.peers import Peer
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, Row, sha256
from genmote.errors import GenmoteError


@dataclass
class Bench:
    """One run. `quick` does fewer repeats on the same questions; `absent` says why a peer is not here."""

    quick: bool
    peers: dict[str, Peer] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    cores: int = 2
    seeds: int = 1  # by which our models are trained again, where that is what is measured
    parts: tuple[str, ...] = ()  # of a measure that has some; none: all

    def pick(self, full: int, quick: int) -> int:
        """A count for this run."""
        return quick if self.quick else full

    def peer(self, variant: str) -> Peer:
        """A built peer. Raises `ContestantError` with the reason where there is none."""
        if variant not in self.peers:
            raise ContestantError(self.absent.get(variant, f"the {variant} build was not asked for"))
        return self.peers[variant]

    def file(self, name: str) -> Path:
        """A model file, made on first use. Raises `ContestantError` with the reason where it cannot be had."""
        try:
            return files.path(name)
        except (GenmoteError, OSError) as why:
            raise ContestantError(str(why)) from why

    def say(self, line: str) -> None:
        """One line of progress, on standard error."""
        print(f"bench: {line}", file=sys.stderr, flush=True)


def about(name: str) -> dict[str, Any]:
    """A row's fields that say which model file was measured."""
    path = files.path(name)
    return {"model": files.title(name) if name in files.RECIPES else path.name, "model_sha256": sha256(path)}


def missing(
    name: str, measure: str, why: object, *, asked: float | None = None, sense: str = AT_LEAST, unit: str = "x"
) -> Row:
    """The row of a number that cannot be measured here, with the reason."""
    return Row(name=name, measure=measure, value=None, value_unit=unit, asked=asked, sense=sense, note=str(why))
