"""Constrain the text to a JSON schema, a regular expression or a grammar (llguidance, imported only when used).

Each step gets a mask of the tokens that the grammar allows next. Where only one continuation is possible (the keys of
an object), its tokens are taken without asking the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import GrammarError
from genmote.runtime.schema import bounded

if TYPE_CHECKING:
    from genmote.models.tokenizer import Tokenizer

KINDS = ("json_schema", "regex", "lark", "gbnf")
# One optional space after , and : and no other white space: a small model otherwise drifts into endless line feeds.
_JSON_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


@dataclass(frozen=True)
class Grammar:
    """What the text must match: `kind` is one of `KINDS`, `text` its source.

    >>> Grammar.json_schema({"type": "integer"})
    Grammar(kind='json_schema', text='{"type": "integer"}')
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GrammarError(f"grammar kind {self.kind!r}: use one of {', '.join(KINDS)}")
        if not isinstance(self.text, str) or not self.text.strip():
            raise GrammarError(f"the {self.kind} grammar is empty: give its text")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """From a JSON schema as a mapping or as text; `{"type": "object"}` for any JSON object.

        Numbers that the schema leaves without bounds get some (see `schema.bounded`): a model that draws digits freely
        may not come to an end.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise GrammarError(f"the JSON schema is no JSON: {error}") from None
        if not isinstance(schema, Mapping | bool):
            raise GrammarError(
                f"a JSON schema is an object, got {type(schema).__name__}: write for instance {{'type': 'object'}}"
            )
        try:
            return cls("json_schema", json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarError(f"the JSON schema cannot be written as JSON: {error}") from None

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """From a regular expression in Rust's syntax: ``\\d`` is a digit of any script, so write ``[0-9]``."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        return cls("lark", text)

    @classmethod
    def gbnf(cls, text: str) -> Grammar:
        return cls("gbnf", text)

    def check(self) -> None:
        """Raise GrammarError for what no model's text can match, to be asked before a model is loaded."""
        ll = _llguidance()
        try:
            fault = ll.LLMatcher.validate_grammar(_compiled(self, ll))
        except ValueError as error:
            fault = str(error)
        if fault:
            raise GrammarError(f"bad {self.kind}: {_one_line(fault)}")


class GrammarVocabulary:
    """A tokenizer as llguidance sees it. Building takes time (a second for 262 000 tokens, in which llguidance lets no
    other thread run) and memory: make one for a model, when first used."""

    @staticmethod
    def memory_bytes(tokens: int) -> int:
        """What one takes at most, its making and its grammars' included; measured with 49,152 and 262,144 tokens."""
        return (8 << 20) + 490 * tokens

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.size = tokenizer.vocab_size
        view = _View(tokenizer)
        ends = sorted(tokenizer.eog_ids | {view.eos_token_id})
        self.ll = _llguidance().LLTokenizer(view, eos_token=ends)
        view.forget()

    def compile(self, grammar: Grammar) -> Constraint:
        return Constraint(self, grammar)


class Constraint:
    """One text's place in a grammar."""

    def __init__(self, vocabulary: GrammarVocabulary, grammar: Grammar) -> None:
        ll = _llguidance()
        self._size = vocabulary.size
        try:
            source = _compiled(grammar, ll)
        except ValueError as error:
            raise GrammarError(f"bad {grammar.kind}: {_one_line(error)}") from None
        self._matcher = ll.LLMatcher(vocabulary.ll, source, log_level=0)
        self._check(grammar.kind)

    def allowed(self) -> NDArray[np.bool_]:
        """Mask (V,) of the tokens that may come next."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        self._check("grammar")
        mask = np.zeros(self._size, np.bool_)
        count = min(self._size, len(bits))
        mask[:count] = bits[:count]
        return mask

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._check("grammar")
            raise GrammarError(f"token {token} does not fit the grammar here")

    def forced(self) -> list[int]:
        """Tokens that must come next, whatever the model thinks; often none."""
        return list(self._matcher.compute_ff_tokens())

    @property
    def complete(self) -> bool:
        """The text matches and nothing can be added."""
        return bool(self._matcher.is_stopped())

    @property
    def accepting(self) -> bool:
        """The text matches if it ends here."""
        return bool(self._matcher.is_accepting())

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"bad {what}: {_one_line(self._matcher.get_error())}")


class _View:
    """The attributes that `llguidance.LLTokenizer` reads."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        source = tokenizer.tokens_for_grammar()
        self.tokens, self.special_token_ids = source.tokens, source.special_token_ids
        self.eos_token_id, self.bos_token_id = source.eos_token_id, source.bos_token_id
        self._encode = source.encode

    def forget(self) -> None:
        """Let the tokens go, an object each: llguidance has its own by now, and keeps this view for `__call__`."""
        self.tokens = []

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.encode() if isinstance(text, str) else text)


def _compiled(grammar: Grammar, ll: Any) -> str:
    if grammar.kind == "json_schema":
        schema = json.dumps(bounded(json.loads(grammar.text)))
        return str(ll.LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_LAYOUT))
    if grammar.kind == "regex":
        return str(ll.LLMatcher.grammar_from_regex(grammar.text))
    return str(ll.grammar_from("gbnf" if grammar.kind == "gbnf" else "lark", grammar.text))


def _one_line(error: object) -> str:
    """A parser's message (several lines, with a picture of the place) in one line."""
    parts = [part.strip() for part in str(error).splitlines()]
    return " ".join(part for part in parts if part.strip("^| ") and not part[0].isdigit())[:300] or str(error)[:300]


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise GrammarError(
            "a grammar or JSON schema needs a package that is absent here: pip install llguidance"
        ) from None
    return llguidance
