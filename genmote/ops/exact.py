"""Float32 arithmetic in one stated order, so that two op sets on two machines give the same bits.

What is fixed here, and computed likewise by the native kernels (`native/kernels.h`): sums of products are chains of
fused multiply-adds in order; sums over a row run in 16 interleaved parts that one tree joins; exp, tanh, sin and cos
are polynomials. IEEE 754 fixes the bits of +, -, *, /, sqrt and fused multiply-add, and nothing else is used.

NumPy has no fused multiply-add. A product of two float32 is exact in float64, so adding in float64 and rounding to
float32 is one, save where the float64 sum was rounded onto the middle between two float32; those are found and mended.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LANES = 16  # interleaved parts of a sum over a row
_LOST = np.uint64((1 << 29) - 1)  # bits that float32 drops of a float64 ...
_MIDDLE = np.uint64(1 << 28)  # ... and the pattern that is half a unit of the last bit kept

# sin and cos on [-pi/4, pi/4]: the minimax coefficients of the classic double-precision kernels, highest power last.
_SIN = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COS = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)
# pi/2 in three parts (Cody and Waite), the first two of 33 bits: n * part is exact for |n| < 2**20.
_HALF_PI = (float.fromhex("0x1.921fb544p+0"), float.fromhex("0x1.0b4611a6p-34"), float.fromhex("0x1.3198a2e037073p-69"))
_TWO_OVER_PI = 0.63661977236758134308

_MAGIC = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer
_EXP = tuple(
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
)


def chain(products: Float64, total: Float32 | None = None) -> Float32:
    """Fused multiply-adds one after another: total = float32(products[i] + total), rounded once. (steps, ...) → (...)

    `products` are exact products of two float32, in float64. `total` None: zero.

    >>> chain(np.array([[2.0**24], [1.0], [1.0]])).tolist(), chain(np.array([[1.0], [1.0], [2.0**24]])).tolist()
    ([16777216.0], [16777218.0])
    """
    begin = np.zeros(products.shape[1:], np.float32) if total is None else total
    sums, total, before = np.empty_like(products), begin.copy(), begin.astype(np.float64)
    for product, wide in zip(products, sums, strict=True):
        np.add(product, before, out=wide)
        total[...] = wide
        before[...] = total
    middle = (sums.view(np.uint64) & _LOST) == _MIDDLE
    if middle.any():
        step, place = np.divmod(np.flatnonzero(middle), total.size)
        flat, start = sums.reshape(len(sums), -1), begin.reshape(-1).astype(np.float64)
        prior = np.where(step == 0, start[place], flat[step - 1, place]).astype(np.float32).astype(np.float64)
        lost = _lost(products.reshape(flat.shape)[step, place], prior, flat[step, place])
        for column in np.unique(place[lost != 0]):  # a sum that went the wrong way: once more, with care
            once = begin.reshape(-1)[column, None]
            for product in products.reshape(flat.shape)[:, column, None]:
                once = _add_once(product, once)
            total.reshape(-1)[column] = once[0]
    return total


def _lost(a: Float64, b: Float64, total: Float64) -> Float64:
    """What float64 rounded away of a + b = total, exactly (Knuth's two-sum)."""
    back = total - a
    return (a - (total - back)) + (b - back)


def fma(a: Float32, b: Float32 | np.float32, c: Float32 | np.float32) -> Float32:
    """a * b + c, rounded once.

    >>> a = np.array([1 + 2**-12], np.float32)
    >>> float(fma(a, a, np.float32(-1))[0]) == 2**-11 + 2**-24
    True
    """
    product = np.multiply(a, b, dtype=np.float64)
    wide = product + c
    if ((wide.view(np.uint64) & _LOST) == _MIDDLE).any():
        return _add_once(product, np.broadcast_to(np.asarray(c, np.float32), product.shape))
    result: Float32 = wide.astype(np.float32)
    return result


def _add_once(product: Float64, total: Float32) -> Float32:
    """float32(product + total) rounded once, wherever the middle between two float32 may fall."""
    addend = total.astype(np.float64)
    wide = product + addend
    lost = _lost(product, addend, wide)
    middle = ((wide.view(np.uint64) & _LOST) == _MIDDLE) & (lost != 0)
    wide = np.where(middle, np.nextafter(wide, np.where(lost > 0, np.inf, -np.inf)), wide)
    result: Float32 = wide.astype(np.float32)
    return result


def _lanes(x: Float32) -> Float32:
    """(..., n) → (steps, ..., 16), filled up with zeros."""
    spare = -x.shape[-1] % LANES
    if spare:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], spare), x.dtype)], axis=-1)
    return np.moveaxis(x.reshape(*x.shape[:-1], -1, LANES), -2, 0)


