"""Logs of the network monitor Zeek (once Bro) as tab-separated text, whose header tells names and types.

The Zeek Project, "Zeek Log Formats"; those in JSON are read by `jsonl.py`. What is a number and what a word is taken
from the header; the rest is as of any table (`../_tables.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from genmote.errors import SignalError
from genmote.signals import _tables
from genmote.signals.kinds import Records, Series

SUFFIXES = (".log", ".zeek", ".bro")
BEGINS = (b"#separator ", b"#fields\t")
NUMBERS = frozenset({"time", "interval", "port", "count", "int", "double"})
LONGEST = 1 << 20  # bytes of a line
ODD = 0.1  # of the rows may have another number of cells than the header
SEEN = 1000  # rows before that is looked at


@dataclass
class _Header:
    """What the lines that begin with # say."""

    separator: str = "\t"
    said: dict[str, list[str]] = field(default_factory=dict)

    def take(self, line: str) -> None:
        key, _, rest = line[1:].partition(" " if line.startswith("#separator ") else self.separator)
        if key == "separator":
            self.separator = re.sub(r"\\x([0-9a-fA-F]{2})", lambda code: chr(int(code[1], 16)), rest) or "\t"
        else:
            self.said[key] = rest.split(self.separator)

    def one(self, key: str, usual: str) -> str:
        return (self.said.get(key) or [usual])[0]


def knows(path: Path, head: bytes) -> bool:
    return head.startswith(BEGINS)


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series | Records]:
    tally, header = _tables.Tally(notes), _Header()
    found = _rows(path, header, tally)
    first = next(found, None)
    names = header.said.get("fields", [])
    if first is None or not names:
        raise SignalError(f"{path}: has no {'rows' if names else '#fields'}: wanted a log of Zeek")
    types = header.said.get("types", [])
    if types and len(types) != len(names):
        raise SignalError(f"{path}: has {len(names)} #fields and {len(types)} #types: wanted as many")
    if types:
        names = [f"{name} [s]" if kind == "interval" else name for name, kind in zip(names, types, strict=True)]
    words = {n for n, kind in enumerate(types) if kind not in NUMBERS}
    absent = {header.one("unset_field", "-").lower(), header.one("empty_field", "(empty)").lower()}

    def table() -> Iterator[_tables.Row]:
        yield first
        yield from found

    yield from _tables.pieces(path, names, table(), rows, notes, absent=absent, words=words)
    tally.tell()


def _rows(path: Path, header: _Header, tally: _tables.Tally) -> Iterator[_tables.Row]:
    """Line numbers, and as many cells as there are fields; what the lines above say is in the header by then."""
    at = total = odd = 0
    with open(path, "rb") as file:
        while raw := file.readline(LONGEST):
            at += 1
            if len(raw) == LONGEST or b"\0" in raw:
                raise SignalError(
                    f"{path}, line {at}: is longer than {LONGEST} bytes, or no text: wanted a log of Zeek"
                )
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if line.startswith("#"):
                names = header.said.get("fields")
                header.take(line)
                if names and header.said["fields"] != names:
                    raise SignalError(f"{path}, line {at}: other #fields than at first: wanted a log of one kind")
            elif line:
                cells = [cell.strip() for cell in line.split(header.separator)]
                wanted = len(header.said.get("fields", []))
                total += 1
                if len(cells) == wanted:
                    yield at, cells
                    continue
                odd += 1
                text = f"{path.name}: {{n}} rows of another number of cells than {wanted} are left out"
                tally.add(text, f"line {at} has {len(cells)}")
                if total > SEEN and odd > ODD * total:
                    break
    if odd > ODD * total:
        raise SignalError(
            f"{path}, line {at}: {odd} of {total} rows have another number of cells than {wanted}; wanted at most 1 "
            "in 10"
        )
