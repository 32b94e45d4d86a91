"""Prints what pyproject.toml asks for, build tools and extras, one requirement a line: `requirements.py EXTRA...` takes
these extras, without one all of them at once.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

table = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
project = table["project"]
asked = [*table["build-system"]["requires"], *project["dependencies"]]
extras = project["optional-dependencies"]
for extra in sys.argv[1:] or extras:
    asked += [requirement for requirement in extras[extra] if not requirement.startswith("genmote[")]
print("\n".join(dict.fromkeys(asked)))
