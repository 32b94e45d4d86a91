"""Judge a model that describes signals on labelled recordings: its reports, labels and answers, beside three baselines.

    genmote eval describe ptb-xl/ --layout ptbxl -m ecg.toml --folds 9 10
    genmote eval describe my-recordings/ --layout csv -m motion.toml --json > motion.json

What is judged is --folds of the data set's own split, else a fifth of the groups (patients, subjects, recordings); the
others are what the baselines learn from: the most frequent report, that of the nearest neighbour; the third is the same
language model without signals, given the numbers as text (--no-numbers leaves it out: it takes the longest). Intervals
are 95 % of a bootstrap over groups. --json has every score, and every prediction beside what was wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Bar, Output, columns, note
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.describe.model import Describer
    from genmote.runtime.engine import Engine
    from genmote.signals.kinds import Signal

LEAST_NUMBERS = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    folder: Path = setting("a folder of labelled recordings", positional=True)
    layout: str = setting("how it is laid out: the name of a layout, such as csv or ptbxl", default="csv")
    model: Path = setting("the .toml of a model that genmote describe-train made", short="-m")
    folds: tuple[int, ...] = setting("folds that are judged (default: a fifth of the groups)", default=(), many=True)
    most: int | None = setting("recordings that are judged at most, evenly over all", default=None)
    each: int = setting("kinds of computed facts that are asked of each recording", default=4)
    cannots: bool = setting("ask also what cannot be told", default=True)
    numbers: bool = setting("the baseline of the language model that is given the numbers as text", default=True)
    max_tokens: int = setting("most tokens of an answer", default=96, short="-n")
    draws: int = setting("draws of the bootstrap", default=1000)
    seed: int = setting("number that fixes the questions and the split", default=0)
    ops: str | None = setting("op set: native, numpy or torch (default: the fastest here)", default=None)
    threads: int | None = setting("threads (default: one a physical core)", default=None)

    def faults(self) -> Iterable[str]:
        for name in ("max_tokens", "draws", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"{name}={value}: use 1 or more"
        if self.each < 0:
            yield f"each={self.each}: use 0 or more"


def run(settings: Settings, out: Output) -> None:
    from genmote.describe import evaluation, labelled
    from genmote.describe.model import Describer
    from genmote.runtime.engine import Engine

    notes: list[str] = []
    with Bar(unit_bytes=False, late=True) as bar:
        found = labelled.load(settings.folder, settings.layout, notes=notes, progress=bar)
        train, test = evaluation.parts(found, settings.folds, settings.seed)
        if settings.most is not None and len(test) > settings.most:
            test = [test[n * len(test) // settings.most] for n in range(settings.most)]
        threads, ops = settings.threads, settings.ops
        with Describer.load(settings.model, threads=threads, ops=ops, progress=bar) as describer:
            ours, language = _Asked(describer, settings.max_tokens), describer.found.language
            plain = Engine.load(language, threads=threads, ops=ops, progress=bar) if settings.numbers else None
            numbers = None if plain is None else _Numbers(plain, settings.max_tokens)
            try:
                asked = evaluation.Asked(settings.each, settings.cannots, settings.draws, settings.seed)
                values = evaluation.evaluate(
                    train,
                    test,
                    ours.ask,
                    classify=ours.classify(test[0].classes) if test[0].classes else None,
                    ask_text=None if numbers is None else numbers.ask,
                    asked=asked,
                    progress=bar,
                )
            finally:
                if plain is not None:
                    plain.close()
    values["prompt_tokens"] = {evaluation.OURS: ours.mean} | ({evaluation.NUMBERS: numbers.mean} if numbers else {})
    for line in notes:
        note(line)
    out.result({"folder": settings.folder, "layout": settings.layout, **values, "notes": notes}, _table(values))


class _Tokens:
    """Counts the tokens of prompts."""

    def __init__(self) -> None:
        self._prompts, self._tokens = 0, 0

    def count(self, tokens: int) -> None:
        self._prompts, self._tokens = self._prompts + 1, self._tokens + tokens

    @property
    def mean(self) -> float | None:
        return self._tokens / self._prompts if self._prompts else None


class _Asked(_Tokens):
    """The model, asked as `genmote ask` asks it: a rule looks first whether there is a signal at all."""

    def __init__(self, describer: Describer, max_tokens: int) -> None:
        super().__init__()
        self._describer, self._max_tokens = describer, max_tokens

    def ask(self, signals: Sequence[Signal], question: str) -> str:
        from genmote.cli._answer import CANNOT
        from genmote.describe import quality

        parts = self._describer.parts
        if why := quality.check(signals, question, trained=parts.channels if parts.health else ()).why:
            return f"{CANNOT}: {why}."
        prompt = self._describer.prompt(signals, question)
        result = self._describer.engine.generate(prompt, max_tokens=self._max_tokens)
        self.count(result.prompt_tokens)
        return result.text.strip()

    def classify(self, classes: Sequence[str]) -> Any:
        """By the model's own task with these labels, else by the likelihood of each as the answer to which it is."""
        from genmote.describe import wording
        from genmote.describe.file import Task

        own = [task for task in self._describer.parts.tasks if {*task.labels} == {*classes}]
        asked = wording.questions("label")[0].replace("{task}", "class")
        task = own[0] if own else Task(about="class", question=asked, labels=tuple(classes))
        return lambda signal: self._describer.classify([signal], task).probabilities


