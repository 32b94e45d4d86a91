"""JSON lines, or one JSON array of objects: a row each, with the names of what is nested joined by dots.

T. Bray (ed.), RFC 8259 (2017); what the rows hold is decided in `../_tables.py`, as of any table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from genmote.errors import SignalError
from genmote.signals import _tables
from genmote.signals.kinds import Records, Series

GROUPS = True
SUFFIXES = (".jsonl", ".ndjson", ".json")
LONGEST = 1 << 20  # characters of an object
ODD = 0.1  # of the lines may be damaged
LIST = 64  # values of a list that become columns; of a longer one, none does

# Numbers stay as they are written, so that their decimals are known; what JSON has no word for is missing.
DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=lambda word: None)


def knows(path: Path, head: bytes) -> bool:
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if text.startswith("["):
        return text[1:].lstrip()[:1] == "{"
    try:
        return isinstance(DECODER.decode(text.split("\n", 1)[0].strip()), dict)
    except (ValueError, RecursionError):
        # A first line that is longer than what is seen.
        return text.startswith('{"') and "\n" not in text and path.suffix.lower() in SUFFIXES[:2]


def pieces(
    path: Path, rows: int, notes: list[str], *, absent: Set[str] = frozenset(), group: str | None = None
) -> Iterator[Series | Records]:
    """`absent`: lower-case words that stand for a missing value here, besides the usual ones."""
    tally = _tables.Tally(notes)
    try:
        with open(path, encoding="utf-8-sig") as file:
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            found = _of_array(path, file, tally) if start == "[" else _of_lines(path, tally)
            first = list(islice(found, 1))
            if not first:
                raise SignalError(f"{path}: holds no object: wanted a JSON object a line, or an array of them")
            yield from _tables.keyed(path, chain(first, found), rows, notes, tally, absent=absent, group=group)
    except OSError as fault:
        raise SignalError(f"{path}: cannot be read ({fault.strerror}): wanted JSON lines") from None
    except UnicodeDecodeError:
        raise SignalError(f"{path}: is not in UTF-8: wanted JSON lines") from None
    tally.tell()


def _of_lines(path: Path, tally: _tables.Tally) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers, and the object of each line as flat cells."""
    at = total = odd = 0
    with open(path, encoding="utf-8-sig") as file:
        while line := file.readline(LONGEST):
            at += 1
            if len(line) == LONGEST:
                raise SignalError(f"{path}, line {at}: is longer than {LONGEST} signs: wanted a JSON object a line")
            if not line.strip():
                continue
            total += 1
            try:
                found = DECODER.decode(line.strip())
                row = flat(found) if isinstance(found, dict) else None
            except (ValueError, RecursionError):
                row = None
            if row is not None:
                yield at, row
                continue
            odd += 1
            tally.add(
                f"{path.name}: {{n}} lines that are no JSON object are left out", f"line {at} {line[:20].strip()!r}"
            )
            if odd > max(10, ODD * total):
                break
    if odd > ODD * total:
        raise SignalError(
            f"{path}, line {at}: {odd} of {total} lines are no JSON object; wanted at most 1 in 10 that is damaged"
        )


def _of_array(path: Path, file: TextIO, tally: _tables.Tally) -> Iterator[tuple[int, dict[str, str]]]:
    """Numbers from 1, and the objects of an array whose first sign was read as flat cells. One that ends early is read
    as far as it goes."""
    text, count, more = "", 0, True
    while True:
        text = text.lstrip()
        if text.startswith("]"):
            return
        if count and text.startswith(","):
            text = text[1:].lstrip()
        try:
            found, end = DECODER.raw_decode(text)
        except RecursionError:
            raise SignalError(f"{path}, object {count + 1}: is nested too deeply: wanted objects of values") from None
        except ValueError:
            more = bool(read := file.read(1 << 16))
            if more and len(text) < LONGEST:
                text += read
                continue
            if more or (text and not text.startswith("{")):
                raise SignalError(
                    f"{path}, object {count + 1}: got {text[:20]!r}: wanted a JSON object of at most {LONGEST} signs"
                ) from None
            tally.add(f"{path.name} ends early, after {count} objects; what is there is read")
            return
        count += 1
        if not isinstance(found, dict):
            raise SignalError(f"{path}, object {count}: got {text[:20]!r}: wanted a JSON object") from None
        yield count, flat(found)
        text = text[end:]


def flat(found: dict[str, Any]) -> dict[str, str]:
    """Cells by dotted names.

    >>> flat({"t": "1", "gps": {"lat": "2.50", "fix": True}, "acc": ["3", None]})
    {'t': '1', 'gps.lat': '2.50', 'gps.fix': 'true', 'acc.0': '3', 'acc.1': ''}
    """
    cells: dict[str, str] = {}
    for name, value in found.items():
        if isinstance(value, list):
            value = {str(n): one for n, one in enumerate(value)} if len(value) <= LIST else json.dumps(value)
        if isinstance(value, dict):
            cells |= {f"{name}.{under}": cell for under, cell in flat(value).items()}
        else:
            cells[name] = "" if value is None else str(value).lower() if isinstance(value, bool) else value.strip()
    return cells
