"""Digests of whole model files, remembered in the cache folder: a large file on a slow card is read whole once, not at
each start.

A file is known again by its path, size and time, which is what a packed file tells of its own source too. The inode is
left out: on the FAT of memory cards it is another one after each mount.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from genmote import home
from genmote.errors import SpecError

if TYPE_CHECKING:
    from genmote.models.gguf import ModelFile

MOST = 64  # files that are remembered, the latest
_SETTLED_NS = 2_000_000_000  # a file that changed less than this ago may change again within its clock's grain

Known = dict[str, tuple[int, int, str]]  # path → size, time in ns, digest


def sha256(model: ModelFile) -> str:
    """`model.sha256()`, remembered where the cache folder can be written. Raises ModelFileError as that does."""
    path = os.fspath(model.path.absolute())
    now = time.time_ns()
    try:
        status = os.stat(path)
    except OSError:
        return model.sha256()
    if not model.is_at(status):  # another file is there by now: nothing of this one may be told of it
        return model.sha256()
    stamp = status.st_size, status.st_mtime_ns
    with contextlib.suppress(SpecError, OSError):  # no home, a read-only disk: do without
        found = _read().get(path)
        if found is not None and found[:2] == stamp:
            return model.sha256(found[2])
        digest = model.sha256()
        if now - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            _remember(path, (*stamp, digest))
    return model.sha256()


def _file() -> Path:
    return home.cache_dir() / "digests.json"


def _read() -> Known:
    """What is remembered, oldest first; nothing of what is damaged."""
    try:
        told = json.loads(_file().read_text(encoding="utf-8"))
        return {path: entry for path, row in told.items() if (entry := _entry(row)) is not None}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _entry(row: object) -> tuple[int, int, str] | None:
    match row:
        case [int(size), int(mtime_ns), str(digest)] if len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
            return size, mtime_ns, digest
    return None


def _remember(path: str, entry: tuple[int, int, str]) -> None:
    if home.usable(home.cache_dir()):
        known = _read()
        known.pop(path, None)
        known[path] = entry
        with home.atomic_write(_file(), "w") as out:
            json.dump(dict(list(known.items())[-MOST:]), out)
