"""KV caches of every op set: what they hold after eviction, cutting and saving, against attention computed plainly."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import OpsError, SpecError
from genmote.ops.cache import PAGE, cache_bytes
from genmote.ops.layer import Layer, LayerSpec
from genmote.ops.protocol import Span

OP_SETS = ("numpy", "native", "torch")
DIM = 16
HEADS, KV_HEADS = 4, 2


@pytest.fixture(params=OP_SETS)
def ops(request: pytest.FixtureRequest) -> Any:
    try:
        return op_sets.load(request.param, **({"threads": 2} if request.param == "native" else {}))
    except OpsError as error:
        pytest.skip(str(error))


def layer_of(index: int = 0, **spec: Any) -> Layer:
    nothing: Any = None
    fields = {"n_heads": HEADS, "n_kv_heads": KV_HEADS, "head_dim": DIM, "scale": 0.3, **spec}
    return Layer(LayerSpec(index=index, **fields), *[nothing] * 6)


def some_rows(count: int, seed: int = 0, dim: int = DIM, heads: int = HEADS, kv: int = KV_HEADS) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, n, dim)).astype(np.float32) for n in (heads, kv, kv)]


def feed(ops: Any, cache: Any, layers: list[Layer], rows: list[np.ndarray]) -> list[np.ndarray]:
    """One pass of rows q, k, v through the layers; layer i gets k and v turned round i times, so that layers differ."""
    outputs = []
    for layer in layers:
        q, k, v = (np.roll(x, layer.spec.index, axis=-1) for x in rows)
        span = [Span(cache, 0, len(q))]
        outputs.append(ops.numpy(ops.attend(ops.array(q), ops.array(k), ops.array(v), span, layer)))
    cache.advance(len(rows[0]))
    return outputs


def plain_attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """q (H, D) over keys and values (T, Hkv, D) in float64: (H * D,)."""
    out = []
    for head in range(q.shape[0]):
        at = head // (q.shape[0] // keys.shape[1])
        scores = [scale * float(q[head].astype(float) @ key) for key in keys[:, at].astype(float)]
        shares = np.array([math.exp(s - max(scores)) for s in scores])
        out.append(shares / shares.sum() @ values[:, at].astype(float))
    return np.concatenate(out)


@pytest.mark.parametrize("kind", ["f16", "int8", "int4"])
@pytest.mark.parametrize("heads", [KV_HEADS, (2, 1)])
def test_one_head_is_that_of_all(ops: Any, kind: str, heads: Any) -> None:
    if ops.name == "torch" and kind != "f16":
        pytest.skip("torch has f16 alone")
    each = (heads, heads) if isinstance(heads, int) else heads
    cache = ops.cache(2, heads, DIM, 700, kind=kind)
    for layer, kv in enumerate(each):  # more rows than are decoded at once
        q, k, v = some_rows(600, seed=layer, heads=2 * kv, kv=kv)
        span = [Span(cache, 0, len(q))]
        ops.attend(ops.array(q), ops.array(k), ops.array(v), span, layer_of(layer, n_heads=2 * kv, n_kv_heads=kv))
    cache.advance(600)
    for layer, kv in enumerate(each):
        for seen, written in ((cache.keys, 1), (cache.values, 2)):
            whole = seen(layer)
            np.testing.assert_allclose(whole, some_rows(600, seed=layer, heads=2 * kv, kv=kv)[written], atol=0.6)
            for head in range(kv):
                assert np.array_equal(seen(layer, head), whole[:, head : head + 1])


def test_after_keep_a_row_attends_to_what_is_left(ops: Any) -> None:
    layers = [layer_of(0), layer_of(1)]
    cache = ops.cache(2, KV_HEADS, DIM, 64)
    feed(ops, cache, layers, some_rows(40))
    kept = [np.array([[0, 3, 17, 38, 39], [5, 6, 7, 8, 39]]), np.array([[1, 39], [38, 39]])]
    left = []
    for index, rows in enumerate(kept):
        keys, values = cache.keys(index), cache.values(index)
        cache.keep(index, rows)
        left.append([x[rows.T, [0, 1]] for x in (keys, values)])
        assert np.array_equal(cache.keys(index), left[index][0])
        assert np.array_equal(cache.values(index), left[index][1])
    assert (list(cache.lengths), cache.length, cache.position, cache.floor) == ([5, 2], 5, 40, 40)
    new = some_rows(1, seed=1)
    got = feed(ops, cache, layers, new)
    assert (list(cache.lengths), cache.position) == ([6, 3], 41)
    for index, (keys, values) in enumerate(left):
        q, k, _ = (np.roll(x, index, axis=-1) for x in new)
        keys, values = (
            np.concatenate([keys, cache.keys(index)[-1:]]),
            np.concatenate([values, cache.values(index)[-1:]]),
        )
        np.testing.assert_allclose(keys[-1], k[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(got[index][0], plain_attention(q[0], keys, values, 0.3), atol=3e-6)


def test_rows_are_cut_back_to_the_floor_and_not_below(ops: Any) -> None:
    cache, layers = ops.cache(1, KV_HEADS, DIM, 64), [layer_of()]
    first, more = some_rows(30), some_rows(6, seed=1)
    feed(ops, cache, layers, first)
    cache.keep(0, np.array([[0, 28, 29], [7, 28, 29]]))
    wanted = feed(ops, cache, layers, more)
    cache.truncate(30)
    assert (list(cache.lengths), cache.position) == ([3], 30)
    again = feed(ops, cache, layers, more)
    assert np.array_equal(wanted, again)
    cache.truncate(33)
    assert (list(cache.lengths), cache.position) == ([6], 33)
    for position in (29, 34):
        with pytest.raises(
            SpecError, match=f"cannot cut a cache of 33 rows to {position} .rows before 30 were evicted"
        ):
            cache.truncate(position)
        with pytest.raises(SpecError, match="were evicted"):
            cache.export(position)


def test_a_state_goes_into_any_op_set(ops: Any) -> None:
    layers = [layer_of(0), layer_of(1)]
    cache = ops.cache(2, KV_HEADS, DIM, 64, queries=5, n_heads=HEADS)
    feed(ops, cache, layers, some_rows(40))
    cache.keep(1, np.array([[1, 39], [38, 39]]))
    feed(ops, cache, layers, some_rows(3, seed=1))
    state = cache.export()
    for name in OP_SETS:
        try:
            other = op_sets.load(name)
        except OpsError:
            continue
        fresh: Any = other.cache(2, KV_HEADS, DIM, 64, queries=5, n_heads=HEADS)
        feed(other, fresh, layers, some_rows(9, seed=2))
        fresh.restore(state)
        assert (list(fresh.lengths), fresh.position, fresh.floor) == ([43, 5], 43, 40)
        for index in range(2):
            assert np.array_equal(fresh.keys(index), cache.keys(index))
            assert np.array_equal(fresh.values(index), cache.values(index))
            assert np.array_equal(fresh.queries(index), cache.queries(index))
        assert all(np.array_equal(x, state[key]) for key, x in fresh.export().items())
        without: Any = other.cache(2, KV_HEADS, DIM, 43)
        without.restore(state)
        assert without.queries(0).shape == (0, 0, DIM) or without.queries(0).shape[0] == 0
    part = cache.export(41)
    fresh = ops.cache(2, KV_HEADS, DIM, 64, queries=5, n_heads=HEADS)
    fresh.restore(part)
    assert (list(fresh.lengths), fresh.position, fresh.floor) == ([41, 3], 41, 40)
    assert np.array_equal(fresh.keys(0), cache.keys(0)[:41])


@pytest.mark.parametrize("chunks", [[30], [1] * 30, [7, 23], [29, 1]])
def test_the_last_queries_are_kept(ops: Any, chunks: list[int]) -> None:
    layers, rows = [layer_of(0), layer_of(1)], some_rows(30)
    cache = ops.cache(2, KV_HEADS, DIM, 64, queries=4, n_heads=HEADS)
    start = 0
    for count in chunks:
        feed(ops, cache, layers, [x[start : start + count] for x in rows])
        start += count
    half = rows[0].astype(np.float16).astype(np.float32)
    for index in range(2):
        assert np.array_equal(cache.queries(index), np.roll(half[-4:], index, axis=-1))
    cache.truncate(26)  # within the slack: what came before is still there
    assert np.array_equal(cache.queries(0), half[22:26])
    assert np.array_equal(cache.export()["queries"].reshape(2, 4, HEADS, DIM)[0], half[22:26])
    cache.truncate(5)
    assert cache.queries(0).shape == (0, HEADS, DIM)
    feed(ops, cache, layers, [x[:2] for x in rows])
    assert np.array_equal(cache.queries(0), half[:2])


def test_bytes_are_counted_and_predicted(ops: Any) -> None:
    cache = ops.cache(3, KV_HEADS, DIM, 100)
    layers = [layer_of(index) for index in range(3)]
    feed(ops, cache, layers, some_rows(64))
    assert cache.nbytes == 3 * 64 * KV_HEADS * DIM * 2 * 2
    assert cache_bytes(3, KV_HEADS, DIM, 64) == 3 * KV_HEADS * 2 * PAGE  # each head's part begins a page
    assert cache_bytes(3, KV_HEADS, DIM, 64, page=16384) == 3 * KV_HEADS * 2 * 16384
    assert os.sysconf("SC_PAGE_SIZE") == PAGE
    assert cache_bytes(3, KV_HEADS, 64, 100, page=4096) == 3 * KV_HEADS * 2 * 4 * 4096
    more = ops.cache(3, KV_HEADS, DIM, 100, queries=8, n_heads=HEADS)
    assert more.nbytes == 3 * HEADS * DIM * 2 * (8 + 16)
    assert cache_bytes(3, KV_HEADS, DIM, 0, queries=8, n_heads=HEADS) == more.nbytes


MANY, MANY_KV = (6, 1, 4), (3, 1, 2)  # heads of three layers


def feed_many(ops: Any, cache: Any, rows: list[np.ndarray]) -> list[np.ndarray]:
    """One pass through layers of MANY heads: each takes as many of the rows' heads as it has."""
    layers = [layer_of(i, n_heads=h, n_kv_heads=kv) for i, (h, kv) in enumerate(zip(MANY, MANY_KV, strict=True))]
    outputs = []
    for layer in layers:
        some = (layer.spec.n_heads, layer.spec.n_kv_heads, layer.spec.n_kv_heads)
        q, k, v = (ops.array(np.roll(x, layer.spec.index, axis=-1)[:, :n]) for x, n in zip(rows, some, strict=True))
        outputs.append(ops.numpy(ops.attend(q, k, v, [Span(cache, 0, len(rows[0]))], layer)))
    cache.advance(len(rows[0]))
    return outputs


