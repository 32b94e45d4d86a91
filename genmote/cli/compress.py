"""Make a model smaller, with as little loss as can be.

    genmote compress smollm2-135m -o small.gguf --type Q4_0
    genmote compress smollm2-135m -o small.gguf --type Q4_0 --head-type Q5_0 --samples 32
    genmote compress model.gguf -o small.gguf --recipe recipe.toml
    genmote compress smollm2-135m -o small.gguf --target 60MB --device pi-zero-2w --report small.html
    genmote compress --frontier small.json --frontier smaller.json -o frontier.html
    genmote compress sensor.gguf -o small.gguf --type Q4_0 --signals recordings/

Without --recipe one step is done, --method, on the linear layers. With --target or --pace tensor types are searched for
that lose least, and with --shapes smaller shapes, after the steps of --recipe if there is one; all of it is written to
OUTPUT.toml, for --recipe. Where the goal cannot be met, the best that can be is written, and the exit status is 2.
--report measures the result beside the original. What a step learns from is text that the model writes itself, or
--text; where the model is a generator of signals, recordings that --signals names. An interrupted run goes on where it
was when the same command is given again. --text-out writes the text to a file, as llama-imatrix takes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli import _compress, _ground
from genmote.cli._compress import Around
from genmote.cli._ground import Ground
from genmote.cli._output import Bar, Output, going_on, note, save, size
from genmote.errors import BudgetError, GenmoteError, UserError
from genmote.signals.said import Said
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.compress import Recipe
    from genmote.compress.search import Found

SCRATCH_BYTES = 32 << 20  # a text's activations come and go in such pieces, a matrix's scratch in smaller ones
OWN = "GM"  # how types of our own are called
ABOUT_TEXT = ("text", "text_out", "report", "target", "pace")
BEFORE = {"round": "gptq"}  # what goes before a step that needs stored codes, when it is named by itself


@dataclass(frozen=True, kw_only=True)
class Settings(Around, Said):
    model: str | None = setting(
        "a model's name (fetched if it is not here) or path; a Hugging Face folder, or hf:ORG/REPO, is converted first",
        positional=True,
        default=None,
    )
    output: Path = setting("the GGUF file to write", short="-o")
    type: str | None = setting("tensor type of the linear layers (default Q4_0)", default=None)
    method: str | None = setting("the step that is done, such as rtn, gptq or round (default gptq)", default=None)
    head_type: str | None = setting("type of the matrix that makes the logits (default: keep)", default=None)
    recipe: Path | None = setting("a TOML file with a list of steps, instead of --method and the types", default=None)
    text: Path | None = setting("text to learn from, UTF-8 (default: the model writes it)", default=None)
    signals: tuple[Path, ...] = setting(
        "recordings, or a folder of them, to learn from where the model is a generator; may be repeated", default=()
    )
    samples: int | None = setting("windows of text to learn from (default 32)", default=None)
    seed: int | None = setting("number that fixes the text that the model writes", default=None)
    text_out: Path | None = setting("also write the text that is learned from here, for other tools", default=None)
    work: Path | None = setting("folder to keep what lies between the steps in", default=None)

    def faults(self) -> Iterable[str]:
        yield from Around.faults(self)
        yield from Said.faults(self)
        if (self.model is None) != bool(self.frontier):
            yield "model: name one to compress, or give reports with --frontier, not both"
        if self.signals:
            for name in ABOUT_TEXT:
                if getattr(self, name) is not None:
                    yield f"{name}: is about text, which a generator of signals does not read; leave out either"
        elif self.group is not None or self.names or self.sample_rate:
            yield "group, names, sample_rate: are said of recordings: name them with --signals"
        if self.recipe is not None:
            for name in ("type", "method", "head_type"):
                if getattr(self, name) is not None:
                    yield f"{name}: the recipe says it; leave out --recipe or --{name.replace('_', '-')}"


def run(settings: Settings, out: Output) -> None:
    if settings.frontier:
        return _compress.draw_frontier(settings.frontier, settings.output, out)
    assert settings.model is not None
    report = settings.report
    _compress.check_places(
        written={
            "--output": settings.output,
            "--output (its recipe)": recipe_file(settings) if settings.searches else None,
            "--report": report,
            "--report (its figures)": None if report is None else report.with_suffix(".json"),
            "--text-out": settings.text_out,
        },
        read={
            "the model": Path(settings.model),
            "--recipe": settings.recipe,
            "--text": settings.text,
            "--eval-text": settings.eval_text,
        },
    )
    text = _compress.own_text(settings)
    with _compress.opened(settings.model, settings.output) as model:
        make(settings, model, text, out)


def recipe_file(settings: Settings) -> Path:
    """Where what a search found goes."""
    return settings.output.with_name(f"{settings.output.name}.toml")


def make(settings: Settings, model: str, text_to_measure: str | None, out: Output) -> None:
    """Compress a model's name or GGUF file."""
    from genmote.compress import compress
    from genmote.compress.run import work_folder
    from genmote.runtime.footprint import without_holes

    without_holes(SCRATCH_BYTES)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch takes huge pages then, where the system has them
    if not settings.signals:
        flags = [f"--{name.replace('_', '-')}" for name in ABOUT_TEXT if getattr(settings, name) is not None]
        _ground.refuse(model, recipe_of(settings), flags)
    _compress.check_text(settings, model, text_to_measure)
    found, ground = None, None
    if settings.signals:
        work = settings.work or work_folder(settings.output)
        ground = Ground.of(model, settings.signals, settings, recipe_of(settings), work)
    try:
        with going_on("what is done is kept: the same command goes on from there"):
            if settings.searches:
                found = search_for(settings, model)
                recipe, made = found.recipe, found.made
            else:
                recipe = recipe_of(settings, ground)
                with Bar(unit_bytes=False) as bar:
                    made = compress(model, settings.output, recipe, work=settings.work, progress=bar)
    except GenmoteError:
        if ground is not None:
            ground.forget()
        raise
    values: dict[str, Any] = {
        "path": made.path,
        "source": made.source if model == settings.model else settings.model,
        "size_bytes": made.size_bytes,
        "source_bytes": made.source_bytes,
        "bits_per_weight": round(made.bits_per_weight, 4),
        "seconds": round(made.seconds, 2),
        "steps": made.steps,
    }
    for told in dict.fromkeys(f"{step['use']}: {step['note']}" for step in made.steps if step.get("note")):
        note(told)
    if loose := made.loose:
        note(
            f"{len(loose)} {'matrix is' if len(loose) == 1 else 'matrices are'} left as plain numbers (F32), such as "
            f"{loose[0]}: end the recipe with a step that stores types, such as gptq"
        )
    if settings.text_out is not None:
        _compress.save_text(settings.text_out, made.source, recipe)
        values["text"] = settings.text_out
    share = made.size_bytes / made.source_bytes
    text = f"{made.path} ({size(made.size_bytes)}, {share:.3f} of the model, {made.bits_per_weight:.3f} bits a weight)"
    if ground is not None:
        values |= ground.judged(made.source, made.path)
        text += _ground.text(values)
    if found is not None:
        save(recipe_file(settings), recipe.toml())
        values |= {"search": found.values(), "recipe": recipe_file(settings)}
        if own := [name for name in found.types if name.startswith(OWN)]:
            note(
                f"{', '.join(own)}: types of genmote's own, which other engines do not read; --choices leaves them out"
            )
        text += f"\n{_compress.found_text(found)}\nrecipe    {recipe_file(settings)}"
    if settings.report is not None:
        text += f"\n\n{_compress.report(settings, made, recipe, found, text_to_measure)}"
        values["report"] = settings.report
    out.result(values, text)
    if found is not None and found.missed is not None:
        more = "" if settings.shapes else " (--shapes channels lets a search take parts out, too)"
        raise BudgetError(f"{found.missed}{more}; the best that can be is in {made.path} ({size(made.size_bytes)})")


