"""Backward kernels: against NumPy's, against the order of sums that is stated, and the same bits on every instruction
set that this machine runs, for any number of threads."""

from __future__ import annotations

import itertools
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import OpsError
from genmote.ops import exact, gradients, quant
from genmote.ops.layer import Adapter, LayerSpec, Norm
from genmote.ops.numpy_gradients import NumpyGradients
from genmote.ops.numpy_ops import NumpyOps

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

ISAS = [name for name in native_ops._native.isa_names() if native_ops._native.isa_runs(name)]
TYPES = quant.codec_names()
RNG = np.random.default_rng(23)
REFERENCE = NumpyOps()
NUMPY = NumpyGradients(REFERENCE)


@pytest.fixture(scope="module", params=ISAS)
def ops(request: pytest.FixtureRequest) -> Any:
    return native_ops.create(isa=request.param, threads=2)


@pytest.fixture(scope="module")
def machines() -> list[Any]:
    """Every instruction set on one, two and three threads."""
    return [native_ops.create(isa=isa, threads=threads) for isa in ISAS for threads in (1, 2, 3)]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32))


def near(got: Any, wanted: Any, tolerance: float = 4e-6) -> None:
    """Within a share of the largest number that is wanted, or of one, which is about what is added up here."""
    assert got.dtype == np.float32 and got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * max(1.0, float(np.abs(wanted).max(initial=0))))


def shapes_of(type_name: str) -> list[tuple[int, int]]:
    """Several blocks of panels and of columns, tails of both; widths that no vector divides where the type allows."""
    if quant.by_name(type_name).block_size == 256:
        return [(40, 256), (1, 512), (301, 768)]
    return [(40, 256), (1, 32), (301, 96), (50, 288)] + (
        [(33, 7), (5, 1)] if type_name in ("F32", "F16", "BF16") else []
    )


@pytest.mark.parametrize("type_name", TYPES)
def test_matrix(ops: Any, type_name: str) -> None:
    for out, cols in shapes_of(type_name):
        raw = quant.quantize(type_name, normal(out, cols))
        matrix, wanted = ops.matrix(type_name, (out, cols), raw), REFERENCE.matrix(type_name, (out, cols), raw)
        for n in (0, 1, 3, 4, 13, 37):
            dy = normal(n, out)
            got = gradients.of(ops).matrix(dy, matrix)
            near(got, NUMPY.matrix(dy, wanted))
            assert got.flags.c_contiguous and got.flags.writeable


@pytest.mark.parametrize("type_name", TYPES)
def test_matrix_is_one_chain_over_the_outputs(ops: Any, type_name: str) -> None:
    weight, dy = normal(300, 256), normal(5, 300)
    raw = quant.quantize(type_name, weight)
    plain = quant.dequantize(type_name, raw, weight.shape).astype(np.float64)
    wanted = exact.chain(dy.T.astype(np.float64)[:, :, None] * plain[:, None])  # steps over outputs: (n, in)
    same_bits(gradients.of(ops).matrix(dy, ops.matrix(type_name, weight.shape, raw)), wanted)


def test_outer_is_one_chain_over_the_rows(ops: Any) -> None:
    g = gradients.of(ops)
    for n, p, q in ((1, 1, 1), (3, 8, 40), (700, 8, 300), (300, 5, 7), (257, 70, 20), (40, 16, 16)):
        a, b = normal(n, p), normal(n, q)
        wanted = exact.chain(a.astype(np.float64)[:, :, None] * b[:, None])
        same_bits(g.outer(a, b), wanted)
        same_bits(g.outer(b, a), wanted.T)
        same_bits(g.outer(np.asfortranarray(a), b), wanted)
    assert not g.outer(normal(0, 3), normal(0, 20)).any()


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_adapter(ops: Any, kind: str) -> None:
    for n, cols, out, rank in ((1, 16, 5, 1), (300, 576, 40, 8), (129, 64, 100, 20), (40, 33, 7, 3), (0, 16, 8, 2)):
        if kind == "Q8_0":
            cols, rank = (cols + 31) // 32 * 32, 32
        raw = [quant.quantize(kind, normal(*shape)) for shape in ((rank, cols), (out, rank))]
        mine, other = (
            Adapter(o.matrix(kind, (rank, cols), raw[0]), o.matrix(kind, (out, rank), raw[1]), 0.3)
            for o in (ops, REFERENCE)
        )
        dy, x, dx = normal(n, out), normal(n, cols), normal(n, cols)
        after = dx.copy()
        for got, wanted in zip(
            gradients.of(ops).adapter(dy, x, mine, dx), NUMPY.adapter(dy, x, other, after), strict=True
        ):
            near(got, wanted)
            assert got.flags.c_contiguous
        near(dx, after)