@pytest.mark.parametrize("kind", ["f16", "int8", "int4"])
def test_heads_may_differ_from_layer_to_layer(ops: Any, kind: str) -> None:
    """Each layer does what it does alone in a cache of its own; eviction, saving and copying keep it so."""
    if kind != "f16" and ops.name == "torch":
        pytest.skip("torch has f16 alone")
    asked: dict[str, Any] = {"kind": kind, "queries": 5, "n_heads": MANY}
    cache = ops.cache(3, MANY_KV, DIM, 64, **asked)
    rows, more = some_rows(40, heads=6, kv=3), some_rows(3, seed=1, heads=6, kv=3)
    rng, kept = np.random.default_rng(0), []
    for index, heads in enumerate(MANY_KV):
        drawn = rng.permuted(np.tile(np.arange(40), (heads, 1)), axis=1)
        kept.append(np.sort(drawn[:, : 9 + index]))
    first = feed_many(ops, cache, rows)
    size = cache.nbytes
    for index in range(3):
        cache.keep(index, kept[index])
    last = feed_many(ops, cache, more)
    alone_bytes = 0
    for index, (heads, kv) in enumerate(zip(MANY, MANY_KV, strict=True)):
        layer = layer_of(0, n_heads=heads, n_kv_heads=kv)
        alone = ops.cache(1, kv, DIM, 64, kind=kind, queries=5, n_heads=heads)
        turned = [
            [np.roll(x, index, axis=-1)[:, :n] for x, n in zip(r, (heads, kv, kv), strict=True)] for r in (rows, more)
        ]
        assert np.array_equal(feed(ops, alone, [layer], turned[0])[0], first[index])
        alone_bytes += alone.nbytes
        alone.keep(0, kept[index])
        assert np.array_equal(feed(ops, alone, [layer], turned[1])[0], last[index])
        for what in ("keys", "values", "queries"):
            assert np.array_equal(getattr(cache, what)(index), getattr(alone, what)(0))
    assert size == alone_bytes
    state = cache.export()
    fresh, copied = (ops.cache(3, MANY_KV, DIM, 64, **asked) for _ in range(2))
    fresh.restore(state)
    copied.copy_from(cache, cache.position)
    for other in (fresh, copied):
        assert all(np.array_equal(x, state[name]) for name, x in other.export().items())
        assert np.array_equal(other.queries(1), cache.queries(1))
    wanted = feed_many(ops, cache, more)
    for other in (fresh, copied):
        assert all(map(np.array_equal, feed_many(ops, other, more), wanted))
    with pytest.raises(SpecError, match="a saved prefix with k of"):
        ops.cache(3, 2, DIM, 64, kind=kind).restore({**state, "k": state["k"][:-1]})


