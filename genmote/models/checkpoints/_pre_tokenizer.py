"""How a tokenizer.json cuts words before it merges, as one of the names that GGUF files have for it.

llama.cpp's converter recognises a tokenizer by a hash of what it makes of one text, so that each new model is a new
entry. Here the structure is read: its steps become the regular expressions of `tokenizer/variants.py`, and the name is
that of the variant that has the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from genmote.models.checkpoints._folder import Folder, steps_of
from genmote.models.tokenizer.variants import VARIANTS

# GPT-2's expression is part of the step itself.
_GPT2 = VARIANTS["gpt-2"].stages[0]


def is_byte_level(fast: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is a byte-level BPE."""
    model = fast.get("model")
    steps = steps_of(fast.get("pre_tokenizer"), "pretokenizers")
    return isinstance(model, Mapping) and model.get("type", "BPE") == "BPE" and "ByteLevel" in map(_type, steps)


def name_of(folder: Folder, fast: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(`tokenizer.ggml.pre`, what to tell) of a byte-level tokenizer; ``ModelFileError`` where no variant is its."""
    stages: list[str] = []
    for step in steps_of(fast.get("pre_tokenizer"), "pretokenizers"):
        stages += _stages(folder, step)
    notes = _normalizer(folder, fast)
    ignore_merges = fast["model"].get("ignore_merges") is True
    known = {name: variant for name, variant in VARIANTS.items() if variant.stages == tuple(stages)}
    if not known:
        raise folder.fail(
            "tokenizer.json", f"cuts words by {stages!r:.300}: no known pre-tokenizer does; use another model"
        )
    fitting = [name for name, variant in known.items() if variant.ignore_merges == ignore_merges]
    if not fitting:
        notes.append(f"ignore_merges = {ignore_merges} goes with no file of its pre-tokenizer, and is left out")
    return (fitting or list(known))[0], notes


def _stages(folder: Folder, step: Mapping[str, Any]) -> list[str]:
    """The regular expressions that one step of a pre-tokenizer cuts by."""
    kind = _type(step)
    if kind == "ByteLevel":
        if step.get("add_prefix_space") is True:
            raise folder.fail("tokenizer.json", "puts a space before every text (add_prefix_space): not supported")
        return [_GPT2] if step.get("use_regex", True) else []
    if kind == "Digits":
        return [r"\p{N}" if step.get("individual_digits") else r"\p{N}+"]
    pattern = step.get("pattern")
    cuts = (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Isolated", None), ("Removed", True))
    if kind == "Split" and cuts and isinstance(pattern, Mapping):
        if isinstance(regex := pattern.get("Regex"), str):
            return [regex]
        if isinstance(text := pattern.get("String"), str):
            return [re.escape(text)]
    raise folder.fail("tokenizer.json", f"its pre-tokenizer's step {dict(step)!r:.200} is not known; use another model")


def _normalizer(folder: Folder, fast: Mapping[str, Any]) -> list[str]:
    """What to tell of the normalizer: Unicode's composed form is left out, as other engines do; others are refused."""
    kinds = set(map(_type, steps_of(fast.get("normalizer"), "normalizers")))
    if kinds - {"NFC"}:
        raise folder.fail(
            "tokenizer.json", f"changes text before it cuts it ({', '.join(sorted(kinds))}): not supported"
        )
    return (
        ["its tokenizer composes characters (NFC) first; files have no key for it: give text that is composed"]
        if kinds
        else []
    )


def _type(step: Mapping[str, Any]) -> str:
    return str(step.get("type"))
