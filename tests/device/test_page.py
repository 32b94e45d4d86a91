"""The page on devices is true to the profiles."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from genmote.cli import _devices_page
from genmote.device import profile

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"


def test_the_table_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == _devices_page.page(text), "run: python -m genmote.cli._devices_page docs/devices.md"
    assert all(f"| `{name}` |" in text for name in profile.names())


def test_every_key_of_a_profile_is_told() -> None:
    text = PAGE.read_text(encoding="utf-8")
    parts = (profile.Memory, profile.Bandwidth, profile.Compute, profile.Storage, profile.Network, profile.Power)
    for part in (*parts, profile.Accelerator):
        assert [f.name for f in fields(part) if f"`{f.name}`" not in text] == []
    assert [f.name for f in fields(profile.Profile) if f"`{f.name}`" not in text and f"[{f.name}]" not in text] == []
