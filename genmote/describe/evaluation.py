"""How good a describing model is on labelled recordings: its reports, labels and answers beside three baselines.

The model is a function from signals and a question to a text, and, where it can, one from a signal to the probability
of each class; so any model can be judged, also one that is asked over a network. A report is asked for in its own
language where that is German, else in English; so the baselines, too, give reports of that language.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.describe import asking, baselines, cannot, checking, scores, splits, wording
from genmote.describe.examples import Example, bare
from genmote.describe.labelled import Labelled
from genmote.errors import SpecError
from genmote.fetch import Progress, quiet
from genmote.signals.kinds import Signal

Ask = Callable[[Sequence[Signal], str], str]
Classify = Callable[[Signal], Mapping[str, float]]
RHYTHM = ("heart_rate", "regular")
KNOWN = ("report", "caption", "findings", "label")  # what is not judged as an answer computed from the signal
WITHIN = 0.5  # of the likeliest class's probability: what a class that is meant, too, has at the least
OURS, MAJORITY, NEAREST, NUMBERS = "model", "majority", "nearest", "numbers"


@dataclass(frozen=True)
class Asked:
    """What is asked of a recording. `each`: kinds of computed facts; `cannots`: questions that have no answer."""

    each: int = 4
    cannots: bool = True
    draws: int = scores.DRAWS
    seed: int = 0


@dataclass
class _Said:
    """What one contestant said: reports and labels by recording, answers by example."""

    reports: list[str] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    likely: list[list[float]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


def report_question(one: Labelled) -> str:
    """The one question for a report: the first wording that is held out."""
    return wording.questions("report_de" if _asked_in(one) == "de" else "report", held_out=True)[0]


def label_question(one: Labelled) -> str:
    """The one question for a label: the first wording that is held out, with all classes named, so that every model
    knows what it may say."""
    asked = wording.questions("label", held_out=True)[0].replace("{task}", one.task or "class")
    return f"{asked} It is one or several of: {', '.join(one.classes)}."


def questions(test: Sequence[Labelled], asked: Asked) -> list[Example]:
    """What is asked beside reports and labels: computed facts and rhythm in wordings held out of training, and what
    cannot be told."""
    random = np.random.default_rng([asked.seed, 1])
    balance = asking.Balance()
    found: list[Example] = []
    for one in test:
        signal = bare(one.signal)
        own = asking.questions([signal], random, kinds=RHYTHM, held_out=True, group=one.group)
        drawn = asking.questions([signal], random, most=asked.each, held_out=True, group=one.group)
        own += [example for example in drawn if example.about not in (*RHYTHM, *KNOWN) and balance.takes(example)]
        if asked.cannots:
            kinds = [kind for kind in cannot.NEEDS_SHAPE if kind != "label" or one.labels]
            own.append(cannot.any_of(signal, random, about=kinds, task=one.task, held_out=True, group=one.group))
        found += own
    return found


def evaluate(
    train: Sequence[Labelled],
    test: Sequence[Labelled],
    ask: Ask,
    *,
    classify: Classify | None = None,
    ask_text: Ask | None = None,
    asked: Asked | None = None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Scores and every prediction. `ask_text`: the same language model, given the numbers as text
    (`baselines.as_numbers`); without it that baseline is left out. It is told what it may choose among, which a model
    that was trained need not be. `train` is for the baselines that need recordings to learn from."""
    asked = asked or Asked()
    examples = questions(test, asked)
    nearest, reported = baselines.Nearest(train), _by_language(train)
    said = {OURS: _Said(), MAJORITY: _Said(), NEAREST: _Said()}
    if ask_text is not None:
        said[NUMBERS] = _Said()
    total = len(test) + len(examples)
    several = any(len(one.labels) > 1 for one in train)
    for n, one in enumerate(test, 1):
        far = [float(x) for x in nearest.distances(one.signal)]
        rows = reported.get(_asked_in(one)) or reported.get("")
        said[MAJORITY].reports.append(baselines.majority([train[m] for m in rows]).report if rows else "")
        said[NEAREST].reports.append(train[min(rows, key=far.__getitem__)].report if rows else "")
        said[MAJORITY].labels.append(baselines.most_frequent_labels(train))
        said[NEAREST].labels.append(train[int(np.argmin(far))].labels)
        _judged(said[OURS], one, partial(ask, [bare(one.signal)]), classify, several)
        if ask_text is not None:
            _judged(said[NUMBERS], one, partial(ask_text, [bare(one.signal)]), None, several)
        progress("asking", n, total)
    for n, example in enumerate(examples, 1):
        said[OURS].answers.append(ask(example.signals, example.question))
        if ask_text is not None:
            choices = f" Answer with one of: {', '.join(example.choices)}." if example.choices else ""
            said[NUMBERS].answers.append(ask_text(example.signals, example.question + choices))
        progress("asking", len(test) + n, total)
    return {
        "recordings": {"train": len(train), "test": len(test), "groups": len({one.group for one in test})},
        "reports": _reports(test, said, asked),
        "labels": _labels(test, said, asked),
        "answers": {who: _answers(examples, own.answers, asked) for who, own in said.items() if own.answers},
        "predictions": _predictions(test, examples, said),
    }


