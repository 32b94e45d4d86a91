"""What a token table is made from, read out of a GGUF file's metadata and checked."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from genmote.digest import sha256
from genmote.errors import ModelFileError
from genmote.models.gguf_values import MetaArray
from genmote.models.tokenizer import table, variants

_PART_BYTES = 1 << 18
_MODELS = {"gpt2": table.BPE, "llama": table.SPM}


class HasMetadata(Protocol):
    """The part of a model file that a tokenizer needs."""

    @property
    def path(self) -> os.PathLike[str]: ...
    @property
    def metadata(self) -> Any: ...


@dataclass(frozen=True)
class Vocabulary:
    """Strings as GGUF stores them (u64 length, bytes), one after the other; `types` u8, `priority` u32 a token."""

    kind: int
    stages: tuple[str, ...]  # the pre-tokenizer's expressions (BPE)
    flags: int
    unknown: int
    tokens: int
    token_strings: bytes
    types: bytes
    priority: bytes
    merges: int
    merge_strings: bytes


class Outline:
    """What the metadata says of a vocabulary, checked, with its large arrays still in the file.

    Raises `ModelFileError` where the metadata does not make a tokenizer that genmote knows.
    """

    def __init__(self, model: HasMetadata) -> None:
        self.model = model
        name = model.metadata.get("tokenizer.ggml.model")
        if name not in _MODELS:
            raise ModelFileError(
                f"{model.path}: tokenizer.ggml.model is {name!r}, genmote knows {' and '.join(map(repr, _MODELS))}; "
                "take a model with one of these tokenizers"
            )
        self.kind = _MODELS[name]
        bpe = self.kind == table.BPE
        self.variant = pre_tokenizer(model) if bpe else None
        self.strings = _array(model, "tokenizer.ggml.tokens", wants_strings=True)
        self.tokens = len(self.strings)
        if not 0 < self.tokens <= table.MAX_TOKENS:
            raise ModelFileError(
                f"{model.path}: tokenizer.ggml.tokens has {self.tokens} entries, wanted 1 to {table.MAX_TOKENS}; "
                "the file is damaged"
            )
        self.merges = _array(model, "tokenizer.ggml.merges", wants_strings=True) if bpe else None
        self.scores = None if bpe else self._per_token("tokenizer.ggml.scores")
        has_types = "tokenizer.ggml.token_type" in model.metadata
        self.types = self._per_token("tokenizer.ggml.token_type") if has_types else None
        # A missing byte of BPE is left out, so only SPM ever writes the unknown token.
        self.unknown = -1 if bpe else token_key(model, "unknown", self.tokens, -1)
        marks = (token_key(model, name, self.tokens, -1) for name in ("bos", "eos", "eot", "padding"))
        self.control = () if has_types else tuple(token for token in marks if token >= 0)

    def head(self) -> str:
        """What the table depends on besides the arrays."""
        # Only a pre-tokenizer looks characters up, in the Unicode database of this Python.
        unicode = unicodedata.unidata_version if self.variant else ""
        return repr((table.VERSION, unicode, self.kind, self.variant, self.unknown, self.tokens, self.control))

    def key(self) -> bytes:
        """SHA-256 of everything that the table depends on. Reads the arrays, but never holds more than a part."""
        digest = sha256(self.head().encode())
        for array in (self.strings, self.types, self.scores, self.merges):
            if array is not None:
                digest.update(repr((len(array), array.element_type)).encode())
                for part in _parts(self.model, array):
                    digest.update(part)
        return digest.digest()

    def read(self) -> Vocabulary:
        """Everything at once. Raises `ModelFileError` for a token type or score that cannot be."""
        return Vocabulary(
            kind=self.kind,
            stages=self.variant.stages if self.variant else (),
            flags=table.IGNORE_MERGES if self.variant and self.variant.ignore_merges else 0,
            unknown=self.unknown,
            tokens=self.tokens,
            token_strings=b"".join(map(bytes, _parts(self.model, self.strings))),
            types=self._read_types(),
            priority=b"" if self.scores is None else self._read_priority(self.scores),
            merges=len(self.merges) if self.merges else 0,
            merge_strings=b"".join(map(bytes, _parts(self.model, self.merges))) if self.merges else b"",
        )

    def _per_token(self, key: str) -> MetaArray:
        array = _array(self.model, key, wants_strings=False)
        if len(array) != self.tokens:
            raise ModelFileError(
                f"{self.model.path}: {key} has {len(array)} entries for {self.tokens} tokens; the file is damaged"
            )
        return array

    def _read_types(self) -> bytes:
        if self.types is None:
            types = np.full(self.tokens, table.NORMAL, dtype=np.uint8)
            types[list(self.control)] = table.CONTROL
            return types.tobytes()
        numbers = self.types.numpy()
        wrong = np.flatnonzero((numbers < 0) | (numbers > table.BYTE))
        if len(wrong):
            raise ModelFileError(
                f"{self.model.path}: tokenizer.ggml.token_type of token {wrong[0]} is {numbers[wrong[0]]}, "
                "wanted 0 to 6; the file is damaged"
            )
        return np.where(numbers == 0, table.NORMAL, numbers).astype(np.uint8).tobytes()

    def _read_priority(self, array: MetaArray) -> bytes:
        """Scores as u32 that sort the other way round: the pair of the highest score merges first."""
        scores = array.numpy().astype(np.float32)
        wrong = np.flatnonzero(np.isnan(scores))
        if len(wrong):
            raise ModelFileError(
                f"{self.model.path}: tokenizer.ggml.scores of token {wrong[0]} is NaN; the file is damaged"
            )
        bits = (scores + np.float32(0)).view(np.uint32)  # + 0: there is one zero, not two
        return np.where(bits >> 31, bits, ~(bits | np.uint32(1 << 31))).astype("<u4").tobytes()


def pre_tokenizer(model: HasMetadata) -> variants.Variant:
    """The variant that the file names; a file from before the key existed gets the default one."""
    name = model.metadata.get("tokenizer.ggml.pre", "default")
    try:
        return variants.variant(name)
    except ModelFileError as error:
        raise ModelFileError(f"{model.path}: {error}") from None


def token_key(model: HasMetadata, name: str, tokens: int, absent: int) -> int:
    """``tokenizer.ggml.NAME_token_id``, checked; `absent` where there is none (or the 2^32 - 1 that means none)."""
    value = model.metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None or value == 0xFFFFFFFF or value == -1:
        return absent
    if type(value) is not int or not 0 <= value < tokens:
        raise ModelFileError(
            f"{model.path}: tokenizer.ggml.{name}_token_id is {value!r}, wanted 0 to {tokens - 1}; the file is damaged"
        )
    return value


def _array(model: HasMetadata, key: str, wants_strings: bool) -> MetaArray:
    array = model.metadata.get(key)
    if not isinstance(array, MetaArray):
        raise ModelFileError(f"{model.path}: has no array {key}; take a whole model file, with its tokenizer")
    if (array.element_type == "string") != wants_strings:
        wanted = "strings" if wants_strings else "numbers"
        raise ModelFileError(f"{model.path}: {key} holds {array.element_type}, wanted {wanted}; the file is damaged")
    return array


def _parts(model: HasMetadata, array: MetaArray) -> Iterator[memoryview]:
    """An array's bytes piece by piece, each good until the next; read and not mapped: pages of the map would stay
    counted as this process's memory."""
    start, left = array.raw_span()
    buffer = memoryview(bytearray(min(left, _PART_BYTES)))
    with open(model.path, "rb", buffering=0) as file:
        file.seek(start)
        while left:
            size = file.readinto(buffer[:left])
            if not size:
                raise ModelFileError(f"{model.path}: has become shorter since it was opened; open it again")
            yield buffer[:size]
            left -= size
