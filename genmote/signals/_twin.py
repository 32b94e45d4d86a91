"""The coder of samples that `adaptive.py` describes, in plain Python: `native/series_coder.cpp` to the bit."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Part = tuple[float, float]  # of the mixture, and of what a model expects
MASK = 0xFFFFFFFF
PARTS = [1.0 / n for n in (479001600, 39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1)]
ODDS = [1.0 / n for n in range(17, 0, -2)]
LEAST = 1.0 / 65536
SHAPES, CONTEXTS, NODES, TABLE_BITS, MOST_BITS = 7, 5, 320, 12, 53
INPUTS, TABLE, FAR = CONTEXTS + 2, 1 << TABLE_BITS, -30.0
STAGES = ((256, 0.002), (32, 0.004), (16, 0.008))
# What a channel learnt, as numbers: `SeriesCoder.learnt`.
PARTS_OF_STATE = {
    "mix": NODES * INPUTS,  # weights of the mixing of decisions
    "seen": NODES,  # decisions that each of these took
    "far": sum(n for n, _ in STAGES),  # weights of the long predictors
    "shares": SHAPES,
    "widths": 4,  # three, and the size of the latest errors
    "counters": CONTEXTS * TABLE,  # their probabilities
    "counted": CONTEXTS * TABLE,  # what each saw
}
STATE_SIZE = sum(PARTS_OF_STATE.values())


def past_of(channels: int) -> int:
    return 32 if channels == 1 else 16 if channels <= 4 else 8


def others_of(channels: int) -> int:
    return min(channels - 1, 11)


def sources(number: int, channels: int) -> list[tuple[int, int]]:
    """What a channel is predicted from: of which channel, how many samples back. Of a channel that is coded before it
    also the present.

    >>> sources(1, 3)[-4:]
    [(0, 0), (0, 1), (2, 1), (2, 2)]
    """
    found = [(number, i) for i in range(1, past_of(channels) + 1)]
    for i in range(1, others_of(channels) + 1):
        other = (number - i) % channels
        last = 0 if other < number else 1
        found += [(other, last), (other, last + 1)]
    return found


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
        if not self.seen % 2:
            self._solve()

    def start(self, moments: Floats, cross: Floats) -> None:
        """As if what has these mean products had been seen."""
        self.moments = moments[: self.n, : self.n].tolist()
        self.cross = cross[: self.n].tolist()
        self._solve()

    def _solve(self) -> None:
        if self._factor():
            self._substitute()

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

    def _substitute(self) -> None:
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


class _Expected:
    """What a model expects of one sample: shares of bins between cuts, even within each."""

    def __init__(self, cuts: Floats) -> None:
        self.cuts, self.bins, self.mean = cuts.tolist(), len(cuts) - 1, 0.0
        self.parts = [0.0] * (self.bins + 1)

    def hear(self, logits: list[float]) -> None:
        most = -3.0000000054977558e38  # the float32 nearest to -3e38
        for one in logits:
            most = one if one > most else most
        total, parts = 0.0, [0.0]
        for one in logits:
            off = _within(one - most, FAR, 0.0)
            if off > FAR:
                total += exponential(off)
            parts.append(total)
        if not total > 0:  # logits that are no numbers
            parts, total = [float(i) for i in range(self.bins + 1)], float(self.bins)
        self.parts = parts = [0.0] + [part / total for part in parts[1:]]
        self.mean = 0.0
        for i in range(self.bins):
            self.mean += (parts[i + 1] - parts[i]) * (0.5 * (self.cuts[i] + self.cuts[i + 1]))

    def below(self, at: float) -> float:
        cuts, parts = self.cuts, self.parts
        if not at > cuts[0]:
            return 0.0
        if not at < cuts[-1]:
            return 1.0
        low = bisect_right(cuts, at) - 1
        wide = cuts[low + 1] - cuts[low]
        return parts[low] + (parts[low + 1] - parts[low]) * ((at - cuts[low]) / wide if wide > 0 else 0.0)


def _share(part: float, of: float) -> float:
    return part / of if of > 1e-290 else 0.5


def _coarse(r: int) -> int:
    a = abs(r)
    q = a if a <= 2 else 3 if a <= 4 else 4 if a <= 8 else 5 if a <= 16 else 6 if a <= 64 else 7
    return -q if r < 0 else q


class _Channel:
    def __init__(self, number: int, channels: int, cuts: Floats | None = None) -> None:
        self.number, self.channels = number, channels
        self.sources = sources(number, channels)
        self.expected = None if cuts is None else _Expected(cuts)
        self.near = _LeastSquares(len(self.sources) + (cuts is not None))
        self.far = [_Gradient(n, rate) for n, rate in STAGES]
        self.place, self.shares = 0.0, [1.0 / SHAPES] * SHAPES
        self.width = [0.0] * SHAPES
        self.widths, self.size = [16.0] * 3, 1.0
        self.last = self.last_but_one = 0
        self.contexts = [0] * CONTEXTS
        self.tables: list[dict[int, list[float]]] = [{} for _ in range(CONTEXTS)]
        self.mix = [[1.0] + [0.0] * CONTEXTS + [0.2] for _ in range(NODES)]
        self.seen = [0.0] * NODES
        self.begun, self.known = 2, np.zeros(0)

    def start(self, moments: Floats, cross: Floats, state: Floats) -> None:
        """Begin with what was learnt of other recordings."""
        self.near.start(moments, cross)
        parts = split(state)
        self.mix = parts["mix"].reshape(NODES, INPUTS).tolist()
        far = parts["far"].tolist()
        for stage in self.far:
            stage.weights, far = far[: stage.n], far[stage.n :]
        self.shares = parts["shares"].tolist()
        *self.widths, self.size = parts["widths"].tolist()
        self.known = np.stack([parts["counters"], parts["counted"]], axis=1)
        self.begun = 30

    def learnt(self) -> Floats:
        counters = self.known.copy() if len(self.known) else np.tile([0.5, 0.0], (CONTEXTS * TABLE, 1))
        for i, table in enumerate(self.tables):
            for at, counter in table.items():
                counters[i * TABLE + at] = counter
        far = [weight for stage in self.far for weight in stage.weights]
        plain = [*np.ravel(self.mix), *self.seen, *far, *self.shares, *self.widths, self.size]
        return np.concatenate([plain, counters[:, 0], counters[:, 1]])

    def code(self, coder: _Coder, samples: list[int], t: int, logits: list[float]) -> None:
        at = t * self.channels + self.number
        x = [float(samples[(t - i) * self.channels + n]) if t >= i else 0.0 for n, i in self.sources]
        if self.expected is not None:
            self.expected.hear(logits)
            x.append(self.expected.mean)
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

    def _look(self, whole: int, before: int) -> None:
        level, a = 1, self.size
        while a > 0.5 and level < 16:
            a, level = a * 0.6, level + 1
        near = min(max(before - whole, -20), 20) + 100
        errors = (_coarse(self.last) + 8) * 16 + _coarse(self.last_but_one) + 1008
        at = (((whole % 2**64) * 2654435761 % 2**64) >> 3) & MASK
        self.contexts = [0, level, near, errors, at]

    def _decide(self, coder: _Coder, node: int, key: int, expected: Part, value: bool) -> bool:
        counters, inputs = [], [_stretch(_within(expected[0], 1e-7, 1 - 1e-7))]
        for i, context in enumerate(self.contexts):
            h = (key * 0x9E3779B1 & MASK) ^ (context * 0x85EBCA6B + i * 0xC2B2AE35 & MASK)
            h ^= h >> 15
            h = h * 0x2C1B3C6D & MASK
            h ^= h >> 13
            h >>= 32 - TABLE_BITS
            counter = self.tables[i].get(h)
            if counter is None:
                counter = self.known[i * TABLE + h].tolist() if len(self.known) else [0.5, 0.0]
                self.tables[i][h] = counter
            counters.append(counter)
            inputs.append(0.0 if counter[1] < 2 else _stretch(counter[0]))
        if self.expected is not None:
            inputs.append(_stretch(_within(expected[1], 1e-4, 1 - 1e-4)))
        weights, total = self.mix[node], 0.0
        for w, one in zip(weights, inputs, strict=False):  # the last of none where no model tells
            total += w * one
        p = _within(_squash(total), LEAST, 1 - LEAST)
        value = coder.code(value, p)
        truth = 1.0 if value else 0.0
        for i, one in enumerate(inputs):
            weights[i] += 0.01 * (truth - p) * one
        self.seen[node] += 1
        for counter in counters:
            counter[0] = _within(counter[0] + (truth - counter[0]) / (counter[1] + 1.6), 0.0005, 0.9995)
            if counter[1] < 200:
                counter[1] += 1
        return value

    def _below(self, at: float) -> tuple[Part, list[float]]:
        """The mixture's part below a place, the model's, and each distribution's."""
        each, total = [], 0.0
        for i in range(SHAPES):
            z = (at - self.place) / self.width[i]
            if i < 3:
                tail = 0.5 * exponential(-abs(z))
                each.append(tail if z < 0 else 1 - tail)
            else:
                each.append(_squash(z))
            total += self.shares[i] * each[i]
        return (total, 0.0 if self.expected is None else self.expected.below(at)), each

    def _error(self, coder: _Coder, error: int, whole: int) -> tuple[int, list[float], list[float]]:
        middle = float(whole)
        (below, low), (above, high) = self._below(middle - 0.5), self._below(middle + 0.5)
        if self._decide(coder, 0, 0, (above[0] - below[0], above[1] - below[1]), error == 0):
            return 0, low, high
        over = (1 - above[0], 1 - above[1])
        expected = (over[0] / (over[0] + below[0] + 1e-300), over[1] / (over[1] + below[1] + 1e-300))
        up = self._decide(coder, 1, 1, expected, error > 0)
        size = abs(error)

        def beyond(distance: float) -> tuple[Part, list[float]]:
            part, each = self._below(middle + distance if up else middle - distance)
            return ((1 - part[0], 1 - part[1]) if up else part), each

        inner, e = (over if up else below), 0
        low = high if up else low
        while True:
            outer, high = beyond(float(1 << (e + 1)) - 0.5)
            if e == MOST_BITS - 1:
                break
            expected = (_share(outer[0], inner[0]), _share(outer[1], inner[1]))
            if not self._decide(coder, 2 + e, 2 + e + (64 if up else 0), expected, size >> (e + 1) != 0):
                break
            inner, low, e = outer, high, e + 1
        found = 1 << e
        for b in reversed(range(e)):
            half, depth = found + (1 << b), e - 1 - b
            part, each = beyond(float(half) - 0.5)
            key = 1000 + (e * 4096 + (found >> (b + 1))) * 2 + up if depth < 12 else 500 + b
            node = 64 + min(e, 20) * 12 + min(depth, 11)
            expected = (
                _share(part[0] - outer[0], inner[0] - outer[0]),
                _share(part[1] - outer[1], inner[1] - outer[1]),
            )
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
            first = 1.0 / (t + self.begun)
            self.widths[i] = self.widths[i] + max(first, speed) * (off - self.widths[i])
            self.widths[i] = max(self.widths[i], 0.05)
        self.size += 0.1 * (off - self.size)
        self.last_but_one, self.last = self.last, error
        self.near.learn(x, y)
        left = y - near
        for stage, told in zip(self.far, far, strict=True):
            stage.learn(left)
            left -= told


