"""Labelled recordings out of folders, and instruction data made of them.

How a folder is laid out is known by a module of `layouts/`, found by its name, with

- a docstring whose first line says what it reads;
- ``load(folder, notes, progress)``: its recordings. What is left out is told in `notes`, a line each; what cannot be
  used is an `ExamplesError` that tells the file, what came and what was wanted.

Nothing is copied: data stay where they are.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from genmote import registry
from genmote.describe import asking, cannot
from genmote.describe.examples import Example, bare
from genmote.describe.facts import Fact
from genmote.errors import ExamplesError
from genmote.fetch import Progress, quiet
from genmote.registry import listed
from genmote.signals.kinds import Records, Series

LAYOUTS = "genmote.describe.layouts"
LONGEST = 1 << 20  # characters of a cell
REPORTED = ("en", "de")  # languages that reports are learnt in
CANNOT_SHARE = 0.5  # questions without an answer for each recording


@dataclass(frozen=True, eq=False)
class Labelled:
    """A recording, or a window of one. `group`: the patient, subject or recording that it is of. `labels`: what it is
    said to be, of `classes`, none where nobody said; `task` is what these are called, such as `activity`. `report`:
    what an expert wrote, in `language`. `fold`: the part of the data set's own split, 0 where it has none. `known`:
    facts that the annotator told."""

    signal: Series | Records
    group: str
    task: str = ""
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    report: str = ""
    language: str = "en"
    fold: int = 0
    known: tuple[Fact, ...] = ()


def layouts() -> list[str]:
    return registry.names(LAYOUTS)


def load(folder: Path, layout: str, *, notes: list[str] | None = None, progress: Progress = quiet) -> list[Labelled]:
    """The recordings of a folder. ExamplesError where it is not laid out so, or holds none; an unknown layout is told
    the known ones."""
    module = registry.load(LAYOUTS, layout, what="layout", error=ExamplesError)
    if not folder.exists():
        raise ExamplesError(f"{folder}: is not there: wanted a folder of the layout {layout}")
    told: list[str] = [] if notes is None else notes
    read: Callable[[Path, list[str], Progress], list[Labelled]] = module.load
    found = read(folder, told, progress)
    if not found:
        raise ExamplesError(f"{folder}: holds no recording of the layout {layout} that can be used")
    return found


def table(path: Path, wanted: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a comma-separated table (RFC 4180) with a line of names, which has at least the columns `wanted`. A name
    that is empty, as PTB-XL's tables have one, stays."""
    before = csv.field_size_limit(LONGEST)  # of the whole process
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
            names = [name.strip() for name in reader.fieldnames or []]
    except OSError as fault:
        raise ExamplesError(
            f"{path}: cannot be read ({fault.strerror}): wanted a table with {listed(wanted)}"
        ) from None
    except UnicodeDecodeError:
        raise ExamplesError(f"{path}: is not UTF-8: save it as UTF-8") from None
    except csv.Error as fault:
        raise ExamplesError(f"{path}: is no table of comma-separated values ({fault})") from None
    finally:
        csv.field_size_limit(before)
    if missing := [name for name in wanted if name not in names]:
        raise ExamplesError(f"{path}: has no column {missing[0]!r}: it has {listed(names)}")
    if not rows:
        raise ExamplesError(f"{path}: has no row: wanted one for each recording")
    for number, row in enumerate(rows, 2):
        if None in row:
            raise ExamplesError(f"{path}: row {number} has more cells than the first line has names")
    return [{name.strip(): (cell or "").strip() for name, cell in row.items()} for row in rows]


def label(one: Labelled) -> Fact | None:
    """Which classes it is of, as a fact."""
    if not one.labels:
        return None
    return Fact("label", ", ".join(one.labels), one.classes, slots={"task": one.task or "class"})


def report(one: Labelled, random: np.random.Generator, *, held_out: bool = False) -> Example | None:
    """The question for the report."""
    if not one.report:
        return None
    fact = Fact("report_de" if one.language == "de" else "report", one.report)
    return replace(asking.ask([one.signal], fact, random, held_out=held_out, group=one.group), about="report")


def examples(
    recordings: Sequence[Labelled], *, seed: int = 0, held_out: bool = False, each: int = 4, cannots: bool = True
) -> list[Example]:
    """Instruction data: of each recording its label and its report, where it has them, `each` kinds of computed facts,
    and of every second one a question that has no answer. Yes and no come equally often."""
    random = np.random.default_rng([seed, held_out])
    balance = asking.Balance()
    found: list[Example] = []
    for one in recordings:
        signal = bare(one.signal)  # one object, so that a file keeps it once
        assert isinstance(signal, (Series, Records))
        one = replace(one, signal=signal)
        own: list[Example] = []
        if (fact := label(one)) is not None:
            own.append(asking.ask([one.signal], fact, random, held_out=held_out, group=one.group))
        if one.language in REPORTED and (told := report(one, random, held_out=held_out)) is not None:
            own.append(told)
        own += asking.questions([one.signal], random, most=each, held_out=held_out, group=one.group, known=one.known)
        if cannots and random.random() < CANNOT_SHARE:
            about = [kind for kind in cannot.NEEDS_SHAPE if kind != "label" or one.labels]
            more = {"about": about, "task": one.task, "held_out": held_out, "group": one.group}
            own.append(cannot.any_of(one.signal, random, **more))  # type: ignore[arg-type]
        found += [example for example in own if balance.takes(example)]
    return found
