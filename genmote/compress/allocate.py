"""Which option each matrix gets, within so many bytes: the multiple-choice knapsack problem.

Dynamic programming over bytes (Dudziński and Walukiewicz 1987, doi 10.1016/0377-2217(87)90165-2). Sizes are counted in
their greatest common divisor, so that the result is exact, as long as that makes at most `CELLS` cells; else in a
coarser unit and rounded up, so that the result still fits. In both cases `Allocation.bound` tells what no allocation
can go below: the linear relaxation's damage, which is the Lagrangian dual's too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from genmote.errors import BudgetError, SpecError

CELLS = 1 << 16  # of the table, for each matrix


@dataclass(frozen=True)
class Option:
    """One way to have a matrix, or several together: what is done, the bytes that it then takes in the file, and what
    it is expected to cost, in a unit that adds up over matrices."""

    what: str
    bytes: int
    damage: float
    parts: tuple[tuple[str, Option], ...] = ()  # of an option for several tensors: each one's own, in the sums too


@dataclass(frozen=True)
class Allocation:
    """`damage` is at least `bound`, and at most as much above the best as the two differ; 0 or more bytes are left."""

    chosen: dict[str, Option]
    bytes: int
    damage: float
    bound: float
    exact: bool


def least_bytes(options: Mapping[str, Sequence[Option]]) -> int:
    """The smallest budget for which there is an allocation."""
    return sum(min(option.bytes for option in each) for each in options.values())


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> Allocation:
    """The allocation with the least sum of damages whose sum of bytes is at most `budget`.

    >>> small, large = Option("Q4_0", 18, 1.0), Option("Q8_0", 34, 0.1)
    >>> allocate({"a": [small, large], "b": [small, Option("Q8_0", 34, 0.5)]}, 60).chosen["a"].what
    'Q8_0'

    Raises BudgetError where not even the smallest options fit, SpecError for a matrix without options or a damage that
    is no number.
    """
    for name, each in options.items():
        if not each:
            raise SpecError(f"{name} has no option: give each matrix one at least, such as to keep it")
        for option in each:
            if not math.isfinite(option.damage):
                raise SpecError(f"{name} as {option.what}: damage={option.damage} is no finite number")
    least = least_bytes(options)
    if least > budget:
        raise BudgetError(f"the smallest options take {least} bytes together, the budget is {budget}", least)
    useful = {name: undominated(each) for name, each in options.items()}
    extras = {name: [option.bytes - each[0].bytes for option in each] for name, each in useful.items()}
    room = min(budget - least, sum(extra[-1] for extra in extras.values()))
    unit = math.gcd(*(size for extra in extras.values() for size in extra)) or 1
    exact = room // unit <= CELLS
    if not exact:
        unit = -(-room // CELLS)
    cells = room // unit + 1
    best: NDArray[np.float64] = np.zeros(cells)  # least damage of the matrices so far in at most so many units
    picks: dict[str, NDArray[np.uint16]] = {}
    for name, each in useful.items():
        following = np.full(cells, np.inf)
        picked = np.zeros(cells, np.uint16)
        for number, (option, extra) in enumerate(zip(each, extras[name], strict=True)):
            units = -(-extra // unit)
            if units < cells:
                candidate = best[: cells - units] + option.damage
                better = candidate < following[units:]
                following[units:][better] = candidate[better]
                picked[units:][better] = number
        best, picks[name] = following, picked
    chosen: dict[str, Option] = {}
    at = cells - 1
    for name in reversed(useful):
        number = int(picks[name][at])
        chosen[name] = useful[name][number]
        at -= -(-extras[name][number] // unit)
    chosen = {name: chosen[name] for name in options}
    taken, damage = sum(x.bytes for x in chosen.values()), sum(x.damage for x in chosen.values())
    return Allocation(chosen, taken, damage, bound(options, budget), exact)


def undominated(options: Sequence[Option]) -> list[Option]:
    """Those than which no other is both no larger and no more harmful, from small to large."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda x: (x.bytes, x.damage)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return kept


def together(what: str, damage: float, parts: Mapping[str, Sequence[Option]]) -> list[Option]:
    """The undominated ways to have all the parts at once, each as one of its options, with `damage` on top.

    >>> [found] = together("whole", 1.0, {"a": [Option("Q4_0", 18, 0.5)], "b": [Option("Q8_0", 34, 0.25)]})
    >>> found.bytes, found.damage, [(name, option.what) for name, option in found.parts]
    (52, 1.75, [('a', 'Q4_0'), ('b', 'Q8_0')])
    """
    found = [Option(what, 0, damage)]
    for name, each in parts.items():
        useful = undominated(each)
        sizes = np.add.outer([x.bytes for x in found], [x.bytes for x in useful]).reshape(-1)
        costs = np.add.outer([x.damage for x in found], [x.damage for x in useful]).reshape(-1)
        order = np.lexsort((costs, sizes))
        lowest = np.minimum.accumulate(costs[order])
        better = order[costs[order] < np.concatenate([[np.inf], lowest[:-1]])]
        found = [
            Option(what, int(sizes[n]), float(costs[n]), (*before.parts, (name, useful[n % len(useful)])))
            for n in better
            for before in (found[n // len(useful)],)
        ]
    return found


def hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull of damage over bytes, of undominated options from small to large."""
    kept: list[Option] = []
    for option in options:
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], option):
            kept.pop()
        kept.append(option)
    return kept


def _slope(a: Option, b: Option) -> float:
    return (b.damage - a.damage) / (b.bytes - a.bytes)


def bound(options: Mapping[str, Sequence[Option]], budget: int) -> float:
    """The damage below which no allocation within `budget` bytes can be: matrices may be mixed of two options here.
    Steps along the hulls are taken from the one that gains most a byte on (Sinha and Zoltners 1979,
    doi 10.1287/opre.27.3.503)."""
    hulls = [hull(undominated(each)) for each in options.values()]
    room = budget - sum(each[0].bytes for each in hulls)
    damage = sum(each[0].damage for each in hulls)
    steps = [(a, b) for each in hulls for a, b in pairwise(each)]
    for a, b in sorted(steps, key=lambda step: _slope(*step)):
        share = min(1.0, room / (b.bytes - a.bytes))
        damage += share * (b.damage - a.damage)
        room -= b.bytes - a.bytes
        if share < 1:
            break
    return damage
