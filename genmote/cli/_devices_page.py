"""Writes the table of devices into its page of the documentation: `python -m genmote.cli._devices_page FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from genmote.cli.devices import table
from genmote.device import profile

BEGIN, END = "<!-- table of devices: begin -->", "<!-- table of devices: end -->"


def page(text: str) -> str:
    """The page's Markdown with the table between its two marks drawn anew."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    heads, *rows = table({name: profile.load(name) for name in profile.names()})
    lines = [heads, ["---"] * len(heads), *([f"`{name}`", *others] for name, *others in rows)]
    drawn = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{before}{BEGIN}\n{drawn}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