def test_heads_for_each_layer_are_one_or_as_many(ops: Any) -> None:
    with pytest.raises(OpsError, match="heads of 2 layers for a cache of 3: give one number, or one for each layer"):
        ops.cache(3, (2, 1), DIM, 64)
    assert cache_bytes(3, MANY_KV, DIM, 64) == sum(MANY_KV) * 2 * PAGE
    assert cache_bytes(3, 1, DIM, 0, queries=8, n_heads=MANY) == sum(MANY) * DIM * 2 * (8 + 16)


def test_a_prefix_of_an_earlier_version_is_read(ops: Any) -> None:
    """They had rows and heads on two axes, and queries on four."""
    cache, layers = ops.cache(2, KV_HEADS, DIM, 64, queries=4, n_heads=HEADS), [layer_of(0), layer_of(1)]
    feed(ops, cache, layers, some_rows(20))
    state = cache.export()
    old = {name: state[name].reshape(40, KV_HEADS, DIM) for name in "kv"}
    fresh = ops.cache(2, KV_HEADS, DIM, 64, queries=4, n_heads=HEADS)
    fresh.restore({**state, **old, "queries": state["queries"].reshape(2, 4, HEADS, DIM)})
    assert all(np.array_equal(x, state[name]) for name, x in fresh.export().items())


