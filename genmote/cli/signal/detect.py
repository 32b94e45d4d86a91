"""Find what is unlike what a model knows: samples or rows that it holds unlikely.

    genmote signal detect sensor.gguf today.csv --clean yesterday.csv --svg today.svg
    genmote signal detect sensor.gguf today.csv --threshold 4.2 -o scores.csv

A score is how unlikely a sample was, in nats, averaged over the last --smooth samples and all channels; of those it is
told which has the largest part in it. The threshold is one that a part --quantile of a clean recording stays below.
The file is read in pieces: of it its scores alone stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genmote.cli._output import Bar, Output, check_place, columns, note, save
from genmote.cli.signal import _series
from genmote.signals.reading import Said
from genmote.spec import dataclass, setting

SHOWN = 20  # stretches that are printed


@dataclass(frozen=True, kw_only=True)
class Settings(Said):
    model: str = setting("a model that genmote signal train made, or one of genmote", positional=True)
    file: Path = setting("a recording to look at", positional=True)
    clean: Path | None = setting("a recording in which nothing is wrong, to set the threshold by", default=None)
    threshold: float | None = setting("a score above which a sample is told", default=None)
    quantile: float = setting("part of the clean samples that stay below the threshold", default=0.999)
    smooth: int = setting("samples that a score is averaged over", default=8)
    reader: str | None = setting("the reader of the recordings", default=None)
    output: Path | None = setting("a table of all scores (.csv)", default=None, short="-o")
    svg: Path | None = setting("a picture of it", default=None)
    threads: int | None = setting("threads (default: one a core)", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        if (self.clean is None) == (self.threshold is None):
            yield "give either --clean (a recording to set the threshold by) or --threshold"
        if not 0 < self.quantile < 1:
            yield f"quantile={self.quantile}: use one between 0 and 1, such as 0.999"
        if self.smooth < 1:
            yield f"smooth={self.smooth}: use 1 or more"


def run(settings: Settings, out: Output) -> None:
    import numpy as np

    from genmote.generator import detect, pictures
    from genmote.generator.model import Generator
    from genmote.signals import reading

    for path, option in ((settings.output, "--output"), (settings.svg, "--svg")):
        if path is not None:
            check_place(path, option)
    model = Generator.load(settings.model, threads=settings.threads)
    notes: list[str] = []
    threshold = settings.threshold
    if settings.clean is not None:
        clean = [
            _series.fitting(model, s, notes)
            for s in reading.read(settings.clean, reader=settings.reader, said=settings, notes=notes)
        ]
        threshold = detect.threshold(model, clean, settings.quantile, settings.smooth)
    assert threshold is not None
    names: list[str] = []
    scores: list[Any] = []
    alarms: list[Any] = []
    parts: list[Any] = []  # which channel has the largest part in a score
    channels: list[tuple[str, ...]] = []
    drawn: list[Any] = []  # the first recording, where a picture is wanted
    count = 0
    with Bar(unit_bytes=False, late=True) as bar:
        detector = None
        for piece in reading.pieces(settings.file, reader=settings.reader, said=settings, notes=notes):
            piece = _series.fitting(model, piece, notes)
            if detector is None or names[-1] != piece.name:
                detector = detect.Detector(model, threshold, settings.smooth)
                names.append(piece.name)
                scores.append([])
                alarms.append([])
                parts.append([])
                channels.append(())
            if settings.svg is not None and len(names) == 1:
                drawn.append(piece)
            seen = detector.push(piece)
            scores[-1].append(seen.scores)
            alarms[-1].append(seen.alarms)
            parts[-1].append(seen.most)
            channels[-1] = seen.channels
            count += len(piece)
            bar("looking", count, 0)
    for line in notes:
        note(line)
    joined = [np.concatenate(each) for each in scores]
    above = [np.concatenate(each) for each in alarms]
    found = [
        {"signal": name, **stretch, "channel": of[int(most[at])] if of else None}
        for name, own, there, most, of in zip(names, joined, above, map(np.concatenate, parts), channels, strict=True)
        for at, stretch in _stretches(own, there, settings.smooth)
    ]
    values: dict[str, Any] = {
        "threshold": threshold,
        "samples": count,
        "above": int(sum(each.sum() for each in above)),
        "stretches": found,
        "notes": notes,
    }
    text = f"{values['above']} of {count} samples above {threshold:.3f}, in {len(found)} stretches"
    if found:
        rows = [
            [str(f["signal"]), str(f["start"]), str(f["stop"]), f"{f['highest']:.2f}", str(f["channel"] or "")]
            for f in found[:SHOWN]
        ]
        heads, shown = ["signal", "from", "to", "highest", "channel"], 5 if any(len(of) > 1 for of in channels) else 4
        text += "\n\n" + columns([row[:shown] for row in [heads, *rows]])
        text += f"\n… {len(found) - SHOWN} more; --json tells of all" if len(found) > SHOWN else ""
    if settings.output is not None:
        lines = ["signal,sample,score"]
        lines += [f'"{n}",{at},{s:.5g}' for n, each in zip(names, joined, strict=True) for at, s in enumerate(each)]
        save(settings.output, "\n".join(lines) + "\n", "--output")
        values["path"] = settings.output
        text += f"\n{settings.output}"
    if settings.svg is not None and joined:
        told = [(f["start"], f["stop"], f["channel"]) for f in found if f["signal"] == names[0]]
        picture = pictures.detected(reading.joined_all(drawn)[0], joined[0], threshold, told, int(above[0].sum()))
        save(settings.svg, picture, "--svg")
        values["svg"] = settings.svg
        text += f"\n{settings.svg}"
    out.result(values, text)


def _stretches(scores: Any, alarms: Any, smooth: int) -> list[tuple[int, dict[str, Any]]]:
    """Stretches [start, stop) of alarms, with the samples before them that their averages are of; those that so touch
    are one. Each with the sample that scores highest."""
    import numpy as np

    found: list[tuple[int, dict[str, Any]]] = []
    edges = np.flatnonzero(np.diff(alarms.astype(np.int8), prepend=0, append=0))
    for first, stop in edges.reshape(-1, 2).tolist():
        start, at = max(0, first - smooth + 1), first + int(scores[first:stop].argmax())
        if found and start <= found[-1][1]["stop"]:
            before, stretch = found.pop()
            start, at = stretch["start"], max(before, at, key=scores.__getitem__)
        found.append((at, {"start": start, "stop": stop, "highest": round(float(scores[at]), 4)}))
    return found
