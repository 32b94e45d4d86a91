"""Makes a token table from a vocabulary: in C++ where the native module is built, else here, byte for byte the same."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from genmote.models.tokenizer import table
from genmote.models.tokenizer.pattern import compile_stages
from genmote.models.tokenizer.vocabulary import Vocabulary

SPACE = "\u2581".encode()  # how SentencePiece writes a space


def build(vocabulary: Vocabulary, key: bytes, native: Any = None) -> bytes:
    """The table's bytes. `native`: the compiled module or None. Raises `ValueError` for strings that lie about size."""
    pages = atoms = program = b""
    if vocabulary.kind == table.BPE:
        compiled = compile_stages(vocabulary.stages)
        pages, atoms, program = compiled.pages.tobytes(), compiled.atoms.tobytes(), compiled.program.tobytes()
    v = vocabulary
    if native is not None:
        built: bytes = native.build_token_table(
            v.kind, v.flags, v.unknown, key, v.tokens, v.token_strings, v.types, v.priority, v.merges, v.merge_strings,
            pages, atoms, program,
        )  # fmt: skip
        return built
    strings = _strings(v.token_strings, v.tokens, "tokenizer.ggml.tokens")
    texts, words, byte_ids = _texts(v, strings)
    offsets = np.concatenate([[0], np.cumsum(list(map(len, texts)))]).astype("<u4")
    sections = [b""] * len(table.SECTIONS)
    sections[table.OFFSETS] = offsets.tobytes()
    sections[table.TEXT] = b"".join(texts)
    sections[table.TYPES] = v.types
    sections[table.WORDS] = _word_slots(texts, words)
    sections[table.PRIORITY] = v.priority
    sections[table.PAIRS] = _pair_slots(v, strings) if v.kind == table.BPE else b""
    sections[table.BYTES] = np.array(byte_ids, dtype="<i4").tobytes()
    sections[table.SPECIALS] = _specials(v.types, texts)
    sections[table.GLUE] = _glue(texts, words) if v.kind == table.SPM else bytes(32)
    sections[table.PAGES], sections[table.ATOMS], sections[table.PROGRAM] = pages, atoms, program
    return table.assemble(v.kind, v.flags, v.unknown, v.tokens, key, sections)


def byte_alphabet() -> dict[str, int]:
    """GPT-2 writes bytes as printable characters: character -> byte (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _strings(raw: bytes, count: int, what: str) -> list[bytes]:
    found, at = [], 0
    for index in range(count):
        size = struct.unpack_from("<Q", raw, at)[0] if at + 8 <= len(raw) else len(raw)
        if at + 8 + size > len(raw):
            raise ValueError(f"{what} ends inside entry {index}")
        found.append(raw[at + 8 : at + 8 + size])
        at += 8 + size
    return found


def _texts(v: Vocabulary, strings: list[bytes]) -> tuple[list[bytes], list[int], list[int]]:
    """(the bytes that each token stands for, the tokens that make words, the token of each byte)."""
    alphabet = byte_alphabet()
    byte_ids = [-1] * 256
    texts, words = [], []
    for token, (string, kind) in enumerate(zip(strings, v.types, strict=True)):
        text = string
        is_word = kind in (table.NORMAL, table.UNUSED)
        if kind == table.BYTE and (byte := _byte_token(string)) >= 0:
            text = bytes([byte])
        elif v.kind == table.BPE and is_word:
            decoded = _from_alphabet(string, alphabet)
            is_word = decoded is not None
            text = string if decoded is None else decoded
        elif v.kind == table.SPM and (is_word or kind == table.USER_DEFINED):
            text = string.replace(SPACE, b" ")
        is_byte = (kind == table.BYTE and text != string) or (v.kind == table.BPE and is_word)
        if is_byte and len(text) == 1 and byte_ids[text[0]] < 0:
            byte_ids[text[0]] = token
        texts.append(text)
        if is_word and text:
            words.append(token)
    return texts, words, byte_ids


def _byte_token(string: bytes) -> int:
    """``<0x0A>`` -> 10, or -1."""
    digits = string[3:5]
    if len(string) != 6 or string[:3] != b"<0x" or string[5:] != b">" or not set(digits) <= set(b"0123456789ABCDEF"):
        return -1
    return int(digits, 16)


def _from_alphabet(string: bytes, alphabet: dict[str, int]) -> bytes | None:
    try:
        return bytes(map(alphabet.__getitem__, string.decode()))
    except (KeyError, UnicodeDecodeError):
        return None


def _word_slots(texts: list[bytes], words: list[int]) -> bytes:
    first: dict[bytes, int] = {}
    for token in words:
        first.setdefault(texts[token], token)
    size = table.slots_for(len(words))
    slots = [0] * size
    for text, token in first.items():
        hashed = zlib.crc32(text)
        slot = hashed * size >> 32
        while slots[slot]:
            slot = slot + 1 if slot + 1 < size else 0
        slots[slot] = (token + 1) | (hashed & 0xFF) << 24
    return np.array(slots, dtype="<u4").tobytes()


def _pair_slots(v: Vocabulary, strings: list[bytes]) -> bytes:
    id_of: dict[bytes, int] = {}
    for token, string in enumerate(strings):
        id_of.setdefault(string, token)
    size = table.slots_for(v.merges)
    slots: list[tuple[int, int, int, int] | None] = [None] * size
    seen: set[tuple[int, int]] = set()
    for rank, merge in enumerate(_strings(v.merge_strings, v.merges, "tokenizer.ggml.merges")):
        gap = merge.find(b" ", 1)
        if gap < 0:
            raise ValueError(f"tokenizer.ggml.merges: entry {rank} is not two parts")
        left, right = id_of.get(merge[:gap]), id_of.get(merge[gap + 1 :])
        whole = id_of.get(merge[:gap] + merge[gap + 1 :])
        # A vocabulary that was cut down keeps merges that lead nowhere; the first of two equal merges counts.
        if left is None or right is None or whole is None or (left, right) in seen:
            continue
        seen.add((left, right))
        slot = table.pair_hash(left, right) * size >> 32
        while slots[slot] is not None:
            slot = slot + 1 if slot + 1 < size else 0
        slots[slot] = (left, right, rank, whole)
    empty = (table.EMPTY,) * 4
    return np.array([entry or empty for entry in slots], dtype="<u4").tobytes()


def _specials(types: bytes, texts: list[bytes]) -> bytes:
    first: dict[bytes, int] = {}
    for token, kind in enumerate(types):
        if table.UNKNOWN <= kind <= table.USER_DEFINED and texts[token]:
            first.setdefault(texts[token], token)
    ordered = sorted(first)
    counts = np.bincount([text[0] + 1 for text in ordered], minlength=257)
    return np.concatenate([np.cumsum(counts), [first[text] for text in ordered]]).astype("<u4").tobytes()


def _glue(texts: list[bytes], words: list[int]) -> bytes:
    bits = np.zeros(256, dtype=np.uint8)
    for token in words:
        text = texts[token]
        at = text.find(b" ", 1)
        while at > 0:
            bits[text[at - 1]] = 1
            at = text.find(b" ", at + 1)
    return np.packbits(bits, bitorder="little").tobytes()
