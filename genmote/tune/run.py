"""A whole training: from a model and a file of examples to an adapter file, or a model.

from genmote.tune.run import tune
made = tune("smollm2-135m", "mine.jsonl", "mine.gguf")
print(made.before, made.after)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genmote import __version__, home, records
from genmote.device.meter import Meter, Reading
from genmote.digest import sha256
from genmote.errors import SpecError, TrainingError
from genmote.models import store
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import check_target, write_gguf
from genmote.runtime.engine import Engine
from genmote.runtime.footprint import resident_bytes, trim
from genmote.runtime.loading import budget_bytes
from genmote.runtime.threads import checked_threads
from genmote.tune import batches, begin, examples, from_disk, state
from genmote.tune import memory as memory_plan
from genmote.tune.choosing import chosen
from genmote.tune.examples import Examples
from genmote.tune.forward import ForwardTrainer
from genmote.tune.memory import Need
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer

if TYPE_CHECKING:
    from genmote.tune.workbench._trainer import WorkbenchTrainer

    AnyTrainer = Trainer | ForwardTrainer | WorkbenchTrainer

HELD_OUT = 0.1  # share of the examples that is judged by
MOST_HELD_OUT = 100
KEEP_S = 60.0  # seconds after which a run is kept even between judgements
CARD = "genmote.tune.card"

Tell = Callable[[str], None]
Bar = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuned:
    """What a training made and took."""

    path: Path
    card: dict[str, Any]  # what is in the file's metadata, too
    progress: state.Progress
    reading: Reading  # of this process: after a kill, since it went on
    notes: tuple[str, ...]
    threads: int
    planned: Need  # of memory
    written: float | None = None  # nats a token of the held-out examples with the model as the file has it, rounded

    @property
    def before(self) -> float | None:
        """Nats a token of the held-out examples with the base; None where none were held out."""
        return self.progress.judged[0][1] if self.progress.judged else None

    @property
    def after(self) -> float | None:
        """And with the adapter."""
        best = self.progress.best
        return None if best is None else best[1]

    def record(self) -> records.Record:
        """The figures as a record."""
        settings = {f"setting_{key}": value for key, value in self.card["settings"].items() if value is not None}
        values = {key: value for key, value in self.values().items() if value is not None}
        return records.Record(
            "tune",
            {**settings, **values},
            model_sha256=self.card["base_sha256"],
            seed=self.card["settings"]["seed"],
            threads=self.threads,
            energy=self.reading.energy.how,
        )

    def values(self) -> dict[str, Any]:
        """The figures, flat, with units in their names."""
        progress = self.progress
        return {
            "steps": progress.step,
            "best_step": self.card["best_step"],
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 2),
            "tokens_per_s": round(progress.tokens / progress.seconds, 2) if progress.seconds else None,
            "loss_first": progress.losses[0],
            "loss_last": progress.losses[-1],
            "held_out_before": self.before,
            "held_out_after": self.after,
            "held_out_written": self.written,
            "output_bytes": self.path.stat().st_size,
            "planned_bytes": self.planned.total,
            **self.reading.values(),
        }


def tune(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    tuning: Tuning | None = None,
    *,
    memory: int | str | None = None,
    ops: str | None = None,
    isa: str | None = None,
    threads: int | None = None,
    progress: Bar = lambda what, done, total: None,
    tell: Tell = lambda line: None,
) -> Tuned:
    """Learn an adapter for `model` (a name or path) from the examples in `data` (`tune/examples.py`) and write it to
    `output`, whole or not at all; by some of the methods with PyTorch (`tune/workbench/`) a whole model instead.

    What was there stays until then. A run that was killed goes on when it is asked for again with the same settings,
    model and examples, to the same bits. `memory`: bytes, or an amount such as "250MB", that the process keeps to: how
    much goes through the model at once is chosen by what fits (`tune/memory.py`; BudgetError where nothing does).
    `ops`, `isa`, `threads`: as for `Engine.load`; methods with PyTorch have one op set. `progress` is told the steps,
    `tell` a line now and then. Raises ExamplesError, SpecError, OpsError and what `Engine.load` raises; TrainingError
    where the loss is no number any more, after the best so far was written, if there is one, and where what was learnt
    is no better than the base and a file is at `output`, which stays.
    """
    tuning, output, data = tuning or Tuning(), Path(output), Path(data)
    if faults := list(tuning.faults()):
        raise SpecError("; ".join(faults))
    notes: list[str] = []

    def note(line: str) -> None:
        if line not in notes:  # whoever chooses examples finds the same in them as whoever reads them
            notes.append(line)
            tell(line)

    path = store.resolve(model)
    check_target(output, path)
    file, count = ModelFile.open(path), checked_threads(threads)
    loading: dict[str, Any] = {"ops": ops, "isa": isa, "threads": threads}
    if tuning.on_workbench:
        begin.check(tuning, ops)
    elif tuning.method == "forward":
        planned = memory_plan.need_forward(file, tuning, count)
        if memory is not None:
            loading |= {"memory": budget_bytes(memory), "context": tuning.context}
    elif memory is None:
        planned = memory_plan.need(file, tuning, count)
    else:
        tuning, planned, told = memory_plan.fitted(file, tuning, count, budget_bytes(memory))
        note(told)
    work = output.with_name(output.name + ".work")
    with _held(work), Meter() as meter, _opened(file, tuning, count, loading) as engine:
        learn, judge = _examples(engine, data, tuning, note)
        every = learn
        if tuning.select is not None:
            kept = work / "chosen.json", _named(engine, tuning, every, judge)
            learn = _chosen(engine, every, tuning, note, progress, kept)
        trainer: AnyTrainer
        if tuning.on_workbench:
            budget = None if memory is None else budget_bytes(memory)
            trainer, planned = begin.trainer(file, tuning, learn, judge, budget, count, note)
        elif tuning.method == "forward":
            planned = _make_room(engine, planned, note)
            trainer = ForwardTrainer(engine.decoder, tuning, learn)
            if engine.streaming is not None:
                engine.streaming.rearrange(trainer.weights)
        else:
            decoder, told_of_layers = engine.decoder, None
            if tuning.weights == "disk":
                decoder, told_of_layers = from_disk.decoder(file, engine.decoder.ops)
            trainer = Trainer(decoder, tuning)
            if told_of_layers is not None:
                trainer.backward.before_layer = told_of_layers
        engine.tokenizer.release()
        trim()
        name = _named(engine, trainer.tuning, every, judge)  # a budget may have settled some of the settings
        run = _Run(engine, trainer, learn, judge, output, work, name, note, planned.parts["averages"])
        run.go(progress)
        written = run.judge_written(progress)
        meter.tokens = run.done
    return Tuned(output, run.card(), run.progress, meter.reading, tuple(notes), engine.threads, planned, written)


@contextlib.contextmanager
def _held(work: Path) -> Iterator[None]:
    """While it lasts no other process trains into the same file: what two keep in one folder would be of neither."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(home.held(work))
        except OSError as fault:
            raise SpecError(f"{work} cannot be made ({fault.strerror}): name another --output") from None
        yield


