"""Calls out of text, however the text is cut into pieces; schemas that keep their references when they move."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genmote.web.fields import Body
from genmote.web.openai.tools import (
    BARE,
    LISTED,
    TAGGED,
    Call,
    CallReader,
    Tools,
    call_schema,
    calls_in,
    dialect_of,
    either,
    read_tools,
)

NAMES: dict[str, Any] = {"on": {}, "off": {}}
CALL = '{"name": "on", "arguments": {"lamp": 1}}'
FOUND = Call("on", '{"lamp": 1}')


def joined(parts: list[str | Call]) -> list[str | Call]:
    """Neighbouring texts as one."""
    out: list[str | Call] = []
    for part in parts:
        if isinstance(part, str) and out and isinstance(out[-1], str):
            out[-1] += part
        else:
            out.append(part)
    return out


def read(pieces: list[str]) -> list[str | Call]:
    reader = CallReader(NAMES)
    return joined([part for piece in pieces for part in reader.push(piece)] + reader.flush())


MESSAGES: list[tuple[str, list[str | Call]]] = [
    ("plain text", ["plain text"]),
    ("a < b <tool", ["a < b <tool"]),
    (f"<tool_call>{CALL}</tool_call>", [FOUND]),
    (f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>", [FOUND, FOUND]),
    (f"So: <tool_call>{CALL}</tool_call> done", ["So: ", FOUND, "done"]),
    (f"<tool_call>{CALL}", [FOUND]),  # a stop string took the closing tag
    ("<tool_call>not json</tool_call>", ["<tool_call>not json</tool_call>"]),
    ('<tool_call>{"name": "unknown"}</tool_call>', ['<tool_call>{"name": "unknown"}</tool_call>']),
    (CALL, [FOUND]),
    (f"\n[{CALL}, {CALL}]", [FOUND, FOUND]),
    (f"[TOOL_CALLS][{CALL}]", [FOUND]),
    ('{"name": "off", "parameters": {}}', [Call("off", "{}")]),
    ('{"name": "off"}', [Call("off", "{}")]),
    ('{"answer": 42}', ['{"answer": 42}']),
    ("[1, 2] is a list", ["[1, 2] is a list"]),
    (f"Like {CALL}", [f"Like {CALL}"]),  # text that mentions a call is text
    ("", []),
]


@pytest.mark.parametrize(("text", "parts"), MESSAGES)
def test_messages_in_all_pieces(text: str, parts: list[str | Call]) -> None:
    for size in range(1, len(text) + 1):
        assert read([text[i : i + size] for i in range(0, len(text), size)]) == parts


@given(
    st.lists(st.sampled_from(["<tool_call>", "</tool_call>", CALL, "<tool", "{", "x", " ", "[", "<"]), max_size=8),
    st.data(),
)
def test_pieces_do_not_matter_and_nothing_is_lost(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read([text])
    assert read(pieces) == whole
    if not any(isinstance(part, Call) for part in whole):
        assert "".join(str(part) for part in whole) == text


def test_text_is_not_held_back_needlessly() -> None:
    reader = CallReader(NAMES)
    assert reader.push("Hello") == ["Hello"]
    assert reader.push(" {") == [" {"]  # a brace later on begins no bare call
    assert reader.push(" <to") == [" "]
    assert reader.push("ast>") == ["<toast>"]


def test_arguments_as_text_stay_text() -> None:
    assert calls_in('{"name": "on", "arguments": "{\\"a\\": 1}"}', NAMES) == [Call("on", '{"a": 1}')]
    assert calls_in("[" * 10_000, NAMES) is None
    assert calls_in('{"name": ["on"]}', {"on": {}}) is None


def test_dialects() -> None:
    assert dialect_of("... <tool_call> ...") is TAGGED
    assert dialect_of("[TOOL_CALLS] ...") is LISTED
    assert dialect_of('{"name": ..., "parameters": ...} tools') is BARE
    assert dialect_of(None) is TAGGED


def tools(*functions: dict[str, Any]) -> Tools:
    return read_tools(Body({"tools": [{"function": function} for function in functions], "tool_choice": "required"}))


def point(schema: Any, reference: str) -> Any:
    """What a local JSON pointer means."""
    assert reference.startswith("#/")
    for part in reference[2:].split("/"):
        schema = schema[int(part)] if isinstance(schema, list) else schema[part]
    return schema


def references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [found for item in schema for found in references(item)]
    if isinstance(schema, dict):
        own = [schema["$ref"]] if "$ref" in schema else []
        return own + [found for value in schema.values() for found in references(value)]
    return []


@pytest.mark.parametrize("dialect", [TAGGED, LISTED, BARE])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_references_lead_to_what_they_meant(dialect: Any, count: int) -> None:
    functions = [
        {
            "name": f"f{i}",
            "parameters": {
                "type": "object",
                "properties": {"room": {"$ref": "#/$defs/Room"}, "again": {"$ref": "#"}},
                "$defs": {"Room": {"enum": [f"room {i}"]}},
            },
        }
        for i in range(count)
    ]
    schema = either([{"type": "string"}, call_schema(tools(*functions), dialect)])
    found = [point(schema, reference) for reference in references(schema)]
    for i in range(count):
        assert {"enum": [f"room {i}"]} in found
    assert sum("enum" in target for target in found) == count
    assert sum("$defs" in target for target in found) == count
    assert json.dumps(functions[0]["parameters"]).count("#/$defs/Room") == 1  # the request's own are left alone


def test_schema_of_a_call_says_what_a_call_is() -> None:
    one = call_schema(tools({"name": "on", "parameters": {"type": "object", "required": ["lamp"]}}), TAGGED)
    assert one["properties"] == {"name": {"const": "on"}, "arguments": {"type": "object", "required": ["lamp"]}}
    assert one["required"] == ["name", "arguments"] and one["additionalProperties"] is False
    assert call_schema(tools({"name": "on"}), BARE)["properties"]["parameters"] == {"type": "object"}
    assert call_schema(tools({"name": "on"}), LISTED)["items"]["properties"]["name"] == {"const": "on"}
