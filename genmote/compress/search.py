"""Which tensor type each matrix gets, and which shape where that is asked for, so that a model fits so many bytes, or
is so fast on a device, and loses least.

1. `sensitivity.py` measures what each type is expected to cost each matrix, in nats of KL divergence a token, and
   `shape_costs.py` what fewer channels or heads and lower ranks cost.
2. `allocate.py` chooses among them within the bytes. A pace is met by ever fewer bytes, until the roofline of the
   device (`runtime/plan.py`) says that it is (`goal.py`).
3. The recipe is done, and the result measured: the KL divergence that each kind of matrix, each quarter of the blocks
   and each kind of smaller shape really adds. Where that is not what was expected, the damages are scaled by it and
   chosen again; the best result of the rounds is kept. Types alone have their rounds first, so that a search among
   shapes, too, does not end with a worse one.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.compress import calibration
from genmote.compress.allocate import Allocation, Option, least_bytes
from genmote.compress.calibration import Calibration
from genmote.compress.check import Check, bounded, corrected
from genmote.compress.cut import OUTPUTS, factor_names
from genmote.compress.goal import Goal, beside, choose, speed, too_large, too_slow
from genmote.compress.recipe import Recipe, step_class
from genmote.compress.run import Compressed, begin, clear, code, compress, work_folder
from genmote.compress.shapes import KEEP, Settled, Shapes, items, known, settled
from genmote.errors import SpecError
from genmote.fetch import Progress, quiet
from genmote.home import atomic_write
from genmote.models.config import is_tied, read_config
from genmote.models.gguf import ModelFile
from genmote.ops import quant
from genmote.spec import build

DEFAULT = "gptq"  # the step that stores the matrices
WINDOWS = 8  # of the calibration text, for sensitivities
CHECKS = 4  # windows of other text, for what is measured afterwards


@dataclass(frozen=True)
class Round:
    """One allocation, done and measured. `expected`, `measured`: nats of KL divergence a token."""

    recipe: Recipe
    expected: float
    bound: float  # no other choice of the same options would be expected to cost less than this
    measured: float
    size_bytes: int
    scales: Mapping[str, float]  # measured over expected: of kinds of matrices, quarters of the blocks, kinds of shapes
    of: str  # what was chosen among, in words
    shapes: Mapping[str, Mapping[str, int]]  # of each kind, what became smaller and how large it is now


@dataclass(frozen=True)
class Found:
    """What the search ended with. `missed`: what of the goal cannot be met, in words; the file is then the best there
    is. `tokens_per_s`, `tokens_per_s_before`: what the roofline tells of it, and of the original, on the machine that
    was named; None where none was, or that one's memory does not hold the model. `alone`: what of the goal types alone
    cannot meet, where shapes were searched, too."""

    goal: Goal
    made: Compressed
    recipe: Recipe
    rounds: list[Round]
    types: dict[str, int]  # bytes by tensor type, of the matrices that were chosen for
    tokens_per_s: float | None
    missed: str | None
    seconds: float
    tokens_per_s_before: float | None = None
    before: int = 0  # steps of the recipe that were done first: the rounds' figures compare with what those left
    alone: str | None = None

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON and reports."""
        rounds = [
            {
                "expected": one.expected,
                "bound": one.bound,
                "measured": one.measured,
                "size_bytes": one.size_bytes,
                "scales": dict(one.scales),
                "of": one.of,
                "shapes": {kind: dict(each) for kind, each in one.shapes.items()},
            }
            for one in self.rounds
        ]
        return {
            "goal": self.goal.told(),
            "missed": self.missed,
            "types_alone": self.alone,
            "rounds": rounds,
            "types_bytes": self.types,
            "device": None if self.goal.machine is None else self.goal.machine.source,
            "expected_tokens_per_s": self.tokens_per_s,
            "original_expected_tokens_per_s": self.tokens_per_s_before,
            "seconds": self.seconds,
        }


def search(
    model: str | Path,
    out: str | Path,
    goal: Goal,
    *,
    recipe: Recipe | None = None,
    types: Sequence[str] = (),
    shapes: Sequence[str] = (),
    rounds: int = 2,
    work: str | Path | None = None,
    ray: str | None = None,
    progress: Progress = quiet,
) -> Found:
    """Find a recipe for `goal`, and write what it makes to the GGUF file `out`.

    `recipe`: what is done before, and last the step that stores the matrices, whose types are chosen (None: gptq
    alone; where another step is the last, gptq comes after it); `types`: those to choose from (none: see `offered`);
    `shapes`: what may become smaller, too, of `shapes.KINDS`; `rounds`: at most, of types and again with shapes;
    `work`: as for `compress`, where an interrupted search goes on; `ray`: see `Farm`. Raises SpecError for a model with
    nothing to choose, and what `compress` raises.
    """
    started, smaller = time.perf_counter(), known(shapes)
    source, target = begin(model, out, progress)
    folder = Path(work) if work is not None else work_folder(target)
    kinds = tuple(quant.by_name(name).name for name in types) or offered()
    each = _Search(source, goal, recipe or Recipe(()), kinds, smaller, folder, ray, progress)
    best = each.all(max(1, rounds))
    with best.made.path.open("rb") as made, atomic_write(target) as written:
        shutil.copyfileobj(made, written)
    if work is None:
        clear(folder)
    return replace(
        best,
        made=replace(best.made, path=target),
        seconds=time.perf_counter() - started,
        tokens_per_s_before=speed(source, {}, goal),
    )


