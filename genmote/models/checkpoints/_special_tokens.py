"""Which tokens begin, end and fill a text, and the chat templates: a folder's files as GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genmote.models.checkpoints._folder import Folder, mappings, steps_of

_MARKS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # by the folder's names


def marks(
    folder: Folder, fast: Mapping[str, Any], ids: Mapping[str, int], rows: int, *, begins: bool
) -> dict[str, Any]:
    """The marks' ids, and whether an encoder puts the first and the last one there.

    `ids`: all tokens by text; `rows`: how many there are. `begins`: a text begins with its mark where no file says so.
    """
    config, others = folder.json("tokenizer_config.json"), folder.json("special_tokens_map.json")
    made: dict[str, Any] = {}
    for theirs, ours in _MARKS.items():
        text = _text(config, theirs) or _text(others, theirs)
        token = ids.get(text) if text else _first(folder.json("config.json").get(f"{theirs}_token_id"))
        if token is not None and 0 <= token < rows:
            made[f"tokenizer.ggml.{ours}_token_id"] = token
    ends = folder.json("generation_config.json").get("eos_token_id")
    eos = made.get("tokenizer.ggml.eos_token_id")
    turns = [token for token in ends if token != eos] if isinstance(ends, list) else []
    if turns and type(turns[0]) is int and 0 <= turns[0] < rows:
        made["tokenizer.ggml.eot_token_id"] = turns[0]
    template = _template(fast)
    for name, place in (("bos", 0), ("eos", -1)):
        mark, flag = made.get(f"tokenizer.ggml.{name}_token_id"), config.get(f"add_{name}_token")
        if template is not None:
            adds = ids.get(template[place] or "") == mark
        else:
            adds = flag if isinstance(flag, bool) else begins and name == "bos"
        made[f"tokenizer.ggml.add_{name}_token"] = adds and mark is not None
    return made


def _text(config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(f"{name}_token")
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if type(value) is int else None


def _template(fast: Mapping[str, Any]) -> list[str | None] | None:
    """The special tokens (else None) that a post-processor puts around one text; None where it does not say."""
    steps = steps_of(fast.get("post_processor"), "processors")
    for step in steps:
        single = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            return [_special(entry) for entry in single]
    return [None] if any(step.get("type") == "ByteLevel" for step in steps) else None


def _special(entry: Any) -> str | None:
    special = entry.get("SpecialToken") if isinstance(entry, Mapping) else None
    token = special.get("id") if isinstance(special, Mapping) else None
    return token if isinstance(token, str) else None


def templates(folder: Folder) -> dict[str, Any]:
    """The chat template, and others by name."""
    inside = folder.json("tokenizer_config.json").get("chat_template")
    named = {str(entry.get("name")): str(entry.get("template")) for entry in mappings(inside)}
    alone = folder.text("chat_template.jinja") or folder.json("chat_template.json").get("chat_template") or inside
    if isinstance(alone, str):
        named["default"] = alone
    for path in sorted((folder.path / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = folder.text(f"additional_chat_templates/{path.name}") or ""
    made: dict[str, Any] = {}
    if "default" in named:
        made["tokenizer.chat_template"] = named.pop("default")
    if named:
        made["tokenizer.chat_templates"] = list(named)
        made |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    return made
