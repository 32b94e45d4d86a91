"""Name finds file: a member of a room is one module in its folder, and there is no list to edit.

>>> "encodings" in names("email") or "encoders" in names("email")
True
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from genmote.errors import SpecError, UserError


def names(package: str) -> list[str]:
    """Names of the members in `package` (dotted), sorted; a module `bits_down.py` is the member ``bits-down``.

    Modules whose name starts with an underscore are helpers, not members. Nothing but the package itself is imported.
    """
    folder = importlib.import_module(package).__path__
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))


def load(package: str, name: str, *, what: str = "member", error: type[UserError] = SpecError) -> ModuleType:
    """Import and return the module of `name` in `package`; raise `error`, naming the known ones, if there is none."""
    known = names(package)
    wanted = name.lower().replace("_", "-")
    if wanted not in known:
        raise error(f"no {what} is called {name!r}{near(name, known)}; known: {', '.join(known)}")
    return importlib.import_module(f"{package}.{wanted.replace('-', '_')}")


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names for a line of text: some of them, and how many more there are.

    >>> listed(["a", "b", "c"], 2), listed(["a"]), listed([])
    ('a, b and 1 more', 'a', 'none')
    """
    all_names = list(names)
    more = f" and {len(all_names) - most} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more or "none"


def near(name: str, known: list[str]) -> str:
    """A phrase that points at the closest known names, or nothing.

    >>> near("lama", ["llama", "qwen2"])
    ', did you mean llama?'
    >>> near("LLAMA", ["llama", "qwen2"])
    ', did you mean llama?'
    """
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f", did you mean {' or '.join(close)}?" if close else ""
