"""Writes the command line's page of the documentation from the program: `python -m genmote.cli._reference FILE`."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

from genmote.cli import commands, parser_of

HEAD = """# Command line

This page is written by `make docs` from the program itself, and a test compares the two.

`genmote VERB --help` prints the same. Every verb takes `--json`, which prints one JSON object on standard output
(`chat`: one for each answer, `signal watch`: one a line for each thing that it tells); a verb that fails before its
result prints `{"error": "...", "status": 2}` there, with its exit status, beside the line on standard error. Progress
and notes go to standard error. Exit status: 0 done, 1 failed, 2 the input cannot be used ([errors](errors.md)), 130
interrupted by Ctrl-C.
"""


def page() -> str:
    """The page's Markdown."""
    return HEAD + "".join(_verb(name) for name in commands())


def _verb(name: str) -> str:
    parser, module = parser_of(name)
    doc = inspect.getdoc(module) or ""
    lines = [f"\n## {name}\n", doc, "\n| argument | what |", "| --- | --- |"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            lines.append(f"| {_spelling(action)} | {(action.help or '').replace('%%', '%').replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _spelling(action: argparse.Action) -> str:
    dots = " ..." if action.nargs in ("+", "*") else ""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}{dots}`"
    value = ""
    if action.nargs != 0:
        value = f" {{{','.join(map(str, action.choices))}}}" if action.choices else f" {action.metavar}{dots}"
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the reference of the command line.")
    parser.add_argument("file", type=Path)
    parser.parse_args().file.write_text(page(), encoding="utf-8")
