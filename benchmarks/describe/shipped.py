"""The models that come with the package, on what they have not seen: other patients, people, days, wordings, kinds.

Parts: `ecg`, `watch`, `phone`, `counts`, `occupancy`, `flows`, `captions`. Of each the rows that were asked for, beside
the peers that were asked for: baselines that a report must beat, MiniRocket, the language model that reads numbers.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import files
from benchmarks.bench import Bench
from benchmarks.describe.baselines import FOLDERS, FOLDS
from benchmarks.environment import interpreter
from benchmarks.process import REPOSITORY, ContestantError, python
from benchmarks.record import AT_MOST, Row
from benchmarks.signals.sets import folder
from genmote.describe import checking, drawn, evaluation, labelled
from genmote.describe.examples import Example
from genmote.errors import GenmoteError
from genmote.signals import recordings

OTHERS, NEEDS = Path(__file__).with_name("others.py"), Path(__file__).with_name("others.txt")
MODELS = {"ecg": "ecg", "watch": "motion", "phone": "motion", "occupancy": "home", "flows": "flows"}
MEASURE = "describe_shipped"
KEPT = REPOSITORY / "build" / "bench-describe"
DRAWN = 7  # a seed that no training has


def measure(bench: Bench) -> Iterator[Row]:
    parts: dict[str, Callable[[Bench], Iterator[Row]]] = {
        "ecg": _ecg,
        "watch": lambda bench: _motion(bench, "watch"),
        "phone": lambda bench: _motion(bench, "phone"),
        "counts": _counts,
        "occupancy": lambda bench: _labels(bench, "occupancy"),
        "flows": lambda bench: _labels(bench, "flows"),
        "captions": _captions,
    }
    for name in bench.parts or parts:
        if name not in parts:
            raise SystemExit(f"shipped has no part {name!r}: it has {', '.join(parts)}")
        bench.say(name)
        try:
            yield from parts[name](bench)
        except (ContestantError, GenmoteError) as why:
            yield _row(f"models that describe signals: {name}", None, "", note=str(why))


def _place(layout: str) -> Path:
    if layout in ("watch", "watch-sets"):
        return recordings.resolve("watch").parent
    return folder("ptbxl500" if layout == "ptbxl" else FOLDERS[layout])


def _judged(layout: str, model: str, *more: str) -> dict[str, Any]:
    """What `genmote eval describe` tells."""
    words = ["eval", "describe", str(_place(layout)), "--layout", layout, "-m", model, "--json", *more]
    told: dict[str, Any] = python("genmote.cli", *words, timeout_s=14400).json()
    return told


def _ecg(bench: Bench) -> Iterator[Row]:
    """Reports, labels and rhythm of the folds that the model has not seen."""
    most = ("--most", "12") if bench.quick else ()
    found = _judged("ptbxl", "ecg", "--folds", *map(str, FOLDS), "--each", "1", "--no-numbers", *most)
    reads = _reads_numbers(12 if bench.quick else None)
    where = f"PTB-XL, folds {' and '.join(map(str, FOLDS))}"
    count = {"recordings": found["recordings"]["test"]}
    for title, kind, score in (
        ("macro-F1 of five classes", "labels", "macro_f1"),
        ("ROUGE-L", "reports", "rouge_l"),
        ("METEOR (exact, stem)", "reports", "meteor"),
    ):
        table = found[kind]
        best, ours = table[f"{score}_above_best"], table["model"][score]
        peers = {who: table[who][score] for who in (evaluation.MAJORITY, evaluation.NEAREST)}
        peers[evaluation.NUMBERS] = reads[kind]["model"][score]
        who = max(peers, key=lambda name: float(peers[name]["value"]))
        name = f"{title} above that of the best of three baselines ({where})"
        above = best["value"] if who == best["baseline"] else ours["value"] - peers[who]["value"]
        told = {**count, "ours": ours, **peers, "above the best that learns from recordings": best}
        yield _row(
            name, above, "", asked=0.0, ours=ours["value"], peer=peers[who]["value"], peer_name=who, details=told
        )
    told = {key: found["reports"]["model"][key] for key in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider")}
    yield _row(f"CIDEr of the report ({where})", told["cider"], "", details={**count, **told})
    yield _row(f"macro-AUROC of five classes ({where})", found["labels"]["model"]["auroc"], "", details=count)
    abouts = found["answers"]["model"]["by_about"]
    rhythm = {name: abouts[name] for name in evaluation.RHYTHM if name in abouts}
    asked = sum(one["count"] for one in rhythm.values())
    right = 100 * sum(one["right"] * one["count"] for one in rhythm.values()) / asked
    yield _row(f"questions of rate and rhythm that are answered right ({where})", right, "%", asked=90, details=rhythm)
    yield from _refusals(found, where)


def _reads_numbers(most: int | None) -> dict[str, Any]:
    """Reports and labels by the same language model without signals, given the numbers as text; kept, as it takes long
    and depends on no model of ours."""
    from genmote.cli.eval.describe import _Numbers
    from genmote.runtime.engine import Engine

    kept = KEPT / f"numbers-{'-'.join(map(str, FOLDS))}-{most or 'all'}.json"
    if kept.exists():
        told: dict[str, Any] = json.loads(kept.read_text())
        return told
    train, test = evaluation.parts(labelled.load(_place("ptbxl"), "ptbxl"), FOLDS)
    test = test if most is None else [test[n * len(test) // most] for n in range(most)]
    wanted = {ask(one) for one in test for ask in (evaluation.report_question, evaluation.label_question)}
    with Engine.load(files.path("smollm2-q4_1"), threads=1) as engine:
        numbers = _Numbers(engine, 96)
        found = evaluation.evaluate(
            train,
            test,
            lambda signals, question: numbers.ask(signals, question) if question in wanted else "",
            asked=evaluation.Asked(each=0, cannots=False),
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({key: found[key] for key in ("reports", "labels", "predictions")}))
    return found


def _refusals(found: dict[str, Any], where: str) -> Iterator[Row]:
    own = found["answers"]["model"]
    name = f"said of what cannot be told that it cannot ({where})"
    yield _row(name, 100 * own["refused"], "%", asked=95)
    name = f"said of what can be told that it cannot ({where})"
    yield _row(name, 100 * own["wrongly_refused"], "%", asked=5, sense=AT_MOST)


def _labels(bench: Bench, layout: str) -> Iterator[Row]:
    most = ("--most", "24") if bench.quick else ("--most", "120")
    found = _judged(layout, MODELS[layout], "--each", "1", "--no-numbers", *most)
    told, count = found["labels"], {"recordings": found["recordings"]["test"]}
    right, near = (100 * told[who]["accuracy"]["value"] for who in ("model", evaluation.NEAREST))
    name = f"labels, unseen groups ({layout})"
    yield _row(name, right, "%", peer_name="the nearest neighbour", peer=near, details={**count, **told["model"]})
    yield from _refusals(found, layout)


def _motion(bench: Bench, layout: str) -> Iterator[Row]:
    """Labels of people that the model has not seen, beside MiniRocket, which has learnt from the same windows."""
    found = _judged(layout, "motion", "--each", "1", "--no-numbers")
    train, test = evaluation.parts(labelled.load(_place(layout), layout))
    given = {"train": _windows(train), "labels": np.array([one.labels[0] for one in train]), "test": _windows(test)}
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "in.npz", Path(place) / "out.npz"
        np.savez(source, **given)
        command = [str(interpreter("describe", NEEDS)), str(OTHERS), str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
        if done.returncode:
            raise ContestantError(f"MiniRocket: {(done.stderr.strip().splitlines() or ['nothing said'])[-1][:300]}")
        theirs = np.load(target)["told"]
    peer = 100 * float(np.mean([one.labels[0] == told for one, told in zip(test, theirs, strict=True)]))
    own = found["labels"]["model"]["accuracy"]
    right = 100 * own["value"]
    told = {"recordings": len(test), "groups": len({one.group for one in test}), "accuracy": own}
    name = f"labels less those of MiniRocket and ridge, unseen people ({layout})"
    yield _row(
        name, right - peer, "points", asked=-2, unit="%", ours=right, peer=peer, peer_name="MiniRocket", details=told
    )
    yield from _refusals(found, layout)


def _windows(some: Sequence[labelled.Labelled]) -> Any:
    return np.stack([one.signal.values.T for one in some])  # type: ignore[union-attr]


def _counts(bench: Bench) -> Iterator[Row]:
    """How often a movement was made, in whole sets of 20."""
    from genmote.describe.model import Describer
    from genmote.describe.wording import questions

    _, test = evaluation.parts(labelled.load(_place("watch-sets"), "watch-sets"))
    asked = questions("movements", held_out=True)
    with Describer.load("motion", threads=1) as model:
        texts = [model.ask([one.signal], asked[n % len(asked)], max_tokens=24) for n, one in enumerate(test)]
    told = [checking.numbers(text) for text in texts]
    within = 100 * float(np.mean([bool(own) and abs(own[0] - 20) <= 1 for own in told]))
    name = "sets of 20 repetitions that are counted within 1, unseen people (watch)"
    yield _row(name, within, "%", asked=80, details={"sets": len(test), "said": texts})


def _captions(bench: Bench) -> Iterator[Row]:
    """Questions in wordings, on quantities and shapes, that no training has, beside the same language model that reads
    the numbers."""
    from genmote.cli.eval.describe import _Asked, _Numbers
    from genmote.describe.model import Describer
    from genmote.runtime.engine import Engine

    count = bench.pick(240, 40)
    found = list(
        islice((one for one in drawn.stream(DRAWN, held_out=True) if one.about not in evaluation.KNOWN), count)
    )
    with Describer.load("home", threads=1) as model:
        ours = _Asked(model, 48)
        own = [ours.ask(example.signals, example.question) for example in found]
        with Engine.load(model.found.language, threads=1) as plain:
            numbers = _Numbers(plain, 48)
            theirs = [numbers.ask(one.signals, one.question + _choices(one)) for one in found[:: bench.pick(2, 2)]]
    told = [n for n, one in enumerate(found) if one.about != "cannot"]
    right = 100 * float(np.mean([checking.right(found[n], own[n]) for n in told]))
    peer = 100 * float(
        np.mean([checking.right(a, b) for a, b in zip(found[::2], theirs, strict=True) if a.about != "cannot"])
    )
    abouts: dict[str, list[bool]] = {}
    for n in told:
        abouts.setdefault(found[n].about, []).append(checking.right(found[n], own[n]))
    details = {
        "questions": len(told),
        "of numbers": len(theirs),
        "right": {k: [sum(v), len(v)] for k, v in abouts.items()},
    }
    what = "questions of drawn series, held-out wordings and kinds"
    yield _row(f"{what}: right", right, "%", asked=80, peer_name="reads the numbers", peer=peer, details=details)
    yield _row(f"{what}: right above the same language model that reads the numbers", right - peer, "points", asked=25)
    assert ours.mean is not None and numbers.mean is not None
    yield _row(
        f"{what}: tokens of a prompt, as a part of those of the numbers", ours.mean / numbers.mean, "x",
        asked=0.1, sense=AT_MOST, ours=ours.mean, peer=numbers.mean, unit="tokens",
    )  # fmt: skip
    cannot = [checking.refused(own[n]) for n, one in enumerate(found) if one.about == "cannot"]
    yield _row(f"{what}: said of what cannot be told that it cannot", 100 * float(np.mean(cannot)), "%", asked=95)
    wrongly = 100 * float(np.mean([checking.refused(own[n]) for n in told]))
    yield _row(f"{what}: said of what can be told that it cannot", wrongly, "%", asked=5, sense=AT_MOST)


def _choices(example: Example) -> str:
    return f" Answer with one of: {', '.join(example.choices)}." if example.choices else ""


def _row(name: str, value: float | None, unit: str, *, asked: float | None = None, **more: Any) -> Row:
    return Row(name=name, measure=MEASURE, value=value, value_unit=unit, asked=asked, **more)
