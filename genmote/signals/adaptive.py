"""Lossless coding of whole numbers, many channels side by side, by predictors and probabilities that learn as they go.

For each sample:

1. Least squares over the channel's own past and the other channels (of those coded before it also their present),
   forgetting slowly, predict it; three longer normalised gradient predictors (256, 32 and 16 samples) add what is left
   (the cascade of Ghido and Tabus, "Sparse modeling for lossless audio compression", IEEE TASLP 21 (2013), and of
   MPEG-4 ALS, ISO/IEC 14496-3).
2. A mixture of Laplace's and logistic distributions, whose widths follow the errors at three speeds and whose shares
   follow how well each did, tells how probable each error is.
3. The error is coded in binary decisions (is it 0, its sign, its size in powers of two, its bits). The mixture's
   probability of each is mixed in the logistic domain with counters in five contexts (Mahoney, "Adaptive weighing of
   context models for lossless data compression", Florida Tech CS-2005-16), so that what no smooth distribution knows
   (values that never occur, a value that stays) is learned too. An arithmetic coder writes the decisions.

Everything is doubles and whole numbers in one fixed order, with `exp` and `log` of our own: what one machine wrote
every other reads. `native/series_coder.cpp` does it fast; the classes here are its twin, some hundred times slower.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError

Integers = NDArray[np.int64]
CHANNELS = 64  # at most
LIMIT = 1 << 48  # samples lie below it, and above minus it


def encode(samples: Integers) -> bytes:
    """The bytes that `decode` makes samples (T, C) of. SignalError for none or more than 64 channels, or numbers of 48
    bits and more."""
    rows, channels = _checked(samples.shape)
    if samples.size and max(int(samples.max()), -int(samples.min())) >= LIMIT:
        raise SignalError(
            f"samples up to {np.abs(samples.astype(float)).max():.3g}: wanted numbers of less than 48 bits"
        )
    native = _native()
    if native is not None:
        coded: bytes = native.encode_samples(np.ascontiguousarray(samples, np.int64))
        return coded
    coder = _Coder(None)
    _run(coder, samples.astype(np.int64).reshape(-1).tolist(), rows, channels)
    return coder.finish()


def decode(coded: bytes, rows: int, channels: int) -> Integers:
    """Samples (rows, channels) of what `encode` made. Damaged bytes give other samples: keep a checksum."""
    _checked((rows, channels))
    native = _native()
    if native is not None:
        samples = np.zeros((rows, channels), np.int64)
        native.decode_samples(np.frombuffer(coded, np.uint8), samples)
        return samples
    found = [0] * (rows * channels)
    _run(_Coder(coded), found, rows, channels)
    return np.array(found, np.int64).reshape(rows, channels)


def _checked(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2 or not 1 <= shape[1] <= CHANNELS:
        raise SignalError(f"samples of shape {shape}: wanted (rows, channels) with 1 to {CHANNELS} channels")
    return shape[0], shape[1]


def _native() -> Any:
    try:
        from genmote.ops import _native as module
    except ImportError:
        return None
    return module


# -- the twin ---------------------------------------------------------------------------------------------------------

MASK = 0xFFFFFFFF
PARTS = [1.0 / n for n in (479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1)]
ODDS = [1.0 / n for n in range(17, 0, -2)]
LEAST = 1.0 / 65536
SHAPES, CONTEXTS, NODES, TABLE_BITS, MOST_BITS = 7, 5, 320, 12, 53
STAGES = ((256, 0.002), (32, 0.004), (16, 0.008))


def exponential(x: float) -> float:
    """e^x; x is held to [-700, 700].

    >>> exponential(1.0)
    2.718281828459045
    """
    x = min(max(x, -700.0), 700.0)
    whole = (x * 1.4426950408889634 + 6755399441055744.0) - 6755399441055744.0
    r = (x - whole * 0.69314718036912382) - whole * 1.9082149292705877e-10
    p = 0.0
    for part in PARTS:
        p = p * r + part
    return p * math.ldexp(1.0, int(whole))


def logarithm(x: float) -> float:
    """Of a normal number above 0.

    >>> logarithm(2.0)
    0.6931471805599453
    """
    m, e = math.frexp(x)
    m, e = 2 * m, e - 1
    if m > 1.4142135623730951:
        m, e = 0.5 * m, e + 1
    s = (m - 1) / (m + 1)
    z, p = s * s, 0.0
    for odd in ODDS:
        p = p * z + odd
    return 2 * s * p + e * 0.69314718055994531


def _within(x: float, low: float, high: float) -> float:
    return (x if x < high else high) if x > low else low


def _squash(t: float) -> float:
    return 1 / (1 + exponential(-t))


def _stretch(p: float) -> float:
    return logarithm(p / (1 - p))


class _Coder:
    """Writes decisions, or (with `coded`) reads them."""

    def __init__(self, coded: bytes | None) -> None:
        self.coded, self.at, self.out = coded, 0, bytearray()
        self.low, self.high, self.x = 0, MASK, 0
        for _ in range(4):
            self.x = (self.x << 8 | self._next()) & MASK

    def _next(self) -> int:
        self.at += 1
        return self.coded[self.at - 1] if self.coded is not None and self.at <= len(self.coded) else 0

    def code(self, bit: bool, p: float) -> bool:
        middle = self.low + ((self.high - self.low) * int(p * 4294967295.0) >> 32)
        if self.coded is not None:
            bit = self.x <= middle
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while not (self.low ^ self.high) >> 24:
            if self.coded is None:
                self.out.append(self.high >> 24)
            else:
                self.x = (self.x << 8 | self._next()) & MASK
            self.low, self.high = self.low << 8 & MASK, (self.high << 8 | 255) & MASK
        return bit

    def finish(self) -> bytes:
        for count in range(5):
            rest = MASK >> (8 * count) if count < 4 else 0
            kept = (self.low + rest) & ~rest & MASK
            if self.low <= kept <= self.high:
                break
        return bytes(self.out) + kept.to_bytes(4, "big")[:count]


class _LeastSquares:
    def __init__(self, n: int) -> None:
        self.n, self.seen = n, 0
        self.moments, self.factor = ([[0.0] * n for _ in range(n)] for _ in range(2))
        self.cross, self.weights, self.half = ([0.0] * n for _ in range(3))

    def predict(self, x: list[float]) -> float:
        total = 0.0
        for w, one in zip(self.weights, x, strict=True):
            total += w * one
        return total

    def learn(self, x: list[float], y: float) -> None:
        for i in range(self.n):
            row, share = self.moments[i], (1 - 0.9985) * x[i]
            for j in range(i + 1):
                row[j] = 0.9985 * row[j] + share * x[j]
            self.cross[i] = 0.9985 * self.cross[i] + share * y
        self.seen += 1
        if not self.seen % 2 and self._factor():
            self._solve()

    def _factor(self) -> bool:
        for i in range(self.n):
            row = self.factor[i]
            for j in range(i + 1):
                other, s = self.factor[j], self.moments[i][j]
                if i == j:
                    s = s + 1e-5 * s + 1e-3
                for k in range(j):
                    s -= row[k] * other[k]
                if i > j:
                    row[j] = s / other[j]
                elif s > 1e-9:
                    row[i] = math.sqrt(s)
                else:
                    return False
        return True

    def _solve(self) -> None:
        for i in range(self.n):
            s = self.cross[i]
            for k in range(i):
                s -= self.factor[i][k] * self.half[k]
            self.half[i] = s / self.factor[i][i]
        for i in reversed(range(self.n)):
            s = self.half[i]
            for k in range(i + 1, self.n):
                s -= self.factor[k][i] * self.weights[k]
            self.weights[i] = s / self.factor[i][i]


class _Gradient:
    def __init__(self, n: int, rate: float) -> None:
        self.n, self.rate, self.told = n, rate, 0.0
        self.weights, self.past = [0.0] * n, [0.0] * n  # the latest first

    def predict(self) -> float:
        total = 0.0
        for w, one in zip(self.weights, self.past, strict=True):
            total += w * one
        self.told = total
        return total

    def learn(self, y: float) -> None:
        power = 0.0
        for one in self.past:
            power += one * one
        step = self.rate * (y - self.told) / (1e-3 + power)
        self.weights = [w + step * one for w, one in zip(self.weights, self.past, strict=True)]
        self.past = [y, *self.past[:-1]]


def _coarse(r: int) -> int:
    a = abs(r)
    q = a if a <= 2 else 3 if a <= 4 else 4 if a <= 8 else 5 if a <= 16 else 6 if a <= 64 else 7
    return -q if r < 0 else q


class _Channel:
    def __init__(self, number: int, channels: int) -> None:
        self.number, self.channels = number, channels
        self.past = 32 if channels == 1 else 16 if channels <= 4 else 8
        self.others = min(channels - 1, 11)
        self.near = _LeastSquares(self.past + 2 * self.others)
        self.far = [_Gradient(n, rate) for n, rate in STAGES]
        self.place, self.shares = 0.0, [1.0 / SHAPES] * SHAPES
        self.width = [0.0] * SHAPES
        self.widths, self.size = [16.0] * 3, 1.0
        self.last = self.last_but_one = 0
        self.contexts = [0] * CONTEXTS
        self.tables: list[dict[int, list[float]]] = [{} for _ in range(CONTEXTS)]
        self.mix = [[1.0] + [0.0] * CONTEXTS for _ in range(NODES)]

    def code(self, coder: _Coder, samples: list[int], t: int) -> None:
        at = t * self.channels + self.number
        x = self._gathered(samples, t)
        near = self.near.predict(x)
        far, place = [], near
        for stage in self.far:
            far.append(stage.predict())
            place += far[-1]
        self.place = place = _within(place, -(2.0**50), 2.0**50)
        whole = int(place + (-0.5 if place < 0 else 0.5))
        self.width = [*self.widths, *(0.6 * width for width in self.widths), 3 * self.widths[1]]
        self._look(whole, samples[at - self.channels] if t else 0)
        error, low, high = self._error(coder, samples[at] - whole if coder.coded is None else 0, whole)
        samples[at] = whole + error
        self._learn(x, float(samples[at]), near, far, error, t, low, high)

    def _gathered(self, samples: list[int], t: int) -> list[float]:
        def at(channel: int, time: int) -> float:
            return 0.0 if time < 0 else float(samples[time * self.channels + channel])

        x = [at(self.number, t - i) for i in range(1, self.past + 1)]
        for i in range(1, self.others + 1):
            other = (self.number - i) % self.channels
            last = t if other < self.number else t - 1
            x += [at(other, last), at(other, last - 1)]
        return x

    def _look(self, whole: int, before: int) -> None:
        level, a = 1, self.size
        while a > 0.5 and level < 16:
            a, level = a * 0.6, level + 1
        near = min(max(before - whole, -20), 20) + 100
        errors = (_coarse(self.last) + 8) * 16 + _coarse(self.last_but_one) + 1008
        at = (((whole % 2**64) * 2654435761 % 2**64) >> 3) & MASK
        self.contexts = [0, level, near, errors, at]

    def _decide(self, coder: _Coder, node: int, key: int, expected: float, value: bool) -> bool:
        counters, inputs = [], [_stretch(_within(expected, 1e-7, 1 - 1e-7))]
        for i, context in enumerate(self.contexts):
            h = (key * 0x9E3779B1 & MASK) ^ (context * 0x85EBCA6B + i * 0xC2B2AE35 & MASK)
            h ^= h >> 15
            h = h * 0x2C1B3C6D & MASK
            h ^= h >> 13
            counter = self.tables[i].setdefault(h >> (32 - TABLE_BITS), [0.5, 0.0])
            counters.append(counter)
            inputs.append(0.0 if counter[1] < 2 else _stretch(counter[0]))
        weights, total = self.mix[node], 0.0
        for w, one in zip(weights, inputs, strict=True):
            total += w * one
        p = _within(_squash(total), LEAST, 1 - LEAST)
        value = coder.code(value, p)
        truth = 1.0 if value else 0.0
        for i, one in enumerate(inputs):
            weights[i] += 0.01 * (truth - p) * one
        for counter in counters:
            counter[0] = _within(counter[0] + (truth - counter[0]) / (counter[1] + 1.6), 0.0005, 0.9995)
            if counter[1] < 200:
                counter[1] += 1
        return value

    def _below(self, at: float) -> tuple[float, list[float]]:
        """The mixture's part below a place, and each distribution's."""
        each, total = [], 0.0
        for i in range(SHAPES):
            z = (at - self.place) / self.width[i]
            if i < 3:
                tail = 0.5 * exponential(-abs(z))
                each.append(tail if z < 0 else 1 - tail)
            else:
                each.append(_squash(z))
            total += self.shares[i] * each[i]
        return total, each

    def _error(self, coder: _Coder, error: int, whole: int) -> tuple[int, list[float], list[float]]:
        middle = float(whole)
        (below, low), (above, high) = self._below(middle - 0.5), self._below(middle + 0.5)
        if self._decide(coder, 0, 0, above - below, error == 0):
            return 0, low, high
        up = self._decide(coder, 1, 1, (1 - above) / (1 - above + below + 1e-300), error > 0)
        size = abs(error)

        def beyond(distance: float) -> tuple[float, list[float]]:
            part, each = self._below(middle + distance if up else middle - distance)
            return (1 - part if up else part), each

        inner, e = (1 - above if up else below), 0
        low = high if up else low
        while True:
            outer, high = beyond(float(1 << (e + 1)) - 0.5)
            if e == MOST_BITS - 1:
                break
            expected = outer / inner if inner > 1e-290 else 0.5
            if not self._decide(coder, 2 + e, 2 + e + (64 if up else 0), expected, size >> (e + 1) != 0):
                break
            inner, low, e = outer, high, e + 1
        found = 1 << e
        for b in reversed(range(e)):
            half, depth = found + (1 << b), e - 1 - b
            part, each = beyond(float(half) - 0.5)
            whole_part = inner - outer
            key = 1000 + (e * 4096 + (found >> (b + 1))) * 2 + up if depth < 12 else 500 + b
            node = 64 + min(e, 20) * 12 + min(depth, 11)
            expected = (part - outer) / whole_part if whole_part > 1e-290 else 0.5
            if self._decide(coder, node, key & MASK, expected, bool(size >> b & 1)):
                found, inner, low = half, part, each
            else:
                outer, high = part, each
        return (found if up else -found), low, high

    def _learn(
        self,
        x: list[float],
        y: float,
        near: float,
        far: list[float],
        error: int,
        t: int,
        low: list[float],
        high: list[float],
    ) -> None:
        shares, total = [], 0.0
        for i in range(SHAPES):
            shares.append(self.shares[i] * (abs(high[i] - low[i]) + 1e-6))
            total += shares[i]
        self.shares = [0.97 * one / total + 0.03 / SHAPES for one in shares]
        off = abs(y - self.place)
        for i, speed in enumerate((0.12, 0.03, 0.006)):
            first = 1.0 / (t + 2)
            self.widths[i] = self.widths[i] + max(first, speed) * (off - self.widths[i])
            self.widths[i] = max(self.widths[i], 0.05)
        self.size += 0.1 * (off - self.size)
        self.last_but_one, self.last = self.last, error
        self.near.learn(x, y)
        left = y - near
        for stage, told in zip(self.far, far, strict=True):
            stage.learn(left)
            left -= told


def _run(coder: _Coder, samples: list[int], rows: int, channels: int) -> None:
    each = [_Channel(number, channels) for number in range(channels)]
    for t in range(rows):
        for channel in each:
            channel.code(coder, samples, t)
