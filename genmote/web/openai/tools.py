"""Function calling: tools into the prompt, a constraint on the text, calls out of the text.

Models write calls in one of three dialects; which one a model knows is seen in its chat template. A model whose
template knows no tools is told about them, in the first dialect, by a short system text.

    tagged   <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>       Qwen, Hermes, SmolLM
    listed   [TOOL_CALLS][{"name": ..., "arguments": {...}}]                      Mistral
    bare     {"name": ..., "parameters": {...}}                                   Llama 3
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genmote.web.fields import Body, kind, objects, wrong
from genmote.web.problem import Problem

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_LISTED = "[TOOL_CALLS]"


@dataclass(frozen=True)
class Dialect:
    prefix: str  # what a message that is a call begins with
    arguments: str  # key of the arguments object
    listed: bool  # calls come as a list


TAGGED = Dialect(OPEN + "\n", "arguments", False)
LISTED = Dialect(_LISTED, "arguments", True)
BARE = Dialect("", "parameters", False)


def dialect_of(template: str | None) -> Dialect:
    """The dialect that a chat template's model was trained on.

    >>> dialect_of("{% for message in messages %}...") is TAGGED
    True
    """
    if template is None or OPEN in template:
        return TAGGED
    if _LISTED in template:
        return LISTED
    return BARE if '"parameters"' in template else TAGGED


@dataclass(frozen=True)
class Tools:
    """What a request says about tools. `need`: "auto" or "required"; `offered` is empty when none may be called."""

    offered: tuple[dict[str, Any], ...] = ()  # in the API's form
    need: str = "auto"

    @property
    def callable(self) -> dict[str, dict[str, Any]]:
        """Function name → JSON schema of its arguments."""
        return {
            tool["function"]["name"]: tool["function"].get("parameters") or {"type": "object"} for tool in self.offered
        }


def read_tools(body: Body) -> Tools:
    """`tools` and `tool_choice`; raises `Problem` for what is not a function, and for a choice of an absent one."""
    if body.has("functions") or body.has("function_call"):
        raise Problem(
            400, "functions and function_call are not supported: use tools and tool_choice", param="functions"
        )
    offered = tuple(_tool(item) for item in objects(body, "tools"))
    choice = body.raw("tool_choice")
    if not offered:
        if choice in (None, "none", "auto"):
            return Tools()
        raise Problem(400, "tool_choice needs tools: give a list of tools", param="tool_choice", code="invalid_value")
    if choice == "none":
        return Tools()
    if choice in (None, "auto"):
        return Tools(offered)
    if choice == "required":
        return Tools(offered, "required")
    if not isinstance(choice, dict):
        got = repr(choice[:40]) if isinstance(choice, str) else kind(choice)
        raise wrong("tool_choice", got, 'auto, none, required or {"type": "function", "function": {"name": ...}}')
    function = Body(choice, "tool_choice.").object("function")
    name = function.text("name") if function else None
    named = tuple(tool for tool in offered if tool["function"]["name"] == name)
    if not named:
        names = ", ".join(tool["function"]["name"] for tool in offered)
        raise wrong("tool_choice", f"function {str(name)[:64]!r}", f"one of the tools: {names}")
    return Tools(named, "required")


def _tool(item: Body) -> dict[str, Any]:
    item.choice("type", "function", ["function"])
    function = item.object("function")
    if function is None:
        raise Problem(400, f"{item.at}function is missing: give an object", param=item.at + "function", code="missing")
    name = function.text("name") or ""
    if not _NAME.fullmatch(name):
        raise wrong(function.at + "name", repr(name[:64]), "1 to 64 letters, digits, _ or -")
    function.text("description", None)
    function.object("parameters")
    return {"type": "function", "function": function.data}


def told(messages: Sequence[Mapping[str, Any]], tools: Tools) -> list[dict[str, Any]]:
    """The messages for a template that knows no tools: functions told in the system text, calls and results as text."""
    result = [_as_text(message) for message in messages]
    if not tools.offered:
        return result
    text = (
        "You can call functions. To call one, answer with nothing but\n"
        f'{OPEN}\n{{"name": FUNCTION, "arguments": {{...}}}}\n{CLOSE}\n'
        "Functions:\n" + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools.offered)
    )
    if result and result[0]["role"] == "system":
        return [{**result[0], "content": f"{result[0]['content']}\n\n{text}"}, *result[1:]]
    return [{"role": "system", "content": text}, *result]


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id", "name")}
    if message["role"] == "tool":
        return {**plain, "role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        f"{OPEN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSE}" for call in message.get("tool_calls", ())
    ]
    return {**plain, "content": "\n".join([*filter(None, [message["content"]]), *calls])} if calls else plain


def call_schema(tools: Tools, dialect: Dialect) -> dict[str, Any]:
    """JSON schema of a text (after the dialect's prefix) that calls one of the tools."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, dialect.arguments: parameters},
            "required": ["name", dialect.arguments],
            "additionalProperties": False,
        }
        for name, parameters in tools.callable.items()
    ]
    one = either(calls, inside=["properties", dialect.arguments])
    return {"type": "array", "items": _moved(one, "#/items"), "minItems": 1, "maxItems": 1} if dialect.listed else one


