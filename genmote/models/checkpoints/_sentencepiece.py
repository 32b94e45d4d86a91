"""Read SentencePiece's tokenizer.model: a protocol buffer, of which a tokenizer needs five fields.

Field numbers are those of sentencepiece_model.proto (https://github.com/google/sentencepiece): a model has pieces (1),
a trainer spec (2) and a normalizer spec (3); a piece has text (1), score (2) and type (3); the trainer spec has the
kind of model (3), the normalizer spec says whether a space is put before every text (3).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from genmote.errors import ModelFileError

_BPE = 2  # TrainerSpec.ModelType; 1, the default, is unigram
_NORMAL = 1
_MOST_BYTES = 1 << 28
Value = int | bytes


@dataclass(frozen=True)
class Pieces:
    """The vocabulary in the order of its ids; `types` are SentencePiece's, which GGUF shares."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool


def read_pieces(path: Path) -> Pieces:
    """The vocabulary of a tokenizer.model; ``ModelFileError`` for a damaged one and for kinds that are not BPE."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelFileError(f"{path}: has {path.stat().st_size} bytes, wanted at most {_MOST_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from None
    kind, space_prefix = 1, True
    texts, scores, types = [], [], []
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_bytes(value)))
                texts.append(_bytes(piece.get(1, b"")).decode("utf-8"))
                scores.append(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
                types.append(_integer(piece.get(3, _NORMAL)))
            elif number == 2:
                kind = _integer(dict(_fields(_bytes(value))).get(3, kind))
            elif number == 3:
                space_prefix = bool(_integer(dict(_fields(_bytes(value))).get(3, 1)))
        if not texts or any(not 1 <= kind <= 6 for kind in types):
            raise ValueError("no pieces, or pieces of unknown type")
    except (ValueError, struct.error) as error:
        raise ModelFileError(f"{path}: is no SentencePiece model ({error}); fetch it again") from None
    if kind != _BPE:
        raise ModelFileError(
            f"{path}: is a SentencePiece model of kind {kind}, only BPE (2) is read; use another model"
        )
    return Pieces(texts, scores, types, space_prefix)


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """(number, value) of a message's fields: integers, or the bytes of everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None or size > len(data) - at:
            raise ValueError(f"a field of wire type {wire} at byte {at} does not fit")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError(f"a number at byte {at} has no end")


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes were wanted")
    return value


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number was wanted")
    return value
