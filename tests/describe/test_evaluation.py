"""What is measured of a model: one that knows all, one that refuses all, one that says the same to all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.describe import evaluation, labelled, wording
from genmote.describe.evaluation import Asked
from genmote.describe.labelled import Labelled
from genmote.signals.kinds import Series, Signal

CLASSES = ("slow", "fast")


def recording(seed: int) -> Labelled:
    random, kind = np.random.default_rng(seed), CLASSES[seed % 2]
    t = np.arange(300) / 50
    x = np.sin(2 * np.pi * (2 if kind == "slow" else 6) * t + random.random()) + 0.1 * random.normal(size=300)
    language, report = ("de", f"eine {kind} welle") if seed % 3 == 0 else ("en", f"a {kind} wave of the sea")
    signal = Series(f"r{seed}", x[:, None].astype(np.float32), 50.0, ("x",), ("V",))
    return Labelled(signal, f"person {seed // 2}", "speed", (kind,), CLASSES, report, language)


TRAIN, TEST = [recording(n) for n in range(40)], [recording(n) for n in range(40, 60)]
ASKED = Asked(draws=50)
QUESTIONS = evaluation.questions(TEST, ASKED)
BY_NAME = {one.signal.name: one for one in TEST}


def knowing(signals: Sequence[Signal], question: str) -> str:
    one = BY_NAME[signals[0].name]
    whole = _same(signals[0], one.signal)  # and not made flat
    if whole and question == evaluation.report_question(one):
        return one.report
    if whole and question == evaluation.label_question(one):
        return f"It is {one.labels[0]}."
    # A flat line may be asked what the signal was asked.
    return next(e.answer for e in QUESTIONS if e.question == question and _same(e.signals[0], signals[0]))


def _same(one: Signal, other: Signal) -> bool:
    assert isinstance(one, Series) and isinstance(other, Series)
    return one.channels == other.channels and np.array_equal(one.values, other.values, equal_nan=True)


def test_one_that_knows_all_is_right_in_all_and_above_the_baselines() -> None:
    found = evaluation.evaluate(TRAIN, TEST, knowing, asked=ASKED, ask_text=lambda signals, question: "yes")
    assert found["recordings"] == {"train": 40, "test": 20, "groups": 10}
    assert found["reports"]["model"]["rouge_l"]["value"] == 1 and found["reports"]["model"]["bleu_4"] == pytest.approx(
        1
    )
    assert found["labels"]["model"]["macro_f1"] == {"value": 1, "low": 1, "high": 1}
    answers = found["answers"]["model"]
    assert answers["right"]["value"] > 0.97 and answers["refused"] == 1 and answers["wrongly_refused"] == 0
    assert found["answers"]["numbers"]["right"]["value"] < 0.5 and found["answers"]["numbers"]["refused"] == 0
    above = found["reports"]["rouge_l_above_best"]
    assert above["value"] >= 0 and above["low"] <= above["value"] <= above["high"]
    assert found["labels"]["nearest"]["accuracy"]["value"] > 0.9 > found["labels"]["majority"]["accuracy"]["value"]
    json.dumps(found)


def test_baselines_report_in_the_language_that_was_asked_for() -> None:
    found = evaluation.evaluate(TRAIN, TEST, knowing, asked=ASKED)
    for one in found["predictions"]:
        if one["about"] == "report":
            german = one["wanted"].startswith("eine")
            assert one["nearest"].startswith("eine") == one["majority"].startswith("eine") == german
    assert "numbers" not in found["reports"]
    english = [replace(one, language="en", report="a wave") for one in TRAIN]
    found = evaluation.evaluate(english, TEST, knowing, asked=ASKED)
    assert found["reports"]["nearest"]["rouge_l"]["value"] < 1, "where there is none in the language, another"


def test_one_that_refuses_all() -> None:
    found = evaluation.evaluate(TRAIN, TEST, lambda signals, question: "I cannot tell.", asked=ASKED)
    answers = found["answers"]["model"]
    assert answers["right"]["value"] == 0 and answers["refused"] == answers["wrongly_refused"] == 1
    assert found["labels"]["model"]["macro_f1"]["value"] == 0
    assert found["labels"]["macro_f1_above_best"]["high"] < 0
    assert found["reports"]["rouge_l_above_best"]["value"] < 0


def test_probabilities_give_labels_and_an_auroc() -> None:
    def classify(signal: Signal) -> dict[str, float]:
        kind = BY_NAME[signal.name].labels[0]
        return {one: 0.45 if one == kind else 0.2 for one in CLASSES}

    found = evaluation.evaluate(TRAIN, TEST, knowing, classify=classify, asked=ASKED)
    assert found["labels"]["model"]["auroc"] == 1 and found["labels"]["model"]["accuracy"]["value"] == 1


def test_several_labels_where_a_recording_may_have_several() -> None:
    """Those that are at least half as likely as the likeliest; the likeliest alone where each has one label."""

    def classify(signal: Signal) -> dict[str, float]:
        return {CLASSES[0]: 0.6, CLASSES[1]: 0.35}

    both = [replace(one, labels=CLASSES) for one in TEST]
    found = evaluation.evaluate(
        [replace(TRAIN[0], labels=CLASSES), *TRAIN], both, knowing, classify=classify, asked=ASKED
    )
    assert found["labels"]["model"]["accuracy"]["value"] == 1
    alone = evaluation.evaluate(TRAIN, TEST, knowing, classify=classify, asked=ASKED)
    assert alone["labels"]["model"]["accuracy"]["value"] == 0.5


def test_recordings_without_reports_or_labels() -> None:
    bare = [[replace(one, report="", labels=(), classes=()) for one in part] for part in (TRAIN, TEST)]
    found = evaluation.evaluate(*bare, lambda signals, question: "yes", asked=ASKED)
    assert found["reports"] == found["labels"] == {} and found["answers"]["model"]["right"] is not None
    assert {one["about"] for one in found["predictions"]}.isdisjoint({"report", "label"})


def test_questions_are_those_held_out() -> None:
    assert all(one.held_out for one in QUESTIONS) and any(one.about == "cannot" for one in QUESTIONS)
    assert not any(one.about == "cannot" for one in evaluation.questions(TEST, Asked(cannots=False)))
    assert evaluation.report_question(TEST[0]) in wording.questions("report", held_out=True) + wording.questions(
        "report_de", held_out=True
    )
    assert evaluation.label_question(TEST[0]).endswith("It is one or several of: slow, fast.")


def test_parts() -> None:
    train, test = evaluation.parts(TRAIN)
    assert len(train) == 32 and len(test) == 8 and not {one.group for one in train} & {one.group for one in test}
    folded = [replace(one, fold=1 + n // 4) for n, one in enumerate(TRAIN)]
    train, test = evaluation.parts(folded, (9, 10))
    assert len(train) == 32 and {one.fold for one in test} == {9, 10}


def test_a_folder_from_end_to_end(tmp_path: Path) -> None:
    lines = ["file,label,report,group"]
    for one in TRAIN[:12]:
        assert isinstance(one.signal, Series)
        rows = [f"{n / 50:.2f},{x:.3f}" for n, x in enumerate(one.signal.values[:, 0])]
        (tmp_path / f"{one.signal.name}.csv").write_text("time,x (V)\n" + "\n".join(rows) + "\n")
        lines.append(f"{one.signal.name}.csv,{one.labels[0]},{one.report},{one.group}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    train, test = evaluation.parts(labelled.load(tmp_path, "csv"))
    found = evaluation.evaluate(train, test, lambda signals, question: "slow", asked=ASKED)
    assert found["recordings"]["test"] == len(test) > 0 and 0 < found["labels"]["model"]["macro_f1"]["value"] < 1
