from __future__ import annotations

from pathlib import Path

import pytest

from genmote import home
from tests.cli.conftest import Genmote

pytest.importorskip("genmote.ops._native", exc_type=ImportError)


@pytest.fixture
def model(own_home: Path, tmp_path: Path, genmote: Genmote) -> Path:
    """A small model file outside the home."""
    path = tmp_path / "tiny.gguf"
    assert genmote("make-model", "tiny-llama", str(path)).status == 0
    return path


def test_pack_writes_the_cache_once(genmote: Genmote, model: Path) -> None:
    told = genmote("pack", str(model), "--json").json
    path = Path(told["path"])
    assert told["made"] is True and told["model"] == str(model)
    assert path.stat().st_size == told["size_bytes"] and home.cache_dir() in path.parents
    again = genmote("pack", str(model), "--json").json
    assert again["made"] is False and again["path"] == told["path"]
    assert "was here" in genmote("pack", str(model), "--isa", "scalar").out


def test_a_cache_that_cannot_be_written_is_told(genmote: Genmote, model: Path, own_home: Path) -> None:
    assert home.usable(own_home)
    (own_home / "cache").write_text("a file")
    ran = genmote("pack", str(model))
    assert ran.status == 2 and "cannot be written: set GENMOTE_HOME to a folder that can" in ran.err


def test_a_full_disk_is_told(genmote: Genmote, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    ran = genmote("pack", str(model))
    assert ran.status == 2 and "was not written: see that" in ran.err


def test_an_unknown_instruction_set(genmote: Genmote, own_home: Path) -> None:
    ran = genmote("pack", "m", "--isa", "mmx")
    assert ran.status == 2 and "'mmx'" in ran.err
