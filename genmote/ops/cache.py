"""What the KV caches of all op sets share: counting rows, cutting them off, checking what a saved prefix holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError


class Rows:
    """The counts of a `protocol.KVCache`. A class that has no `length` and `position` of its own begins at 0."""

    length: int = 0
    position: int = 0

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise SpecError(f"cannot cut a cache of {self.length} rows to {length}; give a number from 0 to its length")
        self.position -= self.length - length
        self.length = length


class StoredRows(Rows):
    """The same over arrays `k` and `v`, (L, rows, Hkv, D) of 2-byte numbers."""

    k: Any
    v: Any

    @property
    def nbytes(self) -> int:
        layers, _, heads, dim = map(int, self.k.shape)
        return 2 * 2 * layers * self.length * heads * dim


def check_state(
    state: dict[str, NDArray[Any]], like: tuple[int, ...], capacity: int
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """The arrays of an exported cache, if they fit one of storage shape `like` (L, any, Hkv, D); else SpecError."""
    arrays = [np.asarray(state.get(name, ())) for name in ("k", "v")]
    for x in arrays:
        if x.ndim != 4 or x.dtype != np.float16 or (x.shape[0], *x.shape[2:]) != (like[0], *like[2:]):
            raise SpecError(
                f"a saved prefix of {x.dtype} {x.shape}: wanted float16 "
                f"({like[0]}, tokens, {like[2]}, {like[3]}); save it again with this model"
            )
    if arrays[0].shape != arrays[1].shape or arrays[0].shape[1] > capacity:
        raise SpecError(
            f"a saved prefix of {arrays[0].shape[1]} and {arrays[1].shape[1]} tokens: wanted as many keys as values, "
            f"at most {capacity}"
        )
    return arrays[0], arrays[1]
