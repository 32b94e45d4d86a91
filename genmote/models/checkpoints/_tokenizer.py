"""The tokenizer of a Hugging Face model folder as the metadata of a GGUF file.

Two kinds: byte-level BPE (tokenizer.json, or vocab.json with merges.txt), and SentencePiece's BPE (tokenizer.model, or
tokenizer.json with `byte_fallback`, whose merges tell the scores). Keys and token types are those of the GGUF
specification; which tokens count as control tokens although they are not marked is llama.cpp's custom.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from genmote.errors import ModelFileError
from genmote.models.checkpoints._folder import Folder, mappings, steps_of
from genmote.models.checkpoints._pre_tokenizer import is_byte_level, name_of
from genmote.models.checkpoints._sentencepiece import read_pieces
from genmote.models.checkpoints._special_tokens import marks, templates

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
FAST, SLOW, PIECES = "tokenizer.json", "vocab.json", "tokenizer.model"
SPACE = "\u2581"  # how SentencePiece writes a space
_HOLE_SCORE, _ADDED_SCORE = -10000.0, -1000.0
# Tokens that are marked as text, but control something: <|name|>, Gemma's unused and masks, DeepSeek's.
_LOOKS_CONTROL = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)


def tokenizer(folder: Folder, rows: int) -> tuple[dict[str, Any], list[str]]:
    """(metadata, what to tell) of the folder's tokenizer for an embedding table of `rows` rows."""
    fast = folder.json(FAST) or _slow(folder)
    if not fast and not folder.has(PIECES):
        raise ModelFileError(
            f"{folder.path}: has no tokenizer ({FAST}, {PIECES}, or {SLOW} with merges.txt); fetch the whole model"
        )
    table = _Table(folder, rows)
    if fast and is_byte_level(fast):
        metadata = _byte_level(table, fast)
    elif folder.has(PIECES):
        metadata = _pieces(table, fast)
    else:
        metadata = _from_merges(table, fast)
    spm = metadata["tokenizer.ggml.model"] == "llama"
    return metadata | marks(folder, fast, table.ids, rows, begins=spm) | templates(folder), table.notes


class _Table:
    """The tokens by id, one for each row of the embedding; what no tokenizer names is an unused [PADid]."""

    def __init__(self, folder: Folder, rows: int) -> None:
        self.folder, self.rows, self.notes = folder, rows, list[str]()
        self.texts = [f"[PAD{token}]" for token in range(rows)]
        self.types = [UNUSED] * rows
        self.scores = [_HOLE_SCORE] * rows
        self.ids: dict[str, int] = {}

    def put(self, token: int, text: str, kind: int, score: float = 0.0) -> None:
        self.texts[token], self.types[token], self.scores[token] = text, kind, score
        self.ids[text] = token

    def base(self, vocabulary: Any) -> dict[int, str]:
        """id → text of a tokenizer.json's own vocabulary, checked."""
        if not isinstance(vocabulary, Mapping) or not vocabulary:
            raise self.folder.fail(FAST, "has no model.vocab from texts to ids; fetch it again")
        for text, token in vocabulary.items():
            if type(token) is not int or not 0 <= token < self.rows:
                raise self.folder.fail(
                    FAST, f"token {text!r:.80} has id {token!r:.40}, but the model knows 0 to {self.rows - 1}"
                )
        found = {token: text for text, token in vocabulary.items()}
        if len(found) < len(vocabulary):
            raise self.folder.fail(FAST, f"{len(vocabulary)} tokens share {len(found)} ids; it is damaged")
        return found

    def add(self, fast: Mapping[str, Any], *, pieces: bool) -> None:
        """Put the added tokens in: control tokens, and texts that are found before anything is merged."""
        beyond = 0
        for token, (text, special) in _added(self.folder, fast).items():
            if token >= self.rows:
                beyond += 1
                continue
            if self.types[token] == UNKNOWN:
                continue
            control = special or _LOOKS_CONTROL.fullmatch(text) is not None
            text = text.replace(SPACE, " ") if pieces and not control else text
            self.put(token, text, CONTROL if control else USER_DEFINED, _ADDED_SCORE)
        if beyond:
            self.notes.append(f"{beyond} tokens beyond the embedding's {self.rows} rows are left out")

    def metadata(self, model: str, pre: str) -> dict[str, Any]:
        return {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": self.texts,
            "tokenizer.ggml.token_type": np.array(self.types, np.int32),
        }


def _byte_level(table: _Table, fast: Mapping[str, Any]) -> dict[str, Any]:
    model = fast["model"]
    for token, text in table.base(model.get("vocab")).items():
        table.put(token, text, NORMAL)
    table.add(fast, pieces=False)
    pre, note = name_of(table.folder, fast)
    table.notes += note
    made = table.metadata("gpt2", pre)
    if merges := _merges(table.folder, model):
        # A space inside a part would end it: it is written as the letter for it, as in every byte-level vocabulary.
        made["tokenizer.ggml.merges"] = [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]
    else:
        raise table.folder.fail(FAST, "has no merges; a byte-level BPE needs them: fetch it again")
    if isinstance(prefix := table.folder.json("tokenizer_config.json").get("add_prefix_space"), bool):
        made["tokenizer.ggml.add_space_prefix"] = prefix
    return made


