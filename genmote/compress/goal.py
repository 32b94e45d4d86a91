"""What a search is for, bytes or a pace or both, and the allocation that meets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genmote.compress.allocate import Allocation, Option, allocate, least_bytes
from genmote.compress.shapes import restored, walk
from genmote.errors import BudgetError, SpecError
from genmote.models.gguf import ModelFile

if TYPE_CHECKING:
    from genmote.runtime.roofline import Machine

RULE_BYTES = 48  # for each matrix, beside its name: of the recipe that lies in the file, and of alignment
BESIDE = 4096  # bytes of the file that are not counted otherwise
HALVINGS = 24


@dataclass(frozen=True)
class Goal:
    """What the result must be: a file of at most `bytes`, a `pace` in tokens a second on `machine` within `memory`
    bytes there, after a prompt and an answer of usual lengths; either or both."""

    bytes: int | None = None
    pace: float | None = None
    machine: Machine | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.bytes is None and self.pace is None:
            raise SpecError("a search needs a goal: --target BYTES, such as 60MB, or --pace TOKENS with --device NAME")
        if self.bytes is not None and self.bytes < 1:
            raise SpecError(f"target={self.bytes}: wanted bytes above 0")
        if self.pace is not None and (self.machine is None or not self.pace > 0):
            raise SpecError(f"pace={self.pace:g}: wanted tokens a second, above 0, and the machine that they are for")

    def told(self) -> str:
        """In words."""
        parts = [] if self.bytes is None else [f"at most {self.bytes / 1e6:g} MB"]
        if self.pace is not None and self.machine is not None:
            parts.append(f"at least {self.pace:g} tokens/s on {self.machine.source}")
        return ", ".join(parts)


def choose(
    source: ModelFile, options: Mapping[str, Sequence[Option]], goal: Goal, of: str = "types", over: int = 0
) -> tuple[Allocation, str | None]:
    """The allocation for a goal, and what of it is not expected to be met (then the smallest allocation that there is).
    `of`: what is chosen among, in words; `over`: bytes beside the matrices that are not counted here."""
    other = beside(source, options) + over
    least, most = least_bytes(options), sum(max(x.bytes for x in each) for each in options.values())
    room = most if goal.bytes is None else goal.bytes - other
    if room < least:
        return allocate(options, least), (too_large(least + other, goal, of))
    found = allocate(options, room)
    if goal.pace is None or meets(source, found, goal):
        return found, None
    smallest = allocate(options, least)
    if (missed := too_slow(source, smallest, goal, of)) is not None:
        return smallest, missed
    low, high, found = least, room, smallest
    for _ in range(HALVINGS):
        middle = (low + high) // 2
        tried = allocate(options, middle)
        if meets(source, tried, goal):
            low, found = middle, tried
        else:
            high = middle
        if high - low <= BESIDE:
            break
    return found, None


def beside(source: ModelFile, options: Mapping[str, Sequence[Option]]) -> int:
    """Bytes of the file beside the matrices that are chosen for."""
    names = {name for item, each in options.items() for option in each for name, _ in walk([(item, option)])}
    kept = source.nbytes - sum(source.tensors[name].nbytes for name in names if name in source.tensors)
    return kept + BESIDE + sum(len(name) + RULE_BYTES for name in names)


def too_large(size: int, goal: Goal, of: str) -> str:
    """That not even the smallest file, of `size` bytes, is small enough, in words."""
    return f"no choice of {of} takes less than {size / 1e6:.6g} MB, wanted {(goal.bytes or 0) / 1e6:g} MB"


def too_slow(source: ModelFile, smallest: Allocation, goal: Goal, of: str) -> str | None:
    """That not even the smallest choice is fast enough, in words; None where it is."""
    if meets(source, smallest, goal):
        return None
    reached = speed(source, smallest.chosen, goal)
    if reached is None and goal.machine is not None:
        return f"the smallest choice of {of} does not fit the memory of {goal.machine.source}"
    return f"{reached:.3g} tokens/s are expected of the smallest choice of {of}, wanted {goal.pace:g}"


def meets(source: ModelFile, chosen: Allocation, goal: Goal) -> bool:
    reached = speed(source, chosen.chosen, goal)
    return goal.pace is None or (reached is not None and reached >= goal.pace)


def speed(source: ModelFile, chosen: Mapping[str, Option], goal: Goal) -> float | None:
    """Tokens a second of decoding that are expected of the model with these types, at the usual length of a text; None
    where no machine is named, or the model does not fit its memory."""
    from genmote.runtime.footprint import INTERPRETER_BYTES
    from genmote.runtime.plan import plan

    if goal.machine is None:
        return None
    try:  # what a device's process has, not this one's with PyTorch in it
        file = restored(source, chosen)
        made = plan(file, memory=goal.memory, machine=goal.machine, interpreter=INTERPRETER_BYTES)
    except BudgetError:
        return None
    return None if made.expected is None else made.expected.text_decode_tokens_per_s
