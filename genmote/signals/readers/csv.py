"""Tables of text: CSV with any delimiter and decimal sign, or numbers between spaces; times and types are found.

Y. Shafranovich, RFC 4180 (2005), for quotes; what a table holds is decided in `../_tables.py`.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from math import isfinite
from pathlib import Path

from genmote.errors import SignalError
from genmote.signals import _tables
from genmote.signals._numbers import ABSENT, COMMA, NUMBER, THOUSANDS
from genmote.signals._times import seconds_of
from genmote.signals.kinds import Records, Series
from genmote.signals.reading import HEAD

GROUPS = True
SUFFIXES = (".csv", ".tsv", ".tab", ".psv", ".txt")
DELIMITERS = "\t;|, "  # in this order, where the columns tell as much
SEEN = 1000  # lines at the beginning by which the form of a file is found
LONGEST = 1 << 20  # characters of a line
COMMENT = ("#", "%", "//")
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
SEP = re.compile("sep=.", re.IGNORECASE)  # by which a spreadsheet tells the delimiter
ODD = 0.1  # of the rows may have another number of cells than most
ABOVE, BELOW = 32, 4  # lines of words that may stand above a table, and of a sum below it


@dataclass(frozen=True)
class Form:
    """How a file is written: `above`: rows that stand above the table; `names`, None where there is no line of them;
    `header`: whether that is the first row; `width`: cells of a row; `comma`: whether numbers have a decimal comma."""

    delimiter: str
    above: int
    names: tuple[str, ...] | None
    header: bool
    width: int
    comma: bool


def knows(path: Path, head: bytes) -> bool:
    encoding = _encoding(head)
    text = head.decode(encoding, errors="replace")
    if text.lstrip()[:1] in ("<", "{", "["):
        return False
    whole = text if len(head) < HEAD else text[: text.rfind("\n") + 1]
    try:
        form, rows = _form(_Lines(path, encoding, whole))
    except SignalError:
        return False
    if path.suffix.lower() in SUFFIXES[:4]:
        return True
    # Other texts have commas too: most columns of a table are numbers or times.
    told = sum(_tells(cells) for cells in zip(*rows, strict=True))
    return 2 * told > form.width and len(rows) > 1


def pieces(
    path: Path, rows: int, notes: list[str], *, absent: Set[str] = frozenset(), group: str | None = None
) -> Iterator[Series | Records]:
    """`absent`: lower-case words that stand for a missing value here, such as "-200", besides the usual ones."""
    try:
        with open(path, "rb") as file:
            encoding = _encoding(file.read(1 << 16))
    except OSError as fault:
        raise SignalError(f"{path}: cannot be read ({fault.strerror}): wanted a table of text") from None
    form = _form(_Lines(path, encoding))[0]
    if encoding == "latin-1":
        notes.append(f"{path.name}: is not in UTF-8; read as Latin-1")
    if form.names is None:
        notes.append(f"{path.name}: has no line of names; its columns are numbered, but for --names")
    tally = _tables.Tally(notes)
    found = _rows(_Lines(path, encoding), form, tally)
    yield from _tables.pieces(path, form.names, found, rows, notes, absent=absent, comma=form.comma, group=group)
    tally.tell()


def _encoding(head: bytes) -> str:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last sign may be cut
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


class _Lines:
    """The lines of a file that are neither empty nor comments. `at`: the number of the last line; `count`: how many
    came; `comment`: the one above the first."""

    def __init__(self, path: Path, encoding: str, text: str | None = None) -> None:
        self.path, self.encoding, self.text = path, encoding, text
        self.at, self.count, self.comment = 0, 0, ""

    def __iter__(self) -> Iterator[str]:
        try:
            with (
                open(self.path, encoding=self.encoding, errors="replace")
                if self.text is None
                else StringIO(self.text.lstrip("\ufeff"), newline=None) as file
            ):
                while line := file.readline(LONGEST):
                    self.at += 1
                    if len(line) == LONGEST or CONTROL.search(line):
                        what = "a line without an end" if len(line) == LONGEST else "signs that are no text"
                        raise SignalError(f"{self.path}, line {self.at}: {what}: wanted a table of text")
                    if line.startswith(COMMENT):
                        self.comment = line if not self.count else self.comment
                    elif line.strip() and not (self.at == 1 and SEP.fullmatch(line.strip())):
                        self.count += 1
                        yield line
        except UnicodeError:
            raise SignalError(f"{self.path}, line {self.at + 1}: is no {self.encoding}: wanted text") from None


def _split(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Rows of cells without spaces around them."""
    if delimiter == " ":
        lines = (" ".join(line.split()) for line in lines)
    for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True):
        yield [cell.strip() for cell in row]


