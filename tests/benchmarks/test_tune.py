"""What the tune set feeds its contestants: a split that shares nothing and has every intent on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.process import ContestantError
from benchmarks.run import available
from benchmarks.signals.sets import NAMED
from benchmarks.tune import intents


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