def _pieces(table: _Table, fast: Mapping[str, Any]) -> dict[str, Any]:
    pieces = read_pieces(table.folder.path / PIECES)
    if len(pieces.texts) > table.rows:
        table.notes.append(
            f"{len(pieces.texts) - table.rows} pieces beyond the embedding's {table.rows} rows are left out"
        )
    for token in range(min(table.rows, len(pieces.texts))):
        table.put(token, pieces.texts[token], pieces.types[token], pieces.scores[token])
    table.add(fast, pieces=True)
    return _scored(table, _space_prefix(fast) if fast else pieces.space_prefix)


def _from_merges(table: _Table, fast: Mapping[str, Any]) -> dict[str, Any]:
    """A converted SentencePiece model: a piece's score falls with the place of the merge that makes it."""
    model = fast.get("model")
    if not isinstance(model, Mapping) or model.get("type") != "BPE" or not model.get("byte_fallback"):
        kind = model.get("type") if isinstance(model, Mapping) else None
        raise table.folder.fail(
            FAST,
            f"is a tokenizer of kind {kind!r:.40}: wanted byte-level BPE or SentencePiece's BPE; use another model",
        )
    base, merges = table.base(model.get("vocab")), _merges(table.folder, model)
    rank: dict[str, int] = {}
    for pair in merges:
        rank.setdefault("".join(pair), len(rank))
    for token, text in base.items():
        kind = BYTE if re.fullmatch("<0x[0-9A-F]{2}>", text) else NORMAL
        kind = UNKNOWN if text == model.get("unk_token") else kind
        table.put(token, text, kind, -float(rank.get(text, len(rank))) if kind == NORMAL else 0.0)
    table.add(fast, pieces=True)
    normal = {text for token, text in base.items() if table.types[token] == NORMAL}
    if wrong := _unlike_pieces(merges, normal):
        table.notes.append(
            f"{wrong} joins of its vocabulary are no SentencePiece model's: some texts will be cut otherwise"
        )
    return _scored(table, _space_prefix(fast))


def _unlike_pieces(merges: list[tuple[str, str]], normal: set[str]) -> int:
    """How many joins differ from SentencePiece's rule: any two pieces join whose whole is a piece, best whole first."""
    joins = set(merges)
    wrong = sum(
        (text[:cut], text[cut:]) not in joins
        for text in normal
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    )
    seen: set[str] = set()
    last = ""
    for pair in merges:
        whole = "".join(pair)
        wrong += whole != last and whole in seen
        seen.add(whole)
        last = whole
    return wrong


def _scored(table: _Table, space_prefix: bool) -> dict[str, Any]:
    return table.metadata("llama", "default") | {
        "tokenizer.ggml.scores": np.array(table.scores, np.float32),
        "tokenizer.ggml.add_space_prefix": space_prefix,
    }


def _space_prefix(fast: Mapping[str, Any]) -> bool:
    """Whether a space is put before every text: a normalizer that prepends it, or words marked so."""
    steps = [*steps_of(fast.get("normalizer"), "normalizers"), *steps_of(fast.get("pre_tokenizer"), "pretokenizers")]
    return any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )


def _merges(folder: Folder, model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges as pairs; files have them as pairs or as texts with a space between."""
    merges = model.get("merges") or []
    whole = isinstance(merges, list) and all(isinstance(merge, str | list) for merge in merges)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges] if whole else [[]]
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise folder.fail(FAST, "has merges that are no pairs of texts; fetch it again")
    return [(pair[0], pair[1]) for pair in pairs]


def _added(folder: Folder, fast: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """id → (text, special) of tokens that were added to the vocabulary; three files may have them."""
    found: dict[int, tuple[str, bool]] = {}
    for text, token in folder.json("added_tokens.json").items():
        if type(token) is int and token >= 0:
            found[token] = text, False
    listed = mappings(fast.get("added_tokens"))
    decoder = folder.json("tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        named = ((token, entry) for token, entry in decoder.items() if isinstance(entry, Mapping))
        listed += [{**entry, "id": int(token)} for token, entry in named if token.isdecimal() and len(token) < 10]
    for entry in listed:
        place, content = entry.get("id"), entry.get("content")
        if type(place) is int and place >= 0 and isinstance(content, str):
            found[place] = content, entry.get("special") is True
    return dict(sorted(found.items()))


def _slow(folder: Folder) -> dict[str, Any]:
    """vocab.json and merges.txt (GPT-2's files) in the form of a tokenizer.json; empty where they are not there."""
    merges = folder.text("merges.txt")
    if merges is None or not folder.has(SLOW):
        return {}
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    return {
        "model": {"type": "BPE", "vocab": folder.json(SLOW), "merges": lines},
        "pre_tokenizer": {"type": "ByteLevel"},
    }
