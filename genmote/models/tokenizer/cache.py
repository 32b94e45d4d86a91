"""Where token tables lie between runs: a file for each vocabulary in the cache folder, mapped when it is needed.

A table's name is the SHA-256 of its vocabulary, which takes some milliseconds to compute (tens on a small board). So a
``.key`` file remembers it under what tells the model file from all others: path, device, inode, size, times.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genmote import home
from genmote.digest import sha256
from genmote.errors import ModelFileError
from genmote.models.tokenizer import table
from genmote.models.tokenizer.build import build
from genmote.models.tokenizer.vocabulary import HasMetadata, Outline

LEAST_TO_MAKE = 10 << 20  # the pre-tokenizer's tables over all characters are made in it
CODE = 3 << 19  # modules and kernels that are loaded to make it
_SETTLED_NS = 2_000_000_000  # a file that changed less than this ago may change again within its clock's grain


def folder() -> Path:
    return home.cache_dir() / "tokenizers"


def table_of(model: HasMetadata, native: Any = None) -> npt.NDArray[np.uint8]:
    """The token table of a model file, (nbytes,) uint8: mapped from the cache, or made and put there first.

    A damaged file is made anew; where the folder cannot be written the table stays in memory. Raises `ModelFileError`.
    """
    outline = Outline(model)
    memo = _memo(model, outline)
    key = _remembered(memo)
    found = _map(key) if key else None
    if found is not None:
        return found
    key = outline.key()
    found = _map(key)
    made = None if found is not None else _make(outline, key, native)
    if home.usable(folder()):
        with contextlib.suppress(OSError):
            if made is not None:
                _write(_path(key), made)
            if memo is not None:
                _write(memo, key)
        found = _map(key)
    if found is not None:
        return found
    return np.frombuffer(_make(outline, key, native) if made is None else made, dtype=np.uint8)


def making_bytes(model: HasMetadata) -> int:
    """Memory that `table_of` would take to make the table, measured with two vocabularies; 0 where it is made."""
    outline = Outline(model)
    key = _remembered(_memo(model, outline)) or outline.key()
    if _map(key) is not None:
        return 0
    strings = sum(array.raw_span()[1] for array in (outline.strings, outline.merges) if array is not None)
    return max(LEAST_TO_MAKE, 8 * strings) + CODE


def _path(key: bytes) -> Path:
    return folder() / f"{key.hex()[:32]}.tokens"


def _write(path: Path, content: bytes) -> None:
    with home.atomic_write(path) as out:
        out.write(content)


def _make(outline: Outline, key: bytes, native: Any) -> bytes:
    try:
        return build(outline.read(), key, native)
    except ValueError as error:
        raise ModelFileError(f"{outline.model.path}: {error}; the file is damaged") from None


def _map(key: bytes) -> npt.NDArray[np.uint8] | None:
    """A table file as a memory map; None when it is absent, damaged or of another vocabulary."""
    try:
        with open(_path(key), "rb") as file:
            memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except (OSError, ValueError):
        return None
    return memory if table.problem(memory) is None and table.describe(memory)[4] == key else None


def _memo(model: HasMetadata, outline: Outline) -> Path | None:
    """Where the key of this very file is remembered; None while the file is too young to be told from its successor."""
    try:
        status = os.stat(model.path)
    except OSError:
        return None
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS:
        return None
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    told = repr((os.path.abspath(model.path), stamp, outline.head())).encode(errors="surrogatepass")
    return folder() / f"{sha256(told).hexdigest()[:32]}.key"


def _remembered(memo: Path | None) -> bytes | None:
    with contextlib.suppress(OSError):
        if memo is not None and len(key := memo.read_bytes()) == 32:
            return key
    return None
