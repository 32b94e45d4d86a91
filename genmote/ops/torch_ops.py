"""The op set that trains: PyTorch tensors, differentiable, on any device that PyTorch has. Never imported by a device.

Weights are dequantised once and kept as floats. Rounding (of inputs to 8 bits, of keys and values to float16) passes
gradients straight through (Bengio et al. 2013, arXiv 1308.3432). PyTorch orders its sums by the shape of a batch, so
here the last bits of a row do depend on its company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import OpsError
from genmote.ops import quant
from genmote.ops.cache import Heads, QueryRing, Rows, State, kept_rows, nothing, of_layers, one, row_bytes, state_of
from genmote.ops.exact import sin_cos
from genmote.ops.layer import Activation, Experts, Layer, Linear, Norm, taken
from genmote.ops.numpy_ops import GROUP, PLAIN
from genmote.ops.protocol import Rotary, Span

try:
    import torch
    from torch.nn import functional as F
except ModuleNotFoundError as error:
    raise OpsError("op set 'torch' needs PyTorch, which is not installed: run pip install torch") from error

Tensor = torch.Tensor


def create(*, device: str = "cpu", dtype: str = "float32", round_inputs: bool = True) -> TorchOps:
    """The PyTorch op set. `dtype`: float32, bfloat16 or float16. `round_inputs` False leaves out the 8-bit rounding of
    the inputs of quantised matrices, which is part of the definition: for training that should not see it."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise OpsError(f"dtype {dtype!r}: the torch op set computes in float32, bfloat16 or float16")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OpsError(f"device {device!r} cannot be used by this PyTorch; try cpu") from error
    return TorchOps(torch.device(device), getattr(torch, dtype), round_inputs)


def round_q8(x: Tensor) -> Tensor:
    """`numpy_ops.round_q8`, (N, K) → (N, K), gradient straight through."""
    groups = x.detach().float().reshape(*x.shape[:-1], -1, GROUP)
    largest = groups.abs().amax(dim=-1, keepdim=True)
    inverse = torch.where(largest < 1e-30, 0.0, 127.0 / largest)
    rounded = torch.round(groups * inverse) * (largest / 127.0)
    return _straight_through(rounded.reshape(x.shape).to(x.dtype), x)


def round_half(x: Tensor) -> Tensor:
    """Through float16 and back, gradient straight through."""
    return _straight_through(within_half(x.detach()).half().to(x.dtype), x)


def within_half(x: Tensor) -> Tensor:
    """Values beyond float16's range become its largest, as in every op set."""
    return x.clamp(-65504.0, 65504.0)


