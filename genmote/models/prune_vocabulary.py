"""Write a model with fewer tokens: the rows of the others leave embedding and output matrix, nothing else changes.

What is written is a plain model with a smaller vocabulary, which any engine runs. Of the tokens that stay:

- Every text still encodes and comes back: the tokens of bytes stay.
- A text whose tokens all stay has the same tokens as before. A token is made by merging two others, and these two are
  the same wherever in a text it is made: what is merged inside its borders does not depend on what lies outside. So
  with a token stay the two that it is made of, and theirs; then each merge of the old run is there in the new run, and
  none that the old run would not have had.
- Their logits have the same bits: a row's product does not feel the other rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError, SpecError
from genmote.models.gguf import ModelFile, TensorInfo
from genmote.models.gguf_write import Progress, Tensor, write_gguf
from genmote.models.tokenizer import table
from genmote.models.tokenizer.build import SPACE, byte_alphabet
from genmote.models.tokenizer.twin import Symbol, merge
from genmote.models.tokenizer.vocabulary import Outline

# Matrices with a row for each token.
TABLES = ("token_embd.weight", "output.weight", "output_b.weight", "output.bias")
KEPT_IDS = "genmote.vocabulary.ids"
# Control tokens of these names are places that a tokenizer's makers left free; nothing was ever trained on them.
_PLACEHOLDER = re.compile(r"unused|reserved", re.IGNORECASE)
_ROWS_AT_ONCE = 4096

Ids = NDArray[np.int64]


def prune_vocabulary(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    keep: Iterable[int],
    *,
    progress: Progress | None = None,
) -> Ids:
    """Write ``source`` to ``target`` with the tokens ``keep`` and those that they need; gives their ids in ``source``,
    ascending: token i of ``target`` is the i-th of them.

    ``SpecError`` for an id outside the vocabulary, ``ModelFileError`` for a damaged source or one without a tokenizer.
    """
    model = ModelFile.open(source)
    vocabulary = Words(model)
    kept = vocabulary.closed(keep)
    metadata = {key: value for key, value in model.typed_metadata().items() if key != "tokenizer.huggingface.json"}
    metadata |= vocabulary.pruned(kept)
    tensors: list[Tensor] = []
    for info in model.tensors.values():
        if info.name not in TABLES:
            tensors.append((info.name, info.type, info.shape, model.raw(info.name)))
            continue
        if info.shape[0] < vocabulary.size:
            raise ModelFileError(
                f"{model.path.name}: {info.name} has {info.shape[0]} rows for {vocabulary.size} tokens; "
                "the file is damaged"
            )
        tensors.append((info.name, info.type, (len(kept), *info.shape[1:]), _Rows(model, info, kept)))
    write_gguf(target, metadata, tensors, progress=progress)
    return kept


def most_used(source: str | os.PathLike[str] | ModelFile, counts: NDArray[Any], size: int) -> Ids:
    """The tokens of a vocabulary of ``size``: what must stay, then the ones that were counted most, ``counts`` (V,),
    each with those that it is made of; of equal counts the lower id first, which is the earlier merge.

    ``SpecError`` for counts that are not one number from 0 up for each token, and for a size below the least.
    """
    model = source if isinstance(source, ModelFile) else ModelFile.open(source)
    vocabulary = Words(model)
    numbers = np.asarray(counts)
    if numbers.shape != (vocabulary.size,) or numbers.dtype.kind not in "iuf" or not (numbers >= 0).all():
        raise SpecError(
            f"counts of {numbers.dtype} {numbers.shape}: wanted ({vocabulary.size},), a number from 0 up for each token"
        )
    kept = set(vocabulary.closed(()).tolist())
    if not len(kept) <= size <= vocabulary.size:
        raise SpecError(
            f"size={size}: {model.path.name} has {vocabulary.size} tokens, of which at least {len(kept)} must stay"
        )
    for token in np.argsort(-numbers.astype(np.float64), kind="stable").tolist():
        if len(kept) == size:
            break
        new = vocabulary.needed(token, kept)
        if len(kept) + len(new) <= size:
            kept |= new
    return np.array(sorted(kept), np.int64)


class Words:
    """A model file's tokens, and what each is made of."""

    def __init__(self, model: ModelFile) -> None:
        """Raises ModelFileError where the metadata makes no tokenizer that genmote knows."""
        outline = Outline(model)
        self.model, self.kind, self.size = model, outline.kind, outline.tokens
        self.strings = outline.strings.strings()
        self.types = np.frombuffer(outline.read().types, np.uint8)
        self.merges = outline.merges.strings() if outline.merges is not None else []

    def closed(self, keep: Iterable[int]) -> Ids:
        """These tokens, what they are made of, and those without which there is no tokenizer: bytes, what is no text
        (but for free places), and what a key of the metadata names. Ascending."""
        asked = sorted(set(map(int, keep)))
        wrong = [token for token in asked if not 0 <= token < self.size]
        if wrong:
            raise SpecError(f"token {wrong[0]}: {self.model.path.name} has tokens 0 to {self.size - 1}")
        kept: set[int] = set()
        for token in (*self._required(), *asked):
            kept |= self.needed(token, kept)
        return np.array(sorted(kept), np.int64)

    def needed(self, token: int, there: set[int]) -> set[int]:
        """A token and the tokens that it is made of, but for those that are there."""
        found: set[int] = set()
        left = [token]
        while left:
            if (one := left.pop()) not in there and one not in found:
                found.add(one)
                left += self._parts(one)
        return found

    def pruned(self, kept: Ids) -> dict[str, Any]:
        """The metadata that a file of the kept tokens has instead."""
        old = self.model.metadata
        metadata: dict[str, Any] = {}
        strings = [self.strings[token] for token in kept]
        new = {int(token): place for place, token in enumerate(kept)}
        metadata["tokenizer.ggml.tokens"] = strings
        for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
            if key in old:
                metadata[key] = old[key].numpy()[kept]
        if self.merges:
            there = set(strings)
            left = [text for text in self.merges if {*(pair := _pair(text)), "".join(pair)} <= there]
            metadata["tokenizer.ggml.merges"] = left or self.merges[:1]  # without any, other engines see no BPE
        for key, token in self._named():
            metadata[key] = np.uint32(new[token])
        if f"{self.model.architecture}.vocab_size" in old:
            metadata[f"{self.model.architecture}.vocab_size"] = np.uint32(len(kept))
        before = old[KEPT_IDS].numpy() if KEPT_IDS in old else np.arange(self.size)
        return metadata | {KEPT_IDS: before[kept].astype(np.uint32)}

    def _named(self) -> Iterator[tuple[str, int]]:
        """Keys that name a token."""
        for key, value in self.model.metadata.items():
            is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
            if is_id and isinstance(value, int) and 0 <= value < self.size:
                yield key, value

    def _required(self) -> Iterator[int]:
        yield from (token for _, token in self._named())
        for token, kind in enumerate(self.types.tolist()):
            special = kind in (table.UNKNOWN, table.CONTROL, table.USER_DEFINED)
            if kind == table.BYTE or (special and not _PLACEHOLDER.search(self.strings[token])):
                yield token
        if self.kind == table.BPE:
            yield from (self._ids[letter] for letter in byte_alphabet() if letter in self._ids)

    @cached_property
    def _texts(self) -> list[str]:
        """What merging sees of the tokens: SentencePiece's mark for a space is a space."""
        mark = SPACE.decode()
        return self.strings if self.kind == table.BPE else [text.replace(mark, " ") for text in self.strings]

    @cached_property
    def _ids(self) -> dict[str, int]:
        """The token of each text that is made by merging; of several the first."""
        found: dict[str, int] = {}
        for token, (text, kind) in enumerate(zip(self._texts, self.types.tolist(), strict=True)):
            if self.kind == table.BPE or kind in (table.NORMAL, table.UNUSED):
                found.setdefault(text, token)
        return found

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        """BPE: the rank of each pair; of equal ones the first."""
        ranks: dict[tuple[str, str], int] = {}
        for rank, text in enumerate(self.merges):
            left, right = _pair(text)
            if left in self._ids and right in self._ids and left + right in self._ids:
                ranks.setdefault((left, right), rank)
        return ranks

    @cached_property
    def _scores(self) -> list[float]:
        scores: list[float] = self.model.metadata["tokenizer.ggml.scores"].numpy().tolist()
        return scores

    def _parts(self, token: int) -> list[int]:
        """What a token is made of: the two tokens that are left when its letters are merged without it. None for a
        letter, for what is no text, and for a token that no text ever becomes."""
        text = self._texts[token]
        if self.types[token] not in (table.NORMAL, table.UNUSED) or len(text) < 2:
            return []

        def before_last(left: Symbol, right: Symbol) -> tuple[float, int] | None:
            return None if len(left[0]) + len(right[0]) == len(whole) else self._rank(left, right)

        whole = text.encode()
        merged = merge([(letter.encode(), 0) for letter in text], before_last)
        if len(merged) != 2 or self._rank(*merged) is None:
            return []
        return [self._ids[name] for part, _ in merged if (name := part.decode()) in self._ids]

    def _rank(self, left: Symbol, right: Symbol) -> tuple[float, int] | None:
        """The place of a pair in the order of merging, or None; `merge` wants a token beside it, which nobody reads."""
        a, b = left[0].decode(), right[0].decode()
        if self.kind == table.BPE:
            rank = self._ranks.get((a, b))
            return None if rank is None else (rank, 0)
        token = self._ids.get(a + b)
        return None if token is None else (-self._scores[token], 0)


def _pair(text: str) -> tuple[str, str]:
    """The two parts of a merge; a space may begin the first.

    >>> _pair("a bc")
    ('a', 'bc')
    """
    gap = text.find(" ", 1)
    return text[:gap], text[gap + 1 :]


class _Rows:
    """Some rows of a tensor, as they lie in the file."""

    def __init__(self, model: ModelFile, info: TensorInfo, rows: Ids) -> None:
        self.model, self.info, self.rows = model, info, rows

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        lines = self.model.raw(self.info.name).reshape(self.info.shape[0], -1)
        for start in range(0, len(self.rows), _ROWS_AT_ONCE):
            yield lines[self.rows[start : start + _ROWS_AT_ONCE]]
