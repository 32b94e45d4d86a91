"""A pre-tokenizer's regular expressions, compiled once into a small program and a table of character classes.

Neither the standard library's ``re`` nor C++ knows ``\\p{L}``. So each code point is mapped to one of 256 *atoms*: an
ASCII character is its own atom (0-127), all others share atoms 128-255, one for each set of characters that the variant
cannot tell apart (same Unicode category, same answer to "white space?", same membership in the ranges it names). A
character class is then a set of atoms, 256 bits.

The syntax: alternatives of sequences of ``[...]``, ``\\p{X}``, ``\\s``, literals, each with ``? + * {m} {m,n}``, then
``(?!\\S)``, ``$`` and ``(?i:'s|'t|'re|'ve|'m|'ll|'d)`` with an optional ``?``. Matching is greedy, the first
alternative first.

The program, all u32: ``stages, alternatives, items, classes``, then (first alternative, count) for each stage, (first
item, count) for each alternative, (kind, class, min, max) for each item, 8 words of bits for each class.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

RUN, NOT_NEXT, CONTRACTION = 0, 1, 2  # kinds of items; a contraction's max is 0 where it may be absent
UNBOUNDED = 0xFFFFFFFF
PAGE = 256
PAGES = 0x110000 // PAGE

_CONTRACTION_TEXT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LONG_S = 0x17F  # folds to an s, so a contraction that ignores case takes it too
_WHITE_SPACE = (*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
_CATEGORIES = "Cn Cc Cf Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs".split()
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}


@dataclass
class _Set:
    """A character class as written: what it lists, and whether it means all the others."""

    negated: bool = False
    categories: list[str] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    white_space: bool = False


@dataclass
class _Item:
    kind: int
    chars: _Set
    least: int = 1
    most: int = 1


class _Parser:
    """Reads one expression; the expressions are ours (`variants`), so a mistake is a programming error."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def alternatives(self) -> list[list[_Item]]:
        found: list[list[_Item]] = [[]]
        while self.at < len(self.text):
            if self._take("|"):
                found.append([])
            else:
                found[-1].append(self._item())
        return found

    def _take(self, literal: str) -> bool:
        if self.text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        return False

    def _item(self) -> _Item:
        if self._take(_CONTRACTION_TEXT):
            return _Item(CONTRACTION, _Set(), 1, 0 if self._take("?") else 1)
        if self._take(r"(?!\S)"):
            return _Item(NOT_NEXT, _Set(negated=True, white_space=True))
        if self._take("$"):
            return _Item(NOT_NEXT, _Set(negated=True))
        if self._take("["):
            chars = self._class()
        else:
            chars = _Set()
            self._member(chars)
        least, most = self._quantity()
        return _Item(RUN, chars, least, most)

    def _class(self) -> _Set:
        chars = _Set(negated=self._take("^"))
        while not self._take("]"):
            self._member(chars)
        return chars

    def _member(self, chars: _Set) -> None:
        if self._take(r"\p{"):
            end = self.text.index("}", self.at)
            chars.categories.append(self.text[self.at : end])
            self.at = end + 1
        elif self._take(r"\s"):
            chars.white_space = True
        else:
            first = last = self._char()
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self._char()
            chars.ranges.append((first, last))

    def _char(self) -> int:
        if self._take("\\"):
            name = self.text[self.at]
            self.at += 1
            return ord(_ESCAPES.get(name, name))
        self.at += 1
        return ord(self.text[self.at - 1])

    def _quantity(self) -> tuple[int, int]:
        for sign, quantity in (("?", (0, 1)), ("+", (1, UNBOUNDED)), ("*", (0, UNBOUNDED))):
            if self._take(sign):
                return quantity
        if self._take("{"):
            end = self.text.index("}", self.at)
            least, _, most = self.text[self.at : end].partition(",")
            self.at = end + 1
            return int(least), int(most or least)
        return 1, 1


@dataclass(frozen=True)
class Compiled:
    """`program` (u32), and the table from code point to atom: ``atoms[pages[cp >> 8] * 256 + (cp & 255)]``."""

    program: npt.NDArray[np.uint32]
    pages: npt.NDArray[np.uint16]
    atoms: npt.NDArray[np.uint8]


