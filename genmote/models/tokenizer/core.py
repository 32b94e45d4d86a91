"""The tokenizer: text to token ids and back."""

from __future__ import annotations

import codecs
import functools
import importlib
import mmap
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from genmote.errors import ContextError, ModelFileError, SpecError
from genmote.models.tokenizer import cache, table
from genmote.models.tokenizer.vocabulary import HasMetadata, pre_tokenizer, token_key

_Texts = tuple[list[int], dict[str, int]]  # lengths of texts, longest first, and the token of each text
MOST_BYTES = 1 << 29  # of one text: offsets are 32 bits wide, and no context is as long
_SURROGATES = re.compile("[\ud800-\udfff]")

# Ends of turns and texts by their usual spelling; older files name only one of them by its key.
_ENDS = (
    "<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|end_of_text|> <|endoftext|> <end_of_turn> <|endofturn|> "
    "<|end_of_turn|> <EOT> _<EOT> <eos> </s> <|return|> <|call|> <end_of_utterance> <turn|> "
    "<\uff5cend\u2581of\u2581sentence\uff5c>"
).split()


@dataclass(frozen=True)
class GrammarVocabulary:
    """What a grammar engine asks of a tokenizer, under the names that llguidance's ``TokenizerWrapper`` reads."""

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: int | None
    encode: Callable[[bytes], list[int]]

    def __call__(self, text: bytes | str) -> list[int]:
        return self.encode(text.encode() if isinstance(text, str) else text)


class Tokenizer:
    """Text to token ids and back, over a memory-mapped table. Threads may share one.

    `native`: True wants the compiled encoder, False the Python twin, None the compiled one where it was built.
    Raises `ModelFileError` where the file's metadata does not make a tokenizer that genmote knows.
    """

    def __init__(self, model: HasMetadata, native: bool | None = None) -> None:
        module = None if native is False else native_module()
        if native and module is None:
            raise SpecError("native=True: the compiled module is not built here; run `make native`, or leave it out")
        if module is None:
            from genmote.models.tokenizer import twin

            module = twin
        memory = cache.table_of(model, None if module.__name__.endswith(".twin") else module)
        self._memory = memory
        self._table: Any = module.TokenTable(memory)
        self.is_native = not module.__name__.endswith(".twin")
        kind, _, _, self.vocab_size, _ = table.describe(memory)
        self._offsets, self._text = table.view(memory, table.OFFSETS), table.view(memory, table.TEXT)
        self._types = table.view(memory, table.TYPES)

        key = functools.partial(token_key, model, tokens=self.vocab_size, absent=-1)
        self.bos_id: int | None = _or_none(key("bos"))
        self.eos_id: int | None = _or_none(key("eos"))
        spm = kind == table.SPM
        add_bos = _flag(model, "add_bos_token", spm or pre_tokenizer(model).add_bos)
        self.add_bos = add_bos and self.bos_id is not None
        self.add_eos = _flag(model, "add_eos_token", False) and self.eos_id is not None
        self.space_prefix = spm and _flag(model, "add_space_prefix", True)
        named = {key(name) for name in ("eos", "eot", "eom")} - {-1}
        ends = (self.token_id(text) for text in _ENDS)
        # A token that only looks like an end (HTML's "</s>") is a text like any other.
        spelt = {token for token in ends if token is not None and self._types[token] == table.CONTROL}
        self.eog_ids: frozenset[int] = frozenset(named | spelt)

    def release(self) -> None:
        """Let go of the table's pages: they leave this process's memory and come back when they are touched again."""
        mapped = self._memory.base.obj if isinstance(self._memory.base, memoryview) else self._memory.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    def encode(self, text: str, *, bos: bool | None = None, special: bool = True, start: bool = True) -> list[int]:
        """Token ids of a text.

        `bos`: put the beginning-of-text token first (and, where the file says so, the end-of-text token last); None:
        as the file says, False: neither. `special`: texts of control tokens such as ``<|im_start|>`` become these
        tokens; use False for text from strangers. `start`: the text begins something, so a vocabulary that writes a
        space before every text (Llama 2) does so; False for text that goes on after other tokens.
        A lone surrogate counts as U+FFFD. Raises `ContextError` for a text of 512 MB or more.
        """
        ids: list[int] = self._table.encode(_utf8(text), special, self.space_prefix and start)
        if (self.add_bos if bos is None else bos) and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if self.add_eos and bos is not False and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids; control tokens are left out unless `special`. Bytes that are no UTF-8 become U+FFFD.

        Where the vocabulary writes a space before every text (Llama 2), that one is taken away again.
        Raises `SpecError` for an id outside the vocabulary.
        """
        return self.join(ids, special=special).decode("utf-8", "replace")

    def join(self, ids: Iterable[int], *, special: bool = False) -> bytes:
        """The bytes of token ids, as `decode` has them."""
        text = b"".join(self.token_bytes(token) for token in ids if special or not self.is_special(token))
        return text[1:] if self.space_prefix and text[:1] == b" " else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; a control token's are its name. Raises `SpecError` for an unknown id."""
        self._check(token)
        return bytes(self._text[self._offsets[token] : self._offsets[token + 1]])

    def is_special(self, token: int) -> bool:
        """Whether a token marks something instead of being text: a control token or the unknown token."""
        self._check(token)
        return self._types[token] in (table.CONTROL, table.UNKNOWN)

    def token_id(self, text: str) -> int | None:
        """The token whose whole text this is (``"<|im_end|>"``, ``" the"``), or None."""
        return _or_none(self._table.find(_utf8(text)))

    def control_spans(self, text: str) -> Iterator[tuple[int, int, int]]:
        """(start, end, token) of each control token's text that `encode` with `special` makes that token, in order."""
        known, first = self._special_texts
        at = 0
        while first is not None and (found := first.search(text, at)):
            at = found.start()
            lengths, tokens = known[text[at]]
            token = None
            for length in lengths:
                token = tokens.get(text[at : at + length])
                if token is not None:
                    if self.is_special(token):
                        yield at, at + length, token
                    at += length
                    break
            if token is None:
                at += 1

    @functools.cached_property
    def _special_texts(self) -> tuple[dict[str, _Texts], re.Pattern[str] | None]:
        """Texts that mean tokens wherever they stand, by their first character, and what finds such a character."""
        specials = table.view(self._memory, table.SPECIALS)[257:]
        texts = {self.token_bytes(token).decode("utf-8", "replace"): token for token in reversed(specials)}
        firsts = {text[0] for text, token in texts.items() if self.is_special(token)}
        groups: dict[str, dict[str, int]] = {}
        for text, token in texts.items():
            # Other texts matter only where they could take a part of a control token's.
            if firsts.intersection(text):
                groups.setdefault(text[0], {})[text] = token
        known = {first: (sorted(set(map(len, group)), reverse=True), group) for first, group in groups.items()}
        return known, re.compile("[" + "".join(map(re.escape, known)) + "]") if known else None

    def tokens_for_grammar(self) -> GrammarVocabulary:
        """All tokens as bytes, for a grammar engine. Made when asked: it holds a Python object for each token."""
        if self.eos_id is None:
            raise ModelFileError("the model file names no end-of-text token, so a grammar cannot say where a text ends")
        tokens = [self.token_bytes(token) for token in range(self.vocab_size)]
        special = [token for token in range(self.vocab_size) if self.is_special(token)]
        return GrammarVocabulary(tokens, special, self.eos_id, self.bos_id, self._encode_piece)

    def _encode_piece(self, text: bytes) -> list[int]:
        ids: list[int] = self._table.encode(text, False, False)
        return ids

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise SpecError(f"token {token}: the vocabulary has tokens 0 to {self.vocab_size - 1}")


