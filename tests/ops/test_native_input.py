"""What the native kernels refuse: each wrong argument is one exception, and none is a crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from genmote.errors import OpsError, SpecError
from genmote.ops import quant
from genmote.ops.layer import Linear
from genmote.ops.protocol import Span

native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)
native = native_ops._native

F32, Q8_0 = 0, 8


def floats(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def codes(n: int, size: int) -> list[np.ndarray]:
    """Rows of one head as a cache reads and writes them."""
    return [*[np.zeros((n, 1, size), np.uint8)] * 2, *[np.zeros((n, 1), np.uint16)] * 2]


def matrix(rows: int, cols: int, type_id: int = F32) -> Any:
    return native.Matrix(type_id, rows, cols, np.zeros(native.packed_bytes(type_id, rows, cols), np.uint8))


def spans(rows: int = 3, layers: int = 1, heads: int = 1, dim: int = 8, capacity: int = 16) -> Any:
    return native.Spans([(native.KVCache(0, [heads] * layers, dim, capacity), 0, rows)])


def block(**change: Any) -> Any:
    """A block of width 32: two heads over one, of 8 dimensions; 64 wide inside."""
    args: dict[str, Any] = {
        "index": 0,
        "heads": 2,
        "kv_heads": 1,
        "dim": 8,
        "scale": 0.3,
        "cap": 0.0,
        "act": 0,
        "window": 0,
        "rope": True,
        "interleaved": False,
        "width": 32,
        "norms": [(floats(32), None, 1e-5, False), (floats(32), None, 1e-5, False), None, None, None, None],
        "linears": [
            (matrix(*s), None, None) for s in ((16, 32), (8, 32), (8, 32), (32, 16), (64, 32), (64, 32), (32, 64))
        ],
    }
    for name, value in change.items():
        if name[-1].isdigit():  # norms0: the first of the norms
            args[name[:-1]][int(name[-1])] = value
        else:
            args[name] = value
    return native.Block(*args.values())


def attend_back(machine: Any, **change: Any) -> Any:
    """Five rows of four heads over two, of 8 dimensions."""
    args: dict[str, Any] = {"do": floats(5, 32), "q": floats(5, 4, 8), "k": floats(5, 2, 8), "v": floats(5, 2, 8)}
    args |= {"lengths": [3, 2]} | change
    outs = [np.empty_like(args[name]) for name in ("q", "k", "v")]
    return machine.attend_back(*args.values(), 0.3, 0.0, 0, *outs)


def adapt_back(machine: Any, **change: Any) -> Any:
    """Two rows through an adapter of rank 8 from 32 to 9."""
    args: dict[str, Any] = {"down": matrix(8, 32), "up": matrix(9, 8), "scale": 1.0, "dy": floats(2, 9)}
    args |= {"x": floats(2, 32), "dx": floats(2, 32), "da": floats(8, 32), "db": floats(8, 16)} | change
    return machine.adapt_back(*args.values())


@pytest.fixture(scope="module")
def machine() -> Any:
    return native.Machine(native.best_isa(), 2)


REFUSED: list[tuple[str, Callable[[Any], Any]]] = [
    ("instruction set is not available", lambda m: native.Machine("mmx", 1)),
    ("from 1 to 1024 threads", lambda m: native.Machine(native.best_isa(), 0)),
    ("from 1 to 1024 threads", lambda m: native.Machine(native.best_isa(), 1025)),
    ("rows or columns unsupported", lambda m: native.Matrix(Q8_0, 16, 33, np.zeros(9999, np.uint8))),
    ("rows or columns unsupported", lambda m: native.Matrix(9, 16, 32, np.zeros(9999, np.uint8))),
    ("rows or columns unsupported", lambda m: native.Matrix(F32, -16, 32, np.zeros(9999, np.uint8))),
    ("rows or columns unsupported", lambda m: native.Matrix(F32, 2**62, 32, np.zeros(9999, np.uint8))),
    ("too few packed bytes", lambda m: native.Matrix(F32, 17, 32, np.zeros(17 * 32 * 4, np.uint8))),
    ("pack: type", lambda m: m.pack(Q8_0, 16, 16, np.zeros(999, np.uint8), np.zeros(999, np.uint8))),
    ("pack: type", lambda m: m.pack(F32, 0, 16, np.zeros(999, np.uint8), np.zeros(999, np.uint8))),
    ("buffers are too small", lambda m: m.pack(F32, 1, 8, np.zeros(32, np.uint8), np.zeros(511, np.uint8))),
    ("buffers are too small", lambda m: m.pack(F32, 1, 8, np.zeros(31, np.uint8), np.zeros(512, np.uint8))),
    ("must be positive", lambda m: native.KVCache(0, [1], 8, 0)),
    ("must be positive", lambda m: native.KVCache(0, [1, -1], 8, 16)),
    ("cache: too large", lambda m: native.KVCache(0, [1 << 12] * (1 << 16), 1024, 1 << 32)),
    ("cache: too large", lambda m: native.KVCache(0, [1], 8, 1 << 62)),
    ("a span is", lambda m: native.Spans([(native.KVCache(0, [1], 8, 16), 0)])),
    ("in order, without gaps", lambda m: native.Spans([(native.KVCache(0, [1], 8, 16), 1, 2)])),
    ("in order, without gaps", lambda m: native.Spans([(native.KVCache(0, [1], 8, 16), 0, 0)])),
    ("in order, without gaps", lambda m: native.Spans([(native.KVCache(0, [1], 8, 16), 0, 2**62)])),
    ("linear: wrong shapes", lambda m: m.linear(matrix(16, 32), None, floats(2, 31), floats(2, 16))),
    ("linear: wrong shapes", lambda m: m.linear(matrix(16, 32), None, floats(2, 32), floats(1, 16))),
    ("linear: wrong shapes", lambda m: m.linear(matrix(17, 32), None, floats(2, 32), floats(2, 17))),
    ("linear: wrong shapes", lambda m: m.linear(matrix(16, 32), None, floats(32), floats(2, 16))),
    ("linear: wrong bias", lambda m: m.linear(matrix(16, 32), floats(15), floats(2, 32), floats(2, 16))),
    ("adapt: wrong matrices", lambda m: m.adapt(matrix(8, 32), matrix(9, 7), 1.0, floats(2, 32), floats(2, 9))),
    ("adapt: wrong matrices", lambda m: m.adapt(matrix(32, 32, Q8_0), matrix(9, 32), 1.0, floats(2, 32), floats(2, 9))),
    ("adapt: wrong shapes", lambda m: m.adapt(matrix(8, 32), matrix(9, 8), 1.0, floats(2, 32), floats(2, 16))),
    ("adapt: wrong shapes", lambda m: m.adapt(matrix(8, 32), matrix(9, 8), 1.0, floats(3, 32), floats(2, 9))),
    ("embed: wrong shapes", lambda m: m.embed(matrix(16, 32), np.zeros(2, np.int32), floats(3, 32))),
    ("token out of range", lambda m: m.embed(matrix(16, 32), np.array([16], np.int32), floats(1, 32))),
    ("token out of range", lambda m: m.embed(matrix(16, 32), np.array([-1], np.int32), floats(1, 32))),
    ("norm: wrong shapes", lambda m: m.norm(floats(3, 8), floats(12), None, 1e-5, False, floats(3, 8))),
    ("norm: wrong shapes", lambda m: m.norm(floats(3, 8), floats(8), floats(7), 1e-5, True, floats(3, 8))),
    ("norm: wrong shapes", lambda m: m.norm(floats(3, 8), floats(8), None, 1e-5, False, floats(2, 8))),
    ("rope: wrong shapes", lambda m: m.rope(floats(3, 1, 8), floats(3, 5), floats(3, 5), False)),
    ("rope: wrong shapes", lambda m: m.rope(floats(3, 1, 8), floats(2, 4), floats(2, 4), False)),
    ("rope: wrong shapes", lambda m: m.rope(floats(3, 8), floats(3, 4), floats(3, 4), False)),
    ("rotary: wrong", lambda m: native.rotary(np.zeros(2, np.int32), np.ones(4), 1.0, floats(2, 4), floats(2, 3))),
    ("glu: wrong shapes", lambda m: m.glu(floats(8), floats(9), 0, floats(9))),
    ("glu: wrong shapes", lambda m: m.glu(floats(8), floats(8), 3, floats(8))),
    ("activate: wrong shapes", lambda m: m.activate(floats(8), 0, floats(7))),
    ("activate: wrong shapes", lambda m: m.activate(floats(8), -1, floats(8))),
    ("soft_cap: wrong shapes", lambda m: m.soft_cap(floats(8), 0.0, floats(8))),
    ("softmax: wrong shape", lambda m: m.softmax(floats(3, 0))),
    ("round_q8: wrong shapes", lambda m: m.round_q8(floats(33), np.zeros(33, np.int8), floats(1))),
    ("matmul_back: wrong shapes", lambda m: m.matmul_back(matrix(17, 32), floats(2, 16), floats(2, 32))),
    ("matmul_back: wrong shapes", lambda m: m.matmul_back(matrix(17, 32), floats(2, 17), floats(3, 32))),
    ("matmul_back: wrong shapes", lambda m: m.matmul_back(matrix(17, 33), floats(2, 17), floats(2, 33))),
    ("outer: wrong shapes", lambda m: m.outer(floats(3, 2), floats(4, 16), floats(2, 16))),
    ("outer: wrong shapes", lambda m: m.outer(floats(0, 2), floats(0, 16), floats(2, 16))),
    ("outer: wrong shapes", lambda m: m.outer(floats(3, 2), floats(3, 17), floats(2, 17))),
    ("adapt_back: wrong matrices", lambda m: adapt_back(m, down=matrix(8, 33), x=floats(2, 33), dx=floats(2, 33))),
    ("adapt_back: wrong matrices", lambda m: adapt_back(m, down=matrix(9, 32))),
    ("adapt_back: wrong shapes", lambda m: adapt_back(m, x=floats(3, 32))),
    ("adapt_back: wrong shapes", lambda m: adapt_back(m, dx=floats(2, 16))),
    ("adapt_back: wrong shapes", lambda m: adapt_back(m, da=floats(9, 32))),
    ("adapt_back: wrong shapes", lambda m: adapt_back(m, db=floats(8, 9))),
    ("norm_back: wrong", lambda m: m.norm_back(*[floats(3, 8)] * 2, floats(7), 1e-5, False, *[floats(3, 8)] * 2, None)),
    (
        "norm_back: wrong",
        lambda m: m.norm_back(*[floats(3, 8)] * 2, floats(8), 1e-5, False, floats(2, 8), floats(8), None),
    ),
    (
        "norm_back: wrong",
        lambda m: m.norm_back(*[floats(3, 8)] * 2, floats(8), 1e-5, True, floats(3, 8), *[floats(8), floats(7)]),
    ),
    ("attend_back: wrong shapes", lambda m: attend_back(m, k=floats(5, 3, 8))),
    ("attend_back: wrong shapes", lambda m: attend_back(m, v=floats(5, 2, 7))),
    ("attend_back: wrong shapes", lambda m: attend_back(m, q=floats(5, 4, 1025))),
    ("attend_back: the sessions", lambda m: attend_back(m, lengths=[2, 2])),
    ("attend_back: a session's", lambda m: attend_back(m, lengths=[6, -1])),
    ("glu_back: wrong shapes", lambda m: m.glu_back(*[floats(8)] * 3, 0, floats(8), floats(7))),
    ("glu_back: wrong shapes", lambda m: m.glu_back(*[floats(8)] * 3, 3, floats(8), floats(8))),
    ("activate_back: wrong shapes", lambda m: m.activate_back(floats(8), floats(7), 0, floats(8))),
    ("soft_cap_back: wrong shapes", lambda m: m.soft_cap_back(floats(8), floats(8), 0.0, floats(8))),
    ("cross_entropy: wrong", lambda m: m.cross_entropy(floats(2, 8), np.zeros(3, np.int32), floats(2))),
    ("a target is out of range", lambda m: m.cross_entropy(floats(2, 8), np.array([0, 8], np.int32), floats(2))),
    ("a target is out of range", lambda m: m.cross_entropy(floats(2, 8), np.array([0, -1], np.int32), floats(2))),
    ("block: wrong parts", lambda m: block(norms=[None] * 5)),
    ("block: wrong parts", lambda m: block(act=3)),
    ("block: wrong parts", lambda m: block(index=-1)),
    ("block: wrong heads", lambda m: block(heads=3, kv_heads=2)),
    ("block: wrong heads", lambda m: block(kv_heads=0)),
    ("block: wrong heads", lambda m: block(dim=1025)),
    ("attention weights have wrong shapes", lambda m: block(linears0=None)),
    ("attention weights have wrong shapes", lambda m: block(linears3=(matrix(32, 15), None, None))),
    ("feed-forward weights have wrong shapes", lambda m: block(linears5=None)),
    ("feed-forward weights have wrong shapes", lambda m: block(linears4=(matrix(63, 32), None, None))),
    ("feed-forward weights have wrong shapes", lambda m: block(linears6=(matrix(32, 63), None, None))),
    ("norms have wrong lengths", lambda m: block(norms0=None)),
    ("norms have wrong lengths", lambda m: block(norms5=(floats(31), None, 1e-5, False))),
    ("block: head norms", lambda m: block(norms2=(floats(12), None, 1e-5, False))),
    ("norm: no gain", lambda m: block(norms0=(floats(0), None, 1e-5, False))),
    ("a norm is", lambda m: block(norms0=(floats(32),))),
    ("do not fit together", lambda m: block(linears0=(matrix(16, 8), None, matrix(9, 32)))),
    ("attention weights have wrong shapes", lambda m: block(linears0=(matrix(16, 8), None, matrix(8, 31)))),
    ("a linear layer is", lambda m: block(linears0=(matrix(16, 32),))),
    ("vector has the wrong length", lambda m: block(linears0=(matrix(16, 32), floats(17), None))),
    ("vector has the wrong length", lambda m: block(norms0=(floats(32), floats(31), 1e-5, True))),
    ("block: wrong shape", lambda m: m.block(block(), floats(3, 31), floats(3, 4), floats(3, 4), spans())),
    ("block: wrong shape", lambda m: m.block(block(), floats(0, 32), None, None, native.Spans([]))),
    ("wrong rotary table", lambda m: m.block(block(), floats(3, 32), None, None, spans())),
    ("wrong rotary table", lambda m: m.block(block(), floats(3, 32), floats(3, 5), floats(3, 5), spans())),
    ("do not cover the rows", lambda m: m.block(block(rope=False), floats(3, 32), None, None, spans(2))),
    ("another shape", lambda m: m.block(block(rope=False), floats(3, 32), None, None, spans(dim=16))),
    ("another shape", lambda m: m.block(block(rope=False, index=1), floats(3, 32), None, None, spans())),
    ("cache is full", lambda m: m.block(block(rope=False), floats(17, 32), None, None, spans(17))),
    ("attend: wrong shapes", lambda m: attend(m, q=floats(3, 2, 7))),
    ("attend: wrong shapes", lambda m: attend(m, out=floats(3, 15))),
    ("attend: wrong shapes", lambda m: attend(m, v=floats(3, 2, 8))),
    ("attend: wrong shapes", lambda m: attend(m, k=floats(3, 0, 8), v=floats(3, 0, 8))),
    ("attend: wrong heads", lambda m: attend(m, k=floats(3, 4, 8), v=floats(3, 4, 8))),
    ("do not cover the rows", lambda m: attend(m, spans=spans(4))),
    ("another shape", lambda m: attend(m, spans=spans(heads=2))),
    ("another shape", lambda m: attend(m, layer=-1)),
    *[
        (
            f"{verb}: wrong shape",
            lambda m, verb=verb, layer=layer, n=n, d=d, kind=kind: getattr(native.KVCache(kind, [1], 8, 16), verb)(
                layer, 0, *codes(n, d)
            ),
        )
        for verb, layer, n, d, kind in (
            ("read", 0, 1, 16, 0),
            ("write", 0, 17, 16, 0),
            ("write", 1, 2, 16, 0),
            ("write", 0, 2, 8, 0),
            ("write", 0, 2, 16, 2),
            ("read", -1, 0, 16, 0),
        )
    ],
    (
        "queries: wrong shape",
        lambda m: native.KVCache(0, [1], 8, 16, 4, [2]).read_queries(0, 0, np.zeros((1, 2, 8), np.uint16)),
    ),
    (
        "queries: wrong shape",
        lambda m: native.KVCache(0, [1], 8, 16, 4, [2]).write_queries(0, np.zeros((5, 2, 8), np.uint16)),
    ),
    ("must not be negative", lambda m: native.KVCache(0, [1], 8, 16, -1, [])),
    ("must not be negative", lambda m: native.KVCache(0, [1, 1], 8, 16, 4, [2])),
    ("must not be negative", lambda m: native.KVCache(0, [1], 8, 16, 4, [-2])),
    ("must be positive", lambda m: native.KVCache(0, [], 8, 16)),
]


def attend(machine: Any, **change: Any) -> None:
    args = {"q": floats(3, 2, 8), "k": floats(3, 1, 8), "v": floats(3, 1, 8), "spans": spans(), "layer": 0}
    args |= {"scale": 0.3, "cap": 0.0, "window": 0, "out": floats(3, 16)} | change
    machine.attend(*args.values())


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_refused(machine: Any, case: int) -> None:
    message, call = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call(machine)


def test_the_same_calls_with_right_arguments(machine: Any) -> None:
    """What the refused calls differ from is fine, so that they were refused for what they say."""
    attend(machine)
    machine.block(block(), floats(3, 32), floats(3, 4), floats(3, 4), spans())
    machine.block(block(rope=False), floats(3, 32), None, None, spans())
    machine.linear(matrix(17, 32), floats(17), floats(2, 32), floats(2, 32))
    native.Matrix(F32, 17, 32, np.zeros(32 * 32 * 4, np.uint8))


def test_a_part_of_another_type(machine: Any) -> None:
    for call in (
        lambda: native.Spans([(3, 0, 1)]),
        lambda: native.Spans([None]),
        lambda: block(linears0=(floats(16, 32), None, None)),
        lambda: block(linears0=(matrix(16, 32), None, 3)),
        lambda: block(norms0=(floats(32).astype(np.float64), None, 1e-5, False)),
        lambda: block(norms0=3),
    ):
        with pytest.raises(TypeError, match="a part of an argument has the wrong type"):
            call()


@pytest.mark.parametrize("change", ["float64", "strided", "read-only"])
def test_output_is_never_written_to_a_copy(machine: Any, change: str) -> None:
    y = {"float64": np.zeros(64), "strided": np.zeros(128, np.float32)[::2], "read-only": np.zeros(64, np.float32)}[
        change
    ]
    if change == "read-only":
        y.flags.writeable = False
    with pytest.raises(TypeError, match="incompatible function arguments"):
        machine.activate(floats(64), 0, y)


def test_counts_that_cannot_be(machine: Any) -> None:
    cache = native.KVCache(0, [1, 1], 8, 16)
    for count in (-1, 17, 2**62, -(2**63)):
        with pytest.raises(ValueError, match="move: past the rows"):
            cache.move(count)
    for counts in (([1], 1, 0), ([17, 1], 17, 0), ([-1, 1], 1, 0), ([4, 2], 4, 1), ([4, 4], 4, -1), ([1, 1], 1, 2)):
        with pytest.raises(ValueError, match="place: wrong counts"):
            cache.place(*counts)
    cache.move(14)
    with pytest.raises(ValueError, match="cache is full"):
        attend(machine, spans=native.Spans([(cache, 0, 3)]))
    for start, count in ((0, 15), (-1, 2), (14, 1)):
        with pytest.raises(ValueError, match="read: wrong shape"):
            cache.read(0, start, *codes(count, 16))
    for rows in ([[0, 14]], [[-1]], [[3, 2]], [[2, 2]]):
        with pytest.raises(ValueError, match="keep: rows must ascend"):
            cache.keep_rows(0, np.array(rows))


def test_what_the_op_set_says() -> None:
    with pytest.raises(OpsError, match="instruction set 'mmx': this machine runs .*scalar; choose one of these"):
        native_ops.create(isa="mmx")
    for threads in (0, -1, 1025):
        with pytest.raises(OpsError, match=f"{threads} threads: wanted 1 to 1024; leave it out for one a core"):
            native_ops.create(threads=threads)
    ops = native_ops.create(threads=1)
    for type_name, shape in (("Q8_0", (16, 48)), ("I32", (16, 32)), ("F32", (0, 32))):
        with pytest.raises(OpsError, match=f"a {shape[0]}x{shape[1]} {type_name} matrix: the native kernels take none"):
            ops.packed_bytes(type_name, shape)
    cache = ops.cache(1, 1, 8, 16)
    for length in (-1, 1):
        with pytest.raises(SpecError, match=f"cannot cut a cache of 0 rows to {length}; give a number from 0 to 0"):
            cache.truncate(length)
    longer = ops.cache(1, 1, 8, 17)
    longer.advance(17)
    with pytest.raises(SpecError, match="a saved prefix of 17 rows: wanted at most 16"):
        cache.restore(longer.export())


def test_an_instruction_set_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMOTE_ISA", "scalar")
    assert native_ops.create(threads=1).isa == "scalar"
    monkeypatch.setenv("GENMOTE_ISA", "sse9")
    with pytest.raises(OpsError, match="instruction set 'sse9'"):
        native_ops.create(threads=1)


def test_two_threads_with_spans_of_their_own() -> None:
    """The op set keeps the spans of the last call; other spans in the same list are other spans."""
    ops = native_ops.create(threads=1)
    a, b = ops.cache(1, 1, 8, 16), ops.cache(1, 1, 8, 16)
    mutable = [Span(a, 0, 3)]
    first = ops._native_spans(mutable)
    assert ops._native_spans(mutable) is first and ops._native_spans([Span(a, 0, 3)]) is first
    mutable[0] = Span(b, 0, 3)
    assert ops._native_spans(mutable) is not first


# -- random arguments, in a process of their own -----------------------------------------------------------------------


def spoilt(rng: np.random.Generator, value: Any) -> Any:
    """An argument made wrong in some way, or left as it is."""
    if isinstance(value, np.ndarray) and value.ndim:
        other = [
            value[..., :-1],
            value[:0],
            value[::2],
            value.T,
            value.reshape(-1),
            value[None],
            value.astype(np.float64),
            value.astype(np.uint8),
            np.zeros(tuple(rng.integers(0, 5, rng.integers(0, 5))), value.dtype),
            np.full(value.shape, rng.integers(-100, 100), value.dtype) if value.dtype == np.int32 else value * np.nan,
            None,
        ]
    elif isinstance(value, bool):
        other = [not value, None]
    elif isinstance(value, int):
        other = [0, 1, -1, 2, 7, 33, 1 << 20, 1 << 40, (1 << 63) - 1, -(1 << 63), None, 0.5]
    elif isinstance(value, float):
        other = [0.0, -1.0, 1e300, float("nan"), float("inf"), None]
    elif isinstance(value, list):
        place = int(rng.integers(len(value))) if value else 0
        other = [
            value[:-1],
            value + value,
            [*value[:place], spoilt(rng, value[place]), *value[place + 1 :]] if value else [None],
        ]
    elif isinstance(value, tuple):
        other = [value[:-1], (), tuple(spoilt(rng, v) for v in value), None]
    elif isinstance(value, native.KVCache):
        other = [native.KVCache(0, rng.integers(1, 4, rng.integers(1, 4)).tolist(), int(rng.integers(1, 4)), 16), None]
    elif isinstance(value, native.Matrix):
        other = [matrix(*rng.integers(1, 70, 2).tolist()), matrix(16, 32, Q8_0), None]
    else:
        other = [None, 3]
    return other[rng.integers(len(other))]


@np.errstate(all="ignore")
def fuzz(seed: int, count: int) -> None:
    """Calls with one or two arguments spoilt; anything but these exceptions, or a crash, ends the process in error."""
    rng, machine = np.random.default_rng(seed), native.Machine(native.best_isa(), 2)
    raised = 0
    for _ in range(count):
        kind_of_cache = int(rng.integers(3))
        cache = native.KVCache(kind_of_cache, [1, 1], 8, 32)
        cache.move(int(rng.integers(0, 29)))
        one = [(cache, 0, 3)]
        kind = int(rng.integers(2)) * Q8_0
        linears = [(matrix(*s), None, None) for s in ((16, 32), (8, 32), (8, 32), (32, 16))]
        linears += [(matrix(*s, kind), floats(s[0]), None) for s in ((64, 32), (64, 32))]
        linears.append((matrix(32, 32, kind), floats(32), matrix(32, 64)))
        norms = [(floats(32), None, 1e-5, False), (floats(32), floats(32), 1e-5, True), None, None, None, None]
        norms[2:4] = [(floats(8), None, 1e-5, False)] * 2
        parts = [1, 2, 1, 8, 0.3, 0.0, 0, 5, True, False, 32, norms, linears]
        calls: list[tuple[Callable[..., Any], list[Any]]] = [
            (machine.linear, [matrix(17, 32, kind), floats(17), floats(3, 32), floats(3, 32)]),
            (machine.embed, [matrix(17, 32, kind), np.array([1, 16], np.int32), floats(2, 32)]),
            (machine.norm, [floats(3, 8), floats(8), floats(8), 1e-5, True, floats(3, 8)]),
            (machine.rope, [floats(3, 2, 8), floats(3, 4), floats(3, 4), True]),
            (machine.glu, [floats(3, 8), floats(3, 8), 0, floats(3, 8)]),
            (machine.activate, [floats(3, 8), 0, floats(3, 8)]),
            (machine.soft_cap, [floats(3, 8), 3.0, floats(3, 8)]),
            (machine.softmax, [floats(3, 8)]),
            (machine.round_q8, [floats(64), np.zeros(64, np.int8), floats(2)]),
            (
                machine.pack,
                [Q8_0, 3, 32, np.zeros(102, np.uint8), np.zeros(native.packed_bytes(Q8_0, 3, 32), np.uint8)],
            ),
            (native.rotary, [np.zeros(3, np.int32), np.ones(4), 1.0, floats(3, 4), floats(3, 4)]),
            (native.Matrix, [Q8_0, 3, 32, np.zeros(native.packed_bytes(Q8_0, 3, 32), np.uint8)]),
            (native.KVCache, [kind_of_cache, 2, 1, 8, 32]),
            (native.Machine, [native.best_isa(), 2]),
            (native.packed_bytes, [Q8_0, 3, 32]),
            (cache.read, [1, 0, *codes(cache.lengths[0], 8 if kind_of_cache else 16)]),
            (cache.write, [1, 3, *codes(5, 8 if kind_of_cache else 16)]),
            (cache.keep_rows, [1, np.arange(cache.lengths[0])[None]]),
            (cache.place, [[3, 4], 3, 1]),
            (cache.move, [2]),
            (
                lambda *a: machine.attend(*a[:3], native.Spans(a[3]), *a[4:]),
                [floats(3, 2, 8), floats(3, 1, 8), floats(3, 1, 8), one, 1, 0.3, 0.0, 5, floats(3, 16)],
            ),
            (
                lambda *a: machine.block(native.Block(*a[4:]), *a[:3], native.Spans(a[3])),
                [floats(3, 32), floats(3, 4), floats(3, 4), one, *parts],
            ),
        ]
        call, args = calls[rng.integers(len(calls))]
        for _ in range(rng.integers(0, 3)):
            place = int(rng.integers(len(args)))
            args = [*args[:place], spoilt(rng, args[place]), *args[place + 1 :]]
        try:
            call(*args)
        except (ValueError, TypeError, MemoryError, OverflowError):
            raised += 1
    assert count / 10 < raised < count


@pytest.mark.parametrize("seed", range(3))
def test_random_arguments_never_crash(seed: int) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, str(seed), "4000"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_forward_refuses_a_cache_of_another_model() -> None:
    ops = native_ops.create(threads=1)
    linear = Linear(ops.matrix("F32", (16, 8), quant.quantize("F32", floats(16, 8))))
    q = ops.linear(floats(2, 8), linear).reshape(2, 2, 8)
    nothing: Any = None
    from genmote.ops.layer import Layer, LayerSpec

    layer = Layer(LayerSpec(0, 2, 2, 8, 1.0), *[nothing] * 6)
    with pytest.raises(ValueError, match="cache has another shape"):
        ops.attend(q, q, q, [Span(ops.cache(1, 2, 16, 32), 0, 2)], layer)


if __name__ == "__main__":
    fuzz(int(sys.argv[1]), int(sys.argv[2]))