@pytest.mark.parametrize("centre", [False, True])
def test_norm(ops: Any, centre: bool) -> None:
    g = gradients.of(ops)
    for shape in ((3, 1), (5, 7), (40, 100), (1, 576), (6, 3, 24), (0, 8)):
        x, dy, gain = normal(*shape) * 3 + 1, normal(*shape), normal(shape[-1])
        for bias in (None, normal(shape[-1])) if centre else (None,):
            norm = Norm(gain, bias, 1e-3, centre)
            dx, dgain, dbias = g.norm(dy, x, norm)
            wanted = NUMPY.norm(dy, x, norm)
            near(dx, wanted[0]), near(dgain, wanted[1])
            assert (dbias is None) == (wanted[2] is None)
            if dbias is not None:
                near(dbias, wanted[2])


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(ops: Any, interleaved: bool) -> None:
    dy = normal(6, 3, 40).transpose(1, 0, 2).copy().transpose(1, 0, 2)  # not in one run
    rotary = ops.rotary(np.array([0, 1, 17, 4095, 131071, 9], np.int32), 10000.0 ** (-np.arange(16) / 16), 1.3)
    same_bits(gradients.of(ops).rope(dy, rotary, interleaved), NUMPY.rope(dy, rotary, interleaved))


SPECS: list[tuple[int, int, int, dict[str, Any]]] = [
    (4, 2, 8, {}),
    (9, 3, 64, {"window": 5}),
    (3, 3, 24, {"score_cap": 1.5}),
    (4, 1, 7, {"window": 40, "score_cap": 2.0}),
    (2, 1, 80, {"window": 33}),
]


@pytest.mark.parametrize(("heads", "kv", "dim", "changes"), SPECS)
def test_attention(ops: Any, heads: int, kv: int, dim: int, changes: dict[str, Any]) -> None:
    spec = LayerSpec(index=0, n_heads=heads, n_kv_heads=kv, head_dim=dim, scale=0.3, **changes)
    for lengths in ((1,), (7, 1, 0, 20), (31, 33), (150,)):
        rows = sum(lengths)
        q, k, v = normal(rows, heads, dim), normal(rows, kv, dim), normal(rows, kv, dim)
        k[0, 0, 0] = 1e6  # beyond float16's range
        q[:, :, 0] *= 1e-5
        do = normal(rows, heads * dim)
        got = gradients.of(ops).attend(do, q, k, v, lengths, spec)
        for mine, wanted in zip(got, NUMPY.attend(do, q, k, v, lengths, spec), strict=True):
            near(mine, wanted, 1e-5)


def test_attention_of_nothing(ops: Any) -> None:
    spec = LayerSpec(index=0, n_heads=2, n_kv_heads=1, head_dim=8, scale=0.3)
    found = gradients.of(ops).attend(normal(0, 16), normal(0, 2, 8), normal(0, 1, 8), normal(0, 1, 8), (), spec)
    assert [x.shape for x in found] == [(0, 2, 8), (0, 1, 8), (0, 1, 8)]


FAR = np.float32([-3e38, -1e4, -100, -88, -1, -0.0, 0, 1e-30, 1, 88, 1e4, 3e38])


def slope(name: str, x: np.ndarray) -> np.ndarray:
    """The activation's derivative, in float64."""
    x = np.clip(x, -700, 700).astype(np.float64)
    if name == "relu":
        return (x > 0).astype(np.float64)
    if name == "silu":
        share = 1 / (1 + np.exp(-x))
        return share * (1 + x * (1 - share))
    t = np.tanh(0.7978845608 * (x + 0.044715 * x**3))
    return 0.5 * (1 + t + x * (1 - t * t) * 0.7978845608 * (1 + 0.134145 * x * x))


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_activations(ops: Any, activation: Any) -> None:
    g = gradients.of(ops)
    for n in (1, 5, 16, 37, 40000):
        x, up, d = normal(1, n) * 4, normal(1, n), normal(1, n)
        np.testing.assert_allclose(g.activate(d, x, activation), d * slope(activation, x), rtol=0, atol=2e-6)
        dgate, dup = g.glu(d, x, up, activation)
        same_bits(dgate, g.activate(d * up, x, activation))
        np.testing.assert_allclose(dup, d * ops.activate(x, activation), rtol=1e-6, atol=1e-5)
    got = g.activate(np.ones_like(FAR), FAR, activation)
    np.testing.assert_allclose(got, slope(activation, FAR), rtol=0, atol=1e-6)


