"""The KV cache of the NumPy op set: for each layer plain arrays with one row for each stored row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.ops import kv_codes
from genmote.ops.cache import (
    Heads,
    QueryRing,
    Rows,
    State,
    kept_rows,
    nothing,
    of_layers,
    one,
    part_types,
    row_bytes,
    state_of,
)
from genmote.ops.exact import Float32


class NumpyCache(Rows):
    """Implements `protocol.KVCache`. `parts[layer][name]` is (rows, Hkv, …); it grows with the text."""

    def __init__(
        self,
        n_layers: int,
        n_kv_heads: Heads,
        head_dim: int,
        capacity: int,
        *,
        kind: str = "f16",
        queries: int = 0,
        n_heads: Heads = 0,
    ) -> None:
        self.capacity, self.kind = capacity, kind
        self.heads, self.dim = of_layers(n_layers, n_kv_heads), head_dim
        types = part_types(kind, head_dim)
        self.parts = [
            {name: np.zeros((0, heads, *tail), type_) for name, (tail, type_) in types.items()} for heads in self.heads
        ]
        self.lengths, self.position, self.floor = [0] * n_layers, 0, 0
        self.ring = QueryRing(n_layers, queries, n_heads, head_dim)

    @property
    def nbytes(self) -> int:
        held = sum(int(n) * heads for n, heads in zip(self.lengths, self.heads, strict=True))
        return held * row_bytes(self.kind, self.dim) + self.ring.nbytes

    def keys(self, layer: int, head: int | None = None) -> Float32:
        return self._seen(layer, "k")[:, one(head)]

    def values(self, layer: int, head: int | None = None) -> Float32:
        return self._seen(layer, "v")[:, one(head)]

    def queries(self, layer: int) -> Float32:
        return self.ring.read(layer, self.position).astype(np.float32)

    def keep(self, layer: int, rows: Any) -> None:
        kept = kept_rows(rows, self.heads[layer], self.lengths[layer])  # (Hkv, n)
        for name, x in self.parts[layer].items():
            self.parts[layer][name] = x[kept.T, np.arange(self.heads[layer])]  # (n, Hkv, …)
        self.lengths[layer] = kept.shape[1]
        self.floor = self.position

    def export(self, position: int | None = None) -> dict[str, NDArray[Any]]:
        back = 0 if position is None else self.back(position)
        lengths = [n - back for n in self.lengths]
        parts = {
            name: np.concatenate(
                [layer[name][:n].reshape(-1, *tail) for layer, n in zip(self.parts, lengths, strict=True)]
            )
            for name, (tail, _) in part_types(self.kind, self.dim).items()
        }
        end = self.position - back
        return State(self.kind, self.heads, lengths, end, self.floor, parts, self.ring.read_all(end)).arrays()

    def restore(self, state: dict[str, NDArray[Any]], done: Callable[[], None] = nothing) -> None:
        ring = self.ring
        found = state_of(state, self.kind, self.heads, self.dim, self.capacity, ring.wanted, ring.heads)
        self.parts = [{name: x.copy() for name, x in layer.items()} for layer in found.layers()]
        self.lengths, self.position, self.floor = found.lengths, found.position, found.floor
        self.ring.restore(found.position, found.queries)

    def store(self, layer: int, q: Float32, k: Float32, v: Float32) -> None:
        """Write rows k, v (n, Hkv, D) after the valid ones, and their queries (n, H, D); `advance` makes them count."""
        start, end = self.lengths[layer], self.lengths[layer] + k.shape[0]
        for name, rows in self.stored(k, v).items():
            x = self.parts[layer][name]
            if end > x.shape[0]:
                grown = np.zeros((min(max(end, 2 * x.shape[0], 64), self.capacity), *x.shape[1:]), x.dtype)
                grown[: x.shape[0]] = x
                x = self.parts[layer][name] = grown
            x[start:end] = rows
        self.ring.store(layer, self.position, q)

    def stored(self, k: Float32, v: Float32) -> dict[str, NDArray[Any]]:
        """Rows as the cache keeps them."""
        k, v = within_half(k), within_half(v)
        if self.kind == "f16":
            return {"k": k.astype(np.float16), "v": v.astype(np.float16)}
        keys, key_scale = kv_codes.encode(self.kind, k, key=True)
        values, value_scale = kv_codes.encode(self.kind, v, key=False)
        return {"k": keys, "v": values, "k_scale": key_scale, "v_scale": value_scale}

    def levels(self, layer: int, name: str, rows: slice) -> tuple[Float32, Float32 | None]:
        """Keys or values ("k", "v") of some rows as the kernels take them: (T, Hkv, D), and scales (T, Hkv) or None. In
        a cache of codes they are turned (`kv_codes.rotate`)."""
        stored = self.parts[layer]
        if self.kind == "f16":
            return stored[name][rows].astype(np.float32), None
        scale = stored[f"{name}_scale"][rows].astype(np.float32)
        return kv_codes.levels(self.kind, stored[name][rows], key=name == "k"), scale

    def _seen(self, layer: int, name: str) -> Float32:
        rows, scale = self.levels(layer, name, slice(self.lengths[layer]))
        return rows if scale is None else kv_codes.rotate(rows * scale[..., None])

    def _move(self, count: int) -> None:
        self.lengths = [n + count for n in self.lengths]
        self.position += count
        self.ring.forget(self.position)


def within_half(x: Float32) -> Float32:
    """Values beyond float16's range, NaN too, become its largest: an infinity in a row of values would reach the rows
    that give it no weight (0 * inf)."""
    top = np.float32(65504)
    x = np.where(x < top, x, top)
    return np.where(x > -top, x, -top)