def _join(parts: Float32) -> Float32:
    """Sixteen partial sums in one tree: (..., 16) → (...)."""
    a = parts[..., :8] + parts[..., 8:]
    b = a[..., :4] + a[..., 4:]
    joined: Float32 = (b[..., 0] + b[..., 2]) + (b[..., 1] + b[..., 3])
    return joined


def row_sum(x: Float32) -> Float32:
    """Sum over the last axis in 16 interleaved parts: (..., n) → (...)."""
    parts = np.zeros((*x.shape[:-1], LANES), np.float32)
    for step in _lanes(x):
        parts = parts + step
    return _join(parts)


def row_squares(x: Float32) -> Float32:
    """Sum of squares over the last axis, likewise with fused multiply-adds: (..., n) → (...)."""
    steps = _lanes(x).astype(np.float64)
    return _join(chain(steps * steps))


def exp(x: Float32) -> Float32:
    """e**x: below -87 it is 0, above 88 it is e**88; relative error below 2e-7 (polynomial of Cephes' expf).

    >>> exp(np.array([0.0, -np.inf, 1.0], np.float32)).tolist()
    [1.0, 0.0, 2.7182817459106445]
    """
    low = np.float32(-87.0)
    c = np.minimum(np.where(x < low, low, x), np.float32(88.0))
    t = fma(c, np.float32(1.44269504), _MAGIC)
    n = t - _MAGIC
    r = fma(n, np.float32(-0.693359375), c)
    r = fma(n, np.float32(2.12194440e-4), r)
    p = np.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        p = fma(p, r, coefficient)
    p = fma(p, r * r, r) + np.float32(1.0)
    power = ((t.view(np.int32) - np.int32(0x4B400000) + np.int32(127)) << 23).view(np.float32)
    result: Float32 = np.where(x < low, np.float32(0.0), p * power)
    return result


def tanh(x: Float32) -> Float32:
    """1 - 2 / (e**2x + 1)."""
    result: Float32 = np.float32(1.0) - np.float32(2.0) / (exp(x + x) + np.float32(1.0))
    return result


def sin_cos(x: Float64) -> tuple[Float64, Float64]:
    """sin(x) and cos(x), x in radians, |x| below 1.6 million; absolute error below 1e-15.

    >>> sin, cos = sin_cos(np.array([0.0, 100000.0]))
    >>> bool(np.allclose(sin, [0.0, 0.0357487979], atol=1e-10)), float(cos[0])
    (True, 1.0)
    """
    n = np.rint(x * _TWO_OVER_PI)
    r = ((x - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    z = r * r
    sin = r + r * z * _polynomial(_SIN, z)
    cos = 1.0 - 0.5 * z + z * z * _polynomial(_COS, z)
    quarter = n.astype(np.int64) & 3
    swap = (quarter & 1) == 1
    sin, cos = np.where(swap, cos, sin), np.where(swap, sin, cos)
    return np.where(quarter >= 2, -sin, sin), np.where((quarter == 1) | (quarter == 2), -cos, cos)


def _polynomial(coefficients: tuple[float, ...], z: Float64) -> Float64:
    total = np.full_like(z, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = coefficient + z * total
    return total