def search_for(settings: Settings, model: str) -> Found:
    from genmote.cli._model import find
    from genmote.compress.search import search, smallest
    from genmote.models.gguf import ModelFile

    path = find(model)
    goal = _compress.goal_of(settings, path)
    if not settings.recipe and not settings.shapes and goal.bytes is not None:
        least = smallest(ModelFile.open(path), names(settings.choices))
        if least > goal.bytes:
            note(f"{least / 1e6:.3g} MB is about the least that types can make of it, wanted {goal.bytes / 1e6:g} MB")
    with Bar(unit_bytes=False) as bar:
        return search(
            path,
            settings.output,
            goal,
            recipe=recipe_of(settings),
            types=names(settings.choices),
            shapes=names(settings.shapes),
            work=settings.work,
            ray=settings.ray,
            progress=bar,
        )


def names(listed: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",")) if listed else ()


def recipe_of(settings: Settings, ground: Ground | None = None) -> Recipe:
    """What the flags, or the file, ask for."""
    from genmote.compress import Recipe
    from genmote.compress.recipe import step_class

    given: dict[str, Any] = {"windows": settings.samples, "seed": settings.seed, "text": settings.text}
    given = {key: value for key, value in given.items() if value is not None}
    if ground is not None:
        given["tokens"] = ground.path
    if settings.recipe is not None:
        recipe = Recipe.read(settings.recipe)
        return Recipe.of({**recipe.values(), "calibration": {**recipe.calibration.values(), **given}})
    method = settings.method or "gptq"
    if asked := [each.name for each in fields(step_class(method)) if each.default is MISSING]:
        raise UserError(f"--method {method} takes {', '.join(asked)}, which only a recipe can say: give one (--recipe)")
    step = {"use": BEFORE.get(method, method), "type": settings.type, "head_type": settings.head_type}
    steps: list[dict[str, Any]] = [{key: value for key, value in step.items() if value is not None}]
    if method in BEFORE:
        steps.append({"use": method})
    if settings.text is not None and "text" in {field.name for field in fields(step_class(method))}:
        steps[-1]["text"] = str(settings.text)
    return Recipe.of({"calibration": given, "step": steps}, where="command line")
