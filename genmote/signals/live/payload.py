"""What a message says: rows of named cells, whichever of a few common forms it has.

- a JSON object: a row, the names of what is nested joined by dots (as `readers/jsonl.py` has it); an array of such
  objects: a row each;
- a JSON array of numbers, or numbers with commas, semicolons, tabs or spaces between: a row of the columns 1, 2, 3, …;
  an array of such arrays, and lines of such numbers: a row each;
- one number, true or false: a row of one `value`.
"""

from __future__ import annotations

import re
from typing import Any

from genmote.errors import SignalError
from genmote.signals._numbers import ABSENT, is_number
from genmote.signals.readers.jsonl import DECODER, flat

LARGEST, ROWS, CELLS = 1 << 18, 1024, 256  # bytes of a message, its rows, a row's cells
VALUE = "value"
Row = dict[str, str]  # cells by name


def rows_of(payload: bytes) -> list[Row]:
    """The rows of a message, at least one. SignalError, which tells what came and what was wanted, for any other.

    >>> rows_of(b'{"t": 5, "acc": {"x": 0.50}}'), rows_of(b"21.5"), rows_of(b"[1, null]")
    ([{'t': '5', 'acc.x': '0.50'}], [{'value': '21.5'}], [{'column 1': '1', 'column 2': ''}])
    >>> rows_of(b"1;2\\n3;4")
    [{'column 1': '1', 'column 2': '2'}, {'column 1': '3', 'column 2': '4'}]
    """
    if len(payload) > LARGEST:
        raise SignalError(f"{len(payload)} bytes: wanted at most {LARGEST}")
    try:
        text = payload.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise SignalError(f"{payload[:20]!r}, which is not UTF-8: wanted JSON or numbers") from None
    if not text:
        raise SignalError("nothing: wanted JSON or numbers")
    try:
        rows = _json(text) if text[0] in "{[tfn" else _lines(text)
    except (ValueError, RecursionError):
        raise SignalError(f"{text[:40]!r}: wanted a JSON object or array, or numbers") from None
    if not 0 < len(rows) <= ROWS or not all(0 < len(row) <= CELLS for row in rows):
        raise SignalError(f"{len(rows)} rows of up to {max(map(len, rows), default=0)} cells: wanted 1 to {ROWS} rows "
                          f"of 1 to {CELLS}")  # fmt: skip
    return rows


def _json(text: str) -> list[Row]:
    found = DECODER.decode(text)
    many = isinstance(found, list) and found and all(isinstance(one, (dict, list)) for one in found)
    return [_row(one) for one in (found if many else [found])]


def _row(found: Any) -> Row:
    if isinstance(found, dict):
        return flat(found)
    if isinstance(found, list):
        if any(isinstance(one, (dict, list)) for one in found):
            raise ValueError
        return _columns([cell for one in found for cell in flat({"": one}).values()])
    if isinstance(found, bool):
        return flat({VALUE: found})
    raise ValueError


def _lines(text: str) -> list[Row]:
    return [_numbers(line.strip()) for line in text.splitlines() if line.strip()]


def _numbers(line: str) -> Row:
    """Numbers, of which some may be missing, with one delimiter between."""
    if is_number(line):
        return {VALUE: line}
    delimiter = next((sign for sign in ";\t," if sign in line), " ")
    cells = [cell.strip() for cell in (line.split() if delimiter == " " else re.split(delimiter, line))]
    if delimiter == ";":  # 3,5;4,0 has decimal commas
        cells = [cell.replace(",", ".", 1) for cell in cells]
    return _columns(cells)


def _columns(cells: list[str]) -> Row:
    if not all(is_number(cell) or cell.lower() in ABSENT for cell in cells) or not any(map(is_number, cells)):
        raise ValueError
    return {f"column {n}": cell for n, cell in enumerate(cells, 1)}
