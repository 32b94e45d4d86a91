"""Saved prompt prefixes: a KV cache on disk, so that a long system prompt is run once for all starts of a program.

The file, little-endian: the line ``GENMOTE-PREFIX 1\\n``; a 4-byte length; that many bytes of JSON
``{"model": …, "ids": [...], "arrays": {name: [dtype, shape]}}``; the arrays' bytes in that order; the SHA-256 of
all that.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.digest import sha256
from genmote.errors import ModelFileError, SpecError
from genmote.home import atomic_write
from genmote.ops.cache import Streamed

MAGIC = b"GENMOTE-PREFIX 1\n"
_AT_ONCE = 1 << 20  # bytes
_DTYPES = ("float16", "float32", "uint8", "int8", "uint16", "int32", "int64")


def write(path: Path, model: str, ids: Sequence[int], arrays: Mapping[str, NDArray[Any] | Streamed]) -> None:
    """Write a prefix whole or not at all, an array's parts as they come. `model` says what it was computed with."""
    shapes = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
    header = json.dumps({"model": model, "ids": list(ids), "arrays": shapes}).encode()
    digest = sha256()
    try:
        with atomic_write(path) as out:
            for text in (MAGIC, len(header).to_bytes(4, "little"), header):
                digest.update(text)
                out.write(text)
            for array in arrays.values():
                for part in array.parts() if isinstance(array, Streamed) else (array,):
                    raw = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                    digest.update(raw)
                    out.write(raw)
            out.write(digest.digest())
    except OSError as error:
        raise SpecError(f"{path}: cannot save the prefix there ({error.strerror}); choose another path") from None


class Mapped(dict[str, NDArray[Any]]):
    """Arrays in a mapped file."""

    def __init__(self, file: mmap.mmap) -> None:
        super().__init__()
        self.file = file

    def let_go(self) -> None:
        """What was read of the file counts as this process's memory no longer; it can be read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.file.madvise(mmap.MADV_DONTNEED)


def read(path: Path, model: str) -> tuple[list[int], Mapped]:
    """The ids and arrays that `write` was given, checked against damage and against another model."""
    try:
        with open(path, "rb") as file:
            # Mapped, not read: the arrays are copied from here into a cache of the same size.
            raw = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise SpecError(f"{path}: no saved prefix can be read there ({error.strerror}); save one first") from None
    except ValueError:  # an empty file cannot be mapped
        raise damaged(path, "it does not begin as one") from None
    if raw[: len(MAGIC)] != MAGIC:
        raise damaged(path, "it does not begin as one")
    body, arrays = memoryview(raw)[:-32], Mapped(raw)
    digest = sha256()
    for at in range(0, len(body), _AT_ONCE):
        digest.update(body[at : at + _AT_ONCE])
        arrays.let_go()
    if len(raw) < len(MAGIC) + 36 or digest.digest() != raw[-32:]:
        raise damaged(path, "its checksum does not match")
    at = len(MAGIC) + 4 + int.from_bytes(raw[len(MAGIC) : len(MAGIC) + 4], "little")
    try:
        header = json.loads(bytes(body[len(MAGIC) + 4 : at]))
        ids, found = [int(i) for i in header["ids"]], str(header["model"])
        for name, (dtype, shape) in header["arrays"].items():
            if dtype not in _DTYPES or any(not isinstance(n, int) or n < 0 for n in shape):
                raise ValueError(f"array of type {dtype}")
            count = math.prod(shape)
            arrays[name] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += arrays[name].nbytes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, str(error)) from None
    if at != len(body):
        raise damaged(path, f"{len(body) - at} bytes are left over")
    if found != model:
        raise SpecError(
            f"{path}: saved with another model or other adapters ({found[:12]}…, this is {model[:12]}…); save it anew"
        )
    return ids, arrays


def damaged(path: Path, why: str) -> ModelFileError:
    return ModelFileError(f"{path} is no whole saved prefix: {why}; delete it and save it anew")
