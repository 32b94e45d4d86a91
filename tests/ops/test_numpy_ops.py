"""The reference op set against its definitions, written out in slow loops, and the promise that rows do not mix."""

from __future__ import annotations

import cmath
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import OpsError, SpecError
from genmote.ops import quant
from genmote.ops.exact import chain, exp, fma, row_squares, row_sum, sin_cos, tanh
from genmote.ops.layer import Adapter, Experts, Layer, LayerSpec, Linear, Norm
from genmote.ops.numpy_ops import NumpyOps, round_q8
from genmote.ops.protocol import Rotary, Span

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def stored(ops: Any, values: np.ndarray, type_name: str = "F32") -> Any:
    return ops.matrix(type_name, values.shape, quant.quantize(type_name, values))


def attention_layer(**spec: Any) -> Layer:
    fields = {"index": 0, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "scale": 0.3, **spec}
    nothing: Any = None
    return Layer(LayerSpec(**fields), nothing, nothing, nothing, nothing, nothing, nothing)


# -- arithmetic in a stated order ------------------------------------------------------------------------------------


def rounded(value: Fraction) -> np.float32:
    """The float32 nearest to an exact number, ties to even; by Python's integers alone."""
    if value == 0:
        return np.float32(0)
    exponent = math.frexp(float(abs(value)))[1] - 24
    unit = Fraction(2) ** exponent
    return np.float32(float(round(value / unit) * unit))  # `round` of a Fraction takes ties to even


