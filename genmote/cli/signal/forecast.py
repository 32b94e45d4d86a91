"""Forecast how a series goes on: the median of many ways that it may, and between what it will lie.

    genmote signal forecast sensor.gguf recording.csv --steps 48 -o next.csv --svg next.svg

The file has a column for each channel and quantile. Without -o a table is printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genmote.cli._output import Output, check_place, columns, note, save
from genmote.cli.signal import _series
from genmote.signals.said import Said
from genmote.spec import dataclass, setting

SHOWN = 24  # steps that are printed
SIGNIFICANT = 6  # decimals of a channel, above which its numbers have so many digits that matter


@dataclass(frozen=True, kw_only=True)
class Settings(Said):
    model: str = setting("a model that genmote signal train made, or one of genmote", positional=True)
    file: Path = setting("a recording to go on from", positional=True)
    steps: int = setting("samples to foretell", default=64)
    quantiles: tuple[float, ...] = setting(
        "quantiles to tell (default: 0.1 0.5 0.9)", default=(0.1, 0.5, 0.9), many=True
    )
    paths: int = setting("ways that are drawn", default=64)
    number: int = setting("which of the file's series, from 1", default=1)
    seed: int = setting("seed: the same one gives the same forecast", default=0)
    reader: str | None = setting("the reader of the recording", default=None)
    output: Path | None = setting("a table of it (.csv)", default=None, short="-o")
    svg: Path | None = setting("a picture of it", default=None)
    adapter: Path | None = setting("an adapter of the model, as genmote adapt makes it", default=None)
    threads: int | None = setting("threads (default: one a core)", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if self.steps < 1 or self.paths < 1:
            yield f"steps={self.steps}, paths={self.paths}: use 1 or more"
        if not self.quantiles or not all(0 < q < 1 for q in self.quantiles):
            yield f"quantiles={self.quantiles}: use numbers between 0 and 1, such as 0.1 0.5 0.9"
        if self.output is not None and self.output.suffix.lower() != ".csv":
            yield f"output={self.output}: wanted a name that ends in .csv"
        if self.seed < 0:
            yield f"seed={self.seed}: use 0 or more"


def run(settings: Settings, out: Output) -> None:
    import time

    from genmote.generator.model import Generator
    from genmote.generator.pictures import forecast as drawn
    from genmote.signals.writing import is_date, moment

    for path, option in ((settings.output, "--output"), (settings.svg, "--svg")):
        if path is not None:
            check_place(path, option)
    model = Generator.load(settings.model, threads=settings.threads, adapter=settings.adapter)
    notes: list[str] = []
    history = _series.series(model, settings.file, settings.reader, settings.number, notes, settings)
    started = time.perf_counter()
    found = model.forecast(history, settings.steps, paths=settings.paths, seed=settings.seed)
    seconds = time.perf_counter() - started
    if found.outside:
        notes.append(
            f"{history.name}: {found.outside} values before the forecast lie beyond those that the model learnt from, "
            "which it does not leave: they count as the nearest of them"
        )
    for line in notes:
        note(line)
    levels = tuple(sorted(settings.quantiles))
    table = found.quantiles(levels)  # (Q, T, C)
    series = found.series
    times = series.times_s
    if times is None:
        times = (series.start_s or len(history) / history.rate_hz) + _steps(len(series)) / series.rate_hz
    head = "time" if is_date(float(times[0])) else "time (s)"
    names = [f"{channel} {q:g}" for channel in series.channels for q in levels]
    written = _digits(_series.steps(model, series, history.grid), len(series.channels))
    rows = [
        [
            moment(float(times[t])),
            *(f"{table[q, t, c]:{written[c]}}" for c in range(len(series.channels)) for q in range(len(levels))),
        ]
        for t in range(len(series))
    ]
    values: dict[str, Any] = {
        "times_s": [float(t) for t in times],
        "quantiles": {
            channel: {f"{q:g}": table[n, :, c].tolist() for n, q in enumerate(levels)}
            for c, channel in enumerate(series.channels)
        },
        "paths": settings.paths,
        "seconds": round(seconds, 4),
        "notes": notes,
    }
    text = columns([[head, *names], *rows[:SHOWN]])
    if len(rows) > SHOWN:
        text += f"\n… {len(rows) - SHOWN} more; -o writes all"
    if settings.output is not None:
        body = "\n".join(",".join(f'"{c}"' if "," in c else c for c in row) for row in [[head, *names], *rows])
        save(settings.output, body + "\n", "--output")
        values["path"] = settings.output
        text = f"{settings.output} ({len(rows)} steps, {settings.paths} ways in {seconds:.2f} s)"
    if settings.svg is not None:
        save(settings.svg, drawn(history, found), "--svg")
        values["svg"] = settings.svg
        text += f"\n{settings.svg}"
    out.result(values, text)


def _digits(steps: tuple[Any, Any] | None, channels: int) -> list[str]:
    """How the numbers of each channel are written: with the decimals of the sensor's steps, where they are few.

    >>> import numpy as np
    >>> _digits((np.array([0.01, 2.0**-15]), np.zeros(2)), 2), _digits(None, 1)
    (['.2f', '.6g'], ['.6g'])
    """
    from genmote.signals.writing import decimals

    found = [None] * channels if steps is None else [decimals(*pair) for pair in zip(*steps, strict=True)]
    return [".6g" if n is None or n > SIGNIFICANT else f".{n}f" for n in found]


def _steps(count: int) -> Any:
    import numpy as np

    return np.arange(count)
