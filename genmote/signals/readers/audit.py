"""Logs of Linux's audit daemon, a row each line: when, of what type and event, and all that it says by name.

Red Hat, "Understanding Audit log files"; S. Grubb, "Audit Event Fields": untrusted words stand in hexadecimal digits
where they have a space or worse in them. The enriched format's names are in capitals. Lines of one event have one
`serial`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from genmote.errors import SignalError
from genmote.signals import _tables
from genmote.signals.kinds import Records, Series

SUFFIXES = (".log", ".audit")
LINE = re.compile(r"(?:node=(\S+) )?type=(\S+) msg=audit\((\d{1,12}(?:\.\d{1,9})?):(\d{1,18})\): ?(.*)", re.DOTALL)
PAIR = re.compile(r"""([A-Za-z_][\w.\[\]-]*)=("[^"]*"|'[^']*'|[^\s,]*)""")
DENIED = re.compile(r"avc:\s+(denied|granted)\s+\{ ([^}]*) \}")
ARGUMENT = re.compile(r"a\d+(?:\[\d+\])?")
CODED = frozenset("proctitle comm ocomm exe name cwd acct cmd key data path dir file vm watch".split())
UNSET = {"4294967295", "-1"}
IDS = frozenset("auid ses old-auid old-ses".split())
HEX = re.compile(r"(?:[0-9A-F]{2})+")
NUMERALS = frozenset("a0 a1 a2 a3 arch saddr".split())  # in hexadecimal digits
WORDS = frozenset({"(null)", "(none)"})
LONGEST = 1 << 16  # bytes of a line; the daemon's are at most 8970
ODD = 0.1  # of the lines may be damaged


def knows(path: Path, head: bytes) -> bool:
    return any(LINE.match(line) for line in head.decode("utf-8", "replace").split("\n")[:5])


def pieces(path: Path, rows: int, notes: list[str]) -> Iterator[Series | Records]:
    tally = _tables.Tally(notes)
    found = _lines(path, tally)
    first = list(islice(found, 1))
    if not first:
        raise SignalError(
            f"{path}: has no line of an audit log: wanted some, such as type=SYSCALL msg=audit(TIME:N): …"
        )
    yield from _tables.keyed(path, chain(first, found), rows, notes, tally, absent=WORDS)
    tally.tell()


def _lines(path: Path, tally: _tables.Tally) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers, and what the lines say by name."""
    at = total = odd = 0
    with open(path, "rb") as file:
        while raw := file.readline(LONGEST):
            at += 1
            line = raw.decode("utf-8", "replace").strip()
            if not line or line.startswith(("----", "time->")):  # as ausearch has it between the events
                continue
            total += 1
            found = LINE.fullmatch(line) if len(raw) < LONGEST else None
            if found is not None:
                yield at, _said(*found.groups())
                continue
            odd += 1
            text = f"{path.name}: {{n}} lines that are none of an audit log are left out"
            tally.add(text, f"line {at} {line[:20]!r}")
            if odd > max(10, ODD * total):
                break
    if odd > ODD * total:
        raise SignalError(f"{path}, line {at}: {odd} of {total} lines are none of an audit log; wanted at most 1 in 10")


def _said(node: str | None, kind: str, time: str, serial: str, rest: str) -> dict[str, str]:
    """Cells by name.

    >>> _said(None, "EXECVE", "1.5", "7", 'argc=2 a0="ls" a1=2F746D702F612062')
    {'time': '1.5', 'type': 'EXECVE', 'serial': '7', 'argc': '2', 'command': 'ls /tmp/a b'}
    """
    cells = {"time": time, "type": kind, "serial": serial} | ({"node": node} if node else {})
    command: list[str] = []
    if denied := DENIED.search(rest):
        cells["avc"], cells["permissions"] = denied.groups()
    for name, value in _pairs(rest):
        if kind == "EXECVE" and ARGUMENT.fullmatch(name):
            command.append(_word(value))
        elif name in NUMERALS:
            cells.setdefault(name, f"0x{value}" if value else "")
        elif name in IDS and value in UNSET:
            cells.setdefault(name, "")
        else:
            cells.setdefault(name, _word(value) if name in CODED else value.strip("\"'").strip())
    return cells | ({"command": " ".join(command).strip()} if command else {})


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Names and values as they are written; those within a quoted message are told with the others."""
    for name, value in PAIR.findall(text):
        if name == "msg" and value[:1] == "'":
            yield from PAIR.findall(value[1:-1])
        else:
            yield name, value


def _word(value: str) -> str:
    """What is in quotes, or in hexadecimal digits, NUL between the words."""
    if value[:1] in ("'", '"'):
        return value[1:-1].strip()
    if HEX.fullmatch(value):
        return bytes.fromhex(value).decode("utf-8", "replace").replace("\0", " ").strip()
    return value.strip()
