"""The fused block against the single steps, bit for bit: widths, types, norms and batches drawn at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from genmote.errors import OpsError
from genmote.models.decoder import block
from genmote.ops import load, quant
from genmote.ops.layer import Adapter, Layer, LayerSpec, Linear, Norm
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Rotary, Span

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

ISAS = [name for name in native_ops._native.isa_names() if native_ops._native.isa_runs(name)]
PLAIN = ["F32", "F16", "BF16"]
SMALL = [*PLAIN, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"]


class Plan:
    """A random layer: what it is made of, so that every op set can make it again."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = np.random.default_rng(seed)

        def pick(*items: Any) -> Any:
            return items[rng.integers(len(items))]

        self.kind = pick("plain", "small", "mixed")
        step = 1 if self.kind == "plain" else 32
        self.dim = pick(2, 6, 16, 20, 80) if self.kind == "plain" else pick(32, 64, 96)
        self.kv_heads = int(rng.integers(1, 4))
        self.heads = self.kv_heads * int(rng.integers(1, 5))
        self.width = int(rng.integers(1, 5)) * step * (pick(1, 7, 19) if step == 1 else 1)
        self.inner = int(rng.integers(1, 9)) * step * (pick(1, 5, 16) if step == 1 else 1)
        one = pick(*(PLAIN if self.kind == "plain" else SMALL[3:]))
        self.types = [one if self.kind != "mixed" else pick(*SMALL) for _ in range(7)]
        self.gated, self.centre = bool(rng.integers(2)), bool(rng.integers(2))
        self.biased, self.post = bool(rng.integers(2)), bool(rng.integers(2))
        self.head_norms = pick("", "head", "all")
        self.rope = pick(-1, 0)
        self.spec = LayerSpec(
            index=int(rng.integers(3)),
            n_heads=self.heads,
            n_kv_heads=self.kv_heads,
            head_dim=self.dim,
            scale=0.2,
            activation=pick("silu", "gelu", "relu"),
            window=pick(0, 5, 16),
            rope=self.rope,
            rope_interleaved=bool(rng.integers(2)),
            score_cap=pick(0.0, 3.0),
        )
        q, kv, d, f = self.heads * self.dim, self.kv_heads * self.dim, self.width, self.inner
        self.shapes = [(q, d), (kv, d), (kv, d), (d, q), (f, d), (f, d), (d, f)]
        self.weights = [rng.standard_normal(s).astype(np.float32) / s[1] ** 0.5 for s in self.shapes]
        self.vectors = {n: rng.standard_normal((12, n)).astype(np.float32) for n in {q, kv, d, f, self.dim}}
        self.half = int(rng.integers(1, self.dim // 2 + 1))
        self.ranks = [pick(0, 0, 32, 96, int(rng.integers(1, 70))) for _ in self.shapes]  # 0: whole
        self.downs = [rng.standard_normal((r, s[1])).astype(np.float32) / s[1] ** 0.5 for r, s in self.low()]
        self.ups = [rng.standard_normal((s[0], r)).astype(np.float32) / max(1, r) ** 0.5 for r, s in self.low()]

    def low(self) -> list[tuple[int, tuple[int, int]]]:
        return list(zip(self.ranks, self.shapes, strict=True))

    def linear(self, ops: Any, i: int) -> Linear:
        kind, shape = self.types[i], self.shapes[i]
        bias = ops.vector(self.vectors[shape[0]][i]) if self.biased else None

        def matrix(kind: str, values: np.ndarray) -> Any:
            return ops.matrix(kind, values.shape, quant.quantize(kind, values))

        if not self.ranks[i]:
            return Linear(matrix(kind, self.weights[i]), bias)
        up = matrix(quant.fallback(kind, self.ranks[i]), self.ups[i])
        return Linear(up, bias, down=matrix(kind, self.downs[i]))

    def layer(self, ops: Any) -> Layer:
        q, k, v, o, gate, up, down = (self.linear(ops, i) for i in range(7))

        def norm(n: int, place: int) -> Norm:
            gain, bias = self.vectors[n][place], self.vectors[n][place + 1]
            return Norm(ops.vector(gain), ops.vector(bias) if self.centre else None, 1e-5, self.centre)

        of_heads = {"": (0, 0), "head": (self.dim, self.dim), "all": (self.heads * self.dim, self.kv_heads * self.dim)}
        nq, nk = of_heads[self.head_norms]
        return Layer(
            spec=self.spec,
            attn_norm=norm(self.width, 7),
            ffn_norm=norm(self.width, 8),
            q=q,
            k=k,
            v=v,
            o=o,
            gate=gate if self.gated else None,
            up=up,
            down=down,
            q_norm=norm(nq, 9) if nq else None,
            k_norm=norm(nk, 10) if nk else None,
            post_attn_norm=norm(self.width, 9) if self.post else None,
            post_ffn_norm=norm(self.width, 10) if self.post else None,
        )

    def run(self, ops: Any, layer: Layer, chunks: list[list[int]], fused: bool) -> list[np.ndarray]:
        """Outputs of two sessions, fed in steps of chunks[i][session] rows."""
        rng = np.random.default_rng(7)
        rows = [rng.standard_normal((sum(c), self.width)).astype(np.float32) for c in zip(*chunks, strict=True)]
        caches = [ops.cache(3, self.kv_heads, self.dim, 64) for _ in rows]
        outputs: list[list[np.ndarray]] = [[] for _ in rows]
        for counts in chunks:
            spans, parts, positions = [], [], []
            for cache, x, n in zip(caches, rows, counts, strict=True):
                if n:
                    spans.append(Span(cache, sum(p.shape[0] for p in parts), n))
                    parts.append(x[cache.length : cache.length + n])
                    positions += range(cache.length, cache.length + n)
            rotary: Rotary | None = None
            if self.rope >= 0:
                inv_freq = 100.0 ** -(np.arange(self.half) / self.half)
                rotary = ops.rotary(np.array(positions, np.int32), inv_freq, 1.0)
            x = ops.array(np.concatenate(parts))
            got = ops.block(x, layer, rotary, spans) if fused else block(ops, x, layer, rotary, spans)
            assert got is not None
            for span in spans:
                outputs[caches.index(span.cache)].append(np.array(got[span.start : span.start + span.count]))
                span.cache.advance(span.count)
        return [np.concatenate(parts) for parts in outputs]


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("seed", range(40))
def test_a_fused_block_is_its_steps_and_the_reference(seed: int) -> None:
    plan, reference = Plan(seed), NumpyOps()
    with np.errstate(over="ignore", under="ignore"):
        wanted = plan.run(reference, plan.layer(reference), [[21, 6]], fused=False)
    for isa in ISAS:
        for threads in (1, 2):
            ops = native_ops.create(isa=isa, threads=threads)
            layer = plan.layer(ops)
            for chunks in ([[21, 6]], [[1, 0], [17, 1], [1, 4], [2, 1]]):
                for fused in (True, False):
                    for got, want in zip(plan.run(ops, layer, chunks, fused), wanted, strict=True):
                        same_bits(got, want)


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_a_fused_block_of_large_blocks(type_name: str) -> None:
    plan = Plan(3)
    plan.dim, plan.kv_heads, plan.heads, plan.width, plan.inner, plan.half = 64, 2, 4, 256, 512, 32
    plan.spec = replace(plan.spec, n_heads=4, n_kv_heads=2, head_dim=64)
    plan.shapes = [(256, 256), (128, 256), (128, 256), (256, 256), (512, 256), (512, 256), (256, 512)]
    plan.weights = [plan.rng.standard_normal(s).astype(np.float32) / 16 for s in plan.shapes]
    plan.vectors = {n: plan.rng.standard_normal((12, n)).astype(np.float32) for n in (64, 128, 256, 512)}
    plan.types = [type_name] * 6 + ["Q6_K"]
    plan.ranks = [0] * 7
    reference = NumpyOps()
    wanted = plan.run(reference, plan.layer(reference), [[12, 3]], fused=False)
    for isa in ISAS:
        ops = native_ops.create(isa=isa, threads=2)
        for got, want in zip(plan.run(ops, plan.layer(ops), [[12, 3]], fused=True), wanted, strict=True):
            same_bits(got, want)


def test_layers_that_no_fused_form_can_run() -> None:
    plan, ops = Plan(0), native_ops.create(threads=1)
    layer = plan.layer(ops)
    rank, (out, cols) = 2, plan.shapes[0]
    down, up = (ops.matrix("F32", s, np.zeros(4 * s[0] * s[1], np.uint8)) for s in ((rank, cols), (out, rank)))
    adapted = replace(layer, q=replace(layer.q, adapters=(Adapter(down, up, 1.0),)))
    for other in (adapted, replace(layer, up=None)):
        assert ops.block(np.zeros((1, plan.width), np.float32), other, None, []) is None


@pytest.mark.parametrize("name", ["native", "numpy"])
@pytest.mark.parametrize("huge", [1e6, -1e6, 3e38, np.inf])
def test_a_later_row_beyond_float16_does_not_reach_earlier_rows(name, huge):
    """Causality holds whatever a row's values are: in one prefill, and row by row."""
    ops = load(name)
    layer: Any = Layer(LayerSpec(0, 2, 1, 16, 0.25), *([None] * 6))
    rng = np.random.default_rng(0)
    q = rng.standard_normal((4, 2, 16)).astype(np.float32)
    k, v = (rng.standard_normal((4, 1, 16)).astype(np.float32) for _ in range(2))
    v[3] = huge
    k[3, 0, 0] = huge
    whole_cache = ops.cache(1, 1, 16, 32)
    whole = ops.attend(q, k, v, [Span(whole_cache, 0, 4)], layer)
    cache = ops.cache(1, 1, 16, 32)
    alone = []
    for row in range(4):
        alone.append(ops.attend(q[row : row + 1], k[row : row + 1], v[row : row + 1], [Span(cache, 0, 1)], layer))
        cache.advance(1)
    assert np.array_equal(whole, np.concatenate(alone)) and np.isfinite(whole[:3]).all()


def test_moving_a_cache_while_the_kernels_run_is_not_felt():
    """Python may move the counts from another thread: the kernels use what they checked."""
    import threading
    import time

    ops = load("native", threads=1)
    layer: Any = Layer(LayerSpec(0, 8, 1, 64, 0.125), *([None] * 6))
    cache = ops.cache(1, 1, 64, 300)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((256, heads, 64)).astype(np.float32) for heads in (8, 1, 1))
    want = ops.attend(q, k, v, [Span(cache, 0, 256)], layer)
    stop = threading.Event()

    def disturb():
        while not stop.is_set():
            cache.move(100)
            cache.move(-100)
            time.sleep(0)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        done = 0
        for _ in range(300):
            try:
                assert np.array_equal(ops.attend(q, k, v, [Span(cache, 0, 256)], layer), want)
                done += 1
            except ValueError as error:
                assert "cache is full" in str(error)  # there were 100 rows more at the check
    finally:
        stop.set()
        thread.join()
    assert done
