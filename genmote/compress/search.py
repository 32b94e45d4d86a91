"""Which tensor type each matrix gets, so that a model fits so many bytes, or is so fast on a device, and loses least.

1. `sensitivity.py` measures what each type is expected to cost each matrix, in nats of KL divergence a token.
2. `allocate.py` chooses among them within the bytes. A pace is met by ever fewer bytes, until the roofline of the
   device (`runtime/plan.py`) says that it is.
3. The recipe is done, and the result measured: the KL divergence that each kind of matrix, and each quarter of the
   blocks, really adds. Where that is not what was expected, the damages are scaled by it and chosen again; the better
   result of the rounds is kept.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.compress import calibration
from genmote.compress.allocate import Allocation, Option, allocate, least_bytes
from genmote.compress.calibration import Calibration
from genmote.compress.check import Check, corrected
from genmote.compress.recipe import Recipe, step_class
from genmote.compress.run import Compressed, begin, clear, code, compress
from genmote.errors import BudgetError, SpecError
from genmote.fetch import Progress, quiet
from genmote.home import atomic_write
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.ops import quant
from genmote.spec import build

if TYPE_CHECKING:
    from genmote.runtime.roofline import Machine

DEFAULT = "gptq"  # the step that stores the matrices
KEEP, TABLE = "keep", "token_embd.weight"
WINDOWS = 8  # of the calibration text, for sensitivities
CHECKS = 4  # windows of other text, for what is measured afterwards
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


@dataclass(frozen=True)
class Round:
    """One allocation, done and measured. `expected`, `measured`: nats of KL divergence a token."""

    recipe: Recipe
    expected: float
    bound: float  # no other choice of the same options would be expected to cost less than this
    measured: float
    size_bytes: int
    scales: Mapping[str, float]  # measured over expected: of kinds of matrices, and of quarters of the blocks


@dataclass(frozen=True)
class Found:
    """What the search ended with. `missed`: what of the goal cannot be met, in words; the file is then the best there
    is. `tokens_per_s`: what the roofline tells of it, where a machine was named."""

    goal: Goal
    made: Compressed
    recipe: Recipe
    rounds: list[Round]
    types: dict[str, int]  # bytes by tensor type, of the matrices that were chosen for
    tokens_per_s: float | None
    missed: str | None
    seconds: float

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON and reports."""
        rounds = [
            {
                "expected": one.expected,
                "bound": one.bound,
                "measured": one.measured,
                "size_bytes": one.size_bytes,
                "scales": dict(one.scales),
            }
            for one in self.rounds
        ]
        return {
            "goal": self.goal.told(),
            "missed": self.missed,
            "rounds": rounds,
            "types_bytes": self.types,
            "expected_tokens_per_s": self.tokens_per_s,
            "seconds": self.seconds,
        }


def search(
    model: str | Path,
    out: str | Path,
    goal: Goal,
    *,
    recipe: Recipe | None = None,
    types: Sequence[str] = (),
    rounds: int = 2,
    work: str | Path | None = None,
    ray: str | None = None,
    progress: Progress = quiet,
) -> Found:
    """Find a recipe for `goal`, and write what it makes to the GGUF file `out`.

    `recipe`: what is done before, and last the step that stores the matrices, whose types are chosen (None: gptq
    alone; where another step is the last, gptq comes after it); `types`: those to choose from (none: see `offered`);
    `work`: as for `compress`, where an interrupted search goes on; `ray`: see `Farm`. Raises SpecError for a model with
    nothing to choose, and what `compress` raises.
    """
    started = time.perf_counter()
    source, target = begin(model, out, progress)
    folder = Path(work) if work is not None else target.with_name(f"{target.name}.work")
    kinds = tuple(quant.by_name(name).name for name in types) or offered()
    best = _Search(source, goal, recipe or Recipe(()), kinds, folder, ray, progress).all(max(1, rounds))
    with best.made.path.open("rb") as made, atomic_write(target) as written:
        shutil.copyfileobj(made, written)
    if work is None:
        clear(folder)
    return replace(best, made=replace(best.made, path=target), seconds=time.perf_counter() - started)


def offered() -> tuple[str, ...]:
    """The types that a matrix may get: all that hold weights, but for floats wider than 16 bits."""
    return tuple(name for name in quant.codec_names() if name not in ("F32", "BF16"))


