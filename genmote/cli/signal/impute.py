"""Fill in what is missing of a series, by what came before and after it.

    genmote signal impute sensor.gguf gappy.csv -o whole.csv --svg whole.svg

What is there is kept as it was. Each missing sample becomes the median of many ways that it may have been.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genmote.cli._output import Output, check_place, note
from genmote.cli._output import save as save_text
from genmote.cli.signal import _series
from genmote.signals.said import Said
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(Said):
    model: str = setting("a model that genmote signal train made, or one of genmote", positional=True)
    file: Path = setting("a recording with gaps", positional=True)
    output: Path = setting("the file to write: .csv, .wav, .gmsc or .jsonl", short="-o")
    paths: int = setting("ways that are drawn", default=16)
    number: int = setting("which of the file's series, from 1", default=1)
    seed: int = setting("seed: the same one fills in the same", default=0)
    reader: str | None = setting("the reader of the recording", default=None)
    svg: Path | None = setting("a picture of it", default=None)
    adapter: Path | None = setting("an adapter of the model, as genmote adapt makes it", default=None)
    threads: int | None = setting("threads (default: one a core)", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        yield from _series.ending(self.output)
        if self.paths < 1:
            yield f"paths={self.paths}: use 1 or more"
        if self.seed < 0:
            yield f"seed={self.seed}: use 0 or more"


def run(settings: Settings, out: Output) -> None:
    import numpy as np

    from genmote.generator.model import Generator
    from genmote.generator.pictures import imputed as drawn

    check_place(settings.output, "--output")
    if settings.svg is not None:
        check_place(settings.svg, "--svg")
    model = Generator.load(settings.model, threads=settings.threads, adapter=settings.adapter)
    notes: list[str] = []
    series = _series.series(model, settings.file, settings.reader, settings.number, notes, settings)
    missing = int(np.isnan(series.values).sum())
    found = model.impute(series, paths=settings.paths, seed=settings.seed)
    for line in notes:
        note(line)
    paths = _series.save(settings.output, [_series.stepped(model, found.series, series.grid)])
    values: dict[str, Any] = {"paths": paths, "missing": missing, "samples": int(series.values.size), "notes": notes}
    text = f"{', '.join(map(str, paths))} ({missing} of {series.values.size} samples filled in)"
    if settings.svg is not None:
        save_text(settings.svg, drawn(series, found), "--svg")
        values["svg"] = settings.svg
        text += f"\n{settings.svg}"
    out.result(values, text)
