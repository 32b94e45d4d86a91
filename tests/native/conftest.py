"""The test program of the kernels and its cases: inputs, and the bits that must come out of them on every processor.

What comes out is computed here by the scalar kernels of this machine and, where a result has one rounding, by NumPy.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.ops import gradients, quant
from genmote.ops.cache import KINDS
from genmote.ops.layer import Layer, LayerSpec, Linear, Norm
from genmote.ops.protocol import Rotary, Span
from genmote.signals import adaptive

QUANTISED = (
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "IQ4_NL",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "GM2_32",
    "GM3_32",
    "GM4_32",
)
FLOATS = ("F32", "F16", "BF16")
ROOT = Path(__file__).parents[2]
# genmote.h's Group: a row's group of 32 numbers rounded to 8 bits.
GROUP = np.dtype([("q", "i1", 32), ("d", "<f4"), ("n", "<i4", 3), ("ds", "<f4", 3), ("pad", "<i4")])


class Case(NamedTuple):
    """`expected` is an array, or several that follow each other."""

    name: str
    inputs: tuple[np.ndarray, ...]
    expected: tuple[np.ndarray, ...]
    integers: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()

    def bytes(self) -> bytes:
        integers, floats = (*self.integers, *[0] * 8)[:8], (*self.floats, *[0.0] * 4)[:4]
        blocks = [a.tobytes() for a in self.inputs] + [b"".join(a.tobytes() for a in self.expected)]
        head = struct.pack("<16s8q4fq", self.name.encode(), *integers, *floats, len(blocks))
        return head + b"".join(struct.pack("<q", len(block)) + block for block in blocks)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The file of all cases, and how many there are."""
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    written = [case.bytes() for case in _cases()]
    path = tmp_path_factory.mktemp("cases") / "cases"
    path.write_bytes(b"".join(written))
    return path, len(written)


@pytest.fixture(scope="session")
def kernel_check() -> Callable[..., Path]:
    """build(name, compiler, *settings) → the test program; build/NAME keeps what was compiled for the next time."""
    built: dict[str, Path] = {}

    def build(name: str, compiler: str, *settings: str) -> Path:
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not here")
        if name not in built:
            folder = ROOT / "build" / name
            tools = Path(sys.executable).parent
            configure = [
                tools / "cmake",
                "-S",
                ROOT,
                "-B",
                folder,
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}",
            ]
            for command in ([*configure, "-DGENMOTE_CHECK=ON", *settings], [tools / "cmake", "--build", folder]):
                ran = subprocess.run(command, capture_output=True, text=True, check=False)
                assert ran.returncode == 0, ran.stdout + ran.stderr
            built[name] = folder / "kernel_check"
        return built[name]

    return build


@pytest.fixture(scope="session")
def check_here(kernel_check: Callable[..., Path]) -> Path:
    """The test program for this machine, of the kernels that `make native` has compiled: AMX's are compiled again for
    the emulation of its tiles, where there is the AVX-512 that the rest of them needs."""
    from genmote.ops import _native

    settings = ["-DGENMOTE_AMX_EMULATED=ON"] if _native.isa_runs("avx512") else []
    made = ROOT / "build" / "native" / "libgenmote_kernels.a"
    return kernel_check("check-here", "c++", *settings, *([f"-DGENMOTE_KERNELS={made}"] if made.exists() else []))


def _cases() -> Iterator[Case]:
    ops = op_sets.load("native", isa="scalar", threads=1)
    random = np.random.default_rng(23)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    for type_name in (*QUANTISED, *FLOATS):
        yield from _matrices(ops, random, type_name)
    yield from _rounding(normal)
    yield from _rows(ops, normal)
    yield from _attention(ops, normal)
    yield from _backward(ops, normal)
    yield from _samples(random)
    yield from _rotations(ops, normal)