def test_soft_cap(ops: Any) -> None:
    x, d = normal(3, 21) * 40, normal(3, 21)
    y = ops.soft_cap(x, 30.0)
    same_bits(gradients.of(ops).soft_cap(d, y, 30.0), NUMPY.soft_cap(d, y, 30.0))


def test_cross_entropy(ops: Any) -> None:
    for rows, words in ((0, 5), (1, 1), (4, 30), (5, 1000), (3, 4097)):
        logits = normal(rows, words) * 8
        targets = RNG.integers(0, words, rows).astype(np.int32)
        weights = np.resize(np.float32([1, 0, 0.5, 2]), rows)
        other = logits.copy()
        wanted = NUMPY.cross_entropy(other, targets, weights)
        assert gradients.of(ops).cross_entropy(logits, targets, weights) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        near(logits, other, 2e-6)
        assert not logits[weights == 0].any()
    high = np.array([[1e4, -1e4]], np.float32)
    assert gradients.of(ops).cross_entropy(high, [1], np.ones(1, np.float32)) == pytest.approx(2e4)


def test_threads_and_instruction_sets_change_no_bit(machines: list[Any]) -> None:
    spec = LayerSpec(index=0, n_heads=6, n_kv_heads=2, head_dim=24, scale=0.3, window=50, score_cap=9.0)
    raw = {name: quant.quantize(name, normal(300, 768)) for name in TYPES}
    dy, x, up = normal(41, 300), normal(41, 768), normal(41, 768)
    q, k, v, do = normal(90, 6, 24), normal(90, 2, 24), normal(90, 2, 24), normal(90, 144)
    low = [quant.quantize("F32", normal(*shape)) for shape in ((8, 768), (300, 8))]
    norm, targets, weights = Norm(normal(768), normal(768), 1e-5, True), np.arange(41, dtype=np.int32), normal(41)
    results = []
    for ops in machines:
        g, logits = gradients.of(ops), x.copy()
        found = [g.matrix(dy, ops.matrix(name, (300, 768), raw[name])) for name in TYPES]
        found += [g.outer(dy, x), *g.norm(up, x, norm), *g.attend(do, q, k, v, (60, 30), spec)]
        found += [array for name in ("silu", "gelu", "relu") for array in g.glu(up, x, x, name)]
        g.cross_entropy(logits, targets, weights)
        dx, many = up[:1].repeat(200, axis=0), [np.resize(a, (200, a.shape[1])) for a in (dy, x)]
        adapter = Adapter(ops.matrix("F32", (8, 768), low[0]), ops.matrix("F32", (300, 8), low[1]), 0.7)
        found += [*g.adapter(many[0], many[1], adapter, dx), dx]
        results.append([*found, logits])
    for result in results[1:]:
        for got, wanted in zip(result, results[0], strict=True):
            same_bits(got, wanted)


def test_a_row_does_not_feel_its_company(ops: Any) -> None:
    matrix = ops.matrix("Q4_K", (70, 256), quant.quantize("Q4_K", normal(70, 256)))
    dy, g = normal(40, 70), gradients.of(ops)
    together = g.matrix(dy, matrix)
    for n in range(1, 41):
        same_bits(g.matrix(dy[:n], matrix), together[:n])
        same_bits(g.matrix(dy[n - 1 : n], matrix), together[n - 1 : n])


@pytest.mark.parametrize("type_name", ["Q4_1", "F16"])
def test_a_streamed_matrix(ops: Any, tmp_path: Path, type_name: str) -> None:
    """Cut into runs of panels that are read one after the other, in a ring that does not hold them all."""
    native, shape = native_ops._native, (700, 288)
    raw = quant.quantize(type_name, normal(*shape))
    packed = ops.pack(type_name, shape, raw)
    (tmp_path / "file").write_bytes(bytes(mmap.PAGESIZE) + packed.tobytes() * 2)
    stream = native.Stream(native.Reader(os.fspath(tmp_path / "file"), 2))
    id_ = quant.by_name(type_name).ggml_id
    matrices = [stream.matrix(id_, *shape, mmap.PAGESIZE + i * len(packed)) for i in range(2)]
    cuts = [0, 5, 25, 44]
    chunks = [(0, [(m.id, a, b)]) for m in matrices for a, b in itertools.pairwise(cuts)]
    stream.arrange(chunks, list(range(len(chunks))), len(packed))
    dy, g = normal(19, 700), gradients.of(ops)
    wanted = g.matrix(dy, ops.packed_matrix(type_name, shape, packed))
    for pinned in (0, len(packed) // 2):
        stream.pin(ops.machine, pinned)
        for matrix in (matrices[1], matrices[0], matrices[0], matrices[1]):  # backwards too
            same_bits(g.matrix(dy, matrix), wanted)
