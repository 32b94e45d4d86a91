"""Parts to learn from, to choose on and to be judged on: groups (patients, subjects, recordings) stay whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from genmote.errors import SpecError


class Grouped(Protocol):
    @property
    def group(self) -> str: ...


class Folded(Grouped, Protocol):
    @property
    def fold(self) -> int: ...


G = TypeVar("G", bound=Grouped)
F = TypeVar("F", bound=Folded)
SHARES = {"train": 0.7, "choose": 0.1, "test": 0.2}


def by_group(items: Sequence[G], shares: Mapping[str, float] = SHARES, seed: int = 0) -> dict[str, list[G]]:
    """Items by part. Groups are put in the order of a hash of their names and `seed`, and dealt out so that each part
    comes as near to its share of the items as whole groups let it; every part gets one. The same groups are in the same
    order on every machine. SpecError where there are fewer groups than parts, or shares that do not add up to 1."""
    if not shares or any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise SpecError(f"shares={dict(shares)}: wanted numbers above 0 that add up to 1")
    by_name: dict[str, list[G]] = {}
    for item in items:
        by_name.setdefault(item.group, []).append(item)
    if len(by_name) < len(shares):
        raise SpecError(f"{len(by_name)} groups for {len(shares)} parts: wanted at least one group for each part")
    order = sorted(by_name, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    parts: dict[str, list[G]] = {part: [] for part in shares}
    for n, name in enumerate(order):
        empty = [part for part, own in parts.items() if not own]
        known = empty if len(order) - n <= len(empty) else list(parts)
        short = max(known, key=lambda part: shares[part] * len(items) - len(parts[part]))
        parts[short] += by_name[name]
    return parts


def by_fold(items: Iterable[F], test: Sequence[int], choose: Sequence[int] = ()) -> dict[str, list[F]]:
    """Items by the data set's own split: `test` and `choose` name folds, the others are learnt from. SpecError where a
    group is in two parts."""
    parts: dict[str, list[F]] = {"train": [], "choose": [], "test": []}
    where: dict[str, str] = {}
    for item in items:
        part = "test" if item.fold in test else "choose" if item.fold in choose else "train"
        if where.setdefault(item.group, part) != part:
            raise SpecError(f"group {item.group!r} is in {where[item.group]} and in {part}: split by group instead")
        parts[part].append(item)
    return parts