def _samples(random: np.random.Generator) -> Iterator[Case]:
    """Whole numbers as this machine's kernels code them, which tests/signals/test_adaptive.py holds to Python's."""
    for rows, channels, most in ((400, 1, 30), (200, 3, 2000), (60, 13, 1 << 44)):
        samples = np.cumsum(random.integers(-most, most, (rows, channels)) // rows, axis=0)
        coded = np.frombuffer(adaptive.encode(samples), np.uint8)
        yield Case("code", (samples,), (coded,), (rows, channels))
        yield Case("decode", (coded,), (samples,), (rows, channels))
    rows, channels, bins = 120, 3, 20
    samples = np.cumsum(random.integers(-30, 30, (rows, channels)), axis=0)
    wide = adaptive.Help.none(channels).cross.shape[1]
    inputs = random.standard_normal((wide, 3 * wide))
    states = np.zeros((channels, adaptive.STATE_SIZE))
    before = adaptive.coder(samples.copy(), adaptive.Help.none(channels))
    before.go(adaptive.NO_LOGITS)
    before.learnt(states)
    help_ = adaptive.Help(
        [1, -1, 0],
        np.sort(random.normal(0, 80, (2, bins + 1)), axis=1),
        [0, 1, -1],
        np.stack([inputs @ inputs.T, inputs @ inputs.T]),
        random.standard_normal((2, wide)),
        np.ascontiguousarray(states[:2]),
    )
    logits = random.normal(0, 2, (2 * rows, bins)).astype(np.float32)
    coder = adaptive.coder(samples, help_)
    coder.go(logits)
    coded = np.frombuffer(coder.finish(), np.uint8)
    lists = np.array([help_.told, help_.practised], np.int32)
    told = (lists, help_.cuts, help_.moments, help_.cross, help_.states, logits)
    yield Case("code_told", (samples, *told), (coded,), (rows, channels, bins))
    yield Case("decode_told", (coded, *told), (samples,), (rows, channels, bins))


def _matrices(ops: Any, random: np.random.Generator, type_name: str) -> Iterator[Case]:
    type_ = quant.by_name(type_name)
    for rows, cols, counts in (
        (40, 512, (1, 2, 3, 5, 17, 33)),
        (33, 1280 if type_.block_size == 256 else 1120, (1, 4, 18)),
    ):
        weights = random.standard_normal((rows, cols)).astype(np.float32)
        weights[1] = 0
        raw = quant.quantize(type_name, weights).reshape(-1)
        packed = ops.pack(type_name, (rows, cols), raw)
        matrix = ops.packed_matrix(type_name, (rows, cols), packed)
        yield Case("pack", (raw,), (packed,), (type_.ggml_id, rows, cols))
        tokens = np.arange(rows, dtype=np.int32)
        yield Case("embed", (raw, tokens), (ops.embed(matrix, tokens),), (type_.ggml_id, rows, cols, rows))
        for count in counts:
            x = (random.standard_normal((count, cols)) * random.choice([1e-3, 1, 40], (count, 1))).astype(np.float32)
            x[-1, :64] = 127  # the largest codes there are, all with one sign
            y = np.zeros((count, (rows + 15) // 16 * 16), np.float32)
            y[:, :rows] = ops.linear(x, Linear(matrix))
            yield Case("linear", (raw, x), (y,), (type_.ggml_id, rows, cols, count))
        dy = random.standard_normal((14, rows)).astype(np.float32)
        dx = gradients.of(ops).matrix(dy, matrix)
        yield Case("matmul_back", (raw, dy), (dx,), (type_.ggml_id, rows, cols, len(dy)))
    yield from _extremes(ops, random, type_name)


def _extremes(ops: Any, random: np.random.Generator, type_name: str) -> Iterator[Case]:
    """Matrices of the extreme codes: sums of products that are the largest an instruction set must hold."""
    type_ = quant.by_name(type_name)
    if type_name in FLOATS:
        return
    for fill in (0x00, 0xFF, 0x80, 0x7F):
        raw = np.full((16, 256 // type_.block_size, type_.block_bytes), fill, np.uint8)
        for at in _half_offsets(type_name):  # scales stay finite numbers
            raw[:, :, at : at + 2] = np.array([0.25], np.float16).view(np.uint8)
        matrix = ops.matrix(type_name, (16, 256), raw.reshape(-1))
        x = np.where(random.random((5, 256)) < 0.5, np.float32(127), np.float32(-127))
        x[0], x[1] = 127, -127
        x[4] = -128.9
        yield Case("linear", (raw, x), (ops.linear(x, Linear(matrix)),), (type_.ggml_id, 16, 256, 5))
        for row in (0, 1, 2):
            one = x[row : row + 1]
            yield Case("linear", (raw, one), (ops.linear(one, Linear(matrix)),), (type_.ggml_id, 16, 256, 1))


def _half_offsets(type_name: str) -> tuple[int, ...]:
    if quant.TYPES[type_name].ggml_id >= quant.OWN:
        return ()  # every byte is a finite scale
    return {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(
        type_name, (0, 2) if type_name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)
    )


def _rounding(normal: Any) -> Iterator[Case]:
    x = normal(9, 32) * np.array([[1], [1e-3], [1e4], [1e-31], [1e30], [0], [3], [1e-20], [7]], np.float32)
    x[6] = np.arange(32) - 15.5  # ties
    x[8, :] = -5
    groups = np.zeros(len(x), GROUP)
    most = np.abs(x).max(axis=1)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most >= 1e-30)
    q = np.rint(x * inverse[:, None]).astype(np.int32)
    sums = np.stack([q.sum(1), q[:, :16].sum(1), q[:, 16:].sum(1)], axis=1).astype(np.int32)
    groups["q"], groups["d"], groups["n"] = q, most / np.float32(127), -sums
    groups["ds"] = groups["d"][:, None] * sums.astype(np.float32)
    yield Case("round", (x,), (groups,))
    x = np.concatenate(
        [normal(77), np.float32([65504, 65519.99, 65520, 1e9, -1e9, 6e-8, 2.9e-8, 3e-8, 1e-4, 6.1e-5, -0.0])]
    )
    x = np.concatenate([x, (np.arange(40, dtype=np.float32) + 0.5) / np.float32(2**24), np.float32([np.inf, -np.inf])])
    yield Case("to_half", (x,), (np.clip(x, -65504, 65504).astype(np.float16),), (len(x),))


def _rows(ops: Any, normal: Any) -> Iterator[Case]:
    for n in (1, 7, 16, 64, 100, 576):
        x, gain, bias = normal(3, n) * 5, normal(n), normal(n)
        for centre, b in ((False, None), (True, None), (True, bias)):
            norm = Norm(gain, b, 1e-5, centre)
            none = np.empty(0, np.float32)
            yield Case("norm", (x, gain, none if b is None else b), (ops.norm(x, norm),), (n, int(centre)), (1e-5,))
        wide, up = normal(n) * 12, normal(n)
        for number, activation in enumerate(("silu", "gelu", "relu")):
            yield Case("glu", (wide, up), (ops.glu(wide, up, activation),), (n, number))
            yield Case("activate", (wide,), (ops.activate(wide, activation),), (n, number))
        yield Case("soft_cap", (wide,), (ops.soft_cap(wide, 30.0),), (n,), (30.0,))
        shares = wide[None].copy()
        ops.machine.softmax(shares)
        yield Case("softmax", (wide,), (shares,), (n,))
    far = np.float32([-1000, -90, -87.0001, -87, 86.9, 88, 88.1, 1000, -0.0, 0.0, 1e-30])
    yield Case("activate", (far,), (ops.activate(far, "silu"),), (len(far), 0))


def _attention(ops: Any, normal: Any) -> Iterator[Case]:
    nothing: Any = None
    shapes = ((8, 2, 64, None, 37, 5), (3, 3, 32, 9, 20, 1), (4, 1, 40, None, 17, 16), (2, 1, 256, 5, 3, 4))
    for heads, kv, dim, window, first, second in shapes:
        for cap, kind in ((0.0, "f16"), (20.0, "f16"), (20.0, "int8"), (0.0, "int8"), (20.0, "int4"), (0.0, "int4")):
            spec = LayerSpec(
                index=0, n_heads=heads, n_kv_heads=kv, head_dim=dim, scale=0.2, window=window or 0, score_cap=cap
            )
            layer = Layer(spec, nothing, nothing, nothing, nothing, nothing, nothing)
            n = first + second
            q, k, v = normal(n, heads, dim), normal(n, kv, dim), normal(n, kv, dim)
            cache, out = ops.cache(1, kv, dim, n, kind=kind), []
            for a, b in ((0, first), (first, n)):
                out.append(ops.attend(q[a:b], k[a:b], v[a:b], [Span(cache, 0, b - a)], layer))
                cache.advance(b - a)
            integers = (heads, kv, dim, window or 0, first, second, KINDS.index(kind))
            yield Case("attend", (q, k, v), tuple(out), integers, (0.2, cap))


def _backward(ops: Any, normal: Any) -> Iterator[Case]:
    g = gradients.of(ops)
    for n, p, q in ((5, 3, 16), (300, 8, 80)):
        a, b = normal(n, p), normal(n, q)
        yield Case("outer", (a, b), (g.outer(a, b),), (n, p, q))
    for n in (7, 100):
        x, dy, norm = normal(5, n), normal(5, n), Norm(normal(n), normal(n), 1e-5, True)
        dx, dgain, dbias = g.norm(dy, x, norm)
        assert dbias is not None
        yield Case("norm_back", (dy, x, norm.gain), (dx, dgain, dbias), (n, 1), (1e-5,))
        d, gate, up = normal(n), normal(n) * 12, normal(n)
        for number, activation in enumerate(("silu", "gelu", "relu")):
            yield Case("glu_back", (d, gate, up), g.glu(d, gate, up, activation), (n, number))
        logits, targets, weights = normal(3, n) * 5, np.array([0, n - 1, 2], np.int32), np.float32([1, 0, 0.5])
        after = logits.copy()
        g.cross_entropy(after, targets, weights)
        yield Case("cross_entropy", (logits, targets, weights), (after,), (n,))
    for heads, kv, dim, window, cap in ((4, 2, 32, 0, 0.0), (3, 1, 24, 9, 20.0)):
        spec = LayerSpec(index=0, n_heads=heads, n_kv_heads=kv, head_dim=dim, scale=0.2, window=window, score_cap=cap)
        q, k, v, do = normal(50, heads, dim), normal(50, kv, dim), normal(50, kv, dim), normal(50, heads * dim)
        found = g.attend(do, q, k, v, (40, 10), spec)
        yield Case("attend_back", (do, q, k, v), found, (heads, kv, dim, window, 40, 10), (0.2, cap))


def _rotations(ops: Any, normal: Any) -> Iterator[Case]:
    positions = np.array([0, 1, 5, 100, 4097, 131071], np.int32)
    for half, heads, dim, interleaved in ((32, 3, 64, False), (16, 2, 40, False), (24, 1, 48, True)):
        inv_freq = 10000.0 ** (-np.arange(half) / half)
        rotary: Rotary = ops.rotary(positions, inv_freq, 1.25)
        x = normal(len(positions), heads, dim)
        rotated = ops.rope(x, rotary, interleaved)
        integers = (len(positions), half, heads, dim, int(interleaved))
        yield Case("rope", (positions, inv_freq, x), (rotary.cos, rotary.sin, rotated), integers, (1.25,))
