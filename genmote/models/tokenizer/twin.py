"""The encoder in plain Python, for machines without the compiled module: the twin of ``native/tokenizer.cpp``.

Same table, same tokens, some hundred times slower. The classes of the table's program become character classes of
``re`` over a string that holds each character's atom, so this twin shares no matching code with the native one.
"""

from __future__ import annotations

import functools
import heapq
import re
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from genmote.models.tokenizer import table
from genmote.models.tokenizer.pattern import CONTRACTION, LONG_S, NOT_NEXT, UNBOUNDED

_NOT_LOOKED = -2
Symbol = tuple[bytes, int]  # its text, its token (SPM: not looked up before it is merged)


class TokenTable:
    """A token table in memory. (nbytes,) uint8; `ValueError` when it is not a whole one."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        wrong = table.problem(memory)
        if wrong:
            raise ValueError(wrong)
        self._kind, self._flags, self._unknown, self._tokens, _ = table.describe(memory)
        views = [table.view(memory, number) for number in range(len(table.SECTIONS))]
        self._offsets, self._text, self._types, self._words, self._priority, self._pairs = views[:6]
        self._bytes, self._specials, self._glue, self._pages, self._atoms, program = views[6:]
        self._stages = list(self._compile(program)) if self._kind == table.BPE else []

    def encode(self, text: bytes, special: bool, space_prefix: bool) -> list[int]:
        """Token ids of UTF-8 bytes."""
        ids: list[int] = []
        start = at = 0
        while at < len(text):
            found = self._find_special(text, at, special)
            if found < 0:
                at += 1
                continue
            self._fragment(text[start:at], space_prefix, ids)
            ids.append(found)
            at += len(self._text_of(found))
            start = at
        self._fragment(text[start:], space_prefix, ids)
        return ids

    def find(self, text: bytes) -> int:
        """The token whose whole text this is, or -1."""
        special = self._find_special(text, 0, True) if text else -1
        return special if special >= 0 and self._text_of(special) == text else self._find_word(text)

    def split(self, text: bytes) -> list[int]:
        """Byte offsets of the ends of the words that the pre-tokenizer cuts."""
        ends, at = [], 0
        for word in self._cut(text):
            at += len(word)
            ends.append(at)
        return ends

    # -- reading the table

    def _text_of(self, token: int) -> bytes:
        if not 0 <= token < self._tokens:
            return b""
        return bytes(self._text[self._offsets[token] : self._offsets[token + 1]])

    def _find_word(self, text: bytes) -> int:
        hashed = zlib.crc32(text)
        size = len(self._words)
        slot = hashed * size >> 32
        for _ in range(size):
            entry = self._words[slot]
            if entry == 0:
                break
            token = (entry & 0xFFFFFF) - 1
            if entry >> 24 == hashed & 0xFF and 0 <= token < self._tokens and self._text_of(token) == text:
                return int(token)
            slot = slot + 1 if slot + 1 < size else 0
        return -1

    def _find_pair(self, left: int, right: int) -> tuple[int, int] | None:
        size = len(self._pairs) // 4
        slot = table.pair_hash(left, right) * size >> 32
        for _ in range(size):
            found_left, found_right, rank, whole = self._pairs[4 * slot : 4 * slot + 4]
            if found_left == table.EMPTY:
                break
            if (found_left, found_right) == (left, right):
                return (rank, whole) if whole < self._tokens else None
            slot = slot + 1 if slot + 1 < size else 0
        return None

    def _find_special(self, text: bytes, at: int, control: bool) -> int:
        low, high = self._specials[text[at]], self._specials[text[at] + 1]
        found = -1
        if low >= high or high > len(self._specials) - 257:
            return found
        ids = self._specials[257:]
        for depth in range(1, len(text) - at + 1):
            first = self._text_of(ids[low])
            if len(first) == depth and (control or self._types[ids[low]] == table.USER_DEFINED):
                found = int(ids[low])
            if at + depth == len(text):
                break
            # The tokens lie sorted: each byte narrows the range.
            prefix = text[at : at + depth + 1]
            start_of = functools.partial(self._start_of, len(prefix))
            low = bisect_left(ids, prefix, low, high, key=start_of)
            high = bisect_right(ids, prefix, low, high, key=start_of)
            if low >= high:
                break
        return found

    def _start_of(self, length: int, token: int) -> bytes:
        return self._text_of(token)[:length]

    # -- cutting words

    def _compile(self, program: memoryview[int]) -> Iterator[re.Pattern[str]]:
        stages, sequences, items, classes = program[:4]
        spans = program[4 : 4 + 2 * (stages + sequences)]
        first_item = 4 + 2 * (stages + sequences)
        first_class = first_item + 4 * items
        bits = np.frombuffer(program[first_class : first_class + 8 * classes], dtype="<u4").view(np.uint8)
        member = np.unpackbits(bits.reshape(-1, 32), axis=1, bitorder="little")
        long_s = re.escape(self._atom(chr(LONG_S)))
        contraction = rf"'(?:[sSdDmMtT{long_s}]|[lL][lL]|[vV][eE]|[rR][eE])"

        def item(at: int) -> str:
            kind, number, least, most = program[at : at + 4]
            if kind == CONTRACTION:
                return f"(?:{contraction})" + ("" if most else "?")
            chars = "".join(re.escape(chr(atom)) for atom in np.flatnonzero(member[number]))
            one_of = f"[{chars}]" if chars else "(?!)"
            return f"(?!{one_of})" if kind == NOT_NEXT else f"{one_of}{{{least},{'' if most == UNBOUNDED else most}}}"

        for stage in range(stages):
            first, count = spans[2 * stage : 2 * stage + 2]
            alternatives = []
            for sequence in range(stages + first, stages + first + count):
                start, length = spans[2 * sequence : 2 * sequence + 2]
                alternatives.append("".join(item(first_item + 4 * i) for i in range(start, start + length)))
            yield re.compile("|".join(alternatives))

    def _atom(self, char: str) -> str:
        point = ord(char)
        return char if point < 128 else chr(self._atoms[self._pages[point >> 8] * 256 + (point & 255)])

    def _cut(self, text: bytes) -> list[bytes]:
        chars = text.decode("utf-8", "replace")
        atoms = "".join(map(self._atom, chars))
        pieces = [(0, len(chars))]
        for pattern in self._stages:
            pieces = [part for start, end in pieces for part in _parts(pattern, atoms, start, end)]
        return [chars[start:end].encode() for start, end in pieces]

    # -- merging

    def _fragment(self, text: bytes, prefix: bool, ids: list[int]) -> None:
        if not text:
            return
        if self._kind == table.BPE:
            for word in self._cut(text):
                self._bpe_word(word, ids)
            return
        text = (b" " if prefix else b"") + text.replace("\u2581".encode(), b" ")
        start = 0
        for at in range(1, len(text)):
            before = text[at - 1]
            if text[at] == 0x20 and not self._glue[before >> 3] >> (before & 7) & 1:
                self._spm_word(text[start:at], ids)
                start = at
        self._spm_word(text[start:], ids)

    def _bpe_word(self, word: bytes, ids: list[int]) -> None:
        if self._flags & table.IGNORE_MERGES and (whole := self._find_word(word)) >= 0:
            ids.append(whole)
            return
        tokens = [(byte, self._bytes[byte]) for byte in word]
        symbols = [(bytes([byte]), token) for byte, token in tokens if 0 <= token < self._tokens]
        ids += [token for _, token in merge(symbols, lambda left, right: self._find_pair(left[1], right[1]))]

    def _spm_word(self, word: bytes, ids: list[int]) -> None:
        symbols = [(char.encode(), _NOT_LOOKED) for char in word.decode("utf-8", "replace")]
        for text, token in merge(symbols, self._joined):
            if token == _NOT_LOOKED:
                token = self._find_word(text)
            if token >= 0:
                ids.append(token)
            elif all(0 <= self._bytes[byte] < self._tokens for byte in text):
                ids += [self._bytes[byte] for byte in text]
            elif self._unknown >= 0:
                ids.append(self._unknown)

    def _joined(self, left: Symbol, right: Symbol) -> tuple[int, int] | None:
        token = self._find_word(left[0] + right[0])
        return None if token < 0 else (self._priority[token], token)


def _parts(pattern: re.Pattern[str], atoms: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The matches and the stretches between them. A look-ahead sees nothing beyond the piece."""
    at = start
    for match in pattern.finditer(atoms[start:end]):
        first, last = start + match.start(), start + match.end()
        if first == last:
            continue
        if at < first:
            yield at, first
        yield first, last
        at = last
    if at < end:
        yield at, end


def merge(symbols: list[Symbol], join: Callable[[Symbol, Symbol], tuple[float, int] | None]) -> list[Symbol]:
    """Merge the pair of the lowest rank, leftmost first, until none is left: a heap over a linked list."""
    alive: list[Symbol | None] = list(symbols)
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    heap: list[tuple[float, int, int, Symbol, Symbol]] = []

    def consider(at: int) -> None:
        left, right = alive[at], alive[after[at]]
        if left is not None and right is not None and (found := join(left, right)) and found[0] != table.EMPTY:
            heapq.heappush(heap, (found[0], at, found[1], left, right))

    for at in range(len(symbols) - 1):
        consider(at)
    while heap:
        _, at, token, left, right = heapq.heappop(heap)
        following = after[at]
        if following < 0 or alive[at] is not left or alive[following] is not right:
            continue  # one of the two has been merged since
        alive[at], alive[following] = (left[0] + right[0], token), None
        after[at] = after[following]
        if after[at] >= 0:
            before[after[at]] = at
            consider(at)
        if before[at] >= 0:
            consider(before[at])
    return [symbol for symbol in alive if symbol is not None]
