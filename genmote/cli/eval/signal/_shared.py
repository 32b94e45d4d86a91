"""What the five verbs of `genmote eval signal` have in common: their recordings, the model, and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genmote.cli._output import Bar, Output, check_place, columns, note, save
from genmote.cli.signal._series import merged
from genmote.signals.said import Said
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.generator.evaluate.data import Recording
    from genmote.generator.evaluate.model import Make
    from genmote.generator.evaluate.result import Result

LISTED = 20_000  # items that --json tells; --output tells all


@dataclass(frozen=True, kw_only=True)
class Files(Said):
    """What every one of them takes."""

    test: tuple[Path, ...] = setting("recordings that it is judged on, or their folders", many=True)
    label: str | None = setting(
        "the column or label that tells what rows are (default: marks, or the only label)", default=None
    )
    drop: tuple[str, ...] = setting("channels or fields that are left out", default=(), many=True)
    missing: tuple[float, ...] = setting("numbers that stand for a missing sample, such as -200", default=(), many=True)
    output: Path | None = setting("where each thing that was judged is written, a JSON object a line", default=None)
    svg: Path | None = setting("a picture of it", default=None)
    seed: int = setting("number that fixes all that is drawn", default=0)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if not 0 <= self.seed < 1 << 32:
            yield f"seed={self.seed}: use 0 to {(1 << 32) - 1}"


@dataclass(frozen=True, kw_only=True)
class Trained(Files):
    """What those take that judge a model."""

    train: tuple[Path, ...] = setting("recordings that the model learns from, or has learnt from", many=True)
    model: Path | None = setting("a model that was trained on --train (default: one is trained)", default=None)
    save: Path | None = setting("where the model that is trained is kept", default=None)
    size: Literal["tiny", "small", "medium", "large"] = setting("how large it is", default="small")
    minutes: float = setting("time that training may take", default=10.0)
    training_steps: int = setting("steps of training, the same on every machine (0: what fits the time)", default=0)
    threads: int | None = setting("threads that the model runs on (default: one a core)", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.model is not None and self.save is not None:
            yield f"save={self.save}: no model is trained where --model is given; leave one out"
        if not self.minutes > 0 or self.training_steps < 0:
            yield f"minutes={self.minutes}, training_steps={self.training_steps}: use more than 0, and 0 or more"
        if self.threads is not None and self.threads < 1:
            yield f"threads={self.threads}: use 1 or more"


def most(values: Mapping[str, int]) -> Iterable[str]:
    """A fault for each that is below 1."""
    for name, value in values.items():
        if value < 1:
            yield f"{name}={value}: use 1 or more"


def check(settings: Files) -> None:
    """Raise UserError where something cannot be written, before the work."""
    for path, option in (
        (settings.output, "--output"),
        (settings.svg, "--svg"),
        (getattr(settings, "save", None), "--save"),
    ):
        if path is not None:
            check_place(path, option)


def recordings(settings: Files, paths: tuple[Path, ...], notes: list[str], bar: Bar) -> list[Recording]:
    from genmote.generator.evaluate import data

    return data.load(
        paths,
        label=settings.label,
        drop=settings.drop,
        missing=settings.missing,
        notes=notes,
        progress=bar,
        said=settings,
    )


def both(settings: Trained, notes: list[str], bar: Bar) -> tuple[list[Recording], list[Recording], Make]:
    """What is learnt from, what is judged on, and what gives the model."""
    from genmote.generator.evaluate import data
    from genmote.generator.evaluate.model import Maker

    train, test = (recordings(settings, paths, notes, bar) for paths in (settings.train, settings.test))
    data.together(train, test)
    make = Maker(
        model=settings.model,
        save=settings.save,
        size=settings.size,
        minutes=settings.minutes,
        steps=settings.training_steps,
        seed=settings.seed,
        threads=settings.threads,
        progress=bar,
    )
    return train, test, make


def tell(settings: Files, job: str, result: Result, notes: list[str], out: Output, table: list[list[str]]) -> None:
    """Print what was found; write the items and the picture where they are asked for."""
    from genmote.signals import chart

    notes = merged(notes)
    for line in notes:
        note(line)
    values: dict[str, Any] = {"job": job, **result.values, "seed": settings.seed, "notes": notes}
    text = columns(table)
    if settings.output is not None:
        save(
            settings.output,
            "".join(json.dumps(_plain(item), ensure_ascii=False) + "\n" for item in result.items),
            "--output",
        )
        values["output"] = settings.output
        text += f"\n\n{settings.output} ({len(result.items)} lines)"
    values["items"] = result.items[:LISTED]
    values["items_left_out"] = max(0, len(result.items) - LISTED)
    if settings.svg is not None:
        about = (
            f"judged on {', '.join(path.name for path in settings.test[:4])}{' …' if len(settings.test) > 4 else ''}"
        )
        save(settings.svg, chart.svg(f"signals: {job}", about, result.panels), "--svg")
        values["svg"] = settings.svg
        text += f"\n\n{settings.svg}"
    out.result(values, text)


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """NaN and infinity are not JSON: what could not be measured is null."""
    found: dict[str, Any] = {}
    for key, value in item.items():
        if isinstance(value, Mapping):
            value = _plain(value)
        elif isinstance(value, float) and not abs(value) < float("inf"):
            value = None
        found[key] = value
    return found


def figure(value: float | None, digits: int = 3) -> str:
    """
    >>> figure(0.12345), figure(None), figure(float("nan"))
    ('0.123', '-', '-')
    """
    return "-" if value is None or value != value else f"{value:.{digits}f}"
