"""From a model and a recipe to a smaller file.

Between two steps lies a whole GGUF file in the work folder, under a name that is a digest of everything it depends on:
a run that was interrupted goes on from there, and a recipe that was changed goes on from where it still agrees.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.compress import calibration
from genmote.compress.recipe import Recipe, need_torch, step_name
from genmote.compress.steps._base import LayerStep, ModelStep, Sight, Step
from genmote.errors import SpecError
from genmote.fetch import Progress, quiet
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import check_target
from genmote.models.store import resolve
from genmote.ops import quant

RECIPE, SOURCE = "genmote.compress.recipe", "genmote.compress.source"
PIECE = 1 << 22  # numbers that are looked at at once
# Names of what lies between steps, and of a search's own.
BETWEEN = re.compile(
    r"\d\d-[a-z-]+-[0-9a-f]{16}(\.gguf|\.json)?|before\.gguf|(round|shaped)-\d+\.gguf|part\.gguf|(sensitivity|shapes)-[0-9a-f]{16}"
)


@dataclass(frozen=True)
class Compressed:
    """What came out. `steps`: for each its name, settings and figures (of each tensor, or the step's own). `loose`: the
    matrices that a step has left as plain numbers."""

    path: Path
    source: Path
    size_bytes: int
    source_bytes: int
    bits_per_weight: float  # all tensors' bytes over all tensors' numbers
    seconds: float
    steps: list[dict[str, Any]]
    loose: tuple[str, ...] = ()


def compress(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe,
    *,
    work: str | os.PathLike[str] | None = None,
    progress: Progress = quiet,
) -> Compressed:
    """Compress a model (name or path) by a recipe into the GGUF file `out`, which appears whole or not at all.

    `work`: folder for what lies between the steps; None: a folder beside `out`, which goes when `out` is there. After
    an interrupt the same call goes on where it was. Raises OpsError where PyTorch is absent, and what the model, the
    recipe or a step have against it (SpecError, ModelFileError, ModelNameError, PullError).
    """
    started = time.perf_counter()
    if not recipe.steps:
        raise SpecError("the recipe has no steps: give one, such as gptq")
    if recipe.calibration.tokens is not None:
        without_text(recipe)
    source, target = begin(model, out, progress)
    path = source.path
    about = shown_recipe(recipe)  # now: later its texts may be gone
    folder = Path(work) if work is not None else work_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(source, recipe, folder, progress)
    try:
        last, steps = run.all()
    finally:
        if work is None:
            for each in (*folder.iterdir(), folder):
                with contextlib.suppress(OSError):
                    each.rmdir()  # where nothing was done yet, nothing stays
    _finish(last, target, source, about)
    if work is None:
        clear(folder)
    made = ModelFile.open(target)
    stored = sum(info.nbytes for info in made.tensors.values())
    numbers = sum(int(np.prod(info.shape)) for info in made.tensors.values())
    bits, seconds = 8 * stored / numbers, time.perf_counter() - started
    return Compressed(target, path, made.nbytes, source.nbytes, bits, seconds, steps, tuple(_loose(made, source)))


def _loose(made: ModelFile, source: ModelFile) -> Iterator[str]:
    """Matrices of plain numbers that in `source` are none, or are not there."""
    for name, info in made.tensors.items():
        before = source.tensors.get(name)
        if info.type == "F32" and len(info.shape) > 1 and (before is None or before.type != "F32"):
            yield name


def without_text(recipe: Recipe) -> None:
    """SpecError for a step that token ids which are no text do not do for."""
    for step in recipe.steps:
        if step.reads_text:
            raise SpecError(f"{step_name(step)} learns from text, not from signals or other token ids; leave it out")


def work_folder(target: Path) -> Path:
    """Where what lies between the steps is, if it is nowhere else."""
    return target.with_name(f"{target.name}.work")


def begin(
    model: str | os.PathLike[str], out: str | os.PathLike[str], progress: Progress = quiet
) -> tuple[ModelFile, Path]:
    """The model's file, and the path of the output, both found fit for it."""
    need_torch()
    path, target = resolve(model, progress=progress), Path(out)
    source = ModelFile.open(path)
    check_target(target, path)
    check_numbers(source, progress)
    return source, target


def check_numbers(model: ModelFile, progress: Progress = quiet) -> None:
    """SpecError for a tensor some of whose numbers are not finite, a piece of it in memory at a time."""
    for done, info in enumerate(model.tensors.values()):
        progress("checking the numbers", done, len(model.tensors))
        cols = int(info.shape[-1])
        rows = math.prod(info.shape) // max(1, cols)
        stored = model.raw(info.name).reshape(rows, -1)
        step = max(1, PIECE // max(1, cols))
        for start in range(0, rows, step):
            some = stored[start : start + step]
            numbers = quant.dequantize(info.type, some.reshape(-1), (len(some), cols))
            if not np.isfinite([numbers.min(), numbers.max()]).all():
                raise SpecError(
                    f"{info.name}: not all its numbers are finite; the model is damaged: fetch it or convert it again"
                )
    progress("checking the numbers", len(model.tensors), len(model.tensors))


def clear(folder: Path) -> None:
    """Remove what lies between steps, and the folder where nothing else is in it."""
    for path in folder.iterdir():
        if path.is_dir() and BETWEEN.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif BETWEEN.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


@lru_cache(maxsize=1)
def code() -> str:
    """SHA-256 of the program that decides what a step makes: another one does not go on with what this one left."""
    digest = hashlib.sha256()
    for room in (Path(__file__).parent, Path(quant.__file__).parent):
        for path in sorted(room.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


class _Run:
    """One recipe on one model, in a work folder."""

    def __init__(self, source: ModelFile, recipe: Recipe, folder: Path, progress: Progress) -> None:
        self.source, self.recipe, self.folder, self.progress = source, recipe, folder, progress
        self._windows: NDArray[np.int32] | None = None
        self._original = source.path  # what teaches
        self._compared = source.path  # what layer steps compare with, channel by channel

    def windows(self) -> NDArray[np.int32]:
        """The calibration text, made when the first step asks for it."""
        if self._windows is None:
            self._windows = calibration.windows(
                self.source.path, self.source.sha256(), self.recipe.calibration, self.progress
            )
        return self._windows

    def all(self) -> tuple[Path, list[dict[str, Any]]]:
        """The last step's file, and each step's name, settings, seconds and figures."""
        at, key = self.source.path, self.source.sha256()
        told: list[dict[str, Any]] = []
        for number, step in enumerate(self.recipe.steps, 1):
            key = self._key(key, step)
            stem = f"{number:02}-{step_name(step)}-{key[:16]}"
            file, figures = self.folder / f"{stem}.gguf", self.folder / f"{stem}.json"
            if not (file.exists() and figures.exists()):
                self._do(step, at, file, figures, self.folder / stem)
            told.append(json.loads(figures.read_text(encoding="utf-8")))
            if step.exact or step.relearns:
                # What was before has other channels, or other states, than later steps see.
                self._compared = file
            if step.exact and self._original == at:
                self._original = file
            at = file
        return at, told

    def _key(self, before: str, step: Step) -> str:
        """Names what a step makes of what came before it."""
        parts: list[Any] = [before, code(), step_name(step), asdict(step)]
        parts += [calibration.read(value)[1] for value in asdict(step).values() if isinstance(value, Path)]
        if step.calibrates:
            parts.append(self.recipe.calibration.key(self.source.sha256()))
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    def _do(self, step: Step, source: Path, target: Path, figures: Path, folder: Path) -> None:
        from genmote.compress.layers import compress_layers
        from genmote.home import atomic_write

        started = time.perf_counter()
        file = ModelFile.open(source)
        notes, settings = list(step.begin(file)), shown(asdict(step))
        windows = self.windows() if step.calibrates else None
        if windows is not None and not step.any_vocabulary:
            windows = calibration.in_tokens_of(file, self.source, windows)
        learning = (each for each in self.recipe.steps if each.calibrates and not each.any_vocabulary)
        if windows is not None and step is next(learning, None):
            inputs = max(info.shape[-1] for info in file.tensors.values() if info.name.startswith("blk."))
            signals = self.recipe.calibration.tokens is not None
            notes += calibration.notes(calibration.ids(windows), inputs, signals=signals)
        if isinstance(step, LayerStep):
            original = comparable(ModelFile.open(self._compared), file).path
            found = compress_layers(
                step, source, target, folder, windows=windows, original=original, progress=self.progress
            )
        elif isinstance(step, ModelStep):
            folder.mkdir(parents=True, exist_ok=True)
            sight = Sight(windows, self._original, self._compared, folder, self.progress)
            found = step.compress_model(source, target, sight)
        else:
            raise SpecError(f"{step_name(step)} is neither a layer step nor a model step")
        notes += [found.pop("note")] if "note" in found else []
        record = {"use": step_name(step), "settings": settings, "seconds": time.perf_counter() - started}
        if notes:
            record["note"] = "; ".join(notes)
        with atomic_write(figures, "w") as out:
            out.write(json.dumps({**record, "figures": found}, default=str))
        shutil.rmtree(folder, ignore_errors=True)


def shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as files and reports tell of them: of a text its name and what is in it, not where it lies."""
    return {
        key: f"{value.name} (SHA-256 {calibration.digest(value)})" if isinstance(value, Path) else value
        for key, value in settings.items()
    }


def shown_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values, likewise."""
    calibrated = {key: value for key, value in asdict(recipe.calibration).items() if value is not None}
    steps = [{"use": step_name(step), **shown(asdict(step))} for step in recipe.steps]
    return {"calibration": shown(calibrated), "step": steps}


def comparable(original: ModelFile, source: ModelFile) -> ModelFile:
    """What a step's blocks are compared with: the original, or, where an earlier step changed shapes, the step's own
    source, in which the same matrices are."""
    shapes = [{info.name: tuple(info.shape) for info in file.tensors.values()} for file in (original, source)]
    return original if shapes[0] == shapes[1] else source


def _finish(last: Path, target: Path, source: ModelFile, recipe: Mapping[str, Any]) -> None:
    """The output: the last step's file, with what it was made from and how in its metadata."""
    from genmote.models.gguf_write import write_gguf

    made = ModelFile.open(last)
    metadata = made.typed_metadata()
    metadata[SOURCE] = source.sha256()
    metadata[RECIPE] = json.dumps(recipe, default=str)
    tensors = [(info.name, info.type, info.shape, made.raw(info.name)) for info in made.tensors.values()]
    write_gguf(target, metadata, tensors)