class StreamDecoder:
    """Turns tokens into text one by one: bytes of a character that is not whole yet are held back.

    `special` as in `Tokenizer.decode`. `start`: the tokens begin a text, so that a space before every text is taken
    away; else they go on after a prompt, where the space belongs to the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False, start: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._drop_space = start and tokenizer.space_prefix
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is whole now. Raises `SpecError` for an id outside the vocabulary."""
        if not self._special and self._tokenizer.is_special(token):
            return ""
        text = self._tokenizer.token_bytes(token)
        if self._drop_space and text:
            self._drop_space = False
            text = text.removeprefix(b" ")
        return self._decoder.decode(text)

    def flush(self) -> str:
        """What is left at the end; a character that never became whole is U+FFFD. The decoder starts anew."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return text


def load_tokenizer(model: HasMetadata, native: bool | None = None) -> Tokenizer:
    """The tokenizer of a model file. See `Tokenizer`."""
    return Tokenizer(model, native)


@functools.cache
def native_module() -> Any:
    """The compiled module when it was built with the tokenizer, else None."""
    try:
        module = importlib.import_module("genmote.ops._native")
    except ImportError:
        return None
    return module if hasattr(module, "TokenTable") else None


def _utf8(text: str) -> bytes:
    try:
        utf8 = text.encode()
    except UnicodeEncodeError:
        utf8 = _SURROGATES.sub("\ufffd", text).encode()
    if len(utf8) >= MOST_BYTES:
        raise ContextError(f"a text of {len(utf8)} bytes: at most {MOST_BYTES - 1} are encoded at once; split it")
    return utf8


def _or_none(token: int) -> int | None:
    return None if token < 0 else token


def _flag(model: HasMetadata, name: str, absent: bool) -> bool:
    value = model.metadata.get(f"tokenizer.ggml.{name}", absent)
    if not isinstance(value, bool):
        raise ModelFileError(
            f"{model.path}: tokenizer.ggml.{name} is {value!r}, wanted true or false; the file is damaged"
        )
    return value
