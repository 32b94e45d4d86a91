"""Cells of a table as numbers, and as whole numbers of the decimals that are written.

>>> numbers(["1.50", "", "-3"]).values.tolist()
[1.5, nan, -3.0]
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from genmote.signals.kinds import MISSING

ABSENT = frozenset({"", "-", "--", "?", "na", "n/a", "#n/a", "<na>", "nan", "nil", "none", "null", "missing"})
PLAIN = re.compile(r"[0-9.+\-\n]*")
DECIMALS = re.compile(r"\.([0-9]*)")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
COMMA = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+)?,[0-9]+(?:[eE][+-]?[0-9]{1,3})?")
LARGEST = float(np.finfo(np.float32).max)
DIGITS = 18  # that fit into 63 bits
EXACT = 2.0**51  # below it a double times a power of ten lies nearest the whole number that it stands for


@dataclass(frozen=True, eq=False)
class Numbers:
    """`cells` with a decimal point, empty where there is no number; `values` (N,), NaN there; `odd`: where something
    stands that is neither a number nor missing."""

    cells: Sequence[str]
    values: NDArray[np.float64]
    odd: Sequence[int] = ()

    def decimals(self) -> int:
        """The most decimals that a cell is written with."""
        text = "\n".join(self.cells)
        if "e" not in text and "E" not in text:
            return max(map(len, DECIMALS.findall(text)), default=0)
        exponents = [Decimal(cell).as_tuple().exponent for cell in self.cells if cell]
        return max(0, *(-exponent for exponent in exponents if isinstance(exponent, int)))

    def plain(self) -> bool:
        """Whether they are whole numbers of at most 18 digits, and written so."""
        return not set("\n".join(self.cells)) & set(".eE") and max(map(len, self.cells)) < 19

    def whole(self, decimals: int) -> NDArray[np.int64] | None:
        """(N,) int64, value = whole * 10^-decimals; None where one has more decimals or does not fit into 63 bits."""
        if self.decimals() > decimals or decimals > DIGITS:
            return None
        gone = np.isnan(self.values)
        with np.errstate(over="ignore"):
            scaled = np.where(gone, 0.0, self.values) * 10.0**decimals
        if len(scaled) == 0 or np.abs(scaled).max() < EXACT:
            return np.where(gone, MISSING, np.rint(scaled).astype(np.int64))
        exact = [int(Decimal(cell).scaleb(decimals)) if cell else MISSING for cell in self.cells]
        if any(abs(n) > np.iinfo(np.int64).max for n in exact if n != MISSING):
            return None
        return np.array(exact, np.int64)


def numbers(cells: Sequence[str], absent: Set[str] = ABSENT, *, comma: bool = False) -> Numbers:
    """Numbers out of cells without spaces around them; `comma`: 3,5 is three and a half. `absent`: lower-case words for
    a missing value."""
    if PLAIN.fullmatch("\n".join(cells)) and not absent - ABSENT:
        try:
            values = np.array([float(cell) for cell in cells])
        except ValueError:
            pass  # an empty cell, or a sign alone: looked at one by one
        else:
            if np.abs(values).max(initial=0) <= LARGEST:
                return Numbers(cells, values)
    odd, found = [], []
    for n, cell in enumerate(cells):
        one = "" if cell.lower() in absent else _with_point(cell, comma)
        if one is None:
            odd.append(n)
        found.append(one or "")
    return Numbers(found, np.array([float(cell) if cell else np.nan for cell in found]), odd)


def is_number(cell: str) -> bool:
    """Whether it is one that a sample can be."""
    return NUMBER.fullmatch(cell) is not None and abs(float(cell)) <= LARGEST


def _with_point(cell: str, comma: bool) -> str | None:
    if comma and COMMA.fullmatch(cell):
        cell = cell.replace(".", "").replace(",", ".")
    if is_number(cell):
        return cell
    if not comma and THOUSANDS.fullmatch(cell) and is_number(cell.replace(",", "")):
        return cell.replace(",", "")
    return None
