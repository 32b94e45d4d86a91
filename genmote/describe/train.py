"""Train a model that describes signals: examples in, and out come an encoder, an adapter, and the TOML that names them.

Three stages. *encoder*: the encoder alone, asked by small heads that are thrown away after, as that is cheap: it
learns to hold what questions ask for. *projector*: what stands between it and the language model, which stays as it
is. *adapter*: the projector, an adapter of the language model, and the encoder's blocks at a tenth of the rate. (Two
stages of this kind: Liu et al. 2023, arXiv 2304.08485.) What has been learnt is saved every half minute, so that a run
that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from genmote import home
from genmote.describe import file as parts_of
from genmote.describe.checking import mentioned
from genmote.describe.examples import Example
from genmote.describe.facts import NO, YES
from genmote.describe.file import Part, Parts, Task
from genmote.describe.settings import Training
from genmote.errors import ContextError, ExamplesError, SpecError
from genmote.fetch import Progress, quiet
from genmote.models import digests, encoder, store
from genmote.models.config import read_config
from genmote.models.encoder import Form
from genmote.models.gguf import ModelFile
from genmote.signals.kinds import Records

HELD_OUT = 0.1  # of the groups
LEAST = 8  # examples
CALIBRATED = 64  # held-out examples of a task, at most
TEMPERATURES = np.exp(np.linspace(np.log(0.2), np.log(20.0), 200))
LABEL, REPORT = "label", "report"  # kinds of question


def train(
    examples: Sequence[Example],
    output: Path,
    training: Training | None = None,
    *,
    notes: list[str] | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Write a model's TOML to `output`, and beside it its encoder and its adapter, each whole or not at all; returns
    its card. Needs the extra `workbench`. ExamplesError for too few examples, SpecError for settings that do not go
    together, ModelNameError and ModelFileError for a language model that is none, OpsError without PyTorch."""
    training = training or Training()
    if len(examples) < LEAST and (examples or not training.drawn):
        raise ExamplesError(f"{len(examples)} examples: wanted at least {LEAST}; give more signals or questions")
    with working(output) as work:
        told: list[str] = [] if notes is None else notes
        return _trained(examples, output, work, training, told, progress)


@contextlib.contextmanager
def working(output: Path) -> Iterator[Path]:
    """The folder beside the model where a training keeps what it has learnt, for it alone while the block runs.
    SpecError where another one has it or it cannot be written."""
    work = output.with_name(output.name + ".work")
    try:
        with home.held(work):
            yield work
    except PermissionError as fault:
        raise SpecError(
            f"{work} cannot be written ({fault.strerror}), where training keeps what it has learnt: choose another "
            "--output"
        ) from None


def _trained(
    examples: Sequence[Example],
    output: Path,
    work: Path,
    training: Training,
    notes: list[str],
    progress: Progress,
) -> dict[str, Any]:
    language = ModelFile.open(store.resolve(training.language, progress=progress))
    form = form_of(training, read_config(language).width)
    learnt, judged = split(examples, training.seed) if examples else ([], [])
    base = None if training.base is None else parts_of.find(training.base, progress=progress)
    from genmote.describe import learning  # PyTorch

    run = learning.Learning(language, form, base, learnt, judged, training, work / "state.pt", notes)
    figures = run.go(progress)
    stem = output.stem
    places = {name: output.with_name(f"{stem}-{name}.gguf") for name in ("encoder", "adapter")}
    if training.keep_encoder and base is not None:
        places["encoder"] = base.encoder.path
    else:
        about = encoder.metadata(form, stem, digests.sha256(language), training.language)
        encoder.write(places["encoder"], form, run.network.numbers(), training.type, about)
    run.write_adapter(places["adapter"], stem)
    parts = Parts(
        version=parts_of.VERSION,
        title=stem,
        facts=training.facts,
        health=_health(examples),
        confidence=training.confidence,
        question=_report(learnt),
        licence=training.licence,
        channels=_channels(learnt),
        language=Part(file=_name(training.language, language.path, output), sha256=digests.sha256(language)),
        encoder=_part(places["encoder"], output),
        adapter=_part(places["adapter"], output),
        tasks=tuple(tasks(learnt, training.tasks)),
    )
    parts_of.write(output, parts)
    parts = replace(parts, tasks=tuple(_calibrated(output, parts.tasks, judged, training, progress)))
    parts_of.write(output, parts)
    shutil.rmtree(work, ignore_errors=True)
    return {
        "title": stem,
        "examples": len(learnt),
        "held_out": len(judged),
        "about": dict(Counter(example.about for example in learnt).most_common()),
        "encoder_numbers": form.numbers,
        "encoder_bytes": places["encoder"].stat().st_size,
        "adapter_bytes": places["adapter"].stat().st_size,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(training).items() if v is not None},
        "tasks": [asdict(task) for task in parts.tasks],
        **figures,
    }


def form_of(training: Training, out: int) -> Form:
    """The encoder's form, for a language model of width `out`."""
    return Form(out, training.width, training.ffn, slots=training.slots, join=training.join, bridge=training.bridge)


