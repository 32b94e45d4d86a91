"""A folder of files that any reader knows, and `labels.csv` that says of each what it is.

`labels.csv` has the columns `file` (beside it, or in a folder below), and `label`, `report` or both; several labels of
one file are divided by semicolons. `group` may tell the patient, subject or recording (else each file is its own),
`task` what the labels are called, `language` that of the report (en, de), `fold` a part of a split (1, 2, ...).
"""

from __future__ import annotations

from pathlib import Path

from genmote.describe.labelled import Labelled, table
from genmote.errors import ExamplesError, SignalError
from genmote.fetch import Progress
from genmote.signals import reading
from genmote.signals.kinds import Records, Series

TABLE = "labels.csv"


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    path = folder / TABLE
    rows = table(path, ["file"])
    if not {"label", "report"} & set(rows[0]):
        raise ExamplesError(f"{path}: has neither a column 'label' nor one 'report': wanted at least one of them")
    classes = tuple(sorted({one for row in rows for one in _labels(row)}))
    found = []
    for number, row in enumerate(rows, 2):
        labels, report = _labels(row), row.get("report", "")
        where = f"{path}: row {number}"
        if not row["file"]:
            raise ExamplesError(f"{where} names no file: wanted one beside {TABLE}")
        if not labels and not report:
            raise ExamplesError(
                f"{where}, {row['file']}: has neither a label nor a report: fill one in, or leave it out"
            )
        if row.get("fold", "") and not row["fold"].isdigit():
            raise ExamplesError(f"{where}, {row['file']}: fold {row['fold']!r}: wanted a whole number")
        file = folder / row["file"]
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ExamplesError(f"{where}: {row['file']} lies outside of {folder}: wanted a file in it")
        try:
            signals = reading.read(file, notes=notes)
        except SignalError as fault:
            raise ExamplesError(f"{where}: {fault}") from None
        for signal in signals:
            if not isinstance(signal, (Series, Records)):
                raise ExamplesError(f"{where}: {file.name} holds frames; series and records are described so far")
            found.append(
                Labelled(
                    signal,
                    row.get("group") or row["file"],
                    row.get("task", ""),
                    labels,
                    classes,
                    report,
                    row.get("language") or "en",
                    int(row.get("fold") or 0),
                )
            )
        progress("reading", number - 1, len(rows))
    return found


def _labels(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(one.strip() for one in row.get("label", "").split(";") if one.strip())
