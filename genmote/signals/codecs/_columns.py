"""How one field of records is coded: its words by a table, its numbers by their size, or all of it spelt out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.coding import Bound, Codes
from genmote.signals.kinds import Records

Way = Literal["words", "near", "log", "spelt"]
Type = Literal["number", "integer", "category", "text", "step"]  # a field's, or the time since the row before
UNKNOWN_WORD = "?"  # what comes back for a word that is neither in the table nor spelt out
MARGIN, SLACK = 2e-12, 5e-13  # kept of the stated relative error for the rounding of logarithms; what that may be
LARGEST, SMALLEST = np.finfo(np.float64).max, np.finfo(np.float64).tiny
SPELL, UNKNOWN = -1, -2  # codes: spelt out, or a word that is not and has no other


@dataclass(frozen=True)
class Column:
    """`words`: of the table `words`. `near`: whole numbers from `low`, `count` of them. `log`: zero, and `count` bins
    from `least` on, each wider than the one before, so that no number in it is off by more than `relative` of it; as
    many below zero where it is `signed`. `spelt`: UTF-8."""

    name: str
    unit: str
    type: Type
    way: Way
    words: tuple[str, ...] = ()
    low: int = 0
    count: int = 0
    least: float = 1.0
    signed: bool = False
    relative: float = 0.05

    @property
    def size(self) -> int:
        """How many codes it has of its own."""
        sizes = {"words": len(self.words), "near": self.count, "spelt": 0}
        return sizes[self.way] if self.way in sizes else self.count * (2 if self.signed else 1) + 1

    @property
    def growth(self) -> float:
        part = self.relative - MARGIN
        return math.log((1 + part) / (1 - part))

    @cached_property
    def levels(self) -> list[Any]:
        """What each code comes back as."""
        if self.way == "words":
            return list(self.words)
        if self.way == "near":
            return list(range(self.low, self.low + self.count))
        if self.way == "spelt":
            return []
        # Of a bin from a to b, 2ab / (a + b) is off by the same part of a as of b.
        grown = math.exp(self.growth)
        starts = math.log(self.least) + self.growth * np.arange(self.count)
        sizes = np.exp(np.minimum(starts + math.log(2 * grown / (1 + grown)), math.log(LARGEST)))
        both = np.concatenate([-sizes[::-1] if self.signed else [], [0.0], sizes])
        if self.type != "integer":
            return list(both.tolist())
        return [min(max(round(x), -(2**63)), 2**63 - 1) for x in both.tolist()]

    def bound(self, spell: bool) -> Bound:
        """How far off a number comes back that lies within what was fitted."""
        if self.way != "log":
            return Bound()
        whole = 0.5 if self.type == "integer" else 0.0
        return Bound(whole if spell else whole + self._smallest / 2, self.relative)

    @property
    def _smallest(self) -> float:
        grown = math.exp(self.growth)
        return min(self.least * (2 * grown / (1 + grown)), float(LARGEST))

    def code(self, values: NDArray[Any], spell: bool) -> tuple[Codes, NDArray[np.bool_]]:
        """Codes of values (n,) that are there, or SPELL or UNKNOWN; and which of them come back as something else than
        the bound says."""
        if self.way == "spelt":
            return np.full(len(values), SPELL), np.zeros(len(values), bool)
        if self.way == "words":
            places = {word: n for n, word in enumerate(self.words)}
            codes = np.array([places.get(word, UNKNOWN) for word in values.tolist()], np.int64)
            small, far = np.zeros(len(values), bool), codes == UNKNOWN
        elif self.way == "near":
            cut = np.clip(values, self.low, self.low + self.count - 1)
            codes = np.array([int(value) - self.low for value in cut.tolist()], np.int64)
            small, far = np.zeros(len(values), bool), cut != values
        else:
            codes, small, far = self._log(values.astype(np.float64))
        return (np.where(small | far, SPELL, codes), np.zeros_like(far)) if spell else (codes, far)

    def _log(self, values: NDArray[np.float64]) -> tuple[Codes, NDArray[np.bool_], NDArray[np.bool_]]:
        """Codes of what is nearest, and which values are too small, or out of range."""
        sizes = np.abs(values)
        with np.errstate(divide="ignore"):
            place = (np.log(sizes) - math.log(self.least)) / self.growth
        far = ((values < 0) & (not self.signed)) | (place > self.count + SLACK / self.growth)
        small = (sizes < self.least) & (values != 0) & ~far
        bins = np.clip(np.nan_to_num(np.floor(place)), 0, self.count - 1).astype(np.int64)
        zero = (sizes < self._smallest / 2) | ((values < 0) & (not self.signed))
        signs = np.sign(values).astype(np.int64)
        return np.where(zero, 0, signs * (bins + 1)) + (self.count if self.signed else 0), small, far

    def text(self, value: Any) -> bytes:
        """A value spelt out."""
        if self.type in ("category", "text"):
            return str(value).encode("utf-8", "surrogatepass")
        return (str(int(value)) if self.type == "integer" else repr(float(value))).encode()

    def read(self, spelt: bytes) -> Any:
        """What was spelt out; ValueError for what is none of it."""
        text = spelt.decode("utf-8", "surrogatepass")
        if self.type in ("category", "text"):
            return text
        if self.type == "integer":
            number = int(text)
            if not -(2**63) <= number < 2**63:
                raise ValueError
            return number
        if math.isnan(value := float(text)):
            raise ValueError
        return value


def values_of(column: NDArray[Any], type_: Type, where: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What is there of a column: numbers as float64 or int64, words as objects; and which rows have it. SignalError for
    what is no value of its type."""
    if type_ in ("category", "text"):
        there = np.array([value is not None for value in column], bool)
        return column[there], there
    if type_ == "integer" and column.dtype.kind in "iu":
        return column.astype(np.int64), np.ones(len(column), bool)
    numbers = column.astype(np.float64)
    there = ~np.isnan(numbers)
    numbers = numbers[there]
    if type_ == "integer":
        fits = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2.0**63)
        if not fits.all():
            raise SignalError(f"{where}: {numbers[~fits][0]:g} is no whole number of 64 bits; make it a number field")
        return numbers.astype(np.int64), there
    return numbers, there


