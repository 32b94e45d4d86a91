"""The part of the tour in which the model answers: in this process, or in one of its own inside a board's jail.

    python -m genmote.recipes.answers REQUEST

reads a `Request` as JSON from the file REQUEST, prints questions and answers as they come, and writes what they took to
the file that the request names.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.errors import GenmoteError
from genmote.fetch import Progress, quiet
from genmote.recipes import tour

if TYPE_CHECKING:
    from genmote.device.jail import Report
    from genmote.device.profile import Profile
    from genmote.runtime.engine import Engine
    from genmote.runtime.generation import Result

LINE, INDENT = 100, 13  # columns
RELAYING = "re-lay weights"  # what a first load tells of its progress
Say = Callable[..., None]  # like print: a text, and end="\n"
Bars = Callable[[], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Request:
    """What is to be asked, and how the model is run."""

    model: str
    questions: tuple[str, ...]  # with the measurements
    ops: str | None = None
    isa: str | None = None
    threads: int | None = None
    max_tokens: int = 64
    memory_bytes: int | None = None  # the budget that the model keeps
    loud: bool = True  # print as it goes
    told: str = ""  # the file that the figures go to


@dataclass(frozen=True)
class Answers:
    """What the model said and what that took."""

    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]  # token ids
    tokens: tuple[int, ...]  # written
    model_path: str | None
    context: int
    figures: dict[str, Any]  # speed and memory of all answers together, see `tour.figures`
    budget: dict[str, int]  # see `tour.Budget`
    plan: dict[str, Any] | None = None

    @property
    def allowed(self) -> tour.Budget:
        return tour.Budget(**self.budget)


def run(asked: Request, say: Say, bars: Bars) -> Answers:
    """Load the model and let it answer here."""
    from genmote import Engine

    seen: set[str] = set()
    with bars() as bar:

        def progress(what: str, done: int, total: int) -> None:
            seen.add(what)
            bar(what, done, total)

        budget: dict[str, Any] = {} if asked.memory_bytes is None else {"memory": asked.memory_bytes}
        engine = Engine.load(
            asked.model,
            ops=asked.ops,
            isa=asked.isa,
            threads=asked.threads,
            context=tour.CONTEXT,
            progress=progress,
            **budget,
        )
    with engine:
        prompts = [tour.prompt(engine, question) for question in asked.questions]
        allowed = tour.budget(engine)
        results = [answer(engine, question, asked.max_tokens, say) for question in asked.questions]
        made = getattr(engine, "plan", None)
        return Answers(
            texts=tuple(result.text for result in results),
            prompts=tuple(map(tuple, prompts)),
            tokens=tuple(result.decode_tokens for result in results),
            model_path=None if engine.model_path is None else os.fspath(engine.model_path),
            context=engine.context,
            figures=tour.figures(engine, results) | {"relaid": RELAYING in seen},
            budget=asdict(allowed),
            plan=None if made is None else made.values(),
        )


def answer(engine: Engine, question: str, max_tokens: int, say: Say) -> Result:
    """Ask about one recording, showing the answer as it comes."""
    lines = textwrap.wrap(tour.asked(question), LINE - INDENT)
    say("\n   Question  " + f"\n{'':{INDENT}}".join(lines) + "\n   Answer    ", end="")
    stream = tour.ask(engine, question, max_tokens)
    column = INDENT
    for piece in stream:
        text = piece.text.replace("\n", " ")
        if text.startswith(" ") and column + len(text) > LINE:
            say(f"\n{'':{INDENT}}", end="")
            text, column = text[1:], INDENT
        column += len(text)
        say(text, end="")
    odd = tour.invented(question, stream.result.text)
    wrong = f"{', '.join(odd)} was neither measured nor given: a model this small errs"
    say(f"\n   Check     {wrong if odd else 'every number in it was measured or given'}")
    return stream.result


def in_jail(asked: Request, device: Profile, model: Path, told: Say) -> tuple[Answers, Report]:
    """The same in a process of its own that has the board's memory, cores and disk rate; and how it fared there.

    Raises UserError where no such group can be made here, GenmoteError where the process fails.
    """
    from genmote import home
    from genmote.device import jail
    from genmote.device.cgroup import Limits
    from genmote.models import store

    limits = Limits(device.usable_bytes, float(device.compute.cores), round(device.storage.read_mb_s * 1e6))
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        answers = Path(folder) / "answers.json"
        request.write_text(json.dumps(asdict(replace(asked, told=os.fspath(answers)))), encoding="utf-8")
        report = jail.run(
            [sys.executable, "-m", "genmote.recipes.answers", os.fspath(request)],
            limits,
            drop=store.files(model),
            disk_of=[home.models_dir(), home.cache_dir()],
            told=told,
            profile=device,
        )
        if report.oom_killed:
            raise GenmoteError(
                f"the model was killed: it wanted more than the {limits.memory_bytes} bytes that {device.title} leaves"
            )
        if report.status or not answers.exists():
            raise GenmoteError(f"the model's process ended with status {report.status}: see what it said above")
        return read(json.loads(answers.read_text(encoding="utf-8"))), report


def read(values: dict[str, Any]) -> Answers:
    """Answers as JSON carries them."""
    plain = {name: tuple(values[name]) for name in ("texts", "tokens")}
    return Answers(**values | plain | {"prompts": tuple(map(tuple, values["prompts"]))})


def main(path: str) -> int:
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    asked = Request(**values | {"questions": tuple(values["questions"])})

    def say(text: str, end: str = "\n") -> None:
        if asked.loud:
            print(text, end=end, flush=True)

    try:
        found = run(asked, say, lambda: nullcontext(quiet))
    except GenmoteError as fault:
        print(f"genmote demo: {fault}", file=sys.stderr)
        return fault.exit_status
    Path(asked.told).write_text(json.dumps(asdict(found)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
