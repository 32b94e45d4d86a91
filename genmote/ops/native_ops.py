"""The native op set: C++ kernels on re-laid quantised weights, what a device runs.

Every result has the same bits on every instruction set, for any number of threads and any company in the batch: see
`native/kernels.h` for the one order in which a row's floats are added.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import OpsError, SpecError
from genmote.ops import kv_codes, quant
from genmote.ops.cache import (
    KINDS,
    ROWS_DECODED,
    Heads,
    Rows,
    State,
    Streamed,
    kept_rows,
    nothing,
    of_layers,
    one,
    part_types,
    state_of,
)
from genmote.ops.layer import Activation, Experts, Layer, Linear, Norm, taken
from genmote.ops.protocol import Rotary, Span

try:
    from genmote.ops import _native
except ImportError as error:  # built without a compiler, or for another Python
    raise OpsError(
        "the native kernels are not here, or do not load (genmote doctor tells): install a C++ compiler and "
        "reinstall genmote, or use the numpy op set"
    ) from error

Float32 = NDArray[np.float32]
ACTIVATIONS: dict[str, int] = {"silu": 0, "gelu": 1, "relu": 2}
FLOATS = {quant.by_name(name).ggml_id for name in ("F32", "F16", "BF16")}
MAX_HEAD_DIM = 1024
MAX_THREADS = 1024


def create(*, isa: str | None = None, threads: int | None = None) -> NativeOps:
    """The native op set on `threads` threads (None: one a core). `isa` None: GENMOTE_ISA, or the best that runs here.

    Raises OpsError for an instruction set that is unknown, not built in, or absent from this processor, and for an
    impossible number of threads.
    """
    name = isa or os.environ.get("GENMOTE_ISA") or _native.best_isa()
    here = [n for n in _native.isa_names() if _native.isa_runs(n)]
    if name not in here:
        raise OpsError(
            f"instruction set {name!r}: this machine runs {', '.join(here)}; choose one of these or leave it out"
        )
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= threads <= MAX_THREADS:
        raise OpsError(f"{threads} threads: wanted 1 to {MAX_THREADS}; leave it out for one a core")
    return NativeOps(name, threads)


class NativeCache(_native.KVCache, Rows):
    """Implements `protocol.KVCache` in native memory; pages are taken as rows arrive and given back as they go."""

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
        spill: str | os.PathLike[str] | None = None,
        resident_rows: int = 256,
        page: int = 0,
    ) -> None:
        """`spill`: a folder; all but the last `resident_rows` rows of a layer lie there in a file without a name while
        the layer is not computed. The bits are the same. `spilled`: bytes written and read. SpecError: disk full.
        `page`: bytes of a page of memory, 0 for the system's."""
        part_types(kind, head_dim)
        asked = of_layers(n_layers, n_heads if queries else 0)
        if queries and min(asked) < 1:
            raise OpsError(f"queries of {min(asked)} heads: give the model's n_heads beside queries")
        heads, folder = of_layers(n_layers, n_kv_heads), "" if spill is None else os.fspath(spill)
        ring = (queries, asked if queries else ())
        super().__init__(KINDS.index(kind), heads, head_dim, capacity, *ring, folder, resident_rows, page)
        self.kind, self.heads, self.dim = kind, heads, head_dim
        self.wanted, self.query_heads = queries, asked

    def keys(self, layer: int, head: int | None = None) -> Float32:
        return self._seen(layer, "k", head)

    def values(self, layer: int, head: int | None = None) -> Float32:
        return self._seen(layer, "v", head)

    def queries(self, layer: int) -> Float32:
        return self._queries(layer, self.position).astype(np.float32)

    def keep(self, layer: int, rows: Any) -> None:
        self.keep_rows(layer, kept_rows(rows, self.heads[layer], self.lengths[layer]))

    def export(self, position: int | None = None) -> dict[str, NDArray[Any]]:
        arrays = self.streamed(position)
        return {n: np.concatenate(list(x.parts())) if isinstance(x, Streamed) else x for n, x in arrays.items()}

    def streamed(self, position: int | None = None) -> dict[str, NDArray[Any] | Streamed]:
        back = 0 if position is None else self.back(position)
        lengths, end = [n - back for n in self.lengths], self.position - back
        queries = [self._queries(layer, end) for layer in range(len(self.heads))]
        count = sum(n * heads for n, heads in zip(lengths, self.heads, strict=True))

        def layers(name: str, tail: tuple[int, ...]) -> Iterator[NDArray[Any]]:
            for layer, n in enumerate(lengths):
                yield self._rows(layer, n)[name].reshape(-1, *tail)

        parts = {
            name: Streamed((count, *tail), np.dtype(type_), partial(layers, name, tail))
            for name, (tail, type_) in part_types(self.kind, self.dim).items()
        }
        return State(self.kind, self.heads, lengths, end, self.floor, {}, queries).arrays() | parts

    def copy_from(self, other: Any, position: int) -> None:
        other.back(position)
        alike = isinstance(other, NativeCache) and other.kind == self.kind
        if not alike or (other.heads, other.dim) != (self.heads, self.dim):
            raise SpecError("rows of a cache of another kind or shape: copy from one that was made alike")
        self.copy(other, position)

    def restore(self, state: dict[str, NDArray[Any]], done: Callable[[], None] = nothing) -> None:
        shape = (self.heads, self.dim, self.capacity)
        found = state_of(state, self.kind, *shape, self.wanted, self.query_heads, done)
        for layer, parts in enumerate(found.layers()):
            n = found.lengths[layer]
            raw = [np.ascontiguousarray(parts[name]).view(np.uint8) for name in "kv"]
            none = np.zeros((n, self.heads[layer]), np.float16)
            scales = [np.ascontiguousarray(parts.get(f"{name}_scale", none)).view(np.uint16) for name in "kv"]
            self.write(layer, 0, *raw, *scales)
            done()
        self.place(found.lengths, found.position, found.floor)
        for layer, queries in enumerate(found.queries):
            self.write_queries(layer, np.ascontiguousarray(queries).view(np.uint16))

    def _move(self, count: int) -> None:
        self.move(count)

    def _rows(self, layer: int, count: int) -> dict[str, NDArray[Any]]:
        """The first rows of a layer as `export` gives them."""
        heads = self.heads[layer]
        parts = {
            name: np.empty((count, heads, *tail), type_)
            for name, (tail, type_) in part_types(self.kind, self.dim).items()
        }
        scales = [parts.get(f"{name}_scale", np.empty((count, heads), np.float16)).view(np.uint16) for name in "kv"]
        self.read(layer, 0, parts["k"].view(np.uint8), parts["v"].view(np.uint8), *scales)
        return parts

    def _seen(self, layer: int, name: str, head: int | None) -> Float32:
        """Decoded head by head and in parts: little memory beside what is given."""
        rows, heads = self.lengths[layer], range(self.heads[layer])[one(head)]
        found = np.empty((rows, len(heads), self.dim), np.float32)
        codes = np.empty((rows, self.dim), part_types(self.kind, self.dim)[name][1])
        scales = np.empty(rows, np.float16)
        for place, each in enumerate(heads):
            self.read_head(layer, each, name == "v", codes.view(np.uint8), scales.view(np.uint16))
            for start in range(0, rows, ROWS_DECODED):
                some = slice(start, start + ROWS_DECODED)
                if self.kind == "f16":
                    found[some, place] = codes[some]
                else:
                    levels = kv_codes.levels(self.kind, codes[some], key=name == "k")
                    found[some, place] = kv_codes.rotate(levels * scales[some].astype(np.float32)[:, None])
        return found

    def _queries(self, layer: int, end: int) -> NDArray[np.float16]:
        first = max(min(self.query_begin, end), end - self.wanted)
        found = np.empty((end - first, self.query_heads[layer], self.dim), np.float16)
        self.read_queries(layer, first, found.view(np.uint16))
        return found