def _opened(file: ModelFile, tuning: Tuning, threads: int, loading: dict[str, Any]) -> Engine:
    return begin.reader(file, threads) if tuning.on_workbench else Engine.load(file.path, **loading)


def _chosen(
    engine: Engine, learn: Examples, tuning: Tuning, note: Tell, progress: Bar, kept: tuple[Path, str]
) -> Examples:
    if not tuning.on_workbench:
        return chosen(engine.decoder, learn, tuning, note, progress, kept=kept)
    assert engine.model_path is not None
    with Engine.load(engine.model_path, threads=engine.threads) as whole:  # a choice is measured without PyTorch
        return chosen(whole.decoder, learn, tuning, note, progress, kept=kept)


def _make_room(engine: Engine, planned: Need, note: Tell) -> Need:
    """Within a budget, have weights make room for a training of passes forward; what is planned then."""
    if engine.plan is None or engine.streaming is None or engine.extras is None:
        return planned
    beside = planned.total - planned.parts["weights"]
    known = engine.plan.predicted_bytes - engine.plan.parts["weights"] - engine.plan.parts["ring"]
    engine.extras.take("a training's passes and numbers", max(0, beside - known))
    held = min(planned.parts["weights"], engine.streaming.pinned_bytes)
    streamed = engine.streaming.streamed_bytes
    note(
        f"{(engine.plan.budget_bytes or 0) / 1e6:.0f} MB: "
        + (f"each pass reads {streamed / 1e6:.0f} MB of weights from the disk" if streamed else "all weights fit")
    )
    ring = engine.streaming.ring_bytes if streamed else 0
    return Need(planned.parts | {"weights": held + ring})


