"""What the tune set feeds its contestants: a split that shares nothing and has every intent on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bench import Bench
from benchmarks.process import ContestantError
from benchmarks.run import available
from benchmarks.signals.sets import NAMED
from benchmarks.tune import forward, intents
from genmote.models.make_model import make_model
from genmote.tune.memory import MODULE_BYTES, PRODUCT_BYTES


def test_the_set_has_its_measures() -> None:
    assert "forward" in available("tune")


def test_the_split_shares_nothing(tmp_path: Path) -> None:
    try:
        learn, test = intents.write(tmp_path)
    except ContestantError as why:
        pytest.skip(str(why))
    one, two = ([json.loads(line) for line in path.read_text().splitlines()] for path in (learn, test))
    assert len(one) == 466 and len(two) == 119
    assert not {each["prompt"] + each["completion"] for each in one} & {
        each["prompt"] + each["completion"] for each in two
    }
    assert {each["completion"] for each in one} == {each["completion"] for each in two}


def test_where_the_data_are_not_here_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMED, str(tmp_path))
    with pytest.raises(ContestantError, match="home_llm_piles_en"):
        intents.write(tmp_path)


def test_a_step_takes_the_memory_of_a_plain_pass_and_the_trainer_s_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = tmp_path / "m.gguf", tmp_path / "text.txt"
    make_model("tiny-llama-256", "Q8_0", model, seed=3)
    text.write_text("All day long the light was on and the door was open. " * 400, encoding="utf-8")
    monkeypatch.setattr(forward, "FILE", str(model))
    monkeypatch.setattr(forward, "corpus", lambda: text)
    (row,) = forward.peak(Bench(quick=True))
    assert row.ours is not None and row.peer is not None, row.note
    assert row.ours - row.peer < (MODULE_BYTES + PRODUCT_BYTES) / 1e6
