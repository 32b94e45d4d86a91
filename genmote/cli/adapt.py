"""Let a model adapt itself to a stream: when its examples change, a bounded training makes an adapter, taken if better.

    genmote adapt smollm2-135m stream.jsonl --state adapted
    tail -f log.jsonl | genmote adapt smollm2-135m - --state adapted --guard must-stay.jsonl --hours 22-6
    genmote adapt sensor.gguf recordings/ --state adapted --plot adapted.svg
    genmote adapt --state adapted --rollback

The stream has an example a line, as for genmote tune; of a generator of signals it is a recording, or a folder of them,
read in stretches. Each is read with the adapter in use; a drift detector watches how likely the examples are. After a
change for the worse, the model learns from examples since then and from some of before, within --steps,
--max-seconds, --hours, battery and temperature. The new adapter is taken only if it is better on recent examples that
it has not learnt from, and not worse on the guard set. --state keeps all adapters, which generate, chat and serve (and
signal generate, forecast, impute and detect) take with --adapter, a log with a line for each change, and what it takes
to go on: the same command goes on where a file was left.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any

from genmote.cli._model import find
from genmote.cli._output import Bar, Output, check_place, going_on, note, save, size
from genmote.cli.tune import GOES_ON
from genmote.errors import UserError
from genmote.signals.said import Said
from genmote.spec import dataclass, setting
from genmote.tune.settings import Tuning
from genmote.tune.watch import Watch

RATE, GENERATOR_RATE = 1e-3, 4e-3  # a small model takes larger steps


@dataclass(frozen=True, kw_only=True)
class Settings(Watch, Said):
    model: str | None = setting("a model's name (fetched if it is not here) or path", positional=True, default=None)
    stream: Path | None = setting(
        "examples, .jsonl (- for standard input); of a generator of signals a recording, or a folder of them",
        positional=True,
        default=None,
    )
    state: Path = setting("folder of the adapters, the log and what it takes to go on")
    rollback: bool = setting("go back to the adapter before the one in use", default=False)
    guard: Path | None = setting("examples that must stay known (default: some from before the change)", default=None)
    adapter: Path | None = setting("the adapter to begin with, as genmote tune makes it", default=None)
    on: str = setting("what is learnt, as for genmote tune", default="all")
    rank: int = setting("rank of the adapter", default=8)
    steps: int = setting("steps of one training", default=60)
    batch: int = setting("examples of a step", default=4)
    context: int = setting("most tokens of an example", default=256)
    rate: float | None = setting(
        f"learning rate, the highest (default: {RATE:g}, of a generator {GENERATOR_RATE:g})", default=None
    )
    seed: int = setting("seed of what is drawn", default=0)
    ops: str | None = setting("op set: native or numpy (default: the fastest here)", default=None)
    threads: int | None = setting("threads (default: one a physical core)", default=None)
    plot: Path | None = setting("a picture (.svg) of the loss and of the memory over the stream", default=None)
    record: Path | None = setting("add the figures to this file, a record on a line", default=None)

    def faults(self) -> Iterable[str]:
        yield from Watch.faults(self)
        yield from Said.faults(self)
        yield from self.tuning().faults()
        if not self.rollback and (self.model is None or self.stream is None):
            yield "a model and a stream are wanted, or --rollback"

    def tuning(self, rate: float = RATE) -> Tuning:
        """Of one training; `rate`: where none is given."""
        names = {field.name for field in fields(Tuning)} & {field.name for field in fields(type(self))}
        chosen = Tuning(**{name: getattr(self, name) for name in names})
        return chosen if chosen.rate is not None else replace(chosen, rate=rate)


def run(settings: Settings, out: Output) -> None:
    from genmote import records
    from genmote.generator.file import OWN
    from genmote.models.gguf import ModelFile
    from genmote.tune import follow, picture

    if settings.rollback:
        path = follow.rollback(settings.state)
        out.result({"adapter": path}, f"in use: {path or 'the model alone'}")
        return
    assert settings.model is not None and settings.stream is not None
    for place, option in ((settings.plot, "--plot"), (settings.record, "--record")):
        if place is not None:
            check_place(place, option)
    model = find(settings.model)
    watch = Watch(**{field.name: getattr(settings, field.name) for field in fields(Watch)})
    goes_on = contextlib.nullcontext() if settings.stream == Path("-") else going_on(GOES_ON)
    with goes_on, Bar(unit_bytes=False) as bar:

        def tell(line: str) -> None:
            bar.make_way()
            note(line)

        shared: dict[str, Any] = {
            "guard": settings.guard,
            "adapter": settings.adapter,
            "again": settings.stream != Path("-"),
            "ops": settings.ops,
            "threads": settings.threads,
            "progress": bar,
            "tell": tell,
        }
        if OWN + "version" in ModelFile.open(model).metadata:
            from genmote.generator import adapt

            if settings.stream == Path("-"):
                raise UserError(f"{model.name} is a generator of signals: give a recording, or a folder of them, not -")
            tuning = settings.tuning(GENERATOR_RATE)
            told = adapt.adapt(model, [settings.stream], settings.state, tuning, watch, said=settings, **shared)
        else:
            if settings.group is not None or settings.names or settings.sample_rate:
                raise UserError(f"group, names, sample_rate: are said of recordings, {model.name} reads text")
            with _opened(settings.stream) as (lines, total):
                told = follow.follow(model, lines, settings.state, settings.tuning(), watch, total=total, **shared)
    values = told.values()
    if settings.plot is not None:
        save(settings.plot, picture.followed(told, model.name), "--plot")
        values["plot"] = settings.plot
    if settings.record is not None:
        records.append(settings.record, told.record(settings.seed, settings.threads))
        values["record"] = settings.record
    happened = [{"what": e.what, "example": e.example, **e.values} for e in told.events]
    out.result({**values, "events": happened}, text(told))


def text(told: Any) -> str:
    """The result for people."""
    values, reading = told.values(), told.reading
    loss = "" if values["loss"] is None else f", {values['loss']:.4f} nats a token"
    lines = [
        f"{values['examples']} examples{loss}; changes {values['changes']}, adapters taken {values['accepted']}, "
        f"refused {values['refused']}; in use: {told.adapter or 'the model alone'}"
    ]
    if told.trained:
        speed = values["training_tokens_per_s"]
        lines.append(f"training: {values['training_s']:.4g} s, {told.trained} tokens, {speed:.4g} tokens/s")
    if reading is not None:
        peak = reading.peak_rss_bytes
        memory = "memory unknown" if peak is None else f"{size(peak)} of memory at most"
        lines.append(f"{reading.wall_s:.4g} s in all, {memory}, {reading.energy}")
    return "\n".join(lines)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The stream, and how many lines it has; 0 where that is not known."""
    if str(path) == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed: pipe a stream in, or name a file")
        yield sys.stdin.buffer, 0
        return
    try:
        lines = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as fault:
        raise UserError(f"{path} cannot be read ({fault.strerror}): wanted a stream of examples, .jsonl") from None
    with lines:
        total = sum(1 for _ in lines) if lines.seekable() else 0
        if total:
            lines.seek(0)
        yield lines, total