class NativeOps:
    """Implements `ops.protocol.Ops`, with a fused `block`."""

    name = "native"
    exact = True

    def __init__(self, isa: str, threads: int) -> None:
        self.machine = _native.Machine(isa, threads)
        self.isa, self.threads = isa, threads
        self._spans: tuple[tuple[Span, ...], Any] = ((), None)

    def limit_threads(self, threads: int) -> None:
        """Compute with at most so many threads from the next step on, 1 to `threads`; the results stay the same."""
        if not 1 <= threads <= self.threads:
            raise OpsError(
                f"a limit of {threads} threads: wanted 1 to {self.threads}, as many as this op set was made with"
            )
        self.machine.thread_limit = threads

    # -- weights --------------------------------------------------------------------------------------------------

    def matrix(self, type_name: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> Any:
        return self.packed_matrix(type_name, shape, self.pack(type_name, shape, raw))

    def packed_bytes(self, type_name: str, shape: tuple[int, int]) -> int:
        """Size of a matrix in the kernels' layout. Raises OpsError for a type or width that they have no layout for."""
        type_ = quant.by_name(type_name)
        size = int(_native.packed_bytes(type_.ggml_id, *shape))
        if not size or shape[1] % type_.block_size:
            raise OpsError(
                f"a {shape[0]}x{shape[1]} {type_name} matrix: the native kernels take none; "
                "convert the model to another type"
            )
        return size

    def pack(self, type_name: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A GGUF matrix re-laid for the kernels (docs/formats.md), without loss."""
        packed = aligned(self.packed_bytes(type_name, shape))
        self.machine.pack(quant.by_name(type_name).ggml_id, *shape, np.ascontiguousarray(raw).reshape(-1), packed)
        return packed

    def packed_matrix(self, type_name: str, shape: tuple[int, int], packed: NDArray[np.uint8]) -> Any:
        """A matrix over bytes that `pack` gave, for instance out of a memory-mapped file."""
        return _native.Matrix(quant.by_name(type_name).ggml_id, *shape, packed)

    def vector(self, values: Float32) -> Float32:
        return np.array(values, np.float32, order="C")

    def cache(self, n_layers: int, n_kv_heads: Heads, head_dim: int, capacity: int, **settings: Any) -> NativeCache:
        if head_dim > MAX_HEAD_DIM:
            raise OpsError(
                f"heads of {head_dim} dimensions: the native kernels take up to {MAX_HEAD_DIM}; use the numpy op set"
            )
        return NativeCache(n_layers, n_kv_heads, head_dim, capacity, **settings)

    # -- steps ----------------------------------------------------------------------------------------------------

    def array(self, values: Float32) -> Float32:
        return np.array(values, np.float32, order="C")  # a copy: a fused block works in place

    def numpy(self, x: Float32) -> Float32:
        return x

    def embed(self, table: Any, tokens: NDArray[np.int32]) -> Float32:
        y = np.empty((len(tokens), table.shape[1]), np.float32)
        self.machine.embed(table, np.ascontiguousarray(tokens), y)
        return y

    def linear(self, x: Float32, weight: Linear) -> Float32:
        low = x if weight.down is None else self._product(x, weight.down)
        y = self._product(low, weight.matrix, weight.bias)
        for adapter in weight.adapters:
            if {adapter.down.type, adapter.up.type} <= FLOATS:
                self.machine.adapt(adapter.down, adapter.up, adapter.scale, np.ascontiguousarray(x), y)
            else:
                y += np.float32(adapter.scale) * self._product(self._product(x, adapter.down), adapter.up)
        return y

    def norm(self, x: Float32, norm: Norm) -> Float32:
        x, y = _in_and_out(x)
        self.machine.norm(x, norm.gain, norm.bias, norm.eps, norm.centre, y)
        return y

    def rotary(self, positions: NDArray[np.int32], inv_freq: NDArray[np.float64], scale: float) -> Rotary:
        cos = np.empty((len(positions), len(inv_freq)), np.float32)
        sin = np.empty_like(cos)
        _native.rotary(positions, inv_freq, scale, cos, sin)
        return Rotary(cos, sin)

    def rope(self, x: Float32, rotary: Rotary, interleaved: bool) -> Float32:
        y = np.array(x, order="C")
        self.machine.rope(y, rotary.cos, rotary.sin, interleaved)
        return y

    def attend(self, q: Float32, k: Float32, v: Float32, spans: Sequence[Span], layer: Layer) -> Float32:
        spec = layer.spec
        out = np.empty((q.shape[0], spec.n_heads * spec.head_dim), np.float32)
        rows = (np.ascontiguousarray(a) for a in (q, k, v))
        self.machine.attend(*rows, self._native_spans(spans), spec.index, spec.scale, spec.score_cap, spec.window, out)
        return out

    def glu(self, gate: Float32, up: Float32, activation: Activation) -> Float32:
        up, y = _in_and_out(up)
        self.machine.glu(np.ascontiguousarray(gate), up, ACTIVATIONS[activation], y)
        return y

    def activate(self, x: Float32, activation: Activation) -> Float32:
        x, y = _in_and_out(x)
        self.machine.activate(x, ACTIVATIONS[activation], y)
        return y

    def add(self, a: Float32, b: Float32) -> Float32:
        return a + b

    def scale(self, x: Float32, factor: float) -> Float32:
        return x * np.float32(factor)

    def soft_cap(self, x: Float32, cap: float) -> Float32:
        x, y = _in_and_out(x)
        self.machine.soft_cap(x, cap, y)
        return y

    def experts(self, x: Float32, experts: Experts, activation: Activation) -> Float32:
        chosen, weights = self._route(x, experts)
        flat = chosen.reshape(-1)
        parts = np.empty((flat.size, (x.shape[1] + 15) // 16 * 16), np.float32)  # (N * used, D)
        for here in taken(x, chosen, experts):
            self._mixture(x, flat, here, experts.used, activation, parts)
        placed = parts.reshape(*chosen.shape, -1)[:, :, : x.shape[1]]
        out = np.zeros_like(x)
        for place in range(experts.used):  # in order of falling score
            out += weights[:, place, None] * placed[:, place]
        return out

    def _route(self, x: Float32, experts: Experts) -> tuple[NDArray[np.int64], Float32]:
        """The experts chosen for each row, best first, and their weights, (N, used) each."""
        shares = self.linear(x, experts.router)  # (N, E)
        self.machine.softmax(shares)
        if experts.routing is not None:
            shares = experts.routing(shares)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[:, : experts.used]
        weights = np.take_along_axis(shares, chosen, axis=-1)
        if experts.normalise:
            total = weights[:, 0].copy()
            for place in range(1, experts.used):  # one order for any number of rows
                total += weights[:, place]
            weights = weights / total[:, None]
        return chosen, weights

    def _mixture(
        self,
        x: Float32,
        chosen: NDArray[np.int64],
        here: list[tuple[int, tuple[Any, Any, Any]]],
        used: int,
        activation: Activation,
        parts: Float32,
    ) -> None:
        """What the experts that are here make of their rows, into their places of `parts`; chosen (N * used,)."""
        places = [np.flatnonzero(chosen == expert) for expert, _ in here]
        counts = np.array([len(some) for some in places])
        order = np.concatenate(places)
        out = np.empty((len(order), parts.shape[1]), np.float32)
        rows = (order // used).astype(np.int32)
        matrices = [each for _, each in here]
        self.machine.mixture(matrices, counts, rows, ACTIVATIONS[activation], np.ascontiguousarray(x), out)
        parts[order] = out

    # -- the fused form -------------------------------------------------------------------------------------------

    def block(self, x: Float32, layer: Layer, rotary: Rotary | None, spans: Sequence[Span]) -> Float32 | None:
        """All of `decoder.block` in place of `x`: in one call, or one for the attention and then the experts;
        None for a layer with adapters."""
        if layer.fused is None:
            layer.fused = _compile(layer)
        if layer.fused is False:
            return None
        experts = layer.experts
        if experts is not None and experts.source is not None:
            experts.source.expect(x)
        cos, sin = (rotary.cos, rotary.sin) if rotary is not None else (None, None)
        self.machine.block(layer.fused, x, cos, sin, self._native_spans(spans))
        if experts is not None:
            h = self.experts(self.norm(x, layer.ffn_norm), experts, layer.spec.activation)
            x += h if layer.post_ffn_norm is None else self.norm(h, layer.post_ffn_norm)
        return x

    # -- helpers --------------------------------------------------------------------------------------------------

    def _native_spans(self, spans: Sequence[Span]) -> Any:
        kept, now = self._spans, tuple(spans)  # the same spans come with every layer of a forward pass
        if kept[0] != now:
            kept = self._spans = (now, _native.Spans([(s.cache, s.start, s.count) for s in spans]))
        return kept[1]  # not self._spans[1]: another thread may have put its own there

    def _product(self, x: Float32, matrix: Any, bias: Float32 | None = None) -> Float32:
        rows = matrix.shape[0]
        y = np.empty((x.shape[0], (rows + 15) // 16 * 16), np.float32)
        self.machine.linear(matrix, bias, np.ascontiguousarray(x), y)
        return y if y.shape[1] == rows else np.ascontiguousarray(y[:, :rows])


def _compile(layer: Layer) -> Any:
    """The layer as the fused block takes it, or False where only the single steps can run it."""
    linears = (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
    if (layer.experts is None and layer.up is None) or any(w is not None and w.adapters for w in linears):
        return False
    spec = layer.spec
    norms = (layer.attn_norm, layer.ffn_norm, layer.q_norm, layer.k_norm, layer.post_attn_norm, layer.post_ffn_norm)
    return _native.Block(
        spec.index,
        spec.n_heads,
        spec.n_kv_heads,
        spec.head_dim,
        spec.scale,
        spec.score_cap,
        ACTIVATIONS[spec.activation],
        spec.window,
        spec.rope >= 0,
        spec.rope_interleaved,
        layer.attn_norm.gain.shape[0],
        [n and (n.gain, n.bias, n.eps, n.centre) for n in norms],
        [w and (w.matrix, w.bias, w.down) for w in linears],
    )


def _in_and_out(x: Float32) -> tuple[Float32, Float32]:
    """`x` as one run of numbers, which the kernels take, and room for as many."""
    x = np.ascontiguousarray(x)
    return x, np.empty_like(x)


def aligned(size: int) -> NDArray[np.uint8]:
    """Uninitialised bytes that begin on a cache line."""
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]
