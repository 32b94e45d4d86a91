"""Grammars: the text always matches, forced tokens change nothing, every bad grammar is one line."""

from __future__ import annotations

import json
import re
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote.errors import GrammarError
from genmote.runtime.fake import fake_engine
from genmote.runtime.grammar import Grammar, GrammarVocabulary
from genmote.runtime.scheduler import Scheduler
from genmote.runtime.schema import LARGEST, STEP, bounded

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


NUMBERS: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "number"},
    {"type": ["number", "null"]},
    {"type": "integer", "minimum": 0},
    {"type": "number", "exclusiveMinimum": 0.5},
    {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "number"}], "items": False, "minItems": 2},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"], "additionalProperties": False,
     "$defs": {"n": {"type": "number"}}},
    {"anyOf": [{"type": "integer", "maximum": 3}, {"type": "number", "minimum": 7}]},
    {"allOf": [{"type": "number"}, {"minimum": 2}]},
]  # fmt: skip


@pytest.mark.parametrize("schema", NUMBERS, ids=str)
def test_numbers_come_to_an_end(schema: dict[str, Any]) -> None:
    """Whatever is drawn: here ten digits are as likely as the end of the number."""
    for seed in range(20):
        result = ENGINE.generate("x", json_schema=schema, max_tokens=200, temperature=5.0, seed=seed)
        assert result.finish_reason in ("grammar", "stop"), result.text
        json.loads(result.text)
        for number in re.findall(r"[0-9.]+", result.text):
            whole, _, fraction = number.partition(".")
            assert len(whole) <= 15 and len(fraction) <= 9


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [10**20, 1.5e-30]},
        {"const": 10**20},
        {"type": "number", "minimum": 1e20},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1e-12},
        {"type": "integer", "minimum": 10**18, "maximum": 10**18 + 1},
        {"type": "string"},
        {"type": "number", "minimum": True},
        {"type": {}},
        {"not": {"type": "number"}},
        {"if": {"type": "number"}, "then": {"enum": [1]}},
        {"contains": {"type": "number"}, "maxContains": 1},
        {"oneOf": [{"type": "number"}, {"type": "integer"}]},
        {"oneOf": [{"type": "number"}, {"const": 10**20}]},
        {"oneOf": [{"type": "number"}, {}, True]},
        {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}], "$defs": {"a": {"type": "number"}}},
        {"properties": {"x": {"not": {"$ref": "#/$defs/a"}}}, "$defs": {"a": {"type": "number"}}},
        {"oneOf": [{"$ref": "http://elsewhere"}, {"type": "integer"}, {"$ref": "#/nowhere/2"}]},
        {
            "oneOf": [
                {"type": "object", "properties": {"k": {"enum": [v, "b"]}, "v": {"type": "number"}}, "required": ["k"]}
                for v in "ac"
            ]
        },
        {"default": {"type": "number"}, "examples": [{"type": "number"}]},
        {"properties": 3, "items": 4, "anyOf": 5},
        True,
    ],
    ids=str,
)
def test_what_sets_its_own_bounds_or_is_no_number_stays(schema: Any) -> None:
    assert bounded(schema) == schema


def test_branches_that_are_plainly_apart_get_bounds() -> None:
    whole = bounded({"type": "integer"})
    assert bounded({"oneOf": [{"type": "integer"}, {"type": ["string", "null"]}]})["oneOf"][0] == whole

    def tagged(name: str, number: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": name}, "value": number}, "required": ["kind"]}

    branches = [tagged(name, {"type": "integer"}) for name in "ab"]
    named = {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": dict(zip("ab", branches, strict=True))}
    assert bounded({"oneOf": branches})["oneOf"] == [tagged("a", whole), tagged("b", whole)]
    assert bounded(named)["$defs"] == {"a": tagged("a", whole), "b": tagged("b", whole)}


def test_bounds_that_are_set_stay() -> None:
    assert bounded({"type": "integer", "minimum": 3}) == {"type": "integer", "minimum": 3, "maximum": LARGEST}
    assert bounded({"type": "number", "multipleOf": 0.5, "maximum": 1}) == {
        "type": "number", "multipleOf": 0.5, "maximum": 1, "minimum": -LARGEST,
    }  # fmt: skip
    both = {"type": "number", "minimum": 0, "maximum": 1}
    assert bounded(both) == {**both, "multipleOf": STEP}
    thirds = {"type": "number", "minimum": 1 / 3, "maximum": 1 / 3}  # nine digits would leave no number
    assert bounded(thirds) == thirds


def test_texts_go_on_while_a_vocabulary_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine()
    entered, leave = threading.Event(), threading.Event()

    class Slow(GrammarVocabulary):
        def __init__(self, tokenizer: Any) -> None:
            entered.set()
            assert leave.wait(20)
            super().__init__(tokenizer)

    monkeypatch.setattr("genmote.runtime.engine.GrammarVocabulary", Slow)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(engine.generate("x", regex="ab", max_tokens=9).text))
    thread.start()
    assert entered.wait(20)
    with Scheduler(engine) as scheduler:
        assert scheduler.submit(engine.request("ab ab", max_tokens=5)).result(20).text == " ab a"
    leave.set()
    thread.join(20)
    assert found == ["ab"]


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
        ({"json_schema": '{"not":' * 100_000}, "the JSON schema is no JSON: "),
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
    ((kind, given),) = options.items()
    with pytest.raises(GrammarError, match=said) as early:  # and without any model
        if isinstance(given, tuple):
            given = Grammar(*given)
        (given if isinstance(given, Grammar) else getattr(Grammar, kind)(given)).check()
    assert str(early.value) == str(caught.value)


def test_a_good_grammar_is_good_without_a_model() -> None:
    for grammar in (Grammar.json_schema(SCHEMA), Grammar.regex("[0-9]+"), Grammar.gbnf('root ::= "a" | "b"')):
        grammar.check()
    Grammar.lark('start: <|im_end|> "a"').check()  # whether there is such a token, the model's vocabulary tells


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
