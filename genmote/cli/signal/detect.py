"""Find what is unlike what a model knows: samples or rows that it holds unlikely.

    genmote signal detect sensor.gguf today.csv --clean yesterday.csv --svg today.svg
    genmote signal detect sensor.gguf today.csv --threshold 4.2 -o scores.csv

A score is how unlikely a sample was, in nats, averaged over the last --smooth samples and all channels. Of each stretch
that is told the oddest sample is the one whose own score, not averaged, is the highest, and the channel is the one with
the largest part in that. Times are told where the recording has them. The threshold is one that a part --quantile of a
clean recording stays below. The file is read in pieces: of it its scores and times alone stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genmote.cli._output import Bar, Output, check_place, columns, note, save
from genmote.cli.signal import _series
from genmote.signals.said import Said
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
    adapter: Path | None = setting("an adapter of the model, as genmote adapt makes it", default=None)
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
    from genmote.signals.kinds import Frames, Series
    from genmote.signals.writing import is_date, moment, timed

    for path, option in ((settings.output, "--output"), (settings.svg, "--svg")):
        if path is not None:
            check_place(path, option)
    model = Generator.load(settings.model, threads=settings.threads, adapter=settings.adapter)
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
    singles: list[Any] = []  # scores that are not smoothed
    parts: list[Any] = []  # which channel has the largest part in such a score
    times: list[Any] = []
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
                singles.append([])
                parts.append([])
                times.append([])
                began, done = (piece.start_s or 0.0) if isinstance(piece, Series) else 0.0, 0
                channels.append(())
            if settings.svg is not None and len(names) == 1:
                drawn.append(piece)
            seen = detector.push(piece)
            scores[-1].append(seen.scores)
            alarms[-1].append(seen.alarms)
            singles[-1].append(seen.own[seen.before :])
            parts[-1].append(seen.most[seen.before :])
            own_times = None if isinstance(piece, Frames) else timed(piece, began, done)
            times[-1] += [] if own_times is None else [own_times]
            done += len(piece)
            channels[-1] = seen.channels
            count += len(piece)
            bar("looking", count, 0)
    for line in notes:
        note(line)
    joined = [np.concatenate(each) for each in scores]
    above = [np.concatenate(each) for each in alarms]
    dated = [np.concatenate(each) if each else None for each in times]
    found = [
        {"signal": name, **stretch, **_when(when, stretch), "channel": of[int(most[stretch["oddest"]])] if of else None}
        for name, smoothed, own, there, most, of, when in zip(
            names, joined, map(np.concatenate, singles), above, map(np.concatenate, parts), channels, dated, strict=True
        )
        for stretch in _stretches(smoothed, own, there, settings.smooth)
    ]
    first = next((float(when[0]) for when in dated if when is not None and len(when)), None)
    head = [] if first is None else ["time" if is_date(first) else "time (s)"]
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
            [
                str(f["signal"]),
                *(
                    cell
                    for place, at in (("start", "start_s"), ("stop", "last_s"), ("oddest", "oddest_s"))
                    for cell in (str(f[place]), *("" if f[at] is None else moment(f[at]) for _ in head))
                ),
                f"{f['highest']:.2f}",
                str(f["channel"] or ""),
            ]
            for f in found[:SHOWN]
        ]
        heads = ["signal", "from", *head, "to", *head, "oddest", *head, "highest", "channel"]
        shown = len(heads) - (not any(len(of) > 1 for of in channels))
        text += "\n\n" + columns([row[:shown] for row in [heads, *rows]])
        text += f"\n… {len(found) - SHOWN} more; --json tells of all" if len(found) > SHOWN else ""
    if settings.output is not None:
        lines = [",".join(["signal", "sample", *head, "score"])]
        for n, each, when in zip(names, joined, dated, strict=True):
            at_s = ["," * len(head)] * len(each) if when is None else [f"{moment(float(t))}," for t in when]
            lines += [f'"{n}",{at},{t}{s:.5g}' for at, (t, s) in enumerate(zip(at_s, each, strict=True))]
        save(settings.output, "\n".join(lines) + "\n", "--output")
        values["path"] = settings.output
        text += f"\n{settings.output}"
    if settings.svg is not None and joined:
        told = [(f["start"], f["stop"], f["channel"]) for f in found if f["signal"] == names[0]]
        picture = pictures.detected(
            reading.joined_all(drawn)[0], joined[0], threshold, told, int(above[0].sum()), dated[0]
        )
        save(settings.svg, picture, "--svg")
        values["svg"] = settings.svg
        text += f"\n{settings.svg}"
    out.result(values, text)


def _stretches(scores: Any, own: Any, alarms: Any, smooth: int) -> list[dict[str, Any]]:
    """Stretches [start, stop) of alarms, with the samples before them that their averages are of; those that so touch
    are one. Each with its highest score, and the sample whose own score, not smoothed, is the highest."""
    import numpy as np

    found: list[dict[str, Any]] = []
    edges = np.flatnonzero(np.diff(alarms.astype(np.int8), prepend=0, append=0))
    for first, stop in edges.reshape(-1, 2).tolist():
        start, highest = max(0, first - smooth + 1), round(float(scores[first:stop].max()), 4)
        if found and start <= found[-1]["stop"]:
            before = found.pop()
            start, highest = before["start"], max(before["highest"], highest)
        oddest = start + int(own[start:stop].argmax())
        found.append({"start": start, "stop": stop, "oddest": oddest, "highest": highest})
    return found


def _when(times: Any, stretch: dict[str, Any]) -> dict[str, float | None]:
    """When a stretch's first, last and oddest samples were taken, where that is known."""
    places = {"start_s": stretch["start"], "last_s": stretch["stop"] - 1, "oddest_s": stretch["oddest"]}
    return {name: None if times is None else float(times[at]) for name, at in places.items()}
