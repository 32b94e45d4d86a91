"""The baselines that need no language model, on the labelled recordings that are here: what a describing model is to
be above."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.process import ContestantError
from benchmarks.record import Row
from benchmarks.signals.sets import folder
from genmote.describe import baselines, evaluation, labelled
from genmote.errors import GenmoteError
from genmote.signals import recordings

FOLDS = (7, 8)  # of PTB-XL, that are judged
FOLDERS = {"phone": "hyperimu_har", "occupancy": "occupancy_uci", "flows": "nsl_kdd_test"}


def measure(bench: Bench) -> Iterator[Row]:
    try:
        found = labelled.load(folder("ptbxl500"), "ptbxl")
    except ContestantError as why:
        yield _row("ECG reports (PTB-XL, folds 7 and 8)", None, "", note=str(why))
    else:
        yield from _reports(found)
    for layout in ("watch", *FOLDERS):
        name = f"labels of the nearest neighbour, unseen groups ({layout})"
        try:
            place = recordings.resolve("watch") if layout == "watch" else folder(FOLDERS[layout])
            found = labelled.load(place, layout)
        except (ContestantError, GenmoteError) as why:
            yield _row(name, None, "%", note=str(why))
            continue
        train, test = evaluation.parts(found)
        near, most = baselines.Nearest(train), baselines.most_frequent_labels(train)
        right = 100 * np.mean([near.to(one.signal).labels == one.labels for one in test])
        always = 100 * np.mean([one.labels == most for one in test])
        told = {"recordings": len(test), "groups": len({one.group for one in test})}
        yield _row(name, right, "%", peer_name="the most frequent", peer=float(always), details=told)


def _reports(found: list[labelled.Labelled]) -> Iterator[Row]:
    train, test = evaluation.parts(found, FOLDS)
    out = evaluation.evaluate(train, test, lambda signals, question: "", asked=evaluation.Asked(each=0, cannots=False))
    for who in (evaluation.MAJORITY, evaluation.NEAREST):
        table = {"ROUGE-L": out["reports"][who]["rouge_l"], "METEOR": out["reports"][who]["meteor"]}
        table["macro-F1 of five classes"] = out["labels"][who]["macro_f1"]
        for score, value in table.items():
            name = f"{score} of the {who} report's (PTB-XL, folds 7 and 8)"
            yield _row(name, value["value"], "", details={"recordings": len(test), **value})
    asked = evaluation.questions(test, evaluation.Asked(each=0))
    yes = np.mean([one.answer.lower().startswith("yes") for one in asked if one.about == "regular"])
    yield _row('"Is the rhythm regular?" has the answer yes (PTB-XL, folds 7 and 8)', 100 * float(yes), "%")


def _row(name: str, value: float | None, unit: str, **more: Any) -> Row:
    told = None if value is None else float(value)
    return Row(name=name, measure="describe_baselines", value=told, value_unit=unit, asked=None, **more)
