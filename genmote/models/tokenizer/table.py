"""The tokenizer's table: one file that holds all an encoder needs, made once from a GGUF vocabulary and memory-mapped.

Little-endian. A header of 320 bytes::

    0   8 bytes  magic "GMTOKTAB"          24  u32  tokens          32  i32      unknown token, -1: none
    8   u32      format version            28  u32  flags           36  u32      CRC-32 of the header, taken with 0 here
    12  u32      kind: 0 BPE, 1 SPM                                 40  32 bytes key: SHA-256 of what it was made from
    16  u64      bytes of the whole table                           72  (u64 offset, u64 bytes) of each section

    264 u32      CRC-32 of PROGRAM, the one section whose damage could make an encoder hang

and the sections, each at a multiple of 64 bytes:

    OFFSETS   u32[tokens + 1]  where each token's bytes lie in TEXT
    TEXT      u8[...]          the bytes that each token stands for (SPM: a space is a space, not U+2581)
    TYPES     u8[tokens]       GGUF token types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    WORDS     u32[slots]       hash table, text -> token of type 1 or 5: id + 1 and 8 bits of the hash << 24; 0 is empty
    PRIORITY  u32[tokens]      SPM: order of merging into the token, lowest first (the score's bits, made to sort so)
    PAIRS     u32[slots, 4]    BPE: hash table (left, right, rank, merged token); left 0xFFFFFFFF is empty
    BYTES     i32[256]         the token of each byte, -1: none
    SPECIALS  u32[257 + n]     tokens of type 2, 3, 4 in the order of their bytes, after the start of each first byte
    GLUE      u8[32]           SPM: bit b: some token has byte b before a space, so words are not cut there
    PAGES     u16[4352]        \\ code point to atom, see `genmote.models.tokenizer.pattern`
    ATOMS     u8[256 * pages]  /
    PROGRAM   u32[...]         the pre-tokenizer, see the same place

Slots are found by ``hash * slots >> 32`` and linear probing; the hash of a text is its CRC-32, the hash of a pair the
upper half of ``(left << 32 | right) * 0x9E3779B97F4A7C15``. The header's checksum tells a torn or foreign file; the
rest is not read at load time (that is the point), so readers bound every id and offset that they take from it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

MAGIC = b"GMTOKTAB"
VERSION = 1
BPE, SPM = 0, 1
IGNORE_MERGES = 1  # flag: a word that is a token as it stands is taken without merging
MAX_TOKENS = 0xFFFFFE  # an id and 8 bits of hash share a word
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SECTIONS = "OFFSETS TEXT TYPES WORDS PRIORITY PAIRS BYTES SPECIALS GLUE PAGES ATOMS PROGRAM".split()
OFFSETS, TEXT, TYPES, WORDS, PRIORITY, PAIRS, BYTES, SPECIALS, GLUE, PAGES, ATOMS, PROGRAM = range(len(SECTIONS))
HEADER_BYTES = 320
_HEADER = struct.Struct("<8sIIQIIiI32s")
_PROGRAM_CRC = 264
_ALIGN = 64
_ITEM_BYTES = (4, 1, 1, 4, 4, 16, 4, 4, 1, 2, 1, 4)
GOLDEN = 0x9E3779B97F4A7C15
EMPTY = 0xFFFFFFFF


def slots_for(entries: int) -> int:
    """Slots of a hash table of `entries`: two thirds full at most, and never without an empty slot."""
    return entries + entries // 2 + 1


def pair_hash(left: int, right: int) -> int:
    return ((left << 32 | right) * GOLDEN & 0xFFFFFFFFFFFFFFFF) >> 32


def assemble(kind: int, flags: int, unknown: int, tokens: int, key: bytes, sections: Sequence[bytes]) -> bytes:
    """Lay header and sections out as one table."""
    spans, at = [], HEADER_BYTES
    for section in sections:
        at = -(-at // _ALIGN) * _ALIGN
        spans.append((at, len(section)))
        at += len(section)
    table = bytearray(at)
    for number, ((start, size), section) in enumerate(zip(spans, sections, strict=True)):
        table[start : start + size] = section
        struct.pack_into("<QQ", table, _HEADER.size + 16 * number, start, size)
    _HEADER.pack_into(table, 0, MAGIC, VERSION, kind, at, tokens, flags, unknown, 0, key)
    struct.pack_into("<I", table, _PROGRAM_CRC, zlib.crc32(sections[PROGRAM]))
    struct.pack_into("<I", table, 36, zlib.crc32(table[:HEADER_BYTES]))
    return bytes(table)


def problem(table: npt.NDArray[np.uint8]) -> str | None:
    """What is wrong with a table's header and sizes, or None. Touches one page and the smallest sections only."""
    if len(table) < HEADER_BYTES:
        return "it is shorter than a header"
    header = bytearray(table[:HEADER_BYTES].tobytes())
    magic, version, kind, size, tokens, _flags, unknown, crc, _key = _HEADER.unpack_from(header)
    if magic != MAGIC or version != VERSION:
        return "it is not a table of this version"
    struct.pack_into("<I", header, 36, 0)
    if zlib.crc32(header) != crc:
        return "its header is damaged"
    if size != len(table) or kind not in (BPE, SPM) or not 0 < tokens <= MAX_TOKENS or not -1 <= unknown < tokens:
        return "its sizes are wrong"
    counts = []
    for number in range(len(SECTIONS)):
        start, length = struct.unpack_from("<QQ", header, _HEADER.size + 16 * number)
        if start % _ALIGN or start + length > size or length % _ITEM_BYTES[number]:
            return f"section {SECTIONS[number]} is wrong"
        counts.append(length // _ITEM_BYTES[number])
    wanted = {OFFSETS: tokens + 1, TYPES: tokens, BYTES: 256, GLUE: 32}
    wanted |= {PRIORITY: tokens} if kind == SPM else {PAGES: 0x1100}
    least = {WORDS: 1, SPECIALS: 257} | ({PAIRS: 1, ATOMS: 256, PROGRAM: 4} if kind == BPE else {})
    for number, count in enumerate(counts):
        if wanted.get(number, count) != count or count < least.get(number, 0):
            return f"section {SECTIONS[number]} has {count} entries"
    if kind == SPM:
        return None
    program = view(table, PROGRAM)
    if zlib.crc32(program) != struct.unpack_from("<I", header, _PROGRAM_CRC)[0]:
        return "its program is damaged"
    return _program_problem(view(table, PAGES), counts[ATOMS], program)


def _program_problem(pages: memoryview, atoms: int, program: memoryview) -> str | None:
    if (max(pages) + 1) * 256 > atoms:
        return "a page lies outside the atoms"
    stages, alternatives, items, classes = program[:4]
    if len(program) != 4 + 2 * stages + 2 * alternatives + 4 * items + 8 * classes or stages > 32:
        return "its program's size is wrong"
    for start, count, limit in ((4, stages, alternatives), (4 + 2 * stages, alternatives, items)):
        for at in range(start, start + 2 * count, 2):
            if program[at] + program[at + 1] > limit or not 0 < program[at + 1] <= 32:
                return "its program is damaged"
    first = 4 + 2 * stages + 2 * alternatives
    for at in range(first, first + 4 * items, 4):
        if program[at] > 2 or program[at + 1] >= classes:
            return "its program is damaged"
    return None


_Format = Literal["B", "H", "I", "i"]
_FORMATS: tuple[_Format, ...] = ("I", "B", "B", "I", "I", "I", "i", "I", "B", "H", "B", "I")


def view(table: npt.NDArray[np.uint8], section: int) -> memoryview[int]:
    """A section as a typed memory view: cheap to index from Python, no copy."""
    at = _HEADER.size + 16 * section
    start, length = struct.unpack("<QQ", table[at : at + 16].tobytes())
    return table[start : start + length].data.cast(_FORMATS[section])


def describe(table: npt.NDArray[np.uint8]) -> tuple[int, int, int, int, bytes]:
    """(kind, flags, unknown token, tokens, key) of a checked table."""
    _, _, kind, _, tokens, flags, unknown, _, key = _HEADER.unpack_from(table[: _HEADER.size].tobytes())
    return kind, flags, unknown, tokens, key