class _Search:
    def __init__(
        self,
        original: ModelFile,
        goal: Goal,
        recipe: Recipe,
        types: tuple[str, ...],
        folder: Path,
        ray: str | None,
        progress: Progress,
    ) -> None:
        from genmote.compress.steps._quantise import Quantiser

        self.original, self.goal, self.types, self.folder = original, goal, types, folder
        self.settings, self.ray, self.progress = recipe.calibration, ray, progress
        self.before, last = recipe.steps[:-1], recipe.steps[-1] if recipe.steps else None
        if not isinstance(last, Quantiser):
            self.before, last = recipe.steps, build(step_class(DEFAULT), {})
        assert isinstance(last, Quantiser)
        if last.types:
            raise SpecError("types: a search chooses them; leave them out of the recipe's last step")
        self.quantiser = replace(last, type=KEEP, head_type=KEEP, types=())
        self.source = self._begun()  # what the types are chosen for
        config = read_config(self.source)
        self.blocks, self.length = config.n_layers, min(self.settings.length, config.context_length)
        self.over = 0  # bytes that files were found to have beside their matrices, more than was expected

    def _begun(self) -> ModelFile:
        """The model as the steps before leave it."""
        if not self.before:
            return self.original
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "before.gguf"
        recipe = Recipe(self.before, self.settings)
        return ModelFile.open(compress(self.original.path, path, recipe, work=self.folder, progress=self.progress).path)

    def all(self, rounds: int) -> Found:
        options = self.options()
        best: Found | None = None
        told: list[Round] = []
        text = self.text()
        for number in range(1, rounds + 1):
            chosen, missed = choose(self.source, options, self.goal, self.over)
            if any(self.recipe(chosen) == one.recipe for one in told):
                break
            chosen, made, missed = self.fitted(chosen, missed, options, self.folder / f"round-{number}.gguf")
            recipe = self.recipe(chosen)
            check = Check(
                self.source,
                ModelFile.open(made.path),
                text,
                self.length,
                self.folder,
                self.progress,
            )
            measured = check.whole().kl
            assert measured is not None  # the vocabulary is the same
            scales = check.scales(chosen, self.blocks) if number < rounds else {}
            told.append(Round(recipe, chosen.damage, chosen.bound, measured, made.size_bytes, scales))
            if best is None or measured < min(one.measured for one in told[:-1]):
                by_type: dict[str, int] = {}
                for name, option in chosen.chosen.items():
                    stored = self.source.tensors[name].type if option.what == KEEP else option.what
                    by_type[stored] = by_type.get(stored, 0) + option.bytes
                pace = speed(self.source, chosen.chosen, self.goal)
                best = Found(self.goal, made, recipe, told, by_type, pace, missed, 0.0)
            options = {
                name: [corrected(name, option, scales, self.blocks) for option in each]
                for name, each in options.items()
            }
        assert best is not None
        return best

    def fitted(
        self, chosen: Allocation, missed: str | None, options: Mapping[str, Sequence[Option]], path: Path
    ) -> tuple[Allocation, Compressed, str | None]:
        """A choice's file, which tells its size at last: while that is beyond the goal, one of that much less."""
        while True:
            made = compress(self.original.path, path, self.recipe(chosen), work=self.folder, progress=self.progress)
            wanted = self.goal.bytes
            if wanted is None or made.size_bytes <= wanted:
                return chosen, made, missed
            if chosen.bytes <= least_bytes(options):
                told = f"no choice of types takes less than {made.size_bytes / 1e6:g} MB, wanted {wanted / 1e6:g}"
                return chosen, made, told if missed is None else f"{told}; {missed}"
            self.over += made.size_bytes - wanted
            chosen, missed = choose(self.source, options, self.goal, self.over)

    def options(self) -> dict[str, list[Option]]:
        """Each matrix's options, measured; kept in the work folder."""
        from genmote.compress.farm import Farm
        from genmote.compress.sensitivity import measure

        key = "-".join((code(), self.source.sha256(), self.settings.key(self.original.sha256()), *self.types))
        part = self.folder / f"sensitivity-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        with Farm(self.ray) as farm:
            found = measure(
                self.source.path,
                self.windows(),
                self.types,
                part,
                farm,
                compensated=self.quantiser.calibrates,
                progress=self.progress,
            )
        if not any(len(each) > 1 for each in found.values()):
            raise SpecError(
                f"{self.source.path.name}: no matrix can be stored in fewer bits with {', '.join(self.types)}"
            )
        return found

    def recipe(self, chosen: Allocation) -> Recipe:
        rules = tuple(f"{name}={option.what}" for name, option in chosen.chosen.items() if option.what != KEEP)
        return Recipe((*self.before, replace(self.quantiser, types=rules)), self.settings)

    def windows(self) -> NDArray[np.int32]:
        """The first windows of the calibration text, in tokens of the model that types are chosen for."""
        tokens = calibration.windows(self.original.path, self.original.sha256(), self.settings, self.progress)[:WINDOWS]
        return calibration.in_tokens_of(self.source, self.original, tokens)

    def text(self) -> str:
        """Text to measure on: the original writes it, with another seed than the calibration's."""
        return written(self.original, self.settings, CHECKS, self.progress)


def written(source: ModelFile, settings: Calibration, windows: int, progress: Progress, after: int = 1) -> str:
    """Text that the model writes with another seed than that of `settings`, `after` after it."""
    other = replace(settings, seed=settings.seed + after, text=None, windows=windows)
    tokens = calibration.windows(source.path, source.sha256(), other, progress)
    return calibration.text_of(source, tokens)


def choose(
    source: ModelFile, options: Mapping[str, Sequence[Option]], goal: Goal, over: int = 0
) -> tuple[Allocation, str | None]:
    """The allocation for a goal, `over` the bytes beside the matrices that are not expected here; the smallest that
    there is where that is too large. Also what pace cannot be met, then with the smallest."""
    beside = source.nbytes - sum(source.tensors[name].nbytes for name in options) + BESIDE + over
    beside += sum(len(name) + RULE_BYTES for name in options)
    least, most = least_bytes(options), sum(max(x.bytes for x in each) for each in options.values())
    room = most if goal.bytes is None else max(least, goal.bytes - beside)
    found = allocate(options, room)
    if goal.pace is None or meets(source, found, goal):
        return found, None
    smallest = allocate(options, least)
    if not meets(source, smallest, goal):
        reached = speed(source, smallest.chosen, goal) or 0.0
        return smallest, f"{reached:.3g} tokens/s are expected of the smallest choice of types, wanted {goal.pace:g}"
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


def restored(source: ModelFile, chosen: Mapping[str, Option]) -> ModelFile:
    """The header of `source` as if its matrices were stored so."""
    file = copy.copy(source)
    file.tensors = dict(source.tensors)
    for name, option in chosen.items():
        if option.what != KEEP:
            file.tensors[name] = replace(file.tensors[name], type=option.what)
    return file