def _form(lines: _Lines) -> tuple[Form, list[list[str]]]:
    """How a file is written, and the rows of values at its beginning."""
    seen = list(islice(lines, SEEN))
    if not seen:
        raise SignalError(f"{lines.path}: has no line but comments: wanted a table of text")
    delimiter, above, rows, most = "\t", 0, list[list[str]](), -1.0
    for one in DELIMITERS:
        begin, table = _table(seen, one)
        told = sum(map(_tells, zip(*table[1:], strict=True))) / len(table[-1]) if table else -1.0
        # Between tabs there may be words with spaces, and a date and a time of day are split by one, too.
        if told > most and (one != " " or (told > 0.5 and not (rows and delimiter == "\t"))):
            delimiter, above, rows, most = one, begin, table, told
    if not rows:  # a column alone
        rows = [[line.strip().strip('"').strip()] for line in seen]
        among = not _is_told(rows[0][0]) and any(one in rows[0][0] for one in DELIMITERS[:4])
        if among or not _tells([row[0] for row in rows[1:] or rows]):
            raise SignalError(
                f"{lines.path}: its lines are no rows of a table: wanted as many cells in each, with commas, "
                "semicolons, tabs, | or spaces between them"
            )
    width, names, header = len(rows[-1]), None, _is_header(rows)
    if header:
        names, *rows = rows
    rows = [row for row in rows if len(row) == width]
    if names is None and lines.comment:
        said = next(_split([lines.comment.lstrip("#%/ ")], delimiter), [])
        names = said if len(said) == width and not any(map(_is_told, said)) else None
    if names is not None and len(names) < width:
        # The last delimiter ends the rows, or the first cell counts them and has no name, as R writes it.
        names = ["", *names] if any(row[-1] for row in rows) else [*names, ""]
    cells = [cell for row in rows for cell in row]
    points = sum("." in cell and NUMBER.fullmatch(cell) is not None for cell in cells)
    commas = [cell for cell in cells if "," in cell and COMMA.fullmatch(cell)]
    sure = sum(THOUSANDS.fullmatch(cell) is None for cell in commas)
    # 1,234 alone is a decimal comma where the comma is not the delimiter and no other number has a point.
    comma = sure > points or (bool(commas) and not points and delimiter != ",")
    return Form(delimiter, above, None if names is None else tuple(names), header, width, comma), rows


