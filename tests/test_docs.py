"""The documentation is true to the program where a program can tell."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from genmote import errors, records
from genmote.cli import _reference
from genmote.models.store import Source

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_command_line_page_is_current() -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == _reference.page(), "run: make docs"


def test_the_errors_page_tells_of_every_error_with_its_status() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| (\d) \|", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE))
    real = {n: c for n, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, errors.GenmoteError)}
    assert told == {name: str(cls.exit_status) for name, cls in real.items()}


@pytest.mark.parametrize("cls", [records.Record, Source])
def test_the_formats_page_tells_of_every_field(cls: type) -> None:
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert not [f.name for f in fields(cls) if f"`{f.name}`" not in text and f"`[[{f.name}]]`" not in text]


def test_the_formats_page_tells_of_every_file_that_begins_with_a_mark() -> None:
    marks: set[str] = set()
    for path in (ROOT / "genmote").rglob("*.py"):
        marks |= set(re.findall(r'^_?MAGIC = b"(.+?)(?:\\n)?"', path.read_text(encoding="utf-8"), re.MULTILINE))
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert len(marks) >= 3 and not [mark for mark in marks if f"`{mark}`" not in text]


def test_the_formats_page_tells_of_every_section_of_a_token_table() -> None:
    from genmote.models.tokenizer.table import SECTIONS

    assert re.findall(r"^\| `([A-Z]+)` \| [ui]", (DOCS / "formats.md").read_text(encoding="utf-8"), re.M) == SECTIONS


def test_the_environment_variables_are_listed() -> None:
    used: set[str] = set()
    for path in (ROOT / "genmote").rglob("*.py"):
        used |= set(re.findall(r"environ(?:\.get\(|\[)\"(GENMOTE_\w+|HF_\w+)\"", path.read_text(encoding="utf-8")))
    text = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    assert used and not [name for name in sorted(used) if f"`{name}`" not in text]


def test_the_examples_in_the_help_are_commands_that_parse() -> None:
    import shlex

    from genmote.cli import commands, parser_of

    for command in commands():
        parser, module = parser_of(command)
        for line in re.findall(r"^    (?:[A-Z_]+=\S+ )?genmote (.+)$", module.__doc__ or "", re.MULTILINE):
            words = shlex.split(re.split(r" [<>|] ", line)[0])  # what is left to the shell goes
            own = command.split()
            assert words[: len(own)] == own
            parser.parse_args(words[len(own) :])