def split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to learn from and to judge by: a tenth of the groups, whole, or of the examples where no group is told.
    Those whose wording is held out are only judged by."""
    names = sorted({example.group for example in examples if example.group})
    draw = np.random.default_rng([seed, 5])
    if len(names) > 1:
        count = max(1, round(HELD_OUT * len(names)))
        apart = {names[n] for n in draw.choice(len(names), count, replace=False)}
        chosen = {n for n, example in enumerate(examples) if example.group in apart}
    else:
        chosen = set(draw.choice(len(examples), max(1, round(HELD_OUT * len(examples))), replace=False).tolist())
    judged = [example for n, example in enumerate(examples) if n in chosen or example.held_out]
    learnt = [example for n, example in enumerate(examples) if n not in chosen and not example.held_out]
    if not learnt or not judged:
        raise ExamplesError(
            f"{len(learnt)} examples to learn from and {len(judged)} to judge by: wanted some of each; give more groups"
        )
    return learnt, judged


def tasks(examples: Sequence[Example], wanted: Sequence[str] = ()) -> list[Task]:
    """What `classify` is to know: of the kinds of question that are wanted (by default those about a label), for each
    set of choices that comes again and again the commonest question. SpecError for a kind that has none."""
    found: list[Task] = []
    for about in wanted or (LABEL,):
        own = [e for e in examples if e.about == about and len(e.choices) > 1 and e.choices != (YES, NO)]
        common = Counter(tuple(sorted(example.choices)) for example in own).most_common()
        sets = [choices for choices, count in common if count >= LEAST]
        if wanted and not sets:
            raise SpecError(
                f"task {about!r}: no {LEAST} examples have the same choices; name a kind whose choices are fixed"
            )
        for n, choices in enumerate(sets, 1):
            questions = Counter(e.question for e in own if tuple(sorted(e.choices)) == choices)
            name = about if len(sets) == 1 else f"{about}-{n}"
            found.append(Task(about=name, question=questions.most_common(1)[0][0], labels=choices))
    return found


def _calibrated(
    output: Path, known: Sequence[Task], judged: Sequence[Example], training: Training, progress: Progress
) -> Iterator[Task]:
    """Tasks with the temperature by which held-out labels are the likeliest, where there are some."""
    from genmote.describe.model import Describer

    if not known or not training.steps:  # nothing has been learnt that says a label
        yield from known
        return
    with Describer.load(output, threads=training.threads) as describer:
        for task in known:
            own = [example for example in judged if _of(example, task)][:CALIBRATED]
            nats, right = [], []
            for n, example in enumerate(own):
                with contextlib.suppress(ContextError):  # one that is too long for the model is of no use here
                    nats.append(describer.label_nats(example.signals, task))
                    right.append(task.labels.index(next(iter(mentioned(example.answer, task.labels)))))
                progress(f"calibrating {task.about}", n + 1, len(own))
            enough = len(set(right)) > 1
            found = temperature(np.array(nats), np.array(right)) if enough else 1.0
            yield replace(task, temperature=found, examples=len(right) if enough else 0)


def _of(example: Example, task: Task) -> bool:
    """Whether an example asks for one label of the task, and has one."""
    return sorted(example.choices) == list(task.labels) and len(mentioned(example.answer, task.labels)) == 1


def temperature(nats: Any, right: Any) -> float:
    """By what (N, labels) log-likelihoods are to be divided for the right ones (N,) to be the likeliest. As few
    examples may all be right by chance, one in N + 2 counts as wrong (Platt 1999, "Probabilistic outputs for SVMs").

    >>> nats = np.log(np.array([[0.999, 0.001], [0.999, 0.001], [0.001, 0.999], [0.999, 0.001]]))
    >>> temperature(nats, np.array([0, 0, 1, 0])) < 5 < temperature(nats, np.array([0, 0, 1, 1]))
    True
    """
    count, labels = nats.shape
    wrong = 1 / (count + 2)
    targets = np.full((count, labels), wrong / max(1, labels - 1))
    targets[np.arange(count), right] = 1 - wrong
    best, least = 1.0, np.inf
    for value in TEMPERATURES:
        scaled = nats / value
        top = scaled.max(axis=1, keepdims=True)
        loss = float((targets * (top + np.log(np.exp(scaled - top).sum(axis=1, keepdims=True)) - scaled)).sum())
        if loss < least:
            best, least = float(value), loss
    return round(best, 4)


def _report(examples: Sequence[Example]) -> str:
    """The question that `describe` asks: the commonest one for a report."""
    own = Counter(example.question for example in examples if example.about == REPORT)
    return own.most_common(1)[0][0] if own else "Describe this recording."


def _channels(examples: Sequence[Example]) -> tuple[str, ...]:
    """The names of what is measured, sorted."""
    found: set[str] = set()
    for signal in {id(signal): signal for example in examples for signal in example.signals}.values():
        found |= {f.name for f in signal.fields} if isinstance(signal, Records) else {*getattr(signal, "channels", ())}
    return tuple(sorted(found))


def _health(examples: Sequence[Example]) -> bool:
    from genmote.describe import health

    return any(health.of_health(example.signals) for example in examples)


def _part(path: Path, output: Path) -> Part:
    return Part(file=_from(path, output), sha256=ModelFile.open(path).sha256())


def _name(asked: str, path: Path, output: Path) -> str:
    """How the TOML names the language model: by its name, or by its path from the TOML's folder."""
    return _from(path, output) if Path(asked).expanduser().is_file() else asked


def _from(path: Path, output: Path) -> str:
    return os.path.relpath(path.resolve(), output.resolve().parent)