CODES = ("int8", "int4")
SHAPES: dict[str, dict[str, Any]] = {
    **{f"dim-{d}": {"head_dim": d} for d in (7, 32, 48, 64, 80, 96, 128, 256)},
    **{f"group-{g}": {"n_heads": 2 * g, "head_dim": 32} for g in (1, 3, 5, 7, 8)},
    "window": {"window": 9, "head_dim": 40},
    "cap": {"score_cap": 2.5, "head_dim": 64},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", CODES)
def test_codes_have_the_same_bits_everywhere(kind: str, shape: dict[str, Any]) -> None:
    """NumPy and every instruction set, in any chunks and beside caches of other kinds, store and attend alike."""
    native = pytest.importorskip("genmote.ops.native_ops")
    from genmote.ops import _native

    layer = layer_of(**shape)
    dim, heads = layer.spec.head_dim, layer.spec.n_heads
    q, k, v = some_rows(53, dim=dim, heads=heads)
    k[3] *= 50
    k[4], v[5] = 0, v[5] * np.float32(1e-4)
    k[:, :, 1] += 9  # an outlying channel
    k[6], v[6], v[7] = 1e30, np.float32(1e-30), np.float32(np.inf)

    def run(ops: Any, chunks: list[int], beside: str | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        caches = [ops.cache(1, KV_HEADS, dim, 64, kind=name) for name in (kind, beside) if name]
        parts, start = [], 0
        for count in chunks:
            rows = [np.concatenate([x[start : start + count]] * len(caches)) for x in (q, k, v)]
            spans = [Span(cache, i * count, count) for i, cache in enumerate(caches)]
            parts.append(ops.attend(*rows, spans, layer)[:count])
            for cache in caches:
                cache.advance(count)
            start += count
        return np.concatenate(parts), caches[0].export()

    wanted, state = run(op_sets.load("numpy"), [53])
    assert np.isfinite(wanted).all()
    for isa in [name for name in _native.isa_names() if _native.isa_runs(name)]:
        for chunks, beside in (([53], None), ([20, 1, 32], "f16"), ([16, 37], "int8")):
            got, other = run(native.create(isa=isa, threads=2), chunks, beside)
            assert np.array_equal(got, wanted), (isa, chunks)
            assert all(np.array_equal(x, state[name]) for name, x in other.items())


@pytest.mark.parametrize("kind", CODES)
def test_codes_stand_for_what_was_stored(kind: str) -> None:
    """Errors as rounding normal numbers to so many levels makes them; attention is what the rows that are held give."""
    ops = op_sets.load("numpy")
    layer, rows = layer_of(head_dim=128), some_rows(60, dim=128)
    rows[1][:, :, 3] += 12  # as real keys have it
    cache: Any = ops.cache(1, KV_HEADS, 128, 64, kind=kind)
    out = feed(ops, cache, [layer], rows)[0]
    for name, (seen, x), share in (
        ("keys", (cache.keys(0), rows[1]), {"int8": 1e-4, "int4": 0.006}[kind]),
        ("values", (cache.values(0), rows[2]), {"int8": 1e-4, "int4": 0.012}[kind]),
    ):
        error = ((seen - x) ** 2).sum(-1) / (x**2).sum(-1)
        assert error.mean() < share, name
    plain = plain_attention(rows[0][-1], cache.keys(0), cache.values(0), 0.3)
    np.testing.assert_allclose(out[-1], plain, atol=2e-5)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("name", ["numpy", "native"])
def test_codes_survive_eviction_and_saving(name: str, kind: str) -> None:
    if name == "native":
        pytest.importorskip("genmote.ops.native_ops")
    ops: Any = op_sets.load(name)
    layers, rows = [layer_of(0, head_dim=40), layer_of(1, head_dim=40)], some_rows(40, dim=40)
    cache = ops.cache(2, KV_HEADS, 40, 64, kind=kind)
    feed(ops, cache, layers, rows)
    keys, values = cache.keys(1), cache.values(1)
    kept = np.array([[0, 3, 17, 38, 39], [5, 6, 7, 8, 39]])
    cache.keep(1, kept)
    assert np.array_equal(cache.keys(1), keys[kept.T, [0, 1]])
    assert np.array_equal(cache.values(1), values[kept.T, [0, 1]])
    fresh = ops.cache(2, KV_HEADS, 40, 64, kind=kind)
    fresh.restore(cache.export())
    new = some_rows(2, seed=1, dim=40)
    assert all(map(np.array_equal, feed(ops, fresh, layers, new), feed(ops, cache, layers, new)))
    assert all(np.array_equal(x, cache.export()[part]) for part, x in fresh.export().items())
    for other in {"f16", *CODES} - {kind}:
        with pytest.raises(SpecError, match=f"of kind {kind}, the cache is {other}: choose --kv {kind}"):
            ops.cache(2, KV_HEADS, 40, 64, kind=other).restore(cache.export())
    if kind == "int4":
        state = cache.export()
        with pytest.raises(SpecError, match="codes that int4 does not have"):
            fresh.restore({**state, "v": state["v"] + np.uint8(16)})


def test_bytes_of_codes() -> None:
    pytest.importorskip("genmote.ops.native_ops")
    for kind, size in (("int8", 64 + 64 + 4), ("int4", 40 + 32 + 4)):
        for name in ("numpy", "native"):
            ops: Any = op_sets.load(name)
            cache = ops.cache(1, KV_HEADS, 64, 64, kind=kind)
            feed(ops, cache, [layer_of(head_dim=64)], some_rows(32, dim=64))
            assert cache.nbytes == 32 * KV_HEADS * size
        assert cache_bytes(1, KV_HEADS, 64, 4096, kind=kind) == 4096 * KV_HEADS * size


def test_torch_refuses_codes() -> None:
    pytest.importorskip("torch")
    with pytest.raises(OpsError, match="kind 'int4': the torch op set has f16; use the native op set"):
        op_sets.load("torch").cache(1, 1, 8, 8, kind="int4")


def test_memory_follows_the_rows() -> None:
    """A native cache takes what `cache_bytes` says, and gives back what eviction frees."""
    native = pytest.importorskip("genmote.ops.native_ops")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    ops = native.create(threads=1)
    layer = layer_of(n_heads=8, n_kv_heads=8, head_dim=128)
    rows = some_rows(2048, dim=128, heads=8, kv=8)
    other = ops.cache(1, 8, 128, 2048)
    feed(ops, other, [layer], rows)  # the kernels' own memory is there from now on
    before = resident()
    cache = ops.cache(1, 8, 128, 1 << 20)
    feed(ops, cache, [layer], rows)
    taken = cache_bytes(1, 8, 128, 2048)
    assert taken == 8 << 20 and abs(resident() - before - taken) < taken // 8
    cache.keep(0, np.tile(np.arange(1792, 2048), (8, 1)))
    assert abs(resident() - before - taken // 8) < taken // 8
    cache.truncate(2048)
    feed(ops, cache, [layer], rows)
    cache.truncate(2048)
    assert abs(resident() - before - taken // 8) < taken // 8


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((1, 2), int), r"rows to keep as int64 \(1, 2\): wanted integers, \(2, any number\)"),
        (np.zeros((2, 2)), "rows to keep as float64"),
        (np.array([[0, 1], [1, 1]]), "must ascend within 0 to 4, each once"),
        (np.array([[0, 5], [1, 2]]), "must ascend within 0 to 4"),
        (np.array([[-1, 0], [1, 2]]), "must ascend within 0 to 4"),
    ],
)
def test_rows_that_cannot_be_kept(ops: Any, rows: np.ndarray, message: str) -> None:
    cache = ops.cache(1, KV_HEADS, DIM, 64)
    feed(ops, cache, [layer_of()], some_rows(5))
    with pytest.raises(SpecError, match=message):
        cache.keep(0, rows)
    assert list(cache.lengths) == [5] and cache.floor == 0


def test_settings_that_cannot_be(ops: Any) -> None:
    with pytest.raises(OpsError, match="a KV cache of kind 'q8'"):
        ops.cache(1, KV_HEADS, DIM, 64, kind="q8")
    with pytest.raises(OpsError, match="queries of 0 heads: give the model's n_heads"):
        ops.cache(1, KV_HEADS, DIM, 64, queries=3)
    cache = ops.cache(1, KV_HEADS, DIM, 64)
    for count in (-1, 65):
        with pytest.raises(SpecError, match=f"{count} more rows in a cache of 0: it holds 64 at most"):
            cache.advance(count)


def changed(**parts: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {**state, **parts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {}, "without its counts"),
        (changed(counts=np.array([5, 0, 5, 5])), "of 2 layers: wanted 1"),
        (changed(counts=np.array([5, 6, 5])), "of 1 layers: wanted 1|contradict"),
        (changed(counts=np.array([6, 0, 5])), "contradict each other"),
        (changed(counts=np.array([25, 0, 25])), "of 25 rows: wanted at most 20"),
        (changed(kind=np.frombuffer(b"int8", np.uint8)), "of kind int8, the cache is f16: choose --kv int8"),
        (changed(k=np.zeros((5, 2, DIM), np.float32)), r"with k of float32 \(5, 2, 16\): wanted float16 \(10, 16\)"),
        (changed(v=np.zeros((4, 2, DIM), np.float16)), r"with v of float16 \(4, 2, 16\): wanted float16 \(10, 16\)"),
        (changed(k=()), r"with k of float64 \(0,\)"),
        (changed(queries=np.zeros((2, 2))), "with queries of float64"),
    ],
)
def test_a_foreign_prefix_is_refused(ops: Any, change: Any, message: str) -> None:
    cache = ops.cache(1, KV_HEADS, DIM, 20)
    feed(ops, cache, [layer_of()], some_rows(5))
    wanted = cache.export()
    with pytest.raises(SpecError, match=message):
        cache.restore(change(wanted))
    assert all(np.array_equal(x, wanted[key]) for key, x in cache.export().items())