def compile_stages(stages: Sequence[str]) -> Compiled:
    """Compile the expressions of a variant. Takes some 40 ms, for the Unicode table; done once per vocabulary."""
    parsed = [_Parser(stage).alternatives() for stage in stages]
    items = [item for alternatives in parsed for sequence in alternatives for item in sequence]
    points, pages, atoms = _atoms(items)

    classes: list[bytes] = []
    words: list[int] = []
    for item in items:
        bits = _bits(item.chars, points)
        if bits not in classes:
            classes.append(bits)
        words += (item.kind, classes.index(bits), item.least, item.most)
    sequences = [sequence for alternatives in parsed for sequence in alternatives]
    head = [len(parsed), len(sequences), len(items), len(classes)]
    head += _spans(map(len, parsed)) + _spans(map(len, sequences)) + words
    program = np.concatenate([np.array(head, dtype="<u4"), np.frombuffer(b"".join(classes), dtype="<u4")])
    return Compiled(program, pages, atoms)


def _spans(lengths: Iterable[int]) -> list[int]:
    spans: list[int] = []
    start = 0
    for length in lengths:
        spans += (start, length)
        start += length
    return spans


def _categories() -> npt.NDArray[np.uint16]:
    """The general category of every code point, as an index into `_CATEGORIES`, by Python's Unicode database."""
    number = {name: index for index, name in enumerate(_CATEGORIES)}
    table = np.full(0x110000, number["Cn"], dtype=np.uint16)
    # Planes 4 to 13 are unassigned, 15 and 16 private but for their last two code points.
    for first, last in ((0, 0x40000), (0xE0000, 0xE1000)):
        codes = map(number.__getitem__, map(unicodedata.category, map(chr, range(first, last))))
        table[first:last] = np.fromiter(codes, dtype=np.uint16, count=last - first)
    table[0xF0000:0xFFFFE] = table[0x100000:0x10FFFE] = number["Co"]
    return table


def _atoms(items: Sequence[_Item]) -> tuple[list[int], npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Partition the code points: (one code point of each atom in order, pages, atoms)."""
    signature = _categories()
    signature[list(_WHITE_SPACE)] += 32
    named = {r for item in items for r in item.chars.ranges if r[1] > 127}
    if any(item.kind == CONTRACTION for item in items):
        named.add((LONG_S, LONG_S))
    # What no two named ranges tell apart shares an atom: number the distinct membership vectors from left to right.
    edges = sorted({max(first, 128) for first, _ in named} | {last + 1 for _, last in named})
    numbers: dict[tuple[int, ...], int] = {(): 0}
    for first, last in itertools.pairwise(edges):
        inside = tuple(i for i, (low, high) in enumerate(sorted(named)) if low <= first <= high)
        signature[first:last] += 64 * numbers.setdefault(_by_class(inside, sorted(named), items), len(numbers))
    present = np.flatnonzero(np.bincount(signature[128:]))
    if len(present) > 128:
        raise ValueError(f"{len(present)} atoms: a variant may tell at most 128 sets of characters apart")
    number = np.zeros(int(signature.max()) + 1, dtype=np.uint8)
    number[present] = np.arange(128, 128 + len(present))
    flat = number[signature]
    flat[:128] = np.arange(128)
    blocks: dict[bytes, int] = {}
    pages = [blocks.setdefault(flat[at : at + PAGE].tobytes(), len(blocks)) for at in range(0, len(flat), PAGE)]
    points = [*range(128), *(128 + int(np.argmax(flat[128:] == atom)) for atom in number[present])]
    return points, np.array(pages, dtype="<u2"), np.frombuffer(b"".join(blocks), dtype=np.uint8)


def _by_class(inside: tuple[int, ...], named: list[tuple[int, int]], items: Sequence[_Item]) -> tuple[int, ...]:
    """Which items list a stretch that lies inside the ranges `inside` (the long s counts as an item of its own)."""
    ranges = {named[i] for i in inside}
    member = [index for index, item in enumerate(items) if ranges & set(item.chars.ranges)]
    return (*member, *([-1] if (LONG_S, LONG_S) in ranges else []))


def _bits(chars: _Set, points: Sequence[int]) -> bytes:
    """The 256 bits of a class: is the code point that stands for each atom in it?"""
    bits = np.zeros(256, dtype=np.uint8)
    for atom, point in enumerate(points):
        category = unicodedata.category(chr(point))
        inside = (
            any(category.startswith(name) for name in chars.categories)
            or any(first <= point <= last for first, last in chars.ranges)
            or (chars.white_space and point in _WHITE_SPACE)
        )
        bits[atom] = inside != chars.negated
    return np.packbits(bits, bitorder="little").tobytes()
