"""Agent commands and their intents: "Shut off the lights in the den" → light.turn_off. Examples by rule out of
home-llm's piles (MIT; `SOURCE.txt` beside the data), the same for every method, a fifth of each intent to test with."""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.signals.sets import folder

SEED = 0
TEST_SHARE = 5  # every so many-th phrase of an intent is for the test, at least one


def write(into: Path) -> tuple[Path, Path]:
    """The examples to learn from and those to test with, as files for `genmote tune`. ContestantError where the data
    are not here."""
    intents: dict[str, list[str]] = defaultdict(list)
    with (folder("home_llm_piles_en") / "pile_of_specific_actions.csv").open(encoding="utf-8") as file:
        for intent, phrase in dict.fromkeys((row["service_name"], row["phrase"]) for row in csv.DictReader(file)):
            intents[intent].append(phrase)
    draw, learn, test = random.Random(SEED), list[tuple[str, str]](), list[tuple[str, str]]()
    for intent in sorted(intents):
        phrases = intents[intent][:]
        draw.shuffle(phrases)
        count = max(1, round(len(phrases) / TEST_SHARE))
        test += [(intent, phrase) for phrase in phrases[:count]]
        learn += [(intent, phrase) for phrase in phrases[count:]]
    draw.shuffle(learn)
    found = []
    for name, some in (("learn", learn), ("test", test)):
        path = into / f"{name}.jsonl"
        lines = [json.dumps({"prompt": f"{phrase} =>", "completion": f" {intent}"}) for intent, phrase in some]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found.append(path)
    return found[0], found[1]


def main() -> int:
    """Print the share of a test's intents that a model names, with an adapter where one is given: the likeliest text
    of those that name an intent, token by token."""
    from genmote import Engine
    from genmote.runtime.grammar import Grammar

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("test", type=Path)
    parser.add_argument("--adapter")
    chosen = parser.parse_args()
    examples = [json.loads(line) for line in chosen.test.read_text(encoding="utf-8").splitlines()]
    intents = sorted({each["completion"] for each in examples})
    rule = Grammar.regex(f"({'|'.join(map(re.escape, intents))})")
    with Engine.load(chosen.model, adapter=chosen.adapter, threads=1) as engine:
        said = [engine.generate(each["prompt"], max_tokens=24, grammar=rule).text for each in examples]
    right = sum(text == each["completion"] for text, each in zip(said, examples, strict=True))
    print(json.dumps({"accuracy": right / len(examples), "examples": len(examples), "intents": len(intents)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
