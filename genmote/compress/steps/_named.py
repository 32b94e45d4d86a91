"""Settings that name a number for some blocks or tensors, such as widths = ["blk.0=1216"]: one rule each, exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from genmote.errors import SpecError


def faults(setting: str, rules: Sequence[str], example: str) -> Iterable[str]:
    """What is wrong with how the rules are written."""
    seen: set[str] = set()
    for rule in rules:
        name, _, number = rule.partition("=")
        if not name or not number.isdecimal() or int(number) < 1:
            yield f"{setting}={rule!r}: write NAME=NUMBER, such as {example}"
        if name in seen:
            yield f"{setting}: {name} is named twice"
        seen.add(name)


def numbers(rules: Iterable[str]) -> dict[str, int]:
    """The number that each name gets, of rules without faults.

    >>> numbers(["blk.0=1216", "blk.3=96"])
    {'blk.0': 1216, 'blk.3': 96}
    """
    return {name: int(number) for name, _, number in (rule.partition("=") for rule in rules)}


def bounded(setting: str, rules: Iterable[str], most: Mapping[str, int], what: str) -> dict[str, int]:
    """`numbers`, each found known and at most what `most` says of it; SpecError else. `what`: of which the numbers
    are, such as channels."""
    found = numbers(rules)
    for name, number in found.items():
        if name not in most:
            known = list(most)
            raise SpecError(f"{setting}: {name} has no {what} to name; what has: {known[0]} to {known[-1]}")
        if number > most[name]:
            raise SpecError(f"{setting}: {name}={number}: wanted at most {most[name]} {what}")
    return found
