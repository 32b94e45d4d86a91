"""Small legal vocabularies of any size, for models with made-up weights: every text encodes and comes back.

Two kinds: byte-level BPE (GPT-2's scheme: 256 byte tokens and merges) and SentencePiece (byte tokens, characters and
pieces with scores). Entries beyond the first few hundred are pairs and triples of earlier ones, frequent letters first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from genmote.errors import SpecError

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types of GGUF
_FREQUENT = " etaoinshrdlucmfwygpbvk"
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level(size: int, pre: str) -> dict[str, Any]:
    """Metadata of a byte-level BPE tokenizer with ``size`` tokens and the pre-tokenizer ``pre``.

    >>> byte_level(300, "gpt-2")["tokenizer.ggml.merges"][:2]
    ['Ġ Ġ', 'Ġ e']
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = byte_letters()
    if size < len(special) + 256:
        raise SpecError(f"vocab_size={size}: a byte-level vocabulary takes at least {len(special) + 256}")
    first = [letters[ord(c)] for c in _FREQUENT]
    order = first + [letter for letter in letters if letter not in first]
    merges = list(islice(_pairs(order), size - len(special) - 256))
    tokens = special + letters + [left + right for left, right in merges]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": _types(size, {CONTROL: range(3)}),
        # A file without merges is no BPE model to other engines: the smallest vocabulary keeps one that never applies.
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges] or ["Ġ Ġ"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": _CHATML,
    }


def sentence_piece(size: int, special: tuple[str, ...]) -> dict[str, Any]:
    """Metadata of a SentencePiece tokenizer with ``size`` tokens; ``special`` are its first ones, <unk> among them.

    >>> sentence_piece(400, ("<unk>", "<s>", "</s>"))["tokenizer.ggml.tokens"][3]
    '<0x00>'
    """
    characters = [chr(c) for c in range(33, 127)]
    first = ["▁", *_FREQUENT.strip()]
    order = first + [character for character in characters if character not in first]
    head = len(special) + 256
    if size < head + len(order):
        raise SpecError(f"vocab_size={size}: a SentencePiece vocabulary takes at least {head + len(order)}")
    pieces = order + [left + right for left, right in islice(_pairs(order), size - head - len(order))]
    scores = np.zeros(size, np.float32)
    scores[head:] = -np.arange(size - head, dtype=np.float32)
    start, end = ("<bos>", "<eos>") if "<bos>" in special else ("<s>", "</s>")
    unknown = special.index("<unk>")
    control = [index for index in range(len(special)) if index != unknown]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces],
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": _types(
            size, {CONTROL: control, UNKNOWN: [unknown], BYTE: range(len(special), head)}
        ),
        "tokenizer.ggml.bos_token_id": special.index(start),
        "tokenizer.ggml.eos_token_id": special.index(end),
        "tokenizer.ggml.unknown_token_id": unknown,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": start == "<s>",
    }


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it prints, else one from U+0100 on.

    >>> byte_letters()[ord(" ")], byte_letters()[ord("a")]
    ('Ġ', 'a')
    """
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (chr(256 + i) for i in range(256))
    return [chr(byte) if byte in printing else next(hidden) for byte in range(256)]


def _pairs(letters: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of letters, then a pair and a letter, and so on: each joins parts that came before, no text twice."""
    parts = letters
    while True:
        longer = []
        for left in parts:
            for right in letters:
                longer.append(left + right)
                yield left, right
        parts = longer


def _types(size: int, special: dict[int, Any]) -> np.ndarray[Any, np.dtype[np.int32]]:
    types = np.full(size, NORMAL, np.int32)
    for kind, ids in special.items():
        types[list(ids)] = kind
    return types
