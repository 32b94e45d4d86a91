"""Environments of the peers' own, so that what they need is no package of ours."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

from benchmarks.peers import ROOT, PeerError, run, say
from benchmarks.process import ContestantError


def interpreter(name: str, needs: Path) -> Path:
    """The Python of the environment `name`, which holds what the file `needs` lists; made on first use.
    `ContestantError` where it cannot be had."""
    folder = ROOT / name
    python = folder / "bin" / "python"
    told = folder / "made"  # written last, with what is in it
    wanted = needs.read_text() + sys.version
    if not told.exists() or told.read_text() != wanted:
        say(f"making an environment for the peers of the set {name}")
        venv.create(folder, with_pip=True, clear=True)
        try:
            run([str(python), "-m", "pip", "install", "-q", "-r", str(needs)], ROOT / f"{name}.log")
        except PeerError as why:
            raise ContestantError(str(why)) from why
        told.write_text(wanted)
    return python