def _examples(engine: Engine, data: Path, tuning: Tuning, note: Tell) -> tuple[Examples, Examples]:
    examples.check_context(engine, tuning.context)
    told: list[str] = []
    found = examples.read(data, engine, tuning.context, told)
    if tuning.held_out is None:
        learn, judge = examples.held_out(found, HELD_OUT, MOST_HELD_OUT, tuning.seed)
        if not len(judge):
            told.append(
                "only one example, or copies of it: none is left to judge by, and the last step's numbers are kept"
            )
    else:
        other: list[str] = []
        learn, judge = found, examples.read(Path(tuning.held_out), engine, tuning.context, other)
        told += [f"{tuning.held_out}: {line}" for line in other]
        known = {learn[index][0].tobytes() for index in range(len(learn))}
        if seen := sum(judge[index][0].tobytes() in known for index in range(len(judge))):
            told.append(f"{seen} of {len(judge)} examples to judge by are learnt from, too: they tell little of others")
    for line in told:
        note(line)
    return learn, judge


def _named(engine: Engine, tuning: Tuning, learn: Examples, judge: Examples) -> str:
    """What a run is of: of two runs of one name either can go on with what the other kept."""
    settings = {key: str(value) for key, value in vars(tuning).items() if key not in ("held_out", "base", "weights")}
    if tuning.base is not None:
        settings["base"] = ModelFile.open(tuning.base).sha256()
    about = json.dumps([settings, engine.identity(), learn.identity(), judge.identity(), engine.ops_name])
    return sha256(about.encode()).hexdigest()


