"""What the KV caches of all op sets share: kinds of storage and their sizes, counting rows, states that are saved."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import OpsError, SpecError

KINDS = ("f16", "int8", "int4")
PAGE = mmap.PAGESIZE  # 4096 on most machines, 16384 on a Raspberry Pi 5
BLOCK = 16  # rows of keys that lie together, see docs/formats.md
ROWS_DECODED = 512  # rows that a native cache turns into floats at once
QUERY_SLACK = 16  # rows beyond the asked number whose queries are kept, so that taking some rows back loses none

Heads = int | Sequence[int]  # of every layer, or of each


def of_layers(n_layers: int, heads: Heads) -> tuple[int, ...]:
    """The heads of each layer.

    >>> of_layers(2, 4), of_layers(2, [4, 3])
    ((4, 4), (4, 3))
    """
    each = (heads,) * n_layers if isinstance(heads, int) else tuple(heads)
    if len(each) != n_layers:
        raise OpsError(f"heads of {len(each)} layers for a cache of {n_layers}: give one number, or one for each layer")
    return each


def one(head: int | None) -> slice:
    """A head's place on the axis of heads, or all of them."""
    return slice(None) if head is None else slice(head, head + 1)


def part_types(kind: str, head_dim: int) -> dict[str, tuple[tuple[int, ...], type[Any]]]:
    """What a row keeps for one head, as `export` gives it: name → (shape, type). One code a number, see `kv_codes`."""
    if kind == "f16":
        return {"k": ((head_dim,), np.float16), "v": ((head_dim,), np.float16)}
    if kind not in KINDS:
        raise OpsError(f"a KV cache of kind {kind!r}: there are {', '.join(KINDS)}; choose one of these")
    code: type[Any] = np.int8 if kind == "int8" else np.uint8
    scale: tuple[tuple[int, ...], type[Any]] = ((), np.float16)
    return {"k": ((head_dim,), code), "v": ((head_dim,), code), "k_scale": scale, "v_scale": scale}