def either(schemas: Sequence[dict[str, Any]], inside: Sequence[str] = ()) -> dict[str, Any]:
    """A schema that any of `schemas` satisfies. `inside` is where in each a schema with references of its own lies."""
    at = "".join("/" + part for part in inside)
    if len(schemas) == 1:
        return _moved(schemas[0], "#" + at) if at else schemas[0]
    return {"anyOf": [_moved(schema, f"#/anyOf/{index}{at}") for index, schema in enumerate(schemas)]}


def _moved(schema: Any, place: str) -> Any:
    """The schema with its local references ("#/$defs/X") led to where they come to lie ("#/anyOf/0/$defs/X")."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str  # JSON text

    def wire(self, index: int | None = None) -> dict[str, Any]:
        """The call in the API's form, with a fresh id; a streamed one carries its index."""
        call = {
            "id": "call_" + secrets.token_hex(12),
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return call if index is None else {"index": index, **call}


def calls_in(text: str, names: Mapping[str, Any]) -> list[Call] | None:
    """The calls that a text consists of (one JSON object or a list of them), or None when it is something else.

    >>> calls_in('{"name": "on", "arguments": {"lamp": 1}}', {"on": {}})
    [Call(name='on', arguments='{"lamp": 1}')]
    """
    try:
        found = json.loads(text.strip().removeprefix(_LISTED))
    except (ValueError, RecursionError):
        return None
    calls = []
    for item in found if isinstance(found, list) else [found]:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str) or item["name"] not in names:
            return None
        arguments = item.get("arguments", item.get("parameters", {}))
        if isinstance(arguments, str):
            calls.append(Call(item["name"], arguments))
        else:
            calls.append(Call(item["name"], json.dumps(arguments, ensure_ascii=False)))
    return calls or None


class CallReader:
    """Tells calls from text in a message that arrives in pieces.

    Text that cannot belong to a call is given out at once. What looks like a call and is none comes out as text.

    >>> reader = CallReader({"on": {}})
    >>> reader.push('Sure. <tool_call>{"name": "on", '), reader.push('"arguments": {}}</tool_call>')
    (['Sure. '], [Call(name='on', arguments='{}')])
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names
        self._held = ""
        self._begun = False  # something has been given out, so the message as a whole is no bare call
        self._called = False  # the last part was a call: white space after it means nothing

    def push(self, text: str) -> list[str | Call]:
        self._held += text
        out: list[str | Call] = []
        while self._held:
            if self._called:
                self._held = self._held.lstrip()
                if not self._held:
                    break
            if not self._begun and self._bare():
                break
            start = self._held.find(OPEN)
            if start < 0:
                self._give(out, len(self._held) - _overlap(self._held, OPEN))
                break
            end = self._held.find(CLOSE, start)
            if end < 0:
                self._give(out, start)
                break
            self._give(out, start)
            inside = self._held[len(OPEN) : end - start]
            calls = calls_in(inside, self._names)
            if calls is None:
                self._give(out, end - start + len(CLOSE))
            else:
                out.extend(calls)
                self._begun = self._called = True
                self._held = self._held[end - start + len(CLOSE) :]
        return out

    def flush(self) -> list[str | Call]:
        """What is held when the message ends."""
        text, self._held = self._held, ""
        calls = calls_in(text.strip().removeprefix(OPEN), self._names)  # a stop may have cut the closing tag
        return list(calls) if calls else [text] if text else []

    def _bare(self) -> bool:
        """Whether the message so far may yet be calls without tags."""
        start = self._held.lstrip()
        return start[:1] in ("", "{", "[")

    def _give(self, out: list[str | Call], count: int) -> None:
        if count > 0:
            out.append(self._held[:count])
            self._held = self._held[count:]
            self._begun, self._called = True, False


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag`.

    >>> _overlap("a <tool", "<tool_call>")
    5
    """
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)