class _Run:
    """One training, and what it keeps."""

    def __init__(
        self,
        engine: Engine,
        trainer: AnyTrainer,
        learn: Examples,
        judge: Examples,
        output: Path,
        work: Path,
        name: str,
        note: Tell,
        averages: int,
    ) -> None:
        """`averages`: bytes of what the trainer keeps beside its numbers."""
        self.engine, self.trainer, self.learn, self.judge = engine, trainer, learn, judge
        self.output, self.work, self.name, self.note, self.tuning = output, work, name, note, trainer.tuning
        self.averages = averages
        self.base = engine.identity()
        self.progress = state.Progress()
        self.done = 0  # rows of this process

    def go(self, bar: Bar) -> None:
        # Of what is kept, the numbers are there twice: the last ones and the best.
        numbers = sum(array.nbytes for array in self.trainer.numbers.values())
        begin.check_room(self.work, 2 * numbers + self.averages, "--output")
        tuning, progress = self.tuning, self._begin(bar)
        kept = time.monotonic()
        try:
            while progress.step < tuning.steps and not self._enough():
                bar("training, steps", progress.step, tuning.steps)
                self._step()
                if progress.step % tuning.judge_every == 0 or progress.step == tuning.steps:
                    self._judge(self._judging(bar))
                elif time.monotonic() - kept < KEEP_S:
                    continue
                self._keep()
                kept = time.monotonic()
            bar("training, steps", tuning.steps, tuning.steps)
            if progress.step < tuning.steps:
                self.note(f"stopped after step {progress.step}: {tuning.patience} judgements without a better one")
        except FloatingPointError as fault:
            raise self._diverged(fault) from None
        self._finish()

    def _begin(self, bar: Bar) -> state.Progress:
        """Go on where a run of the same name was, or judge the base."""
        found = state.restore(self.work / "state.npz", self.name, self.trainer.numbers, self.trainer.states)
        if isinstance(found, state.Progress):
            self.progress = found
            self.note(f"goes on after step {found.step} of {self.tuning.steps}")
        else:
            if found:
                self.note(f"{self.work / 'state.npz'} is not gone on from: {found}")
            self._judge(self._judging(bar))
        return self.progress

    def _step(self) -> None:
        progress, began = self.progress, time.monotonic()
        some = batches.chosen(len(self.learn), self.tuning.batch, progress.step, self.tuning.seed)
        progress.losses.append(self.trainer.step(self.learn, some, progress.step + 1))
        rows = sum(map(self.learn.rows, some))
        progress.seconds += time.monotonic() - began
        progress.tokens += rows
        progress.memory.append(resident_bytes())
        progress.step += 1
        self.done += rows

    def _judging(self, bar: Bar) -> Callable[[int], None]:
        """Tells how many of the held-out examples are read."""
        return lambda done: bar("judging, examples", done, len(self.judge))

    def _judge(self, done: Callable[[int], None]) -> None:
        if not len(self.judge):
            return
        progress, loss = self.progress, self.trainer.judge(self.judge, done)
        if not np.isfinite(loss):
            raise FloatingPointError(f"step {progress.step}: the held-out loss is {loss}")
        progress.judged.append((progress.step, loss))
        if progress.step == 0:
            self.note(f"held out: {loss:.4f} nats a token")
            return
        learning = float(np.mean(progress.losses[-self.tuning.judge_every :]))
        self.note(f"step {progress.step}: learning {learning:.4f}, held out {loss:.4f} nats a token")
        if progress.best == progress.judged[-1]:
            numbers = self.trainer.numbers.items()
            write_gguf(self.work / "best.gguf", {}, [(name, "F32", array.shape, array) for name, array in numbers])

    def _enough(self) -> bool:
        """Whether the last judgements are all no better than one before them."""
        best, patience = self.progress.best, self.tuning.patience
        since = [step for step, _ in self.progress.judged if best is not None and step > best[0]]
        return bool(patience) and len(since) >= patience

    def _keep(self) -> None:
        state.save(self.work / "state.npz", self.name, self.progress, self.trainer.numbers, self.trainer.states)

    def _take_best(self) -> None:
        """Have the numbers of the best judgement again."""
        file = ModelFile.open(self.work / "best.gguf")
        for name, array in self.trainer.numbers.items():
            array[...] = file.tensor(name)

    def _finish(self) -> None:
        progress, best = self.progress, self.progress.best
        if best is not None and best[1] >= (base := progress.judged[0][1]):
            why = "no better than the base on what was held out"
            if self.output.exists():
                raise TrainingError(
                    f"{why} ({best[1]:.4f} nats a token instead of {base:.4f}): {self.output} stays as it was; use "
                    "more or other examples, fewer steps, a lower --rate. To have it all the same, move that file away "
                    "and give the same command again, which takes no step"
                )
            self.note(f"{why}: use more or other examples, fewer steps, a lower rate?")
        if best is not None and best[0] != progress.step:
            self._take_best()
        self._write()
        self._clear()

    def _diverged(self, fault: FloatingPointError) -> TrainingError:
        """Write the best adapter so far, if it is better than the base, and say what happened."""
        best = self.progress.best
        if best is not None and best[1] < self.progress.judged[0][1]:
            self._take_best()
            self._write()
            told = f"{self.output} is the {self.trainer.makes} of step {best[0]}"
        else:
            told = f"no {self.trainer.makes} was written"
        self._clear()
        return TrainingError(f"{fault}: training stopped, {told}; use a lower --rate")

    def _clear(self) -> None:
        """Let go of what was kept: first of what says that there is something, since it may be killed in between."""
        with contextlib.suppress(OSError):
            (self.work / "state.npz").unlink()
        shutil.rmtree(self.work, ignore_errors=True)

    def _write(self) -> None:
        about = {"general.name": self.output.stem, CARD: json.dumps(self.card(), ensure_ascii=False)}
        self.trainer.write(self.output, about)

    def judge_written(self, bar: Bar) -> float | None:
        """The held-out loss of a whole model as its file has it; None for an adapter, which is not rounded."""
        return self.trainer.judge_file(self.output, self.judge, self._judging(bar)) if len(self.judge) else None

    def card(self) -> dict[str, Any]:
        """What the file is, for whoever finds it."""
        progress, best = self.progress, self.progress.best
        assert self.engine.model_path is not None
        return {
            "base": self.engine.model_path.name,
            "base_sha256": self.base,
            "examples": len(self.learn),
            "examples_held_out": len(self.judge),
            "examples_sha256": self.learn.identity(),
            "settings": {key: str(v) if isinstance(v, Path) else v for key, v in vars(self.tuning).items()},
            "steps": progress.step,
            "best_step": progress.step if best is None else best[0],
            "held_out_before": progress.judged[0][1] if progress.judged else None,
            "held_out_after": None if best is None else best[1],
            "numbers": sum(array.size for array in self.trainer.numbers.values()),
            "genmote": __version__,
        }
