"""What `compress` does around its steps: a goal that is searched for, a report, a picture of several results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Bar, Output, check_place, note, save, size
from genmote.errors import UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.compress import Compressed, Recipe
    from genmote.compress.goal import Goal
    from genmote.compress.search import Found, Round

EVALUATED = 8  # windows of text that the model writes to be measured on


@dataclass(frozen=True, kw_only=True)
class Around:
    """Flags beside the steps."""

    target: str | None = setting("the file's size at most, such as 60MB: tensor types are searched for", default=None)
    device: str | None = setting("a device that it is for (see genmote devices): what to expect there", default=None)
    pace: float | None = setting("tokens a second at least, on --device or here: searched for", default=None)
    choices: str | None = setting("types that a search may choose from, such as Q4_0,Q8_0 (default: all)", default=None)
    shapes: str | None = setting(
        "what a search may make smaller beside the types: some of channels,heads,ranks (default: nothing)", default=None
    )
    ray: str | None = setting("a Ray cluster's address to search with (default: this machine's cores)", default=None)
    report: Path | None = setting("a page (HTML) with what it cost and gained; the figures beside it", default=None)
    eval_text: Path | None = setting("text to measure on, UTF-8 (default: the model writes it)", default=None)
    frontier: tuple[Path, ...] = setting(
        "a report's figures (JSON) to draw into the page --output, with no model; may be repeated", default=()
    )

    @property
    def searches(self) -> bool:
        return self.target is not None or self.pace is not None

    def faults(self) -> Iterable[str]:
        if self.device is not None and not self.searches:
            yield "device: say what is wanted of it: --target BYTES, --pace TOKENS or both"
        if self.eval_text is not None and self.report is None:
            yield "eval_text: is what --report measures on: give that too"
        if self.report is not None and self.report.suffix == ".json":
            yield f"report={self.report}: is a page, beside which its figures get this name; end it in .html"
        for name in ("choices", "shapes", "ray"):
            if getattr(self, name) is not None and not self.searches:
                yield f"{name}: is for a search: give --target or --pace too"
        if self.searches:
            for name in ("type", "head_type"):
                if getattr(self, name, None) is not None:
                    yield f"{name}: a search chooses it; leave out --{name.replace('_', '-')}, or --target and --pace"


@contextlib.contextmanager
def opened(model: str, target: Path) -> Iterator[str]:
    """A model's name or path; for a Hugging Face folder the GGUF file that is made of it beside `target`, which is gone
    afterwards."""
    from genmote.compress.recipe import need_torch
    from genmote.models import hub_folder
    from genmote.models.convert import open_source

    if not (Path(model).is_dir() or hub_folder.is_folder(model)):
        yield model
        return
    need_torch()
    with Bar() as bar, open_source(model, folder=target.parent, progress=bar) as path:
        bar.close()
        yield str(path)


def goal_of(settings: Around, model: Path) -> Goal:
    """What is searched for."""
    from genmote.compress.goal import Goal
    from genmote.device import profile
    from genmote.device.sizes import parse_bytes
    from genmote.runtime.roofline import Machine

    if settings.target is not None and settings.target.isdecimal() and int(settings.target) < 1_000_000:
        raise UserError(f"target={settings.target}: that is bytes, too few for a model; give a unit, such as 75MB")
    found = None if settings.device is None else profile.runnable(settings.device)
    memory = None if found is None else found.usable_bytes
    if found is None and settings.pace is not None:
        from genmote.cli._machine import this_machine

        found = this_machine(model)
    return Goal(
        bytes=None if settings.target is None else parse_bytes(settings.target, what="target"),
        pace=settings.pace,
        machine=None if found is None else Machine.of(found),
        memory=memory,
    )


def found_text(found: Found) -> str:
    """What the search chose, and what that costs, for people."""
    from genmote.compress.report import expected_on

    chosen = sorted(found.types.items(), key=lambda item: -item[1])
    last = next(one for one in found.rounds if one.recipe == found.recipe)
    other = "the original" if not found.before else "what the steps before left"
    lines = [
        "chosen    " + ", ".join(f"{name} {size(count)}" for name, count in chosen),
        *_shapes_text(found, last),
        f"cost      {last.measured:.4f} nats a token of KL divergence to {other}, measured; {last.expected:.4f} "
        f"were expected, and no choice of {last.of} was below {last.bound:.4f}",
    ]
    if (device := expected_on(found.values())) is not None:
        lines.append(f"expected  {device}")
    return "\n".join(lines)


def check_places(written: Mapping[str, Path | None], read: Mapping[str, Path | None]) -> None:
    """Raise UserError, before the work, where a file cannot be written, or would be in the place of one that is read or
    of another; by the flags that name them, with a word after."""
    seen = {os.path.realpath(path): flag for flag, path in read.items() if path is not None}
    for flag, path in written.items():
        if path is None:
            continue
        check_place(path, flag.partition(" ")[0])
        if (other := seen.setdefault(os.path.realpath(path), flag)) != flag:
            raise UserError(f"{path} is the file of {other} and of {flag}: name another")


def _shapes_text(found: Found, last: Round) -> Iterator[str]:
    """What became smaller, and what the best of each round cost, where shapes were searched, too."""
    if last.shapes:
        parts = [
            f"{kind} of {len(each)} {'matrices' if kind == 'ranks' else 'blocks'}" for kind, each in last.shapes.items()
        ]
        yield f"smaller   {', '.join(parts)}"
    if found.alone is not None:
        yield f"alone     {found.alone}"
    if any(one.of != "types" for one in found.rounds):
        yield "tried     " + "; ".join(f"{one.of}: {one.measured:.4f}" for one in found.rounds)


def own_text(settings: Around) -> str | None:
    """The text to measure on, where one is named."""
    from genmote.cli._model import read_text

    return None if settings.eval_text is None else read_text(settings.eval_text)


def check_text(settings: Around, model: str, text: str | None) -> None:
    """Raise SpecError, before the work, for a text on which `report` cannot measure."""
    from genmote.cli._model import find
    from genmote.compress.report import check_text

    if text is not None and settings.eval_text is not None:
        check_text(find(model), text, settings.eval_text.name)


def save_text(path: Path, model: Path, recipe: Recipe) -> None:
    """Write the text that the steps of a recipe learn from."""
    from genmote.compress import calibration
    from genmote.models.gguf import ModelFile

    file = ModelFile.open(model)
    with Bar(unit_bytes=False) as bar:
        tokens = calibration.windows(model, file.sha256(), recipe.calibration, bar)
    save(path, calibration.text_of(file, tokens))


def report(settings: Around, made: Compressed, recipe: Recipe, found: Found | None, text: str | None) -> str:
    """Measure, on `text` or (None) on what the model writes; write the page and the figures; gives the summary."""
    from genmote import home, records
    from genmote.compress.report import CONTEXT, measure, summary
    from genmote.compress.report_page import page
    from genmote.compress.search import written
    from genmote.models.gguf import ModelFile

    assert settings.report is not None
    with Bar(unit_bytes=False) as bar:
        if text is not None and settings.eval_text is not None:
            name = settings.eval_text.name
        else:
            # Neither what the steps learned from nor what a search measured itself on; windows that can be scored.
            own = replace(recipe.calibration, length=max(CONTEXT, recipe.calibration.length))
            text = written(ModelFile.open(made.source), own, EVALUATED, bar, after=2)
            name = f"text that {made.source.name} wrote with seed {recipe.calibration.seed + 2}"
        told = measure(
            made.source,
            made.path,
            text=text,
            text_name=name,
            steps=made.steps,
            search=None if found is None else found.values(),
            progress=bar,
        )
    save(settings.report, page(told))
    figures = settings.report.with_suffix(".json")
    home.target(figures).unlink(missing_ok=True)
    records.append(figures, told)
    note(f"report: {settings.report}, its figures: {figures}")
    return summary(told)


def draw_frontier(paths: Iterable[Path], target: Path, out: Output) -> None:
    """Several reports' figures as one page."""
    from genmote.compress.report import load
    from genmote.compress.report_page import frontier

    check_places({"--output": target}, {f"--frontier {path}": path for path in paths})
    found = [load(path) for path in paths]
    save(target, frontier(found))
    values: list[dict[str, Any]] = [
        {
            "name": one.values["compressed"]["name"],
            "size_bytes": one.values["compressed"]["size_bytes"],
            "bits_per_byte": one.values["compressed"]["bits_per_byte"],
            "perplexity_ratio": one.values["perplexity_ratio"],
        }
        for one in found
    ]
    out.result({"page": target, "results": values}, f"{target}: {len(found)} results")