def block_bytes(kind: str, head_dim: int) -> tuple[int, int]:
    """Bytes of 16 rows' keys and of their values, one head (docs/formats.md)."""

    def padded(to: int) -> int:
        return -(-head_dim // to) * to

    if kind == "f16":
        return 2 * BLOCK * head_dim, 2 * BLOCK * head_dim
    if kind == "int8":
        return BLOCK * padded(8) + 2 * BLOCK, BLOCK * padded(32) + 2 * BLOCK
    return 10 * padded(8) + 2 * BLOCK, 8 * padded(32) + 2 * BLOCK


def row_bytes(kind: str, head_dim: int) -> int:
    """Bytes of one row's key and value of one head.

    >>> [row_bytes(kind, 64) for kind in KINDS], [row_bytes(kind, 128) for kind in KINDS]
    ([256, 132, 76], [512, 260, 148])
    """
    return sum(block_bytes(kind, head_dim)) // BLOCK


def cache_bytes(
    n_layers: int,
    n_kv_heads: Heads,
    head_dim: int,
    rows: int,
    *,
    kind: str = "f16",
    queries: int = 0,
    n_heads: Heads = 0,
    page: int = PAGE,
) -> int:
    """Memory that a native cache takes once it holds `rows` rows: each head's keys, and its values, begin a page of
    memory and take whole blocks of 16 rows; then the queries."""
    blocks = -(-rows // BLOCK)
    pages = sum(-(-blocks * block // page) for block in block_bytes(kind, head_dim))
    kept = sum(of_layers(n_layers, n_heads)) * head_dim * 2 * (queries + QUERY_SLACK) if queries else 0
    return sum(of_layers(n_layers, n_kv_heads)) * pages * page + kept


@dataclass(frozen=True)
class Streamed:
    """An array as parts that are made one after the other, for where there is no memory for a second whole one."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Callable[[], Iterable[NDArray[Any]]]


def nothing() -> None:
    """What `restore` does between layers where its arrays are plain memory."""


class Rows:
    """The counts of a `protocol.KVCache`, for caches that have `lengths` and `position` and can `_move` them."""

    lengths: Any  # (L,) rows that each layer holds
    position: int
    floor: int
    capacity: int

    @property
    def length(self) -> int:
        return int(max(self.lengths))

    def advance(self, count: int) -> None:
        """`count` rows were stored in every layer."""
        if count < 0 or self.length + count > self.capacity:
            raise SpecError(f"{count} more rows in a cache of {self.length}: it holds {self.capacity} at most")
        self._move(count)

    def truncate(self, position: int) -> None:
        """Forget the rows at and after a position."""
        self._move(-self.back(position))

    def back(self, position: int) -> int:
        """How many rows lie at and after a position that the cache can go back to; else SpecError."""
        if not self.floor <= position <= self.position:
            evicted = f" (rows before {self.floor} were evicted)" if self.floor else ""
            raise SpecError(
                f"cannot cut a cache of {self.position} rows to {position}{evicted}; "
                f"give a number from {self.floor} to {self.position}"
            )
        return self.position - position

    def streamed(self, position: int | None = None) -> Mapping[str, NDArray[Any] | Streamed]:
        return self.export(position)

    def copy_from(self, other: Any, position: int) -> None:
        self.restore(other.export(position))

    def export(self, position: int | None = None) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def restore(self, state: dict[str, NDArray[Any]], done: Callable[[], None] = nothing) -> None:
        raise NotImplementedError

    def _move(self, count: int) -> None:
        raise NotImplementedError


def kept_rows(rows: Any, heads: int, length: int) -> NDArray[np.int64]:
    """The argument of `keep`, (Hkv, n), checked: ascending rows of 0 to `length` for each head."""
    kept = np.ascontiguousarray(rows)
    if kept.ndim != 2 or kept.shape[0] != heads or kept.dtype.kind not in "iu":
        raise SpecError(f"rows to keep as {kept.dtype} {kept.shape}: wanted integers, ({heads}, any number)")
    kept = kept.astype(np.int64)
    if kept.size and (kept.min() < 0 or kept.max() >= length or (np.diff(kept, axis=1) <= 0).any()):
        raise SpecError(f"rows to keep must ascend within 0 to {length - 1}, each once for a head")
    return kept


@dataclass(frozen=True)
class State:
    """A cache as arrays: the heads of its rows, of all layers one after another, {name: (Σ T Hkv, …)}."""

    kind: str
    heads: tuple[int, ...]  # of each layer
    lengths: list[int]
    position: int
    floor: int
    parts: dict[str, NDArray[Any]]
    queries: list[NDArray[np.float16]]  # of each layer (n, H, D): of the last n rows

    def arrays(self) -> dict[str, NDArray[Any]]:
        counts = np.array([self.position, self.floor, *self.lengths], np.int64)
        kind = np.frombuffer(self.kind.encode(), np.uint8)
        queries = np.concatenate([x.reshape(-1, x.shape[-1]) for x in self.queries])
        return {"kind": kind, "counts": counts, **self.parts, "queries": queries}

    def layers(self) -> list[dict[str, NDArray[Any]]]:
        """The parts of each layer, (T, Hkv, …)."""
        ends = np.cumsum([0, *(n * heads for n, heads in zip(self.lengths, self.heads, strict=True))])
        return [
            {name: x[a:b].reshape(-1, heads, *x.shape[1:]) for name, x in self.parts.items()}
            for heads, (a, b) in zip(self.heads, pairwise(ends), strict=True)
        ]


def state_of(
    state: dict[str, NDArray[Any]],
    kind: str,
    heads: tuple[int, ...],
    dim: int,
    capacity: int,
    wanted: int,
    query_heads: tuple[int, ...],
    done: Callable[[], None] = nothing,
) -> State:
    """What `export` gave, checked for a cache of `kind` with `heads` of each layer that keeps `wanted` rows' queries of
    `query_heads`. Raises SpecError where it does not fit. `done`: after each layer that was read."""
    layers = len(heads)
    try:
        found = bytes(np.asarray(state["kind"], np.uint8)).decode()
        position, floor, *lengths = (int(n) for n in np.asarray(state["counts"], np.int64))
    except (KeyError, ValueError, UnicodeDecodeError):
        raise SpecError("a saved prefix without its counts: save it again with this version") from None
    if found != kind:
        raise SpecError(f"a saved prefix of kind {found}, the cache is {kind}: choose --kv {found}, or save it again")
    if len(lengths) != layers or min(lengths) < 0 or not 0 <= floor <= position:
        raise SpecError(f"a saved prefix of {len(lengths)} layers: wanted {layers}; save it again with this model")
    if max(lengths) > capacity:
        raise SpecError(f"a saved prefix of {max(lengths)} rows: wanted at most {capacity}; ask for a larger context")
    if any(position - floor > n or (not floor and n != position) for n in lengths):
        raise SpecError("a saved prefix whose counts contradict each other: save it again")
    parts = {}
    for name, (tail, type_) in part_types(kind, dim).items():
        x, shape = np.asarray(state.get(name, ())), (sum(n * h for n, h in zip(lengths, heads, strict=True)), *tail)
        if x.size != math.prod(shape) or x.shape[x.ndim - len(tail) :] != tail or x.dtype != type_:
            raise SpecError(
                f"a saved prefix with {name} of {x.dtype} {x.shape}: wanted {np.dtype(type_)} {shape}; "
                "save it again with this model"
            )
        parts[name] = x.reshape(shape)  # earlier versions wrote rows and heads as two axes
    queries = np.asarray(state.get("queries", np.zeros((0, dim), np.float16)))
    each = sum(query_heads)
    if queries.dtype != np.float16 or queries.ndim < 2 or queries.shape[-1] != dim:
        raise SpecError(f"a saved prefix with queries of {queries.dtype} {queries.shape}: save it again")
    rows = queries.size // (each * dim) if wanted and each and queries.size % (each * dim) == 0 else 0
    ends = np.cumsum([0, *(rows * h for h in query_heads)])
    flat = queries.reshape(-1, dim)
    kept = [
        flat[a:b].reshape(rows, h, dim)[max(0, rows - wanted) :]
        for h, (a, b) in zip(query_heads, pairwise(ends), strict=True)
    ]
    read = State(kind, heads, lengths, position, floor, parts, kept)
    for layer, (name, most) in product(read.layers(), (("k", 31), ("v", 15))):
        if kind == "int4" and layer[name].size and layer[name].max() > most:
            raise SpecError("a saved prefix with codes that int4 does not have: save it again")
        done()
    return read


class QueryRing:
    """The queries of the last rows, by position, in a ring for each layer: (n, H, D) float16."""

    def __init__(self, n_layers: int, wanted: int, n_heads: Heads, head_dim: int) -> None:
        self.heads = of_layers(n_layers, n_heads)
        if wanted and min(self.heads) < 1:
            raise OpsError(f"queries of {min(self.heads)} heads: give the model's n_heads beside queries")
        self.wanted = wanted
        self.size = wanted + QUERY_SLACK if wanted else 0
        self.rows = [np.zeros((self.size, heads, head_dim), np.float16) for heads in self.heads]
        self.begin = 0  # position of the first row whose queries are here

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows)

    def store(self, layer: int, position: int, q: NDArray[Any]) -> None:
        """Queries (n, H, D) of the rows from `position` on."""
        if not self.size:
            return
        last = position + len(q)
        self.begin = max(self.begin, last - self.size)
        first = max(position, last - self.size)
        self.rows[layer][np.arange(first, last) % self.size] = np.clip(q[first - position :], -65504, 65504)

    def read(self, layer: int, position: int) -> NDArray[np.float16]:
        """The queries of at most the last `wanted` rows before `position`, (n, H, D)."""
        first = max(min(self.begin, position), position - self.wanted)
        found: NDArray[np.float16] = self.rows[layer][np.arange(first, position) % max(1, self.size)]
        return found

    def read_all(self, position: int) -> list[NDArray[np.float16]]:
        return [self.read(layer, position) for layer in range(len(self.rows))]

    def forget(self, position: int) -> None:
        self.begin = min(self.begin, position)

    def restore(self, position: int, queries: Sequence[NDArray[np.float16]]) -> None:
        """Queries of each layer (n, H, D), of the last n rows before `position`."""
        self.begin = position - len(queries[0])
        for rows, found in zip(self.rows, queries, strict=True):
            if self.wanted:
                rows[np.arange(self.begin, position) % self.size] = found
