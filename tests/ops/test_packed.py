"""The packed layout: the C++ that lays weights out against its NumPy description, and nothing lost on the way."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.errors import OpsError
from genmote.ops import packed, quant

TYPES = quant.codec_names()
SHAPES = [(1, 256), (15, 512), (16, 256), (17, 256), (33, 768), (64, 1024)]
NARROW = [(5, 32), (16, 96), (31, 160)]  # for types with blocks of 32 and less


def shapes_of(type_name: str) -> list[tuple[int, int]]:
    return SHAPES + (NARROW if quant.by_name(type_name).block_size <= 32 else [])


def any_bytes(type_name: str, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Bytes that no one chose: also scales that are NaN, infinite, negative or denormal."""
    return np.random.default_rng(seed).integers(0, 256, quant.nbytes(type_name, shape), np.uint8)


@pytest.mark.parametrize("type_name", TYPES)
def test_every_bit_comes_back(type_name: str) -> None:
    for shape in shapes_of(type_name):
        raw = any_bytes(type_name, shape)
        laid = packed.pack(type_name, shape, raw)
        assert laid.size == packed.packed_bytes(type_name, shape)
        np.testing.assert_array_equal(packed.unpack(type_name, shape, laid), raw)


@pytest.mark.parametrize("type_name", TYPES)
def test_kernels_lay_weights_out_as_described(type_name: str) -> None:
    native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)
    for threads in (1, 2):
        ops = native_ops.create(threads=threads)
        for shape in shapes_of(type_name):
            raw = any_bytes(type_name, shape, seed=1)
            assert ops.packed_bytes(type_name, shape) == packed.packed_bytes(type_name, shape)
            np.testing.assert_array_equal(ops.pack(type_name, shape, raw), packed.pack(type_name, shape, raw))


@pytest.mark.parametrize("type_name", TYPES)
def test_weights_read_out_of_the_layout_are_the_files(type_name: str) -> None:
    """The kernels' own reading of a packed row (`embed`) against `quant.dequantize`, bit for bit."""
    native_ops = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)
    shape = (37, 512)
    values = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    raw = quant.quantize(type_name, values)
    for isa in native_ops._native.isa_names():
        if native_ops._native.isa_runs(isa):
            ops = native_ops.create(isa=isa, threads=1)
            got = ops.embed(ops.matrix(type_name, shape, raw), np.arange(37, dtype=np.int32))
            np.testing.assert_array_equal(got, quant.dequantize(type_name, raw, shape))


@pytest.mark.parametrize("type_name", TYPES)
def test_size_is_at_most_a_twentieth_more_than_the_files(type_name: str) -> None:
    for shape in ((16, 256), (576, 1536), (49152, 768)):
        assert packed.packed_bytes(type_name, shape) <= 1.05 * quant.nbytes(type_name, shape)


def test_lanes_by_hand() -> None:
    """Row 3, column 37 of a Q4_0 matrix, found where the description says."""
    shape, row, column = (16, 64), 3, 37
    raw = any_bytes("Q4_0", shape, seed=3)
    laid = packed.pack("Q4_0", shape, raw)
    block = raw.reshape(16, 2, 18)[row, 1]  # d, then 16 bytes of two codes each
    quad = column % 32 // 4
    byte = laid[256 * (column // 32) + 64 * (quad % 4) + 4 * row + column % 4]
    assert byte >> (4 * (quad // 4)) & 15 == block[2 + 5] & 15
    scale = laid[2 * 256 + 32 * (column // 32) + 2 * row :][:2]
    assert scale.tolist() == block[:2].tolist()


@pytest.mark.parametrize("type_name", TYPES)
def test_missing_rows_mean_zero(type_name: str) -> None:
    raw = quant.quantize(type_name, np.ones((1, 256), np.float32))
    laid = packed.pack(type_name, (1, 256), raw)
    rows = quant.dequantize(type_name, packed.unpack(type_name, (16, 256), laid), (16, 256))
    assert rows[0].all() and not rows[1:].any()


@pytest.mark.parametrize(
    ("type_name", "shape"),
    [("I32", (16, 32)), ("Q4_0", (16, 48)), ("Q4_K", (16, 96)), ("F32", (0, 8)), ("Q8_0", (4, 0))],
)
def test_what_has_no_layout(type_name: str, shape: tuple[int, int]) -> None:
    with pytest.raises(OpsError, match=f"a {shape[0]}x{shape[1]} {type_name} matrix has no packed layout; convert the"):
        packed.packed_bytes(type_name, shape)