class _Numbers(_Tokens):
    """The language model without adapter and encoder, given as many numbers as its context holds."""

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        super().__init__()
        self._engine, self._max_tokens = engine, max_tokens

    def ask(self, signals: Sequence[Signal], question: str) -> str:
        from genmote.describe import baselines

        most = baselines.NUMBERS // len(signals)
        while True:
            told = "\n".join(baselines.as_numbers(signal, most) for signal in signals)
            tokens = self._engine.tokenizer.encode(f"{told}\nQuestion: {question}\nAnswer:")
            if len(tokens) + self._max_tokens <= self._engine.context or most <= LEAST_NUMBERS:
                break
            most //= 2
        result = self._engine.generate(tokens, max_tokens=self._max_tokens)
        self.count(result.prompt_tokens)
        return result.text.strip().partition("\n")[0]  # what follows is another question of its own


def _table(values: dict[str, Any]) -> str:
    """The scores for people."""
    count = values["recordings"]
    lines = [f"{count['test']} recordings of {count['groups']} groups; baselines learnt from {count['train']}"]
    if values["reports"]:
        names = ("bleu_1", "bleu_4", "rouge_l", "meteor", "cider")
        rows = [["reports", "BLEU-1", "BLEU-4", "ROUGE-L", "METEOR (exact, stem)", "CIDEr"]]
        for who, own in values["reports"].items():
            if not who.endswith("_above_best"):
                rows.append([who, *(_figure(own[name]) for name in names)])
        lines += ["", columns(rows), *_above(values["reports"], {"rouge_l": "ROUGE-L", "meteor": "METEOR"})]
    if values["labels"]:
        rows = [["labels", "macro-F1", "all right", "AUROC"]]
        for who, own in values["labels"].items():
            if not who.endswith("_above_best"):
                rows.append([who, _figure(own["macro_f1"]), _figure(own["accuracy"]), _figure(own.get("auroc"))])
        lines += ["", columns(rows), *_above(values["labels"], {"macro_f1": "macro-F1"})]
    if values["answers"]:
        rows = [["answers", "right", "cannot tell, rightly", "wrongly"]]
        for who, own in values["answers"].items():
            rows.append([who, *(_figure(own[name]) for name in ("right", "refused", "wrongly_refused"))])
        lines += ["", columns(rows)]
        kinds = values["answers"]["model"]["by_about"]
        rows = [["question", "asked", "right"]]
        rows += [[about, str(own["count"]), _figure(own["right"])] for about, own in kinds.items()]
        lines += ["", columns(rows)]
    return "\n".join(lines)


def _above(values: dict[str, Any], names: dict[str, str]) -> list[str]:
    told = []
    for name, title in names.items():
        own = values[f"{name}_above_best"]
        told.append(f"{title} above the best baseline's ({own['baseline']}): {_figure(own)}")
    return told


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    return "" if value is None else f"{value:.3f}"