class SeriesCoder:
    """Codes `samples` (rows, channels) as far as what it is told reaches; without `coded` it encodes.

    Lists of a row for each channel, or -1: `told` of `cuts` (n, bins + 1), where the bins end that a model tells the
    shares of; `practised` of `moments` (m, inputs, inputs), `cross` (m, inputs) and `states` (m, STATE_SIZE)."""

    def __init__(
        self,
        samples: NDArray[np.int64],
        told: list[int],
        cuts: Floats,
        practised: list[int],
        moments: Floats,
        cross: Floats,
        states: Floats,
        coded: bytes | None,
    ) -> None:
        self.samples, self.flat = samples, samples.reshape(-1).tolist()
        self.rows, self.channels = samples.shape
        self.coder = _Coder(None if coded is None else bytes(coded))
        self.each = [_Channel(n, self.channels, None if told[n] < 0 else cuts[told[n]]) for n in range(self.channels)]
        for channel, at in zip(self.each, practised, strict=True):
            if at >= 0:
                channel.start(moments[at], cross[at], states[at])
        self.at = 0

    def go(self, logits: NDArray[np.float32]) -> bool:
        """Code on with logits (n, bins) of the next samples that a model tells of; whether it waits for more."""
        rows = iter(logits.astype(np.float64).tolist())
        begin, waits = self.at, False
        while self.at < len(self.flat):
            channel = self.each[self.at % self.channels]
            heard: list[float] = []
            if channel.expected is not None:
                heard = next(rows, [])
                if not heard:
                    waits = True
                    break
            channel.code(self.coder, self.flat, self.at // self.channels, heard)
            self.at += 1
        self.samples.reshape(-1)[begin : self.at] = self.flat[begin : self.at]
        return waits

    def learnt(self, states: Floats) -> None:
        """Fill states (channels, STATE_SIZE) with what each channel learnt."""
        states[:] = [channel.learnt() for channel in self.each]

    def finish(self) -> bytes:
        """What was encoded."""
        return self.coder.finish()


def split(state: Floats) -> dict[str, Floats]:
    """(..., STATE_SIZE) by its parts."""
    ends = np.cumsum(list(PARTS_OF_STATE.values()))[:-1]
    return dict(zip(PARTS_OF_STATE, np.split(state, ends, axis=-1), strict=True))
