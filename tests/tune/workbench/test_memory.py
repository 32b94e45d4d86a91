"""The peak that is planned, beside the one of a process of its own, on a real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genmote import registry
from genmote.tune.settings import ROOM

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from genmote.tune.run import tune
from genmote.tune.settings import Tuning

options = json.loads(sys.argv[3])
memory = options.pop("memory", None)
made = tune(*sys.argv[1:3], sys.argv[4], Tuning(**options), threads=1, memory=memory)
print(json.dumps({**made.values(), "settings": made.card["settings"]}, default=str))
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and no two of its words are alike. " * 60)
    return path


def run(model: Path, text: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Two steps in a process of its own, whose peak is its own too."""
    judge = text.with_name("judge.txt")
    judge.write_text("Numbers from one to twelve: one, two, three, four, five, six.")
    settings = {"steps": 2, "judge_every": 2, "batch": 2, "context": 128, "held_out": str(judge), **options}
    words = [sys.executable, "-c", RUN, str(model), str(text), json.dumps(settings), str(output)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("method", registry.names(ROOM))
def test_a_method_takes_what_was_planned(method: str, smollm2: Path, text: Path, tmp_path: Path) -> None:
    told = run(smollm2, text, tmp_path / "mine.gguf", method=method)
    assert told["planned_bytes"] == pytest.approx(told["peak_rss_bytes"], rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "recompute": True},
        {"method": "lora", "recompute": True, "context": 256},
        {"method": "qlora", "recompute": True},
        {"method": "full", "rows": 128},
        {"method": "badam", "on": "head"},
    ],
    ids=str,
)
def test_so_do_other_ways(options: dict[str, Any], smollm2: Path, text: Path, tmp_path: Path) -> None:
    told = run(smollm2, text, tmp_path / "mine.gguf", **options)
    assert told["planned_bytes"] == pytest.approx(told["peak_rss_bytes"], rel=0.1)


@pytest.mark.parametrize(("memory", "chosen"), [(1700, "galore"), (900, "qlora")])
def test_a_budget_is_kept(memory: int, chosen: str, smollm2: Path, text: Path, tmp_path: Path) -> None:
    told = run(smollm2, text, tmp_path / "mine.gguf", method="workbench", memory=f"{memory}MB")
    assert told["settings"]["method"] == chosen and told["peak_rss_bytes"] < memory * 1e6
