"""A real model: it learns, and takes as much memory as was planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from genmote.tune.run import tune
from genmote.tune.settings import Tuning

options = json.loads(sys.argv[4])
memory = options.pop("memory", None)
made = tune(*sys.argv[1:4], Tuning(**options), threads=1, memory=memory)
print(json.dumps({**made.values(), "settings": made.card["settings"]}, default=str))
"""


@pytest.fixture
def data(lines: Any) -> Path:
    rooms, things = ("kitchen", "garage", "bedroom", "office"), ("light", "fan", "heater")
    ways = [("turn on the {}", "on"), ("switch the {} off", "off"), ("I want the {} on", "on")]
    return lines(  # type: ignore[no-any-return]
        *(
            {
                "messages": [
                    {"role": "user", "content": say.format(f"{room} {thing}")},
                    {"role": "assistant", "content": f"{thing}.{state}({room})"},
                ]
            }
            for room in rooms
            for thing in things
            for say, state in ways
        )
    )


def run(model: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    """One training in a process of its own, whose peak is its own too."""
    words = [sys.executable, "-c", RUN, str(model), str(data), str(output), json.dumps(options)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_smollm2_learns_commands(smollm2: Path, data: Path, tmp_path: Path) -> None:
    told = run(smollm2, data, tmp_path / "mine.gguf", steps=12, judge_every=6, rate=1e-3)
    assert told["held_out_after"] < 0.4 * told["held_out_before"]


@pytest.mark.parametrize(
    "options",
    [{}, {"inputs": "f16", "logit_rows": 8}, {"batch": 2, "rows": 512}, {"on": "norms"}, {"rank": 64}],
    ids=str,
)
def test_smollm2_takes_what_was_planned(options: dict[str, Any], smollm2: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and no two of its words are alike. " * 150)
    told = run(smollm2, text, tmp_path / "mine.gguf", steps=2, judge_every=2, held_out=str(text), **options)
    assert told["planned_bytes"] == pytest.approx(told["peak_rss_bytes"], rel=0.1)


def test_a_budget_is_kept(smollm2: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Numbers from one to twelve: one, two, three, four, five, six, seven, eight, nine, ten. " * 60)
    told = run(smollm2, text, tmp_path / "mine.gguf", steps=2, judge_every=2, memory="200MB")
    assert told["settings"]["inputs"] == "f16" and told["peak_rss_bytes"] < 200_000_000
