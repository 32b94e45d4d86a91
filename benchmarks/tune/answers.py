"""Prompts with an answer out of few, as files for `genmote tune`, and how many answers a model gets right."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

PARTS = ("learn", "development", "test")
Pair = tuple[str, str]  # what is asked, the answer


def write(into: Path, **parts: Iterable[Pair]) -> dict[str, Path]:
    """A file of examples for each part, by the part's name."""
    found = {}
    for name, pairs in parts.items():
        lines = [json.dumps({"prompt": f"{asked} =>", "completion": f" {answer}"}) for asked, answer in pairs]
        found[name] = into / f"{name}.jsonl"
        found[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return found


def main() -> int:
    """Print the share of answers that a model gets right, with an adapter where one is given: the likeliest text of
    those that are answers in the file, token by token."""
    from genmote import Engine
    from genmote.runtime.grammar import Grammar

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("test", type=Path)
    parser.add_argument("--adapter")
    chosen = parser.parse_args()
    examples = [json.loads(line) for line in chosen.test.read_text(encoding="utf-8").splitlines()]
    answers = sorted({each["completion"] for each in examples})
    rule = Grammar.regex(f"({'|'.join(map(re.escape, answers))})")
    with Engine.load(chosen.model, adapter=chosen.adapter, threads=1) as engine:
        said = [engine.generate(each["prompt"], max_tokens=24, grammar=rule).text for each in examples]
    right = sum(text == each["completion"] for text, each in zip(said, examples, strict=True))
    print(json.dumps({"accuracy": right / len(examples), "examples": len(examples), "answers": len(answers)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
