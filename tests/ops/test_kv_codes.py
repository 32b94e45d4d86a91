"""Codes of int8 and int4 caches against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.ops import kv_codes


@pytest.mark.parametrize("dim", [1, 2, 8, 24, 40, 64, 80, 96, 112, 128, 256])
def test_turning_is_orthogonal_and_its_own_inverse(dim: int) -> None:
    matrix = kv_codes.rotate(np.eye(dim, dtype=np.float32))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=2e-6)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-7)
    if dim & (dim - 1) == 0:  # Hadamard: all entries alike
        np.testing.assert_allclose(np.abs(matrix), dim**-0.5, rtol=1e-6)


@pytest.mark.parametrize("dim", [16, 80])
@pytest.mark.parametrize("key", [True, False])
def test_int4_takes_the_nearest_level_and_the_best_scale_of_seven(key: bool, dim: int) -> None:
    x = np.random.default_rng(0).standard_normal((40, 2, dim)).astype(np.float32)
    codes, found = kv_codes.encode("int4", x, key=key)
    half = kv_codes.KEY_LEVELS if key else kv_codes.VALUE_LEVELS
    table = np.concatenate([half, -half]) if key else np.concatenate([-half[::-1], half])
    turned, wide = kv_codes.rotate(x).astype(float), found.astype(float)[..., None]
    distance = np.abs(turned[..., None] - wide[..., None] * table)  # (N, H, D, levels)
    chosen = np.take_along_axis(distance, codes[..., None].astype(int), axis=-1)[..., 0]
    assert (chosen <= distance.min(axis=-1) + 1e-6).all()
    error = (chosen**2).sum(axis=-1)
    deviation = np.sqrt((turned**2).mean(axis=-1, keepdims=True))
    for factor in np.linspace(0.7, 1.3, 7):
        scale = factor * deviation * float(kv_codes.KEY_UNIT if key else kv_codes.VALUE_UNIT)
        scale = scale.astype(np.float16).astype(float)
        other = np.abs(turned[..., None] - scale[..., None] * table).min(axis=-1)
        assert (error <= (other**2).sum(axis=-1) * 1.02).all()
    assert np.array_equal(kv_codes.levels("int4", codes, key=key), table[codes])


def test_int8_rounds_to_a_127th_of_the_largest() -> None:
    x = np.random.default_rng(0).standard_normal((40, 2, 64)).astype(np.float32)
    codes, scale = kv_codes.encode("int8", x, key=True)
    turned = kv_codes.rotate(x)
    assert np.array_equal(scale, (np.abs(turned).max(-1) / np.float32(127)).astype(np.float16))
    assert np.abs(turned - codes * scale.astype(np.float32)[..., None]).max() <= scale.max() * 0.56


def test_rows_of_nothing() -> None:
    x = np.zeros((1, 1, 64), np.float32)
    x[0, 0, 0] = 1e-25
    for kind in ("int8", "int4"):
        codes, scale = kv_codes.encode(kind, x, key=True)
        assert not (kv_codes.levels(kind, codes, key=True) * scale.astype(np.float32)[..., None]).any()
