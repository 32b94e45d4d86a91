"""A whole adaptation: a stream of examples followed with a model, and what it keeps in its folder.

from genmote.tune.follow import follow, rollback
told = follow("smollm2-135m", open("stream.jsonl"), "adapted")
rollback("adapted")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from genmote.device.sensors import Sensors
from genmote.errors import ExamplesError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.lora import check_lora
from genmote.runtime.engine import Engine
from genmote.tune import examples
from genmote.tune.adapt import Adapting, Event, Looks
from genmote.tune.journal import Journal
from genmote.tune.learnt import Numbers
from genmote.tune.settings import Tuning
from genmote.tune.watch import Watch

STEPS = 60  # of one training
KEEP_EVERY = 25  # examples after which the state is written


@dataclass
class Followed:
    """What happened while a stream was followed."""

    folder: Path
    adapter: Path | None = None  # in use at the end
    examples: int = 0
    left_out: int = 0  # lines that were no examples
    events: list[Event] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of each example, before it was learnt from

    def count(self, what: str) -> int:
        return sum(event.what == what for event in self.events)

    def values(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "left_out": self.left_out,
            "changes": self.count("drift"),
            "accepted": self.count("accepted"),
            "refused": self.count("refused"),
            "loss": float(np.mean(self.losses)) if self.losses else None,
            "adapter": self.adapter,
        }


def follow(
    model: str | os.PathLike[str],
    lines: Iterable[str | bytes],
    folder: str | os.PathLike[str],
    tuning: Tuning | None = None,
    watch: Watch | None = None,
    *,
    guard: Path | None = None,
    adapter: Path | None = None,
    again: bool = False,
    ops: str | None = None,
    threads: int | None = None,
    sensors: Looks | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Followed:
    """Read a stream of examples, a JSON object on each line, and adapt the model where it changes (`tune/adapt.py`).

    `folder` keeps the adapters and all that it takes to go on; with `again` the lines are the same stream from its
    beginning, of which those that were read are passed over. `guard`: examples that must stay known; `adapter`: the
    first one in use, where the folder has none. Raises SpecError, ExamplesError and what `Engine.load` raises."""
    tuning = tuning or Tuning(steps=STEPS)
    with Engine.load(model, ops=ops, threads=threads) as engine:
        journal = Journal.open(Path(folder), engine.identity())
        with journal.alone():
            return _follow(
                engine,
                journal,
                lines,
                tuning,
                adapter,
                again,
                tell,
                watch=watch or Watch(),
                guard=None if guard is None else examples.read(guard, engine, tuning.context, []),
                sensors=sensors or Sensors(),
                progress=progress,
            )


def rollback(folder: str | os.PathLike[str]) -> Path | None:
    """The adapter before the one in use is in use again; its file, None where that is the model alone. SpecError where
    there is none, or the folder is in use."""
    if not (Path(folder) / "state.json").is_file():
        raise SpecError(f"{folder} has no state.json: name the folder that genmote adapt --state wrote")
    journal = Journal.open(Path(folder), None)
    with journal.alone():
        return journal.back()


def _follow(
    engine: Engine,
    journal: Journal,
    lines: Iterable[str | bytes],
    tuning: Tuning,
    start: Path | None,
    read_before: bool,
    tell: Callable[[str], None],
    **settings: Any,
) -> Followed:
    if journal.adapter is not None:
        if start is not None and not start.samefile(journal.adapter):
            tell(f"{journal.adapter} is in use: {start} is not taken")
        start = journal.adapter
    numbers, tuning = (None, tuning) if start is None else _start(engine, start, tuning)
    adapting = Adapting(engine.decoder, tuning, numbers=numbers, **settings)
    if journal.current is None and start is not None:
        journal.take(adapting.numbers, engine.config.architecture, _alpha(tuning), {"from": str(start)}, "start")
    passed = 0
    if journal.stream is not None:
        try:
            if not adapting.restore(journal.stream):
                tell("the detector begins anew: its state is of other settings")
            passed = int(journal.stream["lines"]) if read_before else 0
        except (KeyError, TypeError, ValueError, IndexError) as fault:
            raise journal.damaged(fault) from None
        tell(f"goes on after {adapting.seen} examples")
    told = Followed(journal.folder)
    number = 0
    for number, line in enumerate(lines, 1):
        if number <= passed or not line.strip():
            continue
        try:
            text = line if isinstance(line, str) else line.decode("utf-8-sig")
            example = examples.one(text, engine, tuning.context)
        except UnicodeDecodeError:
            tell(f"line {number} is left out: not UTF-8")
            example = None
        except ExamplesError as fault:
            tell(f"line {number} is left out: {fault}")
            example = None
        if example is None:
            told.left_out += 1
            continue
        events = adapting.see(*example)
        told.examples += 1
        told.losses.append(adapting.loss)
        for event in events:
            told.events.append(event)
            tell(str(event))
            if event.what == "accepted":
                values = {"example": event.example, **event.values}
                journal.take(adapting.numbers, engine.config.architecture, _alpha(tuning), values)
            else:
                journal.tell(event.what, {"example": event.example, **event.values})
        if events or told.examples % KEEP_EVERY == 0:
            journal.keep({"lines": number, **adapting.state()})
    journal.keep({"lines": max(number, passed), **adapting.state()})
    told.adapter = journal.adapter
    return told


def _alpha(tuning: Tuning) -> float:
    return tuning.factor * tuning.rank


def _start(engine: Engine, path: Path, tuning: Tuning) -> tuple[Numbers, Tuning]:
    """An adapter's numbers, and the settings with which it is learnt on."""
    file = ModelFile.open(path)
    alpha, updates = check_lora(file, engine.config)
    ranks = {down.shape[0] for down, _ in updates.values()}
    if len(ranks) > 1:
        raise SpecError(f"{path.name} has matrices of ranks {sorted(ranks)}: wanted one rank, as genmote tune makes it")
    numbers = {name: file.tensor(name) for name in file.tensors}
    rank = ranks.pop() if ranks else tuning.rank
    return numbers, replace(tuning, rank=rank, alpha=alpha or float(rank))
