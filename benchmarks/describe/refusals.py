"""What the rule refuses before a model is asked: flat lines, noise, questions for another sensor and for a channel that
is not there, made of the recordings that are here; and what it refuses wrongly of the recordings themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from benchmarks.process import ContestantError
from benchmarks.record import AT_LEAST, AT_MOST, Row
from benchmarks.signals.sets import folder
from genmote.describe import asking, cannot, labelled, quality
from genmote.describe.examples import Example, bare
from genmote.describe.labelled import Labelled
from genmote.errors import GenmoteError
from genmote.signals import recordings
from genmote.signals.kinds import Series

FOLDERS = {
    "ptbxl": "ptbxl500",
    "phone": "hyperimu_har",
    "occupancy": "occupancy_uci",
    "air": "air_quality_uci",
    "flows": "nsl_kdd_test",
}
MOST = 353  # recordings of a set
SHAPELESS = "questions that need a shape, of flat lines, noise and no samples"
NOISE = "reports and labels of noise"
SENSOR, CHANNEL = "questions for another sensor", "questions of a channel that is not there"
UNTOLD = "questions that no sensor answers"
ANSWERED = "computed questions, labels and reports of recordings as they are"
SHAPED = "reports and labels of recordings as they are"
ASKED = dict.fromkeys((SHAPELESS, NOISE, SENSOR, CHANNEL, UNTOLD), 95) | {ANSWERED: 5, SHAPED: 5}


def measure(bench: Bench) -> Iterator[Row]:
    refused: dict[str, dict[str, list[bool]]] = {what: {} for what in ASKED}
    absent = []
    for layout in ("watch", *FOLDERS):
        try:
            place = recordings.resolve("watch") if layout == "watch" else folder(FOLDERS[layout])
            found = labelled.load(place, layout)
        except (ContestantError, GenmoteError) as why:
            absent.append(str(why))
            continue
        chosen = found if len(found) <= MOST else [found[n * len(found) // MOST] for n in range(MOST)]
        random = np.random.default_rng(5)
        for one in chosen:
            for what, hit in _told(one, random):
                refused[what].setdefault(layout, []).append(hit)
    for what, by_layout in refused.items():
        every = [hit for hits in by_layout.values() for hit in hits]
        details = {layout: {"percent": 100 * float(np.mean(own)), "of": len(own)} for layout, own in by_layout.items()}
        yield Row(
            name=f"{'wrongly refused' if ASKED[what] == 5 else 'refused'}: {what}",
            measure="describe_refusals",
            value=100 * float(np.mean(every)) if every else None,
            value_unit="%",
            asked=ASKED[what],
            sense=AT_MOST if ASKED[what] == 5 else AT_LEAST,
            note="; ".join(absent),
            details=details,
        )


def _told(one: Labelled, random: np.random.Generator) -> Iterator[tuple[str, bool]]:
    """What is asked of a recording, in wordings held out, and whether it is refused."""
    signal = bare(one.signal)
    settings: dict[str, Any] = {"held_out": True, "group": one.group}
    if isinstance(signal, Series):
        about = [kind for kind in cannot.NEEDS_SHAPE if kind != "label" or one.labels]
        yield SHAPELESS, _refused(cannot.broken(signal, random, about=about, task=one.task, **settings))
        yield NOISE, bool(quality.check([cannot.noise(signal, random)], shape=True).why)
        yield SHAPED, bool(quality.check([signal], shape=True).why)
    if (example := cannot.elsewhere(signal, random, **settings)) is not None:
        yield SENSOR, _refused(example)
    yield CHANNEL, _refused(cannot.absent(signal, random, **settings))
    yield UNTOLD, _refused(cannot.unanswerable(signal, random, **settings))
    own = asking.questions([signal], random, known=one.known, **settings)
    own += [asking.ask([signal], fact, random, **settings)] if (fact := labelled.label(one)) else []
    own += [told] if (told := labelled.report(one, random, held_out=True)) else []
    own += [told] if (told := asking.caption(signal, random, **settings)) else []
    yield from ((ANSWERED, _refused(example)) for example in own)


def _refused(example: Example) -> bool:
    return bool(quality.check(example.signals, example.question).why)