def _asked_in(one: Labelled) -> str:
    return "de" if one.language == "de" else "en"


def _by_language(train: Sequence[Labelled]) -> dict[str, list[int]]:
    """For each language of questions which recordings to learn from have a report that would be asked for in it; under
    "" all that have one."""
    found: dict[str, list[int]] = {}
    for n, one in enumerate(train):
        for key in ("", _asked_in(one)) if one.report else ():
            found.setdefault(key, []).append(n)
    return found


def _judged(said: _Said, one: Labelled, ask: Callable[[str], str], classify: Classify | None, several: bool) -> None:
    """`several`: a recording may be of several classes; then those are meant that are nearly as likely as the
    likeliest."""
    said.reports.append(ask(report_question(one)) if one.report else "")
    if not one.classes:
        said.labels.append(())
    elif classify is None:
        named = checking.mentioned(ask(label_question(one)), one.classes)
        said.labels.append(tuple(name for name in one.classes if name in named))
    else:
        likely = classify(one.signal)
        said.likely.append([likely.get(name, 0.0) for name in one.classes])
        least = max(said.likely[-1]) * (WITHIN if several else 1.0)
        said.labels.append(tuple(name for name in one.classes if likely.get(name, 0.0) >= least))


def _interval(score: Callable[[NDArray[np.intp]], float], groups: Sequence[str], asked: Asked) -> dict[str, float]:
    return asdict(scores.bootstrap(score, groups, draws=asked.draws, seed=asked.seed))


def _mean_of(values: NDArray[Any]) -> Callable[[NDArray[np.intp]], float]:
    return lambda drawn: float(values[drawn].mean())


def _reports(test: Sequence[Labelled], said: Mapping[str, _Said], asked: Asked) -> dict[str, Any]:
    """Of those recordings that have a report: all scores of each contestant, and how far the model is above the best
    baseline in ROUGE-L and METEOR."""
    rows = [n for n, one in enumerate(test) if one.report]
    if not rows:
        return {}
    wanted, groups = [test[n].report for n in rows], [test[n].group for n in rows]
    found = {who: scores.reports([own.reports[n] for n in rows], wanted) for who, own in said.items()}
    every = np.arange(len(rows))
    table: dict[str, Any] = {}
    for who, own in found.items():
        table[who] = dict(own.of(every))
        for name in ("rouge_l", "meteor"):
            values = getattr(own, name)
            table[who][name] = _interval(_mean_of(values), groups, asked)
    for name in ("rouge_l", "meteor"):
        best = max((who for who in found if who != OURS), key=lambda who: table[who][name]["value"])
        ahead = getattr(found[OURS], name) - getattr(found[best], name)
        table[f"{name}_above_best"] = {"baseline": best, **_interval(_mean_of(ahead), groups, asked)}
    return table


