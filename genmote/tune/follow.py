"""A whole adaptation: a stream of examples followed with a model, and what it keeps in its folder.

from genmote.tune.follow import follow, rollback
told = follow("smollm2-135m", open("stream.jsonl"), "adapted")
rollback("adapted")
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any
from zlib import crc32

from genmote import records
from genmote.device.meter import Meter, Reading
from genmote.device.sensors import Sensors
from genmote.errors import ExamplesError, SpecError
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.lora import check_lora
from genmote.runtime.engine import Engine
from genmote.runtime.footprint import resident_bytes
from genmote.tune import begin, examples
from genmote.tune.adapt import Adapting, Event, Looks, One
from genmote.tune.examples import Examples
from genmote.tune.journal import Journal
from genmote.tune.learnt import Numbers
from genmote.tune.settings import Tuning
from genmote.tune.watch import Watch

STEPS = 60  # of one training
KEEP_EVERY = 25  # examples after which the state is written
BEGINNING = 8  # pieces by which a stream is known again
LAST = 10_000  # examples, and events, that are remembered one by one: a stream may have no end

Bar = Callable[[str, int, int], None]
Tell = Callable[[str], None]


@dataclass
class Followed:
    """What happened while a stream was followed."""

    folder: Path
    base: str  # the model's sha256
    adapter: Path | None = None  # in use at the end
    examples: int = 0
    left_out: int = 0  # lines that were no examples
    first: int = 1  # number of the first example that was read
    events: deque[Event] = field(default_factory=partial(deque, maxlen=LAST))  # the last ones
    losses: deque[float] = field(
        default_factory=partial(deque, maxlen=LAST)
    )  # of the last, before they were learnt from
    memory: deque[int] = field(default_factory=partial(deque, maxlen=LAST))  # resident bytes after each of these
    counts: Counter[str] = field(default_factory=Counter)  # of all events, by what they are
    loss_sum: float = 0.0  # of all examples whose loss is a number
    judged: int = 0  # how many these are
    trained: int = 0  # rows that went through trainings
    trained_s: float = 0.0
    reading: Reading | None = None  # of the whole run

    def count(self, what: str) -> int:
        return self.counts[what]

    def take(self, loss: float, resident: int, events: Iterable[Event]) -> None:
        """One more example, and what happened because of it."""
        self.examples += 1
        self.losses.append(loss)
        self.memory.append(resident)
        if math.isfinite(loss):
            self.loss_sum, self.judged = self.loss_sum + loss, self.judged + 1
        for event in events:
            self.events.append(event)
            self.counts[event.what] += 1

    def record(self, seed: int, threads: int | None) -> records.Record:
        """The figures as a record."""
        values = {key: str(v) if isinstance(v, Path) else v for key, v in self.values().items() if v is not None}
        how = self.reading.energy.how if self.reading is not None else "unavailable"
        return records.Record("adapt", values, model_sha256=self.base, seed=seed, threads=threads, energy=how)

    def values(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "left_out": self.left_out,
            "changes": self.count("drift"),
            "accepted": self.count("accepted"),
            "refused": self.count("refused"),
            "loss": self.loss_sum / self.judged if self.judged else None,
            "adapter": self.adapter,
            "training_s": round(self.trained_s, 2),
            "training_tokens": self.trained,
            "training_tokens_per_s": round(self.trained / self.trained_s, 2) if self.trained_s else None,
            **(self.reading.values() if self.reading is not None else {}),
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
    total: int = 0,
    ops: str | None = None,
    threads: int | None = None,
    sensors: Looks | None = None,
    progress: Bar = lambda what, done, total: None,
    tell: Tell = lambda line: None,
) -> Followed:
    """Read a stream of examples, a JSON object on each line, and adapt the model where it changes (`tune/adapt.py`).

    `folder` keeps the adapters and all that it takes to go on; with `again` the lines are a stream from its beginning:
    of one that begins as the one before did, those that were read are passed over. `guard`: examples that must stay
    known; `adapter`: the first one in use, where the folder has none; `total`: lines that there are, where that is
    known. Raises SpecError, ExamplesError and what `Engine.load` raises."""
    tuning = tuning or Tuning(steps=STEPS)
    with Meter() as meter, Engine.load(model, ops=ops, threads=threads) as engine:
        examples.check_context(engine, tuning.context)
        odd = list[str]()
        guarded = None if guard is None else examples.read(guard, engine, tuning.context, odd)
        for told_of in odd:
            tell(f"{guard}: {told_of}")

        def read(line: str | bytes) -> One | None:
            try:
                text = line if isinstance(line, str) else line.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise ExamplesError("not UTF-8") from None
            return examples.one(text, engine, tuning.context)

        if again:
            lines = _ended(lines, tell)
        told = follow_with(
            engine.decoder,
            engine.identity(),
            (line if line.strip() else None for line in lines),
            read,
            folder,
            tuning,
            watch,
            what="line",
            mark=lambda line: (line.encode(errors="replace") if isinstance(line, str) else line).strip(),
            guard=guarded,
            adapter=adapter,
            again=again,
            total=total,
            sensors=sensors,
            progress=progress,
            tell=tell,
        )
    told.reading = meter.reading
    return told


def follow_with(
    decoder: Decoder,
    identity: str,
    pieces: Iterable[Any],
    read: Callable[[Any], One | None],
    folder: str | os.PathLike[str],
    tuning: Tuning,
    watch: Watch | None = None,
    *,
    what: str = "piece",
    mark: Callable[[Any], bytes] = lambda piece: b"",
    guard: Examples | None = None,
    adapter: Path | None = None,
    again: bool = False,
    total: int = 0,
    sensors: Looks | None = None,
    progress: Bar = lambda what, done, total: None,
    tell: Tell = lambda line: None,
) -> Followed:
    """As `follow`, with any decoder, of which `identity` names the weights: `read` makes an example of each of the
    stream's `pieces`, or None where nothing of it is to be learnt; it raises ExamplesError for what is none. A piece
    that is None is nothing. `what`: how a piece is called where one is left out; `mark`: what a piece is known by
    again: with `again`, pieces are passed over where the stream begins as it did."""
    journal = Journal.open(Path(folder), identity)
    with journal.alone():
        adapting = _begin(decoder, journal, tuning, adapter, tell, watch, guard, sensors, progress)
        passed, pieces, first, begins = 0, iter(pieces), list[Any](), list[int]()

        def known_by(piece: Any) -> int:
            return 0 if piece is None else crc32(mark(piece))

        if journal.stream is not None:
            try:
                if not adapting.restore(journal.stream):
                    tell("the detector begins anew: its state is of other settings")
                if again:
                    passed, begins = int(journal.stream["lines"]), list(journal.stream.get("begins", []))
            except (KeyError, TypeError, ValueError, IndexError) as fault:
                raise journal.damaged(fault) from None
            tell(f"goes on after {adapting.seen} examples")
            first = list(islice(pieces, len(begins)))
            if passed and (not begins or [known_by(piece) for piece in first] != begins):
                tell("the stream begins unlike the one before: all of it is read")
                passed, begins = 0, []
        told = Followed(journal.folder, identity, first=adapting.seen + 1)
        number = 0
        for number, piece in enumerate(chain(first, pieces), 1):
            if again and len(begins) < number <= BEGINNING:
                begins.append(known_by(piece))
            if number <= passed or piece is None:
                continue
            progress("reading the stream", number, total)
            try:
                example = read(piece)
            except ExamplesError as fault:
                tell(f"{what} {number} is left out: {fault}")
                example = None
            if example is None:
                told.left_out += 1
                continue
            events = adapting.see(*example)
            told.take(adapting.loss, resident_bytes(), events)
            for event in events:
                tell(str(event))
                _kept(journal, event, adapting)
            if events or told.examples % KEEP_EVERY == 0:
                journal.keep({"lines": number, "begins": begins, **adapting.state()})
        journal.keep({"lines": max(number, passed), "begins": begins, **adapting.state()})
        told.adapter, told.trained, told.trained_s = journal.adapter, adapting.trained, adapting.trained_s
        return told


def _ended(lines: Iterable[str | bytes], tell: Tell) -> Iterator[str | bytes]:
    """Without a last line that is still being written, which has no end and is no JSON yet: to whoever goes on later it
    must not be one that was read."""
    waits: str | bytes | None = None
    for line in lines:
        if waits is not None:
            yield waits
        waits = line if _half(line) else None
        if waits is None:
            yield line
    if waits is not None:
        tell("the last line has no end yet: it is read when the same command is given again")


def _half(line: str | bytes) -> bool:
    if line.endswith("\n") if isinstance(line, str) else line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return bool(line.strip())
    return False


def rollback(folder: str | os.PathLike[str]) -> Path | None:
    """The adapter before the one in use is in use again; its file, None where that is the model alone. SpecError where
    there is none, or the folder is in use."""
    if not (Path(folder) / "state.json").is_file():
        raise SpecError(f"{folder} has no state.json: name the folder that genmote adapt --state wrote")
    journal = Journal.open(Path(folder), None)
    with journal.alone():
        return journal.back()


def _begin(
    decoder: Decoder,
    journal: Journal,
    tuning: Tuning,
    start: Path | None,
    tell: Tell,
    watch: Watch | None,
    guard: Examples | None,
    sensors: Looks | None,
    progress: Bar,
) -> Adapting:
    """With the adapter that is in use, or the first one."""
    if journal.adapter is not None:
        if start is not None and not start.samefile(journal.adapter):
            tell(f"{journal.adapter} is in use: {start} is not taken")
        start = journal.adapter
    numbers, tuning = (None, tuning) if start is None else _start(decoder, start, tuning)
    adapting = Adapting(
        decoder,
        tuning,
        watch or Watch(),
        numbers=numbers,
        guard=guard,
        sensors=sensors or Sensors(),
        progress=progress,
    )
    # Beside the state, which is small, an adapter is kept.
    begin.check_room(journal.folder, sum(array.nbytes for array in adapting.numbers.values()), "--state")
    if journal.current is None and start is not None:
        journal.take(adapting.numbers, decoder.config.architecture, _alpha(tuning), {"from": str(start)}, "start")
    return adapting


def _kept(journal: Journal, event: Event, adapting: Adapting) -> None:
    values = {"example": event.example, **event.values}
    if event.what == "accepted":
        journal.take(adapting.numbers, adapting.decoder.config.architecture, _alpha(adapting.tuning), values)
    else:
        journal.tell(event.what, values)


def _alpha(tuning: Tuning) -> float:
    return tuning.factor * tuning.rank


def _start(decoder: Decoder, path: Path, tuning: Tuning) -> tuple[Numbers, Tuning]:
    """An adapter's numbers, and the settings with which it is learnt on."""
    file = ModelFile.open(path)
    alpha, updates = check_lora(file, decoder.config)
    ranks = {down.shape[0] for down, _ in updates.values()}
    if len(ranks) > 1:
        raise SpecError(f"{path.name} has matrices of ranks {sorted(ranks)}: wanted one rank, as genmote tune makes it")
    numbers = {name: file.tensor(name) for name in file.tensors}
    rank = ranks.pop() if ranks else tuning.rank
    return numbers, replace(tuning, rank=rank, alpha=alpha or float(rank))
