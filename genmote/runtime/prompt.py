"""A prompt as rows: token ids and embeddings (of a sensor encoder, for instance) in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SpecError

if TYPE_CHECKING:
    from genmote.models.decoder import Decoder


class Rows:
    """The rows of a prompt. `ids[i]` is a token id, or a negative fingerprint of the embedding in that row, so that
    equal ids mean equal rows: that is what a cached prefix is found by.

    >>> Rows([1, 2]).ids
    [1, 2]
    """

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self.ids: list[int] = list(ids)
        self._vectors: list[tuple[int, NDArray[np.float32]]] = []  # (first row, (N, D))

    def __len__(self) -> int:
        return len(self.ids)

    def add_tokens(self, tokens: Sequence[int], vocab_size: int) -> None:
        if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence | np.ndarray):
            raise SpecError(f"got {type(tokens).__name__} for a list of token ids: give text, token ids or embeddings")
        for token in tokens:
            if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < vocab_size:
                raise SpecError(f"token {token!r}: this model's tokens are whole numbers from 0 to {vocab_size - 1}")
        self.ids.extend(int(token) for token in tokens)

    def add_embeddings(self, vectors: NDArray[np.float32], width: int) -> None:
        """Rows (N, width), scaled as the model's own input embeddings are (`Decoder.embed`)."""
        if vectors.ndim != 2 or vectors.shape[1] != width or not len(vectors):
            raise SpecError(f"embeddings of shape {vectors.shape}: this model takes (N, {width}), N at least 1")
        if vectors.dtype.kind not in "fiu":
            raise SpecError(f"embeddings of type {vectors.dtype}: give real numbers, such as float32")
        with np.errstate(over="ignore"):  # beyond float32: told as infinity
            vectors = np.ascontiguousarray(vectors, np.float32)
        if not np.isfinite(vectors).all():
            raise SpecError("embeddings with NaN or infinity: check what made them")
        self._vectors.append((len(self.ids), vectors))
        self.ids.extend(_fingerprint(row) for row in vectors)

    def inputs(self, decoder: Decoder, start: int, stop: int, *, embedded: bool = False) -> Any:
        """What `Decoder.forward` takes for rows [start, stop): ids, or (N, D) where embeddings are among them.

        `embedded` asks for (N, D) in any case.
        """
        overlaps = [(at, v) for at, v in self._vectors if at < stop and at + len(v) > start]
        if not overlaps and not embedded:
            return np.array(self.ids[start:stop], np.int32)
        parts = []
        row = start
        for at, vectors in overlaps:
            if row < at:
                parts.append(decoder.ops.numpy(decoder.embed(self.ids[row:at])))
            parts.append(vectors[max(0, start - at) : stop - at])
            row = min(stop, at + len(vectors))
        if row < stop:
            parts.append(decoder.ops.numpy(decoder.embed(self.ids[row:stop])))
        return np.concatenate(parts)

    def embeds(self, start: int, stop: int) -> bool:
        """Whether embeddings are among rows [start, stop)."""
        return any(at < stop and at + len(v) > start for at, v in self._vectors)


def _fingerprint(row: NDArray[np.float32]) -> int:
    import hashlib  # embeddings are rare, and it takes memory

    digest = hashlib.blake2b(row.tobytes(), digest_size=8).digest()
    return -1 - (int.from_bytes(digest, "little") >> 2)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5])
    2
    """
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low + 1 < high:  # a[:low] agrees, a[:high] does not
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low
