from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from genmote import registry
from genmote.errors import OpsError, SpecError


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with two members and a helper."""
    folder = tmp_path / "a_room_for_tests"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "bits_down.py").write_text("VALUE = 4\n")
    (folder / "recent.py").write_text("VALUE = 5\n")
    (folder / "_plumbing.py").write_text("raise RuntimeError('a helper is no member')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "a_room_for_tests"
    for name in [m for m in sys.modules if m.startswith("a_room_for_tests")]:
        del sys.modules[name]


def test_a_file_is_a_member_by_its_name(room: str) -> None:
    assert registry.names(room) == ["bits-down", "recent"]
    assert registry.load(room, "bits-down").VALUE == 4
    assert registry.load(room, "bits_down").VALUE == 4


def test_an_unknown_name_points_at_the_known_ones(room: str) -> None:
    with pytest.raises(
        SpecError, match="no method is called 'recnt', did you mean recent\\?; known: bits-down, recent"
    ):
        registry.load(room, "recnt", what="method")
    with pytest.raises(OpsError, match="no member is called '_plumbing'"):
        registry.load(room, "_plumbing", error=OpsError)
    with pytest.raises(SpecError, match="no member is called"):
        registry.load(room, "../recent")