def _table(lines: list[str], delimiter: str) -> tuple[int, list[list[str]]]:
    """How many rows stand above it, and its rows, as most are, if nearly all have as many cells; else none. The first
    may have one less."""
    try:
        rows = list(_split(lines, delimiter))
    except csv.Error:
        return 0, []
    widths = Counter(len(row) for row in rows[1:] or rows if len(row) > 1)
    if not widths:
        return 0, []
    width = widths.most_common(1)[0][0]
    above = _above(rows, width)
    first, *others = rows[above:]
    sums = next((n for n, row in enumerate(reversed(others)) if len(row) == width), 0)
    others = others[: len(others) - sums] if sums <= min(BELOW, len(others) // 3) else others
    fitting = [row for row in others if len(row) == width]
    if len(first) < 2 or len(fitting) < (1 - ODD) * len(others) or not 0 <= width - len(first) <= 1:
        return 0, []
    return above, [first, *fitting]


def _above(rows: list[list[str]], width: int) -> int:
    """How many rows of words stand above the table, such as a device's name: those above the last words that stand
    above all columns of numbers and times; without such words those of other widths, if all others are as wide."""
    body = [row for row in rows[min(ABOVE + 1, len(rows) // 2) :] if len(row) == width]
    columns = [n for n, cells in enumerate(zip(*body, strict=True)) if _tells(cells)]
    if not columns:
        return 0
    first = rows[: min(ABOVE + 1, len(rows) // 2 + 1)]
    full = [len(row) == width for row in first]
    words = [fits and not any(_is_told(row[n]) for n in columns) for fits, row in zip(full, first, strict=True)]
    heads = [n for n, row in enumerate(first) if words[n] and all(row[m].lower() not in ABSENT for m in columns)]
    if heads:
        # Of names and units below them the first.
        above = max(n for n in heads if n - 1 not in heads)
    else:
        above = full.index(True) if any(full) and len(body) > 2 else 0
        named = above > 0 and len(rows[above - 1]) == width - 1 and not any(map(_is_told, rows[above - 1]))
        above -= named  # and the first column has no name
        if any(len(row) != width for row in rows[above + 1 :]):
            return 0
    for row in first[:above]:
        if len(row) == width and any(map(_is_told, row)) and all(_is_told(c) or c.lower() in ABSENT for c in row):
            return 0  # a row of values
    alike = all(len(row) == width and 2 * sum(map(bool, row)) > width for row in first[:above])
    return 0 if alike and len(columns) < width else above


def _is_told(cell: str) -> bool:
    """Whether it is a number or a time."""
    return any(form.fullmatch(cell) for form in (NUMBER, COMMA, THOUSANDS)) or any(
        isfinite(seconds_of(cell, order)) for order in ("dmy", "mdy")
    )


def _tells(cells: Sequence[str]) -> bool:
    """Whether a column is of numbers or times."""
    there = [cell for cell in cells if cell.lower() not in ABSENT][:100]
    return bool(there) and sum(map(_is_told, there)) > 0.9 * len(there)


def _is_header(rows: list[list[str]]) -> bool:
    first, below = rows[0], list(zip(*rows[1:], strict=True))
    if any(map(_is_told, first)) or all(cell.lower() in ABSENT for cell in first):
        return False
    # Words above numbers, or words that do not come again.
    return any(map(_tells, below)) or (
        len(set(first)) == len(first) and not any(name in cells for name, cells in zip(first, below, strict=False))
    )


def _rows(lines: _Lines, form: Form, tally: _tables.Tally) -> Iterator[_tables.Row]:
    """The rows of values, each of as many cells."""
    path, total, odd, last, before = lines.path, 0, 0, 0, 0
    found = _split(lines, form.delimiter)
    try:
        for row in islice(found, form.above):
            tally.add(f"{path.name}: {{n}} lines above the table are left out", f"line {lines.at} {row[0][:20]!r}")
        if form.header:
            next(found)
        for row in found:
            lines_of_row, before = lines.count - before, lines.count
            if len(row) > form.width and not any(row[form.width :]):
                row = row[: form.width]
            if not any(row):
                tally.add(f"{path.name}: {{n}} rows of empty cells are left out", f"line {lines.at}")
                continue
            total += 1
            if len(row) == form.width:
                last = odd
                yield lines.at, row
                continue
            if lines_of_row > 2:
                at = lines.at - lines_of_row + 1
                raise SignalError(
                    f"{path}, line {at}: a quote that is not closed in its row: wanted {form.width} cells"
                )
            odd += 1
            tally.add(
                f"{path.name}: {{n}} rows of another number of cells than {form.width} are left out",
                f"line {lines.at} has {len(row)}",
            )
            if total > SEEN and odd > ODD * total:
                break
    except csv.Error as fault:
        raise SignalError(f"{path}, line {lines.at}: {fault}: wanted a row of {form.width} cells") from None
    if odd - (odd - last if odd - last <= BELOW else 0) > ODD * total:
        raise SignalError(
            f"{path}, line {lines.at}: {odd} of {total} rows have another number of cells than {form.width}; wanted at "
            "most 1 in 10: look for cells with the delimiter in them that are not in quotes"
        )
