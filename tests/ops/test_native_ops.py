"""Every native kernel against its NumPy twin, bit for bit, on every instruction set that this machine runs; rows that
do not mix; and how far the polynomials are from the functions that they stand for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from genmote.errors import OpsError
from genmote.ops import exact, packed, quant
from genmote.ops.layer import Adapter, Experts, Layer, LayerSpec, Linear, Norm
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Span

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)
NativeOps = native_ops.NativeOps

ISAS = [name for name in native_ops._native.isa_names() if native_ops._native.isa_runs(name)]
TYPES = quant.codec_names()
RNG = np.random.default_rng(17)


@pytest.fixture(scope="module", params=ISAS)
def ops(request: pytest.FixtureRequest) -> Any:
    return native_ops.create(isa=request.param, threads=1)


@pytest.fixture(scope="module")
def machines() -> list[Any]:
    """Every instruction set on one, two and three threads."""
    return [native_ops.create(isa=isa, threads=threads) for isa in ISAS for threads in (1, 2, 3)]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def stored(ops: Any, values: np.ndarray, type_name: str = "F32") -> Any:
    return ops.matrix(type_name, values.shape, quant.quantize(type_name, values))


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def shapes_of(type_name: str) -> list[tuple[int, int]]:
    if quant.by_name(type_name).block_size == 256:
        return [(40, 256), (1, 512), (23, 768)]
    return [(40, 256), (1, 32), (7, 96), (50, 288)] + ([(33, 7), (5, 1)] if type_name in ("F32", "F16", "BF16") else [])


# -- linear ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", TYPES)
def test_linear_is_the_reference_to_the_bit(ops: Any, type_name: str) -> None:
    reference = NumpyOps()
    for out, cols in shapes_of(type_name):
        x, weight, bias = normal(21, cols), normal(out, cols), normal(out)
        x[1] = 0
        x[2] *= 1e-37  # below the smallest scale that has an inverse
        x[3] *= 1e15
        x[4, : cols // 2] = 0
        x[5] = np.where(x[5] > 0, 1, -1) * np.exp2(np.arange(cols) % 20)
        for n in (1, 2, 3, 4, 5, 8, 9, 21):
            got = ops.linear(x[:n], Linear(stored(ops, weight, type_name), bias))
            same_bits(got, reference.linear(x[:n], Linear(stored(reference, weight, type_name), bias)))


def filled(type_name: str, raw: np.ndarray, scale: Any) -> np.ndarray:
    """Blocks of any bytes with sensible float16 scales."""
    blocks = raw.view(packed.KINDS[type_name].blocks.record)
    for field in {"d", "m", "dmin"} & set(blocks.dtype.names):
        blocks[field] = scale
    return raw


@pytest.mark.parametrize("type_name", packed.KINDS)
def test_linear_of_any_codes(ops: Any, type_name: str) -> None:
    """Codes and factors that a quantiser may never write, and inputs that are all at the end of their range: the sums
    that an integer kernel must hold without saturating."""
    reference, shape = NumpyOps(), (32, 512)
    size = quant.nbytes(type_name, shape)
    x = normal(9, 512)
    x[0], x[1] = 1, -1
    for raw in (
        RNG.integers(0, 256, size, np.uint8),
        *(np.full(size, byte, np.uint8) for byte in (0, 0x7F, 0x80, 0xFF)),
    ):
        raw = filled(type_name, raw, RNG.standard_normal(size // quant.by_name(type_name).block_bytes))
        got = ops.linear(x, Linear(ops.matrix(type_name, shape, raw)))
        same_bits(got, reference.linear(x, Linear(reference.matrix(type_name, shape, raw))))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_adapters_and_contiguity(ops: Any, kind: str) -> None:
    reference, rank = NumpyOps(), 32 if kind == "Q8_0" else 3
    weight, down, up = normal(50, 64), normal(rank, 64), normal(50, rank)

    def linear(o: Any) -> Linear:
        adapters = (
            Adapter(stored(o, down, kind), stored(o, up, kind), 0.7),
            Adapter(stored(o, down[:1]), stored(o, up[:, :1]), -2),
        )
        return Linear(stored(o, weight, "Q4_0"), None, adapters)

    for n in (0, 1, 5, 40, 77):
        x = np.asfortranarray(normal(n, 64))
        same_bits(ops.linear(x, linear(ops)), reference.linear(x, linear(reference)))


@pytest.mark.parametrize("type_name", TYPES)
def test_rows_alone_and_in_any_company(ops: Any, type_name: str) -> None:
    x, linear = normal(40, 256), Linear(stored(ops, normal(70, 256), type_name))
    together = ops.linear(x, linear)
    for n in range(1, 41):
        same_bits(ops.linear(x[:n], linear), together[:n])
        same_bits(ops.linear(x[n - 1 : n], linear), together[n - 1 : n])


@pytest.mark.parametrize("type_name", TYPES)
def test_threads_and_instruction_sets_change_no_bit(machines: list[Any], type_name: str) -> None:
    raw = quant.quantize(type_name, normal(700, 1024))
    x = normal(33, 1024)
    results = [[m.linear(x[:n], Linear(m.matrix(type_name, (700, 1024), raw))) for n in (1, 6, 33)] for m in machines]
    for result in results[1:]:
        for got, wanted in zip(result, results[0], strict=True):
            same_bits(got, wanted)


def test_nothing_times_a_matrix(machines: list[Any]) -> None:
    for ops in machines:
        assert ops.linear(normal(0, 32), Linear(stored(ops, normal(16, 32), "Q8_0"))).shape == (0, 16)


def test_embed(ops: Any) -> None:
    reference, tokens = NumpyOps(), np.array([4, 0, 16, 4, 8], np.int32)
    for type_name in TYPES:
        table = normal(17, 256)
        got = ops.embed(stored(ops, table, type_name), tokens)
        same_bits(got, reference.embed(stored(reference, table, type_name), tokens))


# -- norms, positions, activations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
def test_norm(ops: Any, centre: bool) -> None:
    reference = NumpyOps()
    for width in [*range(1, 40), 64, 80, 576, 1000, 2048]:
        x = normal(3, width) * 10
        norm = Norm(normal(width), normal(width) if centre else None, 1e-5, centre)
        got = ops.norm(x, norm)
        same_bits(got, reference.norm(x, norm))
        wide = x.astype(np.float64) - (x.mean(axis=1, keepdims=True, dtype=np.float64) if centre else 0)
        deviation = np.sqrt(np.square(wide).mean(axis=1, keepdims=True) + 1e-5)
        lost = 2e-6 * max(2, (np.abs(x) / deviation).max())  # what a mean takes from numbers that are nearly alike
        wide = wide / deviation * norm.gain
        np.testing.assert_allclose(got, wide if norm.bias is None else wide + norm.bias, rtol=2e-6, atol=lost)
    heads, gain = normal(5, 3, 24), Norm(normal(24))  # over each head
    same_bits(ops.norm(heads, gain), reference.norm(heads, gain))
    turned = normal(24, 5).T
    same_bits(ops.norm(turned, gain), reference.norm(turned, gain))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_and_its_tables(ops: Any, interleaved: bool) -> None:
    reference, positions = NumpyOps(), np.array([0, 1, 17, 4095, 131071, 1_000_000], np.int32)
    for dims, pairs in ((8, 4), (8, 2), (80, 40), (6, 3), (256, 128)):
        inv_freq = 10000.0 ** (-np.arange(pairs) / pairs)
        for scale in (1.0, 1.3):
            tables = [o.rotary(positions, inv_freq, scale) for o in (ops, reference)]
            same_bits(tables[0].cos, tables[1].cos)
            same_bits(tables[0].sin, tables[1].sin)
        for heads in (1, 3):
            x = normal(6, heads, dims)
            same_bits(ops.rope(x, tables[0], interleaved), reference.rope(x, tables[1], interleaved))
    turned = normal(3, 6, 8).transpose(1, 0, 2)
    table = ops.rotary(positions, np.array([1.0, 0.3]), 1.0)
    same_bits(ops.rope(turned, table, interleaved), reference.rope(turned, table, interleaved))


def test_rotary_is_cosine_and_sine_to_the_last_bit(ops: Any) -> None:
    positions = np.concatenate([np.arange(3000), RNG.integers(0, 1_000_000, 3000)]).astype(np.int32)
    inv_freq = np.array([1.0, 0.1, 0.0123, 1e-4])
    table = ops.rotary(positions, inv_freq, 1.0)
    angles = positions[:, None] * inv_freq
    for got, function in ((table.cos, math.cos), (table.sin, math.sin)):
        wanted = np.vectorize(function)(angles).astype(np.float32)
        assert np.abs((got - wanted) / np.spacing(np.abs(wanted))).max() <= 1


SPREAD = np.concatenate([RNG.standard_normal(4000) * 3, np.linspace(-90, 90, 4001), 10.0 ** np.linspace(-40, 20, 500)])
SPREAD = np.concatenate([SPREAD, -SPREAD, [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38]]).astype(np.float32)[None]


def true_activation(name: str, x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    inner = wide if name == "silu" else 2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    with np.errstate(over="ignore"):
        return wide / (1 + np.exp(-inner))  # 0.5 (1 + tanh u) = 1 / (1 + e**-2u)


@pytest.mark.parametrize("name", ["silu", "gelu", "relu"])
def test_activations(ops: Any, name: str) -> None:
    with np.errstate(over="ignore", under="ignore"):
        same_bits(ops.activate(SPREAD, name), NumpyOps().activate(SPREAD, name))
        up = normal(*SPREAD.shape)
        same_bits(ops.glu(SPREAD, up, name), NumpyOps().glu(SPREAD, up, name))
    for n in range(1, 36):  # every tail of a vector
        same_bits(ops.activate(SPREAD[:, 7 : 7 + n], name), ops.activate(SPREAD, name)[:, 7 : 7 + n])
        same_bits(ops.glu(SPREAD[:, :n], up[:, :n], name), ops.glu(SPREAD, up, name)[:, :n])
    if name == "relu":
        assert np.array_equal(ops.activate(SPREAD, name), np.maximum(SPREAD, 0))
    else:  # e**-x stops at e**88, so that far on the left silu goes on at -|x| / e**88
        error = np.abs(ops.activate(SPREAD, name) - true_activation(name, SPREAD))
        assert (
            error
            <= np.abs(SPREAD) * (3e-7 if name == "gelu" else 1e-38)
            + 3e-7 * np.abs(true_activation(name, SPREAD))
            + 1e-44
        ).all()


def test_soft_cap(ops: Any) -> None:
    for cap in (0.5, 30.0, 50.0):
        got = ops.soft_cap(SPREAD, cap)
        with np.errstate(over="ignore"):
            same_bits(got, NumpyOps().soft_cap(SPREAD, cap))
        assert np.abs(got - cap * np.tanh(SPREAD.astype(np.float64) / cap)).max() <= 3e-7 * cap
        assert np.abs(got).max() <= np.float32(cap)


def test_softmax(ops: Any) -> None:
    for n in [*range(1, 40), 64, 4000]:
        x = normal(2, n) * 20
        x[1, 0] = -np.inf if n > 1 else 0
        powers = exact.exp(x - x.max(axis=-1, keepdims=True))
        wanted = powers * (np.float32(1) / exact.row_sum(powers))[:, None]
        true = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
        ops.machine.softmax(x)
        same_bits(x, wanted)
        # x - max is rounded before exp sees it, by up to 4e-6 here.
        np.testing.assert_allclose(x, true / true.sum(axis=-1, keepdims=True), rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_do_not_pass_for_numbers(ops: Any, bad: float) -> None:
    """Where an input is no number the result is none either, as in the reference; ReLU takes NaN for 0."""
    reference, x, weight = NumpyOps(), normal(2, 64), normal(16, 64)
    x[0, 5] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        for step in (
            *(lambda o, name=name: o.linear(x, Linear(stored(o, weight, name))) for name in TYPES if "K" not in name),
            lambda o: o.norm(x, Norm(np.ones(64, np.float32))),
            lambda o: o.norm(x, Norm(np.ones(64, np.float32), None, 1e-5, True)),
            *(lambda o, name=name: o.activate(x, name) for name in ("silu", "gelu", "relu")),
            lambda o: o.soft_cap(x, 3.0),
        ):
            got, wanted = step(ops), step(reference)
            np.testing.assert_array_equal(got, wanted)  # NaN equals NaN here
            assert np.isfinite(got[1]).all()
        product = ops.linear(x, Linear(stored(ops, weight, "Q8_0")))[0]
    assert np.isnan(product).all()


# -- attention ---------------------------------------------------------------------------------------------------------


def attention_layer(**spec: Any) -> Layer:
    nothing: Any = None
    fields = {"index": 0, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "scale": 0.3, **spec}
    return Layer(LayerSpec(**fields), nothing, nothing, nothing, nothing, nothing, nothing)


def attend(ops: Any, layer: Layer, rows: list[np.ndarray], chunks: list[list[int]], capacity: int) -> list[np.ndarray]:
    """Feed sessions chunk by chunk: chunks[i] holds how many rows each session gets in step i; outputs by session."""
    spec, sessions = layer.spec, len(chunks[0])
    caches = [ops.cache(spec.index + 1, spec.n_kv_heads, spec.head_dim, capacity) for _ in range(sessions)]
    outputs: list[list[np.ndarray]] = [[] for _ in range(sessions)]
    for counts in chunks:
        spans, parts, start = [], [], 0
        for cache, count, (q, k, v) in zip(caches, counts, rows, strict=True):
            if count:
                spans.append(Span(cache, start, count))
                parts.append([x[cache.length : cache.length + count] for x in (q, k, v)])
                start += count
        got = ops.attend(*(np.concatenate(x) for x in zip(*parts, strict=True)), spans, layer)
        for span in spans:
            outputs[caches.index(span.cache)].append(got[span.start : span.start + span.count])
            span.cache.advance(span.count)
    return [np.concatenate(parts) for parts in outputs]


ATTENTION: dict[str, tuple[dict[str, Any], int]] = {
    **{f"group-{g}": ({"n_heads": 2 * g, "n_kv_heads": 2}, 37) for g in (1, 2, 3, 4, 5, 6, 7, 8, 9)},
    **{
        f"dim-{d}": ({"head_dim": d, "n_heads": 3, "n_kv_heads": 1}, 35)
        for d in (1, 2, 7, 16, 24, 40, 64, 80, 96, 112, 256)
    },
    **{f"window-{w}": ({"window": w}, 70) for w in (1, 2, 15, 16, 17, 33, 200)},
    "cap": ({"score_cap": 2.5, "scale": 1.0}, 40),
    "cap-and-window": ({"score_cap": 50.0, "window": 20, "n_heads": 6}, 60),
    "deep-layer": ({"index": 2}, 20),
    "large-scores": ({"scale": 40.0}, 40),
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_is_the_reference_to_the_bit(ops: Any, case: str) -> None:
    fields, count = ATTENTION[case]
    layer = attention_layer(**fields)
    spec = layer.spec
    rows = [
        tuple(normal(n, heads, spec.head_dim) for heads in (spec.n_heads, spec.n_kv_heads, spec.n_kv_heads))
        for n in (count, 9)
    ]
    wanted = [attend(NumpyOps(), layer, [one], [[len(one[0])]], 80)[0] for one in rows]
    for chunks in (
        [[count, 9]],
        [[1, 0]] * (count - 1) + [[1, 9]],
        [[5, 1], [count - 6, 0], [1, 8]],
    ):
        for got, want in zip(attend(ops, layer, rows, chunks, 80), wanted, strict=True):
            same_bits(got, want)


@pytest.mark.parametrize("window", [0, 100])
def test_attention_over_a_long_text(machines: list[Any], window: int) -> None:
    """Threads share the work of 1500 rows and of one row over them; a far position changes nothing."""
    layer, n = attention_layer(window=window, n_heads=6, n_kv_heads=2, head_dim=32), 1500
    rows = [(normal(n, 6, 32), normal(n, 2, 32), normal(n, 2, 32))]
    wanted = attend(machines[0], layer, rows, [[n]], n)[0]
    for ops in machines:
        same_bits(attend(ops, layer, rows, [[700], [1], [799]], n + 500)[0], wanted)
    q, k, v = (x[-1].astype(np.float64) for x in (rows[0][0], *(x.astype(np.float16) for x in rows[0][1:])))
    assert k.shape == v.shape == (2, 32)
    keys, values = (x.astype(np.float16).astype(np.float64)[-window:] for x in rows[0][1:])
    for head in range(6):
        scores = keys[:, head // 3] @ q[head] * 0.3
        shares = np.exp(scores - scores.max())
        mixed = shares @ values[:, head // 3] / shares.sum()
        np.testing.assert_allclose(wanted[-1, head * 32 : head * 32 + 32], mixed, atol=3e-6)


def test_heads_too_wide() -> None:
    with pytest.raises(OpsError, match="heads of 1025 dimensions: the native kernels take up to 1024; use the numpy"):
        native_ops.create(threads=1).cache(1, 1, 1025, 16)


# -- experts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("type_name", ["F32", "Q8_0", "Q4_1"])
def test_experts(ops: Any, normalise: bool, type_name: str) -> None:
    x, router = normal(23, 64), normal(8, 64)
    router[3] = router[5]  # a tie
    weights = [[normal(*shape) * 0.3 for _ in range(8)] for shape in ((96, 64), (96, 64), (64, 96))]

    def experts(o: Any) -> Experts:
        gate, up, down = (tuple(stored(o, w, type_name) for w in group) for group in weights)
        return Experts(Linear(stored(o, router)), gate, up, down, used=3, normalise=normalise)

    reference = NumpyOps()
    wanted = reference.experts(x, experts(reference), "silu")
    mine = experts(ops)
    same_bits(ops.experts(x, mine, "silu"), wanted)
    same_bits(np.concatenate([ops.experts(x[i : i + 1], mine, "silu") for i in range(23)]), wanted)


def test_another_routing(ops: Any) -> None:
    """The choice by a replayed router: the same in every op set, and told the router's own shares."""
    x, router = normal(5, 64), normal(8, 64)
    weights = [[normal(*shape) * 0.3 for _ in range(8)] for shape in ((96, 64), (96, 64), (64, 96))]
    told: list[Any] = []

    def backwards(shares: Any) -> Any:
        told.append(shares.copy())
        return np.ascontiguousarray(shares[:, ::-1])

    def run(o: Any, order: int, **settings: Any) -> Any:
        gate, up, down = (tuple(stored(o, w, "Q8_0") for w in group[::order]) for group in weights)
        return o.experts(x, Experts(Linear(stored(o, router)), gate, up, down, 3, True, **settings), "silu")

    wanted = run(ops, 1)
    same_bits(run(ops, -1, routing=backwards), wanted)
    same_bits(run(NumpyOps(), -1, routing=backwards), wanted)
    same_bits(told[0], told[1])
    np.testing.assert_allclose(told[0].sum(1), 1, rtol=1e-5)
