"""Connections with the attack that each belongs to: a table in the columns of NSL-KDD.

Rows are taken together in the order of the file, twenty of one kind of attack for a window; no row is in two. The
kinds are those of Tavallaee et al., "A detailed analysis of the KDD CUP 99 data set", CISDA 2009.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from genmote.describe.labelled import Labelled, table
from genmote.errors import ExamplesError
from genmote.fetch import Progress
from genmote.signals.kinds import Field, FieldType, Records

FILES = ("rows.csv", "KDDTest+.csv", "KDDTrain+.csv")
ROWS, PART = 20, 1000
CLASSES = ("normal traffic", "denial of service", "probing", "remote access", "privilege escalation")
KINDS = {
    CLASSES[0]: "normal",
    CLASSES[1]: "apache2 back land neptune mailbomb pod processtable smurf teardrop udpstorm worm",
    CLASSES[2]: "ipsweep mscan nmap portsweep saint satan",
    CLASSES[3]: "ftp_write guess_passwd httptunnel imap multihop named phf sendmail snmpgetattack snmpguess spy "
    "warezclient warezmaster xlock xsnoop",
    CLASSES[4]: "buffer_overflow loadmodule perl ps rootkit sqlattack xterm",
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}
# Column, what it is called here, its type and unit.
FIELDS: tuple[tuple[str, str, FieldType, str], ...] = (
    ("protocol_type", "protocol", "category", ""),
    ("service", "service", "category", ""),
    ("flag", "flag", "category", ""),
    ("duration", "duration", "number", "s"),
    ("src_byts|src_bytes", "bytes sent", "number", "B"),
    ("dst_bytes", "bytes received", "number", "B"),
    ("num_failed_logins", "failed logins", "number", ""),
    ("count", "connections to the host", "number", ""),
    ("srv_count", "connections to the service", "number", ""),
    ("serror_rate", "SYN errors", "number", ""),
    ("rerror_rate", "rejections", "number", ""),
    ("same_srv_rate", "same service", "number", ""),
)


def load(folder: Path, notes: list[str], progress: Progress) -> list[Labelled]:
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise ExamplesError(f"{folder}: holds none of {', '.join(FILES)}: wanted connections in NSL-KDD's columns")
    rows = table(path, ["label"])
    columns = [next((one for one in names.split("|") if one in rows[0]), None) for names, *_ in FIELDS]
    if missing := [names for (names, *_), column in zip(FIELDS, columns, strict=True) if column is None]:
        raise ExamplesError(f"{path}: has no column {missing[0].split('|')[0]!r}: wanted those of NSL-KDD")
    by_kind: dict[str, list[int]] = {kind: [] for kind in CLASSES}
    for number, row in enumerate(rows):
        if row["label"] not in KIND_OF:
            raise ExamplesError(f"{path}: row {number + 2}: no attack is known as {row['label']!r}")
        by_kind[KIND_OF[row["label"]]].append(number)
    found = []
    for kind, numbers in by_kind.items():
        for start in range(0, len(numbers) - ROWS + 1, ROWS):
            own = [rows[number] for number in numbers[start : start + ROWS]]
            cells: list[np.ndarray[Any, Any]] = []
            for (_, _, type_, _), column in zip(FIELDS, columns, strict=True):
                assert column is not None
                cells.append(_column(path, [row[column] for row in own], type_, column))
            fields = tuple(Field(name, type_, unit) for _, name, type_, unit in FIELDS)
            signal = Records("connections", fields, tuple(cells))
            place = f"part {numbers[start] // PART}"  # of the file
            found.append(Labelled(signal, place, "kind of traffic", (kind,), CLASSES))
    progress("reading", 1, 1)
    return found


def _column(path: Path, cells: list[str], type_: FieldType, name: str) -> np.ndarray[Any, Any]:
    if type_ == "category":
        return np.array(cells, object)
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        raise ExamplesError(f"{path}: column {name!r} has {cells[0][:20]!r} and others: wanted numbers") from None
