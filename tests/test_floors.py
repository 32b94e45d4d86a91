"""Imports go down only: the floors are the table in docs/architecture.md, the imports are read with `ast`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "genmote"


def table() -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Room → floor, and the imports along one floor that the page allows."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    heights = {"ground": -1, "roof": 99}
    floors: dict[str, int] = {}
    for height, rooms in re.findall(r"^\| (ground|roof|\d+) \| ([^|]*) \|", text, re.MULTILINE):
        for room in re.findall(r"`([\w]+)(?:/|\.py)`", rooms):
            floors[room] = heights.get(height, int(height) if height.isdigit() else 0)
    sideways = set(re.findall(r"^- `(\w+)(?:/|\.py)` may import `(\w+)(?:/|\.py)`", text, re.MULTILINE))
    return floors, sideways


FLOORS, SIDEWAYS = table()


def imported(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every genmote module that a file of `package` imports, also lazily and by text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            # import_module("genmote.x"), registry.load(f"genmote.x.{name}"): whatever text starts such a call.
            first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.startswith("genmote."):
                yield node.lineno, first.value


def faults(source: str, package: str, room: str) -> list[str]:
    """What one file of `room` imports against the rules."""
    found = []
    for line, name in imported(ast.parse(source), package):
        pieces = name.split(".")
        if pieces[0] != "genmote" or len(pieces) < 2 or pieces[1] not in FLOORS:
            continue  # another library, or a name of the package itself such as __version__
        other = pieces[1]
        if other == room or (room, other) in SIDEWAYS:
            continue
        if FLOORS[other] > FLOORS[room]:
            found.append(f"line {line}: {room} (floor {FLOORS[room]}) imports {other} above it ({FLOORS[other]})")
        elif FLOORS[other] == FLOORS[room] >= 0:
            found.append(f"line {line}: {room} imports {other} on its own floor, and no line of the page allows it")
    return found


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    assert room in FLOORS, f"say in the table of docs/architecture.md on which floor {room} lives"
    package = ".".join(["genmote", *relative.parts[:-1]])
    assert faults(path.read_text(encoding="utf-8"), package, room) == []


def test_the_table_names_what_exists() -> None:
    here = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert here == set(FLOORS), "docs/architecture.md tells of the rooms that exist, and of no others"


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("ops", "from genmote.models import gguf"),
        ("ops", "def f():\n    import genmote.runtime.engine"),
        ("ops", "from ..models.gguf import ModelFile"),
        ("ops", "from genmote import runtime"),
        ("ops", "import importlib\nimportlib.import_module('genmote.models.gguf')"),
        ("ops", "import importlib\nimportlib.import_module(f'genmote.models.families.{name}')"),
        ("errors", "from genmote.ops import names"),
        ("web", "from genmote.cli import main"),
    ],
)
def test_an_arrow_up_is_found(room: str, source: str) -> None:
    assert len(faults(source, f"genmote.{room}", room)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("cli", "from genmote.web import serve"),
        ("models", "from genmote.ops import load\nfrom genmote.errors import SpecError\nimport numpy"),
        ("records", "from genmote import __version__\nfrom genmote.errors import SpecError"),
        ("models", "from genmote.models.hub import parse\nfrom . import store"),
    ],
)
def test_an_arrow_down_is_allowed(room: str, source: str) -> None:
    assert faults(source, f"genmote.{room}", room) == []