def offered() -> tuple[str, ...]:
    """The types that a matrix may get: all that hold weights, but for floats wider than 16 bits."""
    return tuple(name for name in quant.codec_names() if name not in ("F32", "BF16"))


def smallest(source: ModelFile, types: Sequence[str] = ()) -> int:
    """About the bytes that a model takes at least with these types (none: all offered), where what is looked up in,
    not multiplied, stays as it is."""
    from genmote.compress.sensitivity import choices
    from genmote.models.requantise import KEPT

    kinds, total = tuple(types) or offered(), source.nbytes
    looked_up = () if is_tied(source.tensors) else ("token_embd.weight",)
    for info in source.tensors.values():
        if len(info.shape) > 1 and not info.name.endswith((*KEPT, *looked_up)):
            fitting = choices(info.shape[-1], info.type, kinds)
            total -= info.nbytes - min([info.nbytes, *(quant.nbytes(name, info.shape) for name in fitting)])
    return total


class _Search:
    def __init__(
        self,
        original: ModelFile,
        goal: Goal,
        recipe: Recipe,
        types: tuple[str, ...],
        kinds: tuple[str, ...],
        folder: Path,
        ray: str | None,
        progress: Progress,
    ) -> None:
        from genmote.compress.steps._quantise import Quantiser

        self.original, self.goal, self.types, self.kinds, self.folder = original, goal, types, kinds, folder
        self.told: list[Round] = []
        self.best: Found | None = None
        self.best_so_far = (True, np.inf)  # whether the goal is missed, and the nats measured
        self.alone: str | None = None
        self.settings, self.ray, self.progress = recipe.calibration, ray, progress
        self.before, last = recipe.steps[:-1], recipe.steps[-1] if recipe.steps else None
        if not isinstance(last, Quantiser):
            self.before, last = recipe.steps, build(step_class(DEFAULT), {})
        assert isinstance(last, Quantiser)
        if last.types:
            raise SpecError("types: a search chooses them; leave them out of the recipe's last step")
        self.quantiser = replace(last, type=KEEP, head_type=KEEP, types=())
        self.source = self._begun()  # what the types are chosen for
        if smallest(self.source, types) == self.source.nbytes:
            raise SpecError(f"{self.source.path.name}: no matrix can be stored in fewer bits with {', '.join(types)}")
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
        shapes, types, text = self.shapes(), self.options(), self.text()
        types = self.rounds(rounds, text, types, None)
        if shapes is not None:
            self.rounds(rounds, text, types, shapes)
        assert self.best is not None
        return replace(self.best, rounds=self.told, before=len(self.before), alone=self.alone)

    def rounds(
        self, count: int, text: str, types: dict[str, list[Option]], shapes: Shapes | None
    ) -> dict[str, list[Option]]:
        """Choose and measure, `count` times at most; gives the types' options as they were corrected in the end."""
        of = ("types",) if shapes is None else ("types", *self.kinds)
        words = " and ".join(filter(None, (", ".join(of[:-1]), of[-1])))
        for number in range(1, count + 1):
            self.progress(f"choosing {words}", number - 1, count)
            options = types if shapes is None else items(self.source, shapes, types)
            chosen, missed = choose(self.source, options, self.goal, words, self.over)
            if missed is not None and shapes is None and self.kinds:
                self.alone = missed
                break
            if any(self.recipe(settled(chosen.chosen)) == one.recipe for one in self.told):
                break
            chosen, made, missed = self.fitted(chosen, missed, options, words)
            if missed is not None and shapes is None and self.kinds:
                self.alone = missed
            what = settled(chosen.chosen)
            recipe = self.recipe(what)
            file = ModelFile.open(made.path)
            measured = self.check(self.source, file, text).whole().kl
            assert measured is not None  # the vocabulary is the same
            scales = self.scales(what, file, text) if number < count else {}
            if (missed is not None, measured) < self.best_so_far:
                self.best_so_far = missed is not None, measured
                by_type: dict[str, int] = {}
                for name, option in what.types.items():
                    stored = self.source.tensors[name].type if option.what == KEEP else option.what
                    by_type[stored] = by_type.get(stored, 0) + option.bytes
                pace = speed(self.source, chosen.chosen, self.goal)
                self.best = Found(self.goal, made, recipe, self.told, by_type, pace, missed, 0.0)
            self.told.append(
                Round(recipe, chosen.damage, chosen.bound, measured, made.size_bytes, scales, words, what.shapes())
            )
            types = {
                name: [corrected(name, option, scales, self.blocks) for option in each] for name, each in types.items()
            }
            if shapes is not None:
                shapes = shapes.scaled({kind: bounded(scales.get(kind, 1.0)) for kind in self.kinds})
        return types

    def made(self, name: str, recipe: Recipe) -> Compressed:
        return compress(self.original.path, self.folder / name, recipe, work=self.folder, progress=self.progress)

    def check(self, source: ModelFile, made: ModelFile, text: str) -> Check:
        return Check(source, made, text, self.length, self.folder, self.progress)

    def scales(self, what: Settled, made: ModelFile, text: str) -> dict[str, float]:
        """What was measured over what was expected: of each kind of smaller shape, by what its step changed; of groups
        of matrices, by what they add to the model of these shapes."""
        from genmote.compress.shape_costs import steps

        found, before, done = {}, self.source, self.before
        for kind, step in steps(what).items():
            done = (*done, step)
            after = ModelFile.open(self.made(f"shaped-{len(done)}.gguf", Recipe(done, self.settings)).path)
            measured = self.check(before, after, text).whole().kl
            assert measured is not None
            found[kind] = measured / max(what.costs[kind], 1e-12)
            before = after
        return found | self.check(before, made, text).scales(what.types, self.blocks)

    def shapes(self) -> Shapes | None:
        """What smaller shapes cost, measured; kept in the work folder. None where types alone are searched for."""
        if not self.kinds:
            return None
        from genmote.compress.shape_costs import measure
        from genmote.compress.steps._base import Sight

        key = "-".join((code(), self.source.sha256(), self.settings.key(self.original.sha256())))
        folder = self.folder / f"shapes-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        path = self.source.path
        sight = Sight(self.tokens(), self.original.path, path, folder, self.progress)
        return measure(self.source, self.kinds, sight)

    def fitted(
        self, chosen: Allocation, missed: str | None, options: Mapping[str, Sequence[Option]], of: str
    ) -> tuple[Allocation, Compressed, str | None]:
        """A choice's file, which tells its size at last: while that is beyond the goal, one of that much less."""
        while True:
            made = self.made(f"round-{len(self.told) + 1}.gguf", self.recipe(settled(chosen.chosen)))
            wanted = self.goal.bytes
            if wanted is None:
                return chosen, made, missed
            if made.size_bytes <= wanted:
                return chosen, made, too_slow(self.source, chosen, self.goal, of)
            if chosen.bytes <= least_bytes(options):
                told = [too_large(made.size_bytes, self.goal, of), too_slow(self.source, chosen, self.goal, of)]
                return chosen, made, "; ".join(filter(None, told))
            # By what was not expected, or, where that is less than what was left over, by as much as is too large.
            self.over += max(made.size_bytes - wanted, made.size_bytes - self.expected(chosen, options))
            chosen, missed = choose(self.source, options, self.goal, of, self.over)

    def expected(self, chosen: Allocation, options: Mapping[str, Sequence[Option]]) -> int:
        """Bytes that a choice's file was expected to take."""
        return chosen.bytes + beside(self.source, options) + self.over

    def options(self) -> dict[str, list[Option]]:
        """Each matrix's options, measured; kept in the work folder."""
        from genmote.compress.farm import Farm
        from genmote.compress.sensitivity import measure

        key = "-".join((code(), self.source.sha256(), self.settings.key(self.original.sha256()), *self.types))
        part = self.folder / f"sensitivity-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        with Farm(self.ray) as farm:
            return measure(
                self.source.path,
                self.windows(),
                self.types,
                part,
                farm,
                compensated=self.quantiser.calibrates,
                progress=self.progress,
            )

    def recipe(self, what: Settled) -> Recipe:
        """The steps before, those that make the shapes, and the one that stores the types."""
        from genmote.compress.shape_costs import steps

        def kept(name: str, option: Option) -> bool:
            written = name not in self.source.tensors or (what.rewrites and name.endswith(OUTPUTS))
            return option.what == KEEP or (not written and option.what == self.source.tensors[name].type)

        order = {name: n for n, tensor in enumerate(self.source.tensors) for name in (tensor, *factor_names(tensor))}
        types = sorted(what.types.items(), key=lambda one: order[one[0]])
        rules = tuple(f"{name}={option.what}" for name, option in types if not kept(name, option))
        return Recipe((*self.before, *steps(what).values(), replace(self.quantiser, types=rules)), self.settings)

    def tokens(self) -> NDArray[np.int32]:
        """The calibration text, in tokens of the model that types are chosen for."""
        tokens = calibration.windows(self.original.path, self.original.sha256(), self.settings, self.progress)
        return calibration.in_tokens_of(self.source, self.original, tokens)

    def windows(self) -> NDArray[np.int32]:
        """The first windows of it, for sensitivities."""
        return self.tokens()[:WINDOWS]

    def text(self) -> str:
        """Text to measure on: the original writes it, with another seed than the calibration's."""
        return written(self.original, self.settings, CHECKS, self.progress)


def written(source: ModelFile, settings: Calibration, windows: int, progress: Progress, after: int = 1) -> str:
    """Text that the model writes with another seed than that of `settings`, `after` after it."""
    other = replace(settings, seed=settings.seed + after, text=None, tokens=None, windows=windows)
    tokens = calibration.windows(source.path, source.sha256(), other, progress)
    return calibration.text_of(source, tokens)
