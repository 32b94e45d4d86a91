"""Grammars: the text always matches, forced tokens change nothing, every bad grammar is one line."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import GrammarError
from genmote.runtime.fake import fake_engine
from genmote.runtime.grammar import Grammar
from genmote.runtime.scheduler import Scheduler

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "level": {"type": "integer", "minimum": 0, "maximum": 99},
        "state": {"enum": ["on", "off"]},
    },
    "required": ["name", "level", "state"],
    "additionalProperties": False,
}
ENGINE = fake_engine(sure=0.0)  # says anything at all


def check(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"name", "level", "state"}
    assert len(value["name"]) <= 6 and 0 <= value["level"] <= 99 and value["state"] in ("on", "off")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 5.0]), st.booleans())
def test_whatever_is_drawn_the_text_matches_the_schema(seed: int, temperature: float, speculate: bool) -> None:
    options: dict[str, Any] = {"json_schema": SCHEMA, "max_tokens": 300, "temperature": temperature, "seed": seed}
    result = ENGINE.generate(f"prompt {seed}", **options, speculate=speculate)
    assert result.finish_reason == "grammar"
    check(result.text)
    assert result.steps < len(result.tokens) - 20  # keys and quotes are forced: no step of their own
    assert ENGINE.generate(f"prompt {seed}", **options, speculate=not speculate).text == result.text


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_forcing_is_what_the_mask_would_leave(seed: int) -> None:
    """With logprobs every token is drawn under the mask; the bytes that were forced are the same."""
    result = ENGINE.generate("x", json_schema=SCHEMA, max_tokens=300, temperature=1.0, seed=seed, logprobs=True)
    check(result.text)
    assert result.logprobs is not None and len(result.logprobs) == len(result.tokens)
    constraint = ENGINE.constraint(Grammar.json_schema(SCHEMA))
    for token in result.tokens:
        allowed = np.flatnonzero(constraint.allowed())
        forced = constraint.forced()
        assert token in allowed
        if forced:
            assert allowed.tolist() == [token] == forced[:1]
        constraint.accept(token)
    assert constraint.complete and constraint.accepting


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar.regex("[a-c]{3}-[0-9]+x"), "[a-c]{3}-[0-9]+x"),
        (Grammar.lark('start: "yes" | "no" | /may+be/'), "yes|no|may+be"),
        (Grammar.gbnf('root ::= ("a" | "b") "c"'), "[ab]c"),
        (Grammar.regex("é{2}"), "é{2}"),
    ],
)
def test_other_kinds(grammar: Grammar, pattern: str) -> None:
    for seed in range(10):
        result = ENGINE.generate("x", grammar=grammar, max_tokens=400, temperature=1.0, seed=seed)
        assert re.fullmatch(pattern, result.text)
        assert result.finish_reason in ("grammar", "stop")


def test_any_object_and_text_form() -> None:
    for schema in ('{"type": "object", "maxProperties": 2}', {"type": "array", "items": {"type": "boolean"}}):
        result = ENGINE.generate("x", json_schema=schema, max_tokens=4000, temperature=1.0, seed=1)
        assert result.finish_reason == "grammar"
        json.loads(result.text)


def test_a_text_cut_short_is_a_beginning() -> None:
    result = ENGINE.generate("x", json_schema=SCHEMA, max_tokens=5)
    assert (result.finish_reason, result.text) == ("length", '{"nam')


def test_in_a_batch() -> None:
    alone = [ENGINE.generate("x", json_schema=SCHEMA, max_tokens=300, temperature=1.0, seed=i).text for i in range(4)]
    with Scheduler(ENGINE, max_sessions=4) as scheduler:
        handles = [
            scheduler.submit(ENGINE.request("x", json_schema=SCHEMA, max_tokens=300, temperature=1.0, seed=i))
            for i in range(4)
        ]
        assert [handle.result(30).text for handle in handles] == alone


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"json_schema": {"type": "nothing"}}, "bad json_schema: Invalid type: nothing"),
        ({"json_schema": '{"type": '}, "the JSON schema is no JSON: "),
        ({"json_schema": "[1]"}, "a JSON schema is an object, got list: write for instance"),
        ({"json_schema": {"a": {1, 2}}}, "the JSON schema cannot be written as JSON: "),
        ({"json_schema": {"$ref": "#/x"}}, "bad json_schema: .*/x"),
        ({"regex": "(a"}, "bad regex: .*unclosed group"),
        ({"regex": " "}, "the regex grammar is empty: give its text"),
        ({"grammar": ("lark", "start: other")}, 'bad lark: .*unknown name: "other"'),
        ({"grammar": ("gbnf", "root ::= (")}, "bad gbnf: "),
        ({"grammar": ("abnf", "x")}, "grammar kind 'abnf': use one of json_schema, regex, lark, gbnf"),
    ],
)
def test_a_bad_grammar_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(GrammarError, match=said) as caught:
        if "grammar" in options:
            options = {"grammar": Grammar(*options["grammar"])}
        ENGINE.generate("x", **options)
    assert "\n" not in str(caught.value)


def test_a_token_that_does_not_fit_is_told() -> None:
    constraint = ENGINE.constraint(Grammar.regex("ab"))
    with pytest.raises(GrammarError) as caught:
        constraint.accept(ord("x"))
    assert "\n" not in str(caught.value)


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match="pip install llguidance"):
        fake_engine().generate("x", regex="a")
    assert fake_engine().generate("ab ab", max_tokens=2).text == " a"  # and nothing else needs it