def _labels(test: Sequence[Labelled], said: Mapping[str, _Said], asked: Asked) -> dict[str, Any]:
    """Of those recordings that have a label: macro-F1, the share that is right in all, AUROC where there are
    probabilities, and how far the model's macro-F1 is above the best baseline's."""
    rows = [n for n, one in enumerate(test) if one.labels]
    if not rows:
        return {}
    classes, groups = test[rows[0]].classes, [test[n].group for n in rows]
    truth = [test[n].labels for n in rows]
    own = {who: [one.labels[n] for n in rows] for who, one in said.items()}

    def f1(who: str) -> Callable[[NDArray[np.intp]], float]:
        return lambda drawn: scores.macro_f1([own[who][n] for n in drawn], [truth[n] for n in drawn], classes)

    def right(who: str) -> Callable[[NDArray[np.intp]], float]:
        hits = np.array([set(a) == set(b) for a, b in zip(own[who], truth, strict=True)])
        return _mean_of(hits)

    table: dict[str, Any] = {
        who: {"macro_f1": _interval(f1(who), groups, asked), "accuracy": _interval(right(who), groups, asked)}
        for who in said
    }
    if said[OURS].likely:
        likely = np.array([said[OURS].likely[n] for n in rows])
        table[OURS]["auroc"] = scores.macro_auroc(likely, truth, classes)
    best = max((who for who in said if who != OURS), key=lambda who: table[who]["macro_f1"]["value"])
    table["macro_f1_above_best"] = {
        "baseline": best,
        **_interval(lambda drawn: f1(OURS)(drawn) - f1(best)(drawn), groups, asked),
    }
    return table


def _answers(examples: Sequence[Example], texts: Sequence[str], asked: Asked) -> dict[str, Any]:
    found = scores.answers(examples, texts)
    rows = [n for n, one in enumerate(examples) if one.about != "cannot"]
    hits = np.array([checking.right(examples[n], texts[n]) for n in rows])
    groups = [examples[n].group for n in rows]
    right = _interval(_mean_of(hits), groups, asked) if rows else None
    return {
        "right": right,
        "by_about": {about: {"right": share, "count": count} for about, (share, count) in found.by_about.items()},
        "refused": _number(found.refused),
        "wrongly_refused": _number(found.wrongly_refused),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _predictions(
    test: Sequence[Labelled], examples: Sequence[Example], said: Mapping[str, _Said]
) -> list[dict[str, Any]]:
    """Every one, with what was wanted."""
    found: list[dict[str, Any]] = []
    for n, one in enumerate(test):
        about = {"recording": one.signal.name, "group": one.group}
        if one.report:
            told: dict[str, Any] = {who: own.reports[n] for who, own in said.items()}
            found.append({**about, "about": "report", "wanted": one.report, **told})
        if one.labels:
            told = {who: list(own.labels[n]) for who, own in said.items()}
            found.append({**about, "about": "label", "wanted": list(one.labels), **told})
    for n, example in enumerate(examples):
        told = {who: own.answers[n] for who, own in said.items() if own.answers}
        right = {f"{who}_right": checking.right(example, text) for who, text in told.items()}
        names = [signal.name for signal in example.signals]
        wanted = {"question": example.question, "wanted": example.answer}
        found.append({"recording": names[0], "group": example.group, "about": example.about, **wanted, **told, **right})
    return found


def parts(
    recordings: Sequence[Labelled], folds: Sequence[int] = (), seed: int = 0
) -> tuple[list[Labelled], list[Labelled]]:
    """What baselines learn from, and what is judged: by the data set's `folds`, else a fifth of the groups. SpecError
    where one of the two would be empty."""
    if folds:
        here, asked = sorted({one.fold for one in recordings}), ", ".join(map(str, folds))
        found = splits.by_fold(recordings, folds)
        if not found["test"]:
            raise SpecError(f"no recording is in fold {asked}: there are folds {', '.join(map(str, here))}")
        if not found["train"]:
            raise SpecError(f"all recordings are in folds {asked}: leave some for the baselines to learn from")
    else:
        found = splits.by_group(recordings, {"train": 0.8, "test": 0.2}, seed)
    return found["train"], found["test"]
