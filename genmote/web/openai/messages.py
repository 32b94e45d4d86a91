"""A conversation in the API's form, as chat templates read it: every content is text, every role one that they know."""

from __future__ import annotations

import json
from typing import Any

from genmote.web.fields import Body, kind, objects, wrong
from genmote.web.problem import Problem

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def read_messages(body: Body) -> list[dict[str, Any]]:
    """`messages`, at least one. Raises `Problem` naming the place of the fault."""
    body.items("messages")
    found = objects(body, "messages")
    if not found:
        raise wrong("messages", "an empty list", "at least one message")
    return [_message(message) for message in found]


def _message(body: Body) -> dict[str, Any]:
    body.text("role")
    role = _ROLES[body.choice("role", "", _ROLES)]
    calls = [_call(call) for call in objects(body, "tool_calls")] if role == "assistant" else []
    message: dict[str, Any] = {"role": role, "content": _content(body, optional=role == "assistant")}
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message["tool_call_id"] = body.text("tool_call_id", "")
    if name := body.text("name", None):
        message["name"] = name
    return message


def _content(body: Body, *, optional: bool) -> str:
    value = body.raw("content")
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if value is None:
        raise Problem(400, f"{body.at}content is missing: give text", param=body.at + "content", code="missing")
    if not isinstance(value, list):
        raise wrong(body.at + "content", kind(value), "a string or a list of parts")
    parts = []
    for part in objects(body, "content"):
        form = part.text("type")
        if form not in ("text", "refusal"):
            raise wrong(part.at + "type", repr(str(form)[:40]), "text: this model reads nothing else")
        parts.append(part.text(form) or "")
    return "".join(parts)


def _call(body: Body) -> dict[str, Any]:
    """An earlier call. Templates write the arguments as JSON themselves, so they are given as the object."""
    function = body.object("function")
    if function is None:
        raise Problem(400, f"{body.at}function is missing: give an object", param=body.at + "function", code="missing")
    arguments: Any = function.text("arguments", "{}") or "{}"
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = arguments
    name = function.text("name")
    return {"id": body.text("id", ""), "type": "function", "function": {"name": name, "arguments": parsed}}