def _straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`'s bits, with the gradient of `source`: what is added is exactly zero."""
    result: Tensor = value + (source - source.detach())
    return result


@dataclass(eq=False)
class Matrix:
    """A weight (out, in) as floats. `rounds`: its input is rounded to 8 bits. A trainer may replace `weight`."""

    weight: Tensor
    rounds: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]


class TorchCache(Rows):
    """Implements `protocol.KVCache`: for each layer keys and values (rows, Hkv, D) float16, without gradients."""

    def __init__(
        self,
        n_layers: int,
        n_kv_heads: Heads,
        head_dim: int,
        capacity: int,
        device: torch.device,
        *,
        kind: str = "f16",
        queries: int = 0,
        n_heads: Heads = 0,
    ) -> None:
        if kind != "f16":
            raise OpsError(f"a KV cache of kind {kind!r}: the torch op set has f16; use the native op set for it")
        self.capacity, self.kind = capacity, kind
        self.heads, self.dim = of_layers(n_layers, n_kv_heads), head_dim
        self.k = [torch.zeros((0, heads, head_dim), dtype=torch.float16, device=device) for heads in self.heads]
        self.v = list(self.k)
        self.lengths, self.position, self.floor = [0] * n_layers, 0, 0
        self.ring = QueryRing(n_layers, queries, n_heads, head_dim)

    @property
    def nbytes(self) -> int:
        held = sum(int(n) * heads for n, heads in zip(self.lengths, self.heads, strict=True))
        return held * row_bytes("f16", self.dim) + self.ring.nbytes

    def keys(self, layer: int, head: int | None = None) -> NDArray[np.float32]:
        return _numpy(self.k[layer][: self.lengths[layer], one(head)])

    def values(self, layer: int, head: int | None = None) -> NDArray[np.float32]:
        return _numpy(self.v[layer][: self.lengths[layer], one(head)])

    def queries(self, layer: int) -> NDArray[np.float32]:
        return self.ring.read(layer, self.position).astype(np.float32)

    def keep(self, layer: int, rows: Any) -> None:
        kept = kept_rows(rows, self.heads[layer], self.lengths[layer])  # (Hkv, n)
        at = torch.tensor(kept.T.copy(), device=self.k[layer].device)
        heads = torch.arange(self.heads[layer], device=at.device)
        self.k[layer], self.v[layer] = self.k[layer][at, heads], self.v[layer][at, heads]
        self.lengths[layer] = kept.shape[1]
        self.floor = self.position

    def export(self, position: int | None = None) -> dict[str, NDArray[Any]]:
        back = 0 if position is None else self.back(position)
        lengths = [n - back for n in self.lengths]
        parts: dict[str, NDArray[Any]] = {
            name: torch.cat([x[:n].reshape(-1, self.dim) for x, n in zip(layers, lengths, strict=True)]).cpu().numpy()
            for name, layers in (("k", self.k), ("v", self.v))
        }
        end = self.position - back
        return State("f16", self.heads, lengths, end, self.floor, parts, self.ring.read_all(end)).arrays()

    def restore(self, state: dict[str, NDArray[Any]], done: Callable[[], None] = nothing) -> None:
        ring = self.ring
        found = state_of(state, "f16", self.heads, self.dim, self.capacity, ring.wanted, ring.heads)
        device = self.k[0].device
        self.k, self.v = ([torch.tensor(x[name], device=device) for x in found.layers()] for name in ("k", "v"))
        self.lengths, self.position, self.floor = found.lengths, found.position, found.floor
        self.ring.restore(found.position, found.queries)

    def store(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Write rows k, v (n, Hkv, D) after the valid ones, and their queries; `advance` makes them count."""
        start, end = self.lengths[layer], self.lengths[layer] + k.shape[0]
        if end > self.k[layer].shape[0]:
            rows = min(max(end, 2 * start, 64), self.capacity) - self.k[layer].shape[0]
            more = self.k[layer].new_zeros(rows, self.heads[layer], self.dim)
            self.k[layer], self.v[layer] = (torch.cat([x, more]) for x in (self.k[layer], self.v[layer]))
        self.k[layer][start:end] = within_half(k.detach())
        self.v[layer][start:end] = within_half(v.detach())
        if self.ring.wanted:
            self.ring.store(layer, self.position, _numpy(q.detach()))

    def _move(self, count: int) -> None:
        self.lengths = [n + count for n in self.lengths]
        self.position += count
        self.ring.forget(self.position)


def _numpy(x: Tensor) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = x.float().cpu().numpy()
    return numbers


class TorchOps:
    """Implements `ops.protocol.Ops`."""

    name = "torch"
    exact = False

    def __init__(self, device: torch.device, dtype: torch.dtype, round_inputs: bool) -> None:
        self.device, self.dtype, self.round_inputs = device, dtype, round_inputs

    # -- weights ------------------------------------------------------------------------------------------------

    def matrix(self, type_name: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> Matrix:
        floats = torch.from_numpy(quant.dequantize(type_name, raw, shape)).to(self.device, self.dtype)
        return Matrix(floats, quant.by_name(type_name).name not in PLAIN)

    def vector(self, values: NDArray[np.float32]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def cache(self, n_layers: int, n_kv_heads: Heads, head_dim: int, capacity: int, **settings: Any) -> TorchCache:
        return TorchCache(n_layers, n_kv_heads, head_dim, capacity, self.device, **settings)

    # -- steps --------------------------------------------------------------------------------------------------

    def array(self, values: NDArray[np.float32]) -> Tensor:
        return torch.tensor(values, dtype=self.dtype, device=self.device)

    def numpy(self, x: Tensor) -> NDArray[np.float32]:
        result: NDArray[np.float32] = x.detach().float().cpu().numpy()
        return result

    def embed(self, table: Matrix, tokens: NDArray[np.int32]) -> Tensor:
        return table.weight[torch.as_tensor(tokens, dtype=torch.long, device=self.device)]

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        low = x if weight.down is None else self.product(x, weight.down)
        y = self.product(low, weight.matrix)
        if weight.bias is not None:
            y = y + weight.bias.to(y.dtype)
        for adapter in weight.adapters:
            y = y + adapter.scale * self.product(self.product(x, adapter.down), adapter.up)
        return y

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        y: Tensor = x.float()
        if norm.centre:
            y = y - y.mean(dim=-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + norm.eps) * norm.gain
        y = y if norm.bias is None else y + norm.bias
        return y.to(x.dtype)

    def rotary(self, positions: NDArray[np.int32], inv_freq: NDArray[np.float64], scale: float) -> Rotary:
        sin, cos = sin_cos(positions[:, None].astype(np.float64) * inv_freq)  # (N, rot/2)
        return Rotary(self.array((cos * scale).astype(np.float32)), self.array((sin * scale).astype(np.float32)))

    def rope(self, x: Tensor, rotary: Rotary, interleaved: bool) -> Tensor:
        half = rotary.cos.shape[1]
        cos, sin = rotary.cos[:, None], rotary.sin[:, None]  # (N, 1, rot/2)
        turned, rest = x[..., : 2 * half], x[..., 2 * half :]
        a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
        pair = (a * cos - b * sin, a * sin + b * cos)  # (N, H, rot/2) each
        joined = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
        return torch.cat([joined, rest], dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], layer: Layer) -> Tensor:
        parts = []
        for span in spans:
            cache, rows = span.cache, slice(span.start, span.start + span.count)
            past = cache.lengths[layer.spec.index]
            cache.store(layer.spec.index, q[rows], k[rows], v[rows])
            keys, values = (
                torch.cat([stored[layer.spec.index][:past].to(self.dtype), round_half(new[rows])])
                for stored, new in ((cache.k, k), (cache.v, v))
            )  # (T, Hkv, D): this batch's rows keep their gradients
            parts.append(self._attend_span(q[rows], keys, values, layer))
        return torch.cat(parts)

    def glu(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        return self.activate(gate, activation) * up

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        if activation == "relu":
            return F.relu(x)
        return F.silu(x) if activation == "silu" else F.gelu(x, approximate="tanh")

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        return cap * torch.tanh(x / cap)

    def experts(self, x: Tensor, experts: Experts, activation: Activation) -> Tensor:
        shares = torch.softmax(self.linear(x, experts.router).float(), dim=-1)  # (N, E)
        if experts.routing is not None:
            shares = experts.routing(shares)
        chosen = torch.argsort(shares, dim=-1, descending=True, stable=True)[:, : experts.used]  # (N, used)
        weights = shares.gather(1, chosen)
        if experts.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        total = torch.zeros_like(x)
        for expert, (gate, up, down) in chain.from_iterable(taken(x, chosen, experts)):
            rows, places = torch.nonzero(chosen == expert, as_tuple=True)
            own = x[rows]
            inner = self.glu(self.product(own, gate), self.product(own, up), activation)
            part = self.product(inner, down)
            total = total.index_add(0, rows, weights[rows, places, None].to(x.dtype) * part)
        return total

    def product(self, x: Tensor, matrix: Matrix) -> Tensor:
        """(N, in) → (N, out) with the input rounded as the matrix's type asks: the one place where a weight meets its
        input, so that a subclass may watch it. Matrices that share an input are given the same tensor."""
        return F.linear(round_q8(x) if matrix.rounds and self.round_inputs else x, matrix.weight)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _attend_span(self, q: Tensor, keys: Tensor, values: Tensor, layer: Layer) -> Tensor:
        """The last n rows' attention: q (n, H, D) over keys and values (T, Hkv, D) → (n, H*D)."""
        spec = layer.spec
        n, total = q.shape[0], keys.shape[0]
        own = torch.arange(total - n, total, device=self.device)[:, None]  # the key row of each query row
        key = torch.arange(total, device=self.device)
        shown = key <= own
        if spec.window:
            shown &= key > own - spec.window
        if not spec.score_cap:
            groups = spec.n_heads // spec.n_kv_heads
            k, v = (x.transpose(0, 1).repeat_interleave(groups, 0)[None] for x in (keys, values))
            triangle = n == total and not 0 < spec.window < total
            found = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], k, v, None if triangle else shown, is_causal=triangle, scale=spec.scale
            )
            return found[0].transpose(0, 1).reshape(n, -1)
        grouped = q.reshape(n, spec.n_kv_heads, -1, spec.head_dim)  # (n, Hkv, G, D)
        scores = torch.einsum("nhgd,thd->hgnt", grouped, keys).float() * spec.scale
        scores = self.soft_cap(scores, spec.score_cap).masked_fill(~shown, -torch.inf)
        shares = torch.softmax(scores, dim=-1).to(values.dtype)
        return torch.einsum("hgnt,thd->nhgd", shares, values).reshape(n, -1)
