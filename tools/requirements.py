"""Prints what pyproject.toml asks for, build tools and all extras at once, one requirement a line."""

from __future__ import annotations

import tomllib
from pathlib import Path

table = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
project = table["project"]
asked = [*table["build-system"]["requires"], *project["dependencies"]]
for extra in project["optional-dependencies"].values():
    asked += [requirement for requirement in extra if not requirement.startswith("genmote[")]
print("\n".join(dict.fromkeys(asked)))
