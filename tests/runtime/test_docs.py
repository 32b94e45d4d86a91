"""The page on Python does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from genmote.runtime.engine import Engine
from genmote.runtime.fake import fake_engine

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = [
    block
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if "adapter=" not in block and "tune(" not in block
]


def test_the_blocks_run_as_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Engine, "load", classmethod(lambda cls, model, **settings: fake_engine()))
    names: dict[str, Any] = {
        "engine": fake_engine(sure=4.0),
        "report": "all is well ",
        "instructions": "be brief ",
        "first": "a",
        "second": "b",
        "prompts": ["ab ab", "xyz"],
    }
    assert len(BLOCKS) == 7
    for block in BLOCKS:
        exec(block, names)
    assert names["later"].ids[:9] == [256, *b"be brief"]
    assert [len(text) for text in names["texts"]] == [100, 100]