def steps(signal: Records) -> NDArray[np.float64]:
    """The time (n,) since the row before each row; 0 for the first."""
    times = signal.times_s
    if times is None or not np.isfinite(times).all():
        told = "no times" if times is None else "times are missing"
        raise SignalError(f"{signal.name}: {told}; wanted one a row")
    return np.diff(times, prepend=times[:1])


def fit(
    name: str,
    unit: str,
    type_: Type,
    parts: Sequence[NDArray[Any]],
    words: int,
    near: int,
    wide: Way,
    bins: int,
    relative: float,
) -> Column:
    """How to code a field whose values, without those that are missing, are `parts`."""
    values = np.concatenate(parts)
    if type_ == "text":
        return Column(name, unit, type_, "spelt")
    if type_ == "category":
        return Column(name, unit, type_, "words", words=tuple(_frequent(values.tolist(), words)))
    if type_ == "integer":
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        if high - low < near:
            return Column(name, unit, type_, "near", low=low, count=high - low + 1)
        if wide == "spelt":
            return Column(name, unit, type_, "spelt")
    sizes = np.abs(values.astype(np.float64))
    sizes = sizes[np.isfinite(sizes) & (sizes >= SMALLEST)]
    least, most = (float(sizes.min()), float(sizes.max())) if len(sizes) else (1.0, 1.0)
    signed = bool((values < 0).any())
    growth = Column(name, unit, type_, "log", relative=relative).growth
    count = math.floor((math.log(most) - math.log(least)) / growth) + 1
    if count > bins:
        count = bins
        least = math.exp(math.log(most) - growth * (bins - 0.5))
    return Column(name, unit, type_, "log", count=count, least=least, signed=signed, relative=relative)


def _frequent(values: Iterable[str], most: int) -> list[str]:
    counted = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    return [word for word, _ in counted if is_utf8(word)][:most]


def is_utf8(word: str) -> bool:
    """Whether a model file can hold it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in word)


def whole(codes: Sequence[int], begin: int, end: int) -> tuple[int, bool]:
    """How many values codes are of that are whole, each one code or spelt between `begin` and `end`; whether they stop
    within one that is spelt.

    >>> whole([9, 3, 40, 41, 4, 3, 42], 3, 4)
    (2, True)
    """
    count, inside = 0, False
    for code in codes:
        if inside:
            inside = code != end
        else:
            inside = code == begin
        count += not inside
    return count, inside
