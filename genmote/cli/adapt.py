"""Let a model adapt itself to a stream: when its examples change, a bounded training makes an adapter, taken if better.

    genmote adapt smollm2-135m stream.jsonl --state adapted
    tail -f log.jsonl | genmote adapt smollm2-135m - --state adapted --guard must-stay.jsonl --hours 22-6
    genmote adapt --state adapted --rollback

The stream has an example a line, as for genmote tune. Each is read with the adapter in use; a drift detector watches
how likely the examples are. After a change for the worse, the model learns from examples since then and from some of
before, within --steps, --max-seconds, --hours, battery and temperature. The new adapter is taken only if it is better
on recent examples that it has not learnt from, and not worse on the guard set. --state keeps all adapters, which
generate, chat and serve take with --adapter, a log with a line for each change, and what it takes to go on: the same
command goes on where a file was left.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import IO

from genmote.cli._model import find
from genmote.cli._output import Bar, Output, note
from genmote.errors import UserError
from genmote.spec import dataclass, setting
from genmote.tune.settings import Tuning
from genmote.tune.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Settings(Watch):
    model: str | None = setting("a model's name (fetched if it is not here) or path", positional=True, default=None)
    stream: Path | None = setting("examples, .jsonl (- for standard input)", positional=True, default=None)
    state: Path = setting("folder of the adapters, the log and what it takes to go on")
    rollback: bool = setting("go back to the adapter before the one in use", default=False)
    guard: Path | None = setting("examples that must stay known (default: some from before the change)", default=None)
    adapter: Path | None = setting("the adapter to begin with, as genmote tune makes it", default=None)
    on: str = setting("what is learnt, as for genmote tune", default="all")
    rank: int = setting("rank of the adapter", default=8)
    steps: int = setting("steps of one training", default=60)
    batch: int = setting("examples of a step", default=4)
    context: int = setting("most tokens of an example", default=256)
    rate: float = setting("learning rate, the highest", default=1e-3)
    seed: int = setting("seed of what is drawn", default=0)
    ops: str | None = setting("op set: native or numpy (default: the fastest here)", default=None)
    threads: int | None = setting("threads (default: one a physical core)", default=None)

    def faults(self) -> Iterable[str]:
        yield from super().faults()
        yield from self.tuning().faults()
        if not self.rollback and (self.model is None or self.stream is None):
            yield "a model and a stream are wanted, or --rollback"

    def tuning(self) -> Tuning:
        names = {field.name for field in fields(Tuning)} & {field.name for field in fields(type(self))}
        return Tuning(**{name: getattr(self, name) for name in names})


def run(settings: Settings, out: Output) -> None:
    from genmote.tune import follow

    if settings.rollback:
        path = follow.rollback(settings.state)
        out.result({"adapter": path}, f"in use: {path or 'the model alone'}")
        return
    assert settings.model is not None and settings.stream is not None
    model = find(settings.model)
    with Bar(unit_bytes=False) as bar, _opened(settings.stream) as lines:

        def tell(line: str) -> None:
            bar.make_way()
            note(line)

        told = follow.follow(
            model,
            lines,
            settings.state,
            settings.tuning(),
            Watch(**{field.name: getattr(settings, field.name) for field in fields(Watch)}),
            guard=settings.guard,
            adapter=settings.adapter,
            again=settings.stream != Path("-"),
            ops=settings.ops,
            threads=settings.threads,
            progress=bar,
            tell=tell,
        )
    values = told.values()
    loss = "" if values["loss"] is None else f", {values['loss']:.4f} nats a token"
    text = (
        f"{values['examples']} examples{loss}; changes {values['changes']}, adapters taken {values['accepted']}, "
        f"refused {values['refused']}; in use: {told.adapter or 'the model alone'}"
    )
    out.result(values, text)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if str(path) == "-":
        if sys.stdin is None:
            raise UserError("standard input is closed: pipe a stream in, or name a file")
        yield sys.stdin.buffer
        return
    try:
        lines = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as fault:
        raise UserError(f"{path} cannot be read ({fault.strerror}): wanted a stream of examples, .jsonl") from None
    with lines:
        yield lines