def hard(*shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, b, c of which a * b often lies in the middle between two float32, and c is too small for float64 to see."""
    a, b = (RNG.integers(2048, 4096, shape) * 2 + 1).astype(np.float32), (RNG.integers(1024, 2048, shape) * 2 + 1)
    c = RNG.choice([-1, 0, 1], shape) * 2.0 ** RNG.integers(-50, -36, shape)
    easy = RNG.random(shape) < 0.3
    return np.where(easy, normal(*shape), a), np.where(easy, normal(*shape), b.astype(np.float32)), c.astype(np.float32)


def once(a: float, b: float, c: float) -> np.float32:
    return rounded(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def test_fma_rounds_once() -> None:
    a, b, c = hard(20_000)
    wanted = np.array([once(*numbers) for numbers in zip(a, b, c, strict=True)])
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (twice != wanted).sum() > 1000  # so the test does see what must be mended
    assert np.array_equal(fma(a, b, c), wanted)


@pytest.mark.parametrize("started", [False, True])
def test_chains_round_once_a_step(started: bool) -> None:
    begin = hard(200)[2] if started else np.zeros(200, np.float32)
    kept, wanted, twice, products = begin.copy(), begin, begin, []
    for _ in range(10):
        a, b, c = hard(200)
        # something small, then the product that it must push off the middle, then almost all of it away again
        for x, y in ((c, np.ones_like(c)), (a, b), (None, np.ones_like(c))):
            x = -wanted if x is None else x
            products.append(x.astype(np.float64) * y)
            wanted = np.array([once(*numbers) for numbers in zip(x, y, wanted, strict=True)])
            twice = (products[-1] + twice).astype(np.float32)
    assert (twice != wanted).sum() > 10
    assert np.array_equal(chain(np.array(products), begin if started else None), wanted)
    assert np.array_equal(begin, kept)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 576])
def test_sums_over_a_row(count: int) -> None:
    x = normal(3, count)
    np.testing.assert_allclose(row_sum(x), [math.fsum(row) for row in x], atol=1e-4)
    np.testing.assert_allclose(row_squares(x), [math.fsum(float(v) ** 2 for v in row) for row in x], rtol=1e-5)


def test_exp_and_tanh() -> None:
    x = np.concatenate([RNG.uniform(-87, 88, 5000), RNG.uniform(-1, 1, 5000), [0.0, -0.0]]).astype(np.float32)
    assert np.abs(exp(x) / [math.exp(v) for v in x] - 1).max() < 2e-7
    assert np.array_equal(
        exp(np.array([-np.inf, -87.1, np.inf, 99], np.float32)), [0, 0, *[exp(np.float32([88]))[0]] * 2]
    )
    assert np.isnan(exp(np.array([np.nan], np.float32))).all()
    np.testing.assert_allclose(tanh(x), [math.tanh(v) for v in x], atol=2e-7)


def test_sin_and_cos_of_far_positions() -> None:
    x = np.concatenate([np.arange(0, 200_000, 97, dtype=np.float64), RNG.uniform(-1.5e6, 1.5e6, 2000)])
    sin, cos = sin_cos(x)
    assert np.abs(sin - [math.sin(v) for v in x]).max() < 1e-15
    assert np.abs(cos - [math.cos(v) for v in x]).max() < 1e-15


# -- rounding and linear ---------------------------------------------------------------------------------------------


def test_round_q8_by_its_definition() -> None:
    x = normal(3, 96) * 10
    q, d = round_q8(x)
    assert q.shape == (3, 3, 32) and d.shape == (3, 3)
    for row, group in np.ndindex(3, 3):
        values = x[row, 32 * group : 32 * group + 32]
        largest = np.float32(max(abs(v) for v in values))
        assert d[row, group] == largest / np.float32(127)
        assert q[row, group].tolist() == [np.rint(v * (np.float32(127) / largest)) for v in values]
    assert np.abs((q * d[:, :, None]).reshape(3, 96) - x).max() <= np.abs(x).max() / 254 * 1.0001


def test_round_q8_of_nothing_and_of_nan() -> None:
    x = np.zeros((1, 96), np.float32)
    x[0, 32] = 1e-40
    x[0, 64] = np.nan
    q, d = round_q8(x)
    assert not q[0, :2].any() and np.isnan((q * d[:, :, None])[0, 2]).any()


@pytest.mark.parametrize("type_name", quant.codec_names())
def test_linear_by_its_definition(type_name: str) -> None:
    ops, x, weight, bias = NumpyOps(), normal(3, 256), normal(40, 256), normal(40)
    raw = quant.quantize(type_name, weight)
    floats = quant.dequantize(type_name, raw, weight.shape).astype(np.float64)
    q, d = round_q8(x)
    seen = x if type_name in ("F32", "F16", "BF16") else (q * d[:, :, None]).reshape(x.shape)
    got = ops.linear(x, Linear(ops.matrix(type_name, weight.shape, raw), bias))
    wanted = [[sum(seen[n, i] * floats[o, i] for i in range(256)) + bias[o] for o in range(40)] for n in range(3)]
    np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("type_name", ["F32", "F16", "Q4_0", "Q6_K"])
def test_memory_allowance_changes_no_bit(type_name: str) -> None:
    x, weight = normal(2, 256), normal(1100, 256)
    raw = quant.quantize(type_name, weight)
    results = []
    for allowance in (0, 1 << 30):
        ops = NumpyOps(float_bytes=allowance)
        matrix = ops.matrix(type_name, weight.shape, raw)
        results.append([ops.linear(x, Linear(matrix)) for _ in range(2)])
        assert (matrix.unpacked is None) == (allowance == 0 or type_name == "F32")
    assert np.array_equal(results[0], results[1])


def test_adapters_add_low_rank_updates() -> None:
    ops, x, weight = NumpyOps(), normal(2, 32), normal(6, 32)
    down, up = normal(3, 32), normal(6, 3)
    linear = Linear(stored(ops, weight), None, (Adapter(stored(ops, down), stored(ops, up), 0.5),) * 2)
    np.testing.assert_allclose(ops.linear(x, linear), x @ (weight + 2 * 0.5 * up @ down).T, rtol=1e-4, atol=1e-4)


def test_embed_gives_rows() -> None:
    ops, table = NumpyOps(), normal(9, 32)
    got = ops.embed(stored(ops, table, "Q8_0"), np.array([4, 0, 4], np.int32))
    np.testing.assert_allclose(got, table[[4, 0, 4]], atol=0.02)


# -- norms, positions, activations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
def test_norm(centre: bool) -> None:
    x, gain, bias = normal(2, 3, 16), normal(16), normal(16)
    got = NumpyOps().norm(x, Norm(gain, bias if centre else None, 1e-3, centre))
    for row in x.reshape(-1, 16):
        kept = [v - sum(row) / 16 for v in row] if centre else list(row)
        size = math.sqrt(sum(v * v for v in kept) / 16 + 1e-3)
        wanted = [v / size * g + (b if centre else 0) for v, g, b in zip(kept, gain, bias, strict=True)]
        assert np.isclose(got.reshape(-1, 16), wanted, atol=1e-5).all(axis=1).any()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [8, 4])
def test_rope_turns_complex_numbers(interleaved: bool, dims: int) -> None:
    ops, x, positions = NumpyOps(), normal(3, 2, 8), np.array([0, 5, 90000], np.int32)
    inv_freq = np.array([10.0**-i for i in range(dims // 2)])
    got = ops.rope(x, ops.rotary(positions, inv_freq, 1.5), interleaved)
    for n, head in np.ndindex(3, 2):
        for i in range(dims // 2):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + dims // 2)
            turned = complex(x[n, head, a], x[n, head, b]) * 1.5 * cmath.exp(1j * int(positions[n]) * inv_freq[i])
            assert abs(complex(got[n, head, a], got[n, head, b]) - turned) < 1e-5
    assert np.array_equal(got[..., dims:], x[..., dims:])


def test_activations() -> None:
    ops, x, up = NumpyOps(), np.linspace(-12, 12, 101, dtype=np.float32)[None], normal(1, 101)
    silu = [v / (1 + math.exp(-v)) for v in x[0]]
    gelu = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x[0].astype(float)]
    np.testing.assert_allclose(ops.activate(x, "silu")[0], silu, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ops.activate(x, "gelu")[0], gelu, rtol=1e-6, atol=1e-6)
    assert np.array_equal(ops.activate(x, "relu"), np.maximum(x, 0))
    assert np.array_equal(ops.glu(x, up, "gelu"), ops.activate(x, "gelu") * up)
    np.testing.assert_allclose(ops.soft_cap(x, 5.0)[0], [5 * math.tanh(v / 5) for v in x[0]], atol=1e-6)


# -- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{}, {"window": 3}, {"score_cap": 2.0}, {"n_kv_heads": 4}, {"n_kv_heads": 1}])
def test_attention_by_its_definition(spec: dict[str, Any]) -> None:
    ops, layer = NumpyOps(), attention_layer(**spec)
    heads, kv_heads = layer.spec.n_heads, layer.spec.n_kv_heads
    caches = [ops.cache(1, kv_heads, 8, 20) for _ in range(2)]
    history: list[list[tuple[np.ndarray, np.ndarray]]] = [[], []]
    for counts in ((5, 2), (1, 1), (3, 70 - 63)):  # a batch of two sessions, three times
        rows = sum(counts)
        q, k, v = normal(rows, heads, 8), normal(rows, kv_heads, 8), normal(rows, kv_heads, 8)
        spans = [Span(caches[0], 0, counts[0]), Span(caches[1], counts[0], counts[1])]
        got = ops.attend(q, k, v, spans, layer)
        for session, span in enumerate(spans):
            for n in range(span.start, span.start + span.count):
                history[session].append((k[n].astype(np.float16).astype(float), v[n].astype(np.float16).astype(float)))
                seen = history[session][-layer.spec.window :]
                for head in range(heads):
                    kv = head // (heads // kv_heads)
                    scores = [layer.spec.scale * float(q[n, head] @ key[kv]) for key, _ in seen]
                    if cap := layer.spec.score_cap:
                        scores = [cap * math.tanh(s / cap) for s in scores]
                    shares = [math.exp(s) for s in scores]
                    wanted = sum(p * value[kv] for p, (_, value) in zip(shares, seen, strict=True)) / sum(shares)
                    np.testing.assert_allclose(got[n, head * 8 : head * 8 + 8], wanted, atol=2e-6)
        for span in spans:
            span.cache.advance(span.count)


def test_a_cache_grows_and_forgets() -> None:
    ops, layer = NumpyOps(), attention_layer()
    cache = ops.cache(1, 2, 8, 500)
    for _ in range(3):
        ops.attend(normal(50, 4, 8), normal(50, 2, 8), normal(50, 2, 8), [Span(cache, 0, 50)], layer)
        cache.advance(50)
    assert cache.nbytes == 150 * 2 * 8 * 2 * 2
    state = cache.export()
    cache.truncate(70)
    assert (cache.length, cache.position) == (70, 70)
    assert np.array_equal(cache.export()["v"], state["v"][: 70 * 2])  # rows of two heads
    fresh = ops.cache(1, 2, 8, 500)
    fresh.restore(state)
    assert fresh.length == 150 and np.array_equal(fresh.export()["k"], state["k"])
    with pytest.raises(SpecError, match="cannot cut a cache of 70 rows to 71"):
        cache.truncate(71)


# -- experts ---------------------------------------------------------------------------------------------------------


def some_experts(ops: Any, type_name: str, normalise: bool, router: np.ndarray) -> tuple[Experts, list[Any]]:
    weights = [[normal(*shape) * 0.3 for _ in range(4)] for shape in ((64, 32), (64, 32), (32, 64))]
    gate, up, down = (tuple(stored(ops, w, type_name) for w in group) for group in weights)
    return Experts(Linear(stored(ops, router)), gate, up, down, used=2, normalise=normalise), [gate, up, down]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("type_name", ["F32", "Q8_0"])
def test_experts_by_their_definition(normalise: bool, type_name: str) -> None:
    ops, x, router = NumpyOps(), normal(6, 32), normal(4, 32)
    experts, (gate, up, down) = some_experts(ops, type_name, normalise, router)
    got = ops.experts(x, experts, "silu")
    for n in range(6):
        powers = [math.exp(float(x[n] @ router[e])) for e in range(4)]
        best = sorted(range(4), key=lambda e: -powers[e])[:2]
        whole = sum(powers[e] for e in best) if normalise else sum(powers)
        wanted = np.zeros(32)
        for e in best:
            inner = ops.glu(ops.linear(x[n : n + 1], Linear(gate[e])), ops.linear(x[n : n + 1], Linear(up[e])), "silu")
            wanted += powers[e] / whole * ops.linear(inner, Linear(down[e]))[0]
        np.testing.assert_allclose(got[n], wanted, atol=1e-5)


def test_experts_tie_for_the_lower_index() -> None:
    ops = NumpyOps()
    experts, _ = some_experts(ops, "F32", True, np.zeros((4, 32), np.float32))
    chosen, weights = ops._route(np.array([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]], np.float32), experts)
    assert chosen.tolist() == [[1, 2], [0, 1]] and np.allclose(weights, 0.5)


# -- a row's result does not depend on its company -------------------------------------------------------------------


@pytest.mark.parametrize("type_name", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize(("out", "cols"), [(576, 576), (33, 96), (1030, 256), (7, 64), (1, 64)])
def test_rows_of_a_product_do_not_mix(type_name: str, out: int, cols: int) -> None:
    ops, x = NumpyOps(), normal(37, cols)
    linear = Linear(stored(ops, normal(out, cols), type_name))
    together = ops.linear(x, linear)
    for rows in ([0], [36], [3, 4], list(range(5, 30))):
        assert np.array_equal(ops.linear(x[rows], linear), together[rows])


def test_rows_of_the_other_steps_do_not_mix() -> None:
    ops, x, router = NumpyOps(), normal(37, 576), normal(4, 32)
    experts, _ = some_experts(ops, "Q8_0", True, router)
    steps = [
        (x, lambda x: ops.norm(x, Norm(np.ones(576, np.float32)))),
        (x, lambda x: ops.norm(x, Norm(np.ones(576, np.float32), None, 1e-5, True))),
        (x, lambda x: ops.activate(x, "silu")),
        (x, lambda x: ops.activate(x, "gelu")),
        (normal(37, 32), lambda x: ops.experts(x, experts, "silu")),
    ]
    for values, step in steps:
        together = step(values)
        for rows in ([0], [36], list(range(5, 30))):
            assert np.array_equal(step(values[rows]), together[rows])


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_does_not_see_the_chunking(window: int, kv_heads: int) -> None:
    ops, layer = NumpyOps(), attention_layer(window=window, n_kv_heads=kv_heads)
    q, k, v = normal(90, 4, 8), normal(90, kv_heads, 8), normal(90, kv_heads, 8)

    def run(chunks: list[int]) -> np.ndarray:
        cache, parts, start = ops.cache(1, kv_heads, 8, 90), [], 0
        for count in chunks:
            rows = slice(start, start + count)
            parts.append(ops.attend(q[rows], k[rows], v[rows], [Span(cache, 0, count)], layer))
            cache.advance(count)
            start += count
        return np.concatenate(parts)

    whole = run([90])
    assert np.array_equal(run([1] * 90), whole)
    assert np.array_equal(run([32, 1, 57]), whole)


# -- loading ---------------------------------------------------------------------------------------------------------


def test_load_finds_op_sets_by_name() -> None:
    assert op_sets.load("numpy", float_bytes=0).name == "numpy"
    assert {"numpy", "torch"} <= set(op_sets.names())
    assert op_sets.load().name in ("numpy", "native")
    with pytest.raises(OpsError, match="op set 'cupy': there are .*numpy.*torch; choose one of these"):
        op_sets.load("cupy")
    with pytest.raises(OpsError, match="op set 'numpy' has no such option: threads"):
        op_sets.load("numpy", threads=2)


def test_without_kernels_numpy_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert op_sets.load().name == "numpy"


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(SpecError, match="tensor type 'Q9_9' is unknown"):
        NumpyOps().matrix("Q9_9", (1, 32), np.zeros(32, np.uint8))


def test_rotary_is_rounded_last() -> None:
    got = NumpyOps().rotary(np.array([100_003], np.int32), np.array([1.0, 1e-3]), 1.0)
    assert isinstance(got, Rotary) and got.cos.dtype == np.float32
    assert got.cos[0].tolist() == [np.float32(math.cos(100_003)), np.float32(math.cos(100_003 * 1e-3))]
