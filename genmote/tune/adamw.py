"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) whose two averages take a byte a number each.

A number is kept as a whole number of 8 bits and its block's largest (after Dettmers et al. 2021, arXiv 2110.02861). The
levels lie evenly on a logarithmic scale, so the relative error is alike for large and small. What changes by less than
a level in a step would never move when rounded to the nearest; so it is rounded up or down by chance, in such shares
that the mean is right. The chance is drawn from the seed, the step and the name: a run that goes on after a kill draws
the same.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.ops.exact import Float32

BLOCK = 128  # numbers that share a scale
STATE_BYTES = 2 + 2 * 4 / BLOCK  # for each number that is learnt
EPS = 1e-8
AT_ONCE = BLOCK << 8  # numbers that are gone through at a time: what a processor's cache takes


class Levels:
    """`count` levels above zero up to one, `decades` powers of ten from the least to the largest."""

    def __init__(self, count: int, decades: float) -> None:
        self.count = count
        self.slope = np.float32((count - 1) / (decades * np.log2(10)))  # levels for each doubling
        level = np.arange(count + 1)
        self.values = (2.0 ** ((level - count) / np.float64(self.slope))).astype(np.float32)
        self.values[0] = 0
        self.above = np.append(self.values[1:], np.float32(1))

    def encode(self, x: Float32, chance: Float32) -> tuple[NDArray[np.uint8], Float32]:
        """Numbers of 0 and more in blocks (n, BLOCK), and numbers in [0, 1) that round them: levels, scales (n, 1)."""
        scale = x.max(axis=-1, keepdims=True)
        u = x / np.where(scale > 0, scale, np.float32(1))
        with np.errstate(divide="ignore"):
            place = self.count + self.slope * np.log2(u)
        lower = np.clip(place, 0, self.count - 1).astype(np.uint8)
        low = self.values[lower]
        level = lower + (u - low > chance * (self.above[lower] - low))
        return level.astype(np.uint8), scale

    def decode(self, levels: NDArray[np.uint8], scale: Float32) -> Float32:
        numbers: Float32 = self.values[levels] * scale
        return numbers


SIGNED, SQUARES = Levels(127, 6.0), Levels(255, 10.0)


class AdamW:
    """Steps on arrays, in place; each has a state of its own, made with its first step."""

    def __init__(self, *, betas: tuple[float, float] = (0.9, 0.999), decay: float = 0.0, seed: int = 0) -> None:
        self.betas, self.decay, self.seed = betas, decay, seed
        self.states: dict[str, dict[str, NDArray[Any]]] = {}

    def update(self, name: str, numbers: Float32, gradient: Float32, rate: float, step: int) -> None:
        """Step number `step` (the first is 1) of one array along its gradient of the same shape."""
        b1, b2 = (np.float32(beta) for beta in self.betas)
        flat, along = numbers.reshape(-1), gradient.reshape(-1)
        if name not in self.states:
            self.states[name] = _nothing(flat.size)
        state = self.states[name]
        first_bias, second_bias = (np.float32(1 - float(beta) ** step) for beta in self.betas)
        draw = np.random.default_rng([self.seed, step, zlib.crc32(name.encode())])
        for start in range(0, flat.size, AT_ONCE):
            part, blocks = slice(start, start + AT_ONCE), slice(start // BLOCK, (start + AT_ONCE) // BLOCK)
            g = _in_blocks(along[part])
            levels = state["first"][blocks]
            m = np.sign(levels) * SIGNED.decode(np.abs(levels), state["first_scale"][blocks])
            m = b1 * m + (1 - b1) * g
            v = SQUARES.decode(state["second"][blocks], state["second_scale"][blocks])
            v = b2 * v + (1 - b2) * g * g
            move = (m / first_bias) / (np.sqrt(v / second_bias) + np.float32(EPS))
            here = flat[part]
            here -= np.float32(rate) * (move.reshape(-1)[: here.size] + np.float32(self.decay) * here)
            chance = draw.random((2, *g.shape), np.float32)
            first, state["first_scale"][blocks] = SIGNED.encode(np.abs(m), chance[0])
            state["first"][blocks] = np.where(m < 0, -first.view(np.int8), first.view(np.int8))
            state["second"][blocks], state["second_scale"][blocks] = SQUARES.encode(v, chance[1])


def _nothing(count: int) -> dict[str, NDArray[Any]]:
    """The state of an array of `count` numbers before its first step."""
    blocks = -(-count // BLOCK)
    return {
        "first": np.zeros((blocks, BLOCK), np.int8),  # of the gradients: the level, with the sign
        "first_scale": np.zeros((blocks, 1), np.float32),
        "second": np.zeros((blocks, BLOCK), np.uint8),  # of their squares
        "second_scale": np.zeros((blocks, 1), np.float32),
    }


def _in_blocks(x: Float32) -> Float32:
    """(n,) → (blocks, BLOCK), filled up with zeros."""
    spare = -x.size % BLOCK
    whole = np.concatenate([x, np.zeros(spare, np.float32)]) if spare else x
    return whole.reshape(-1, BLOCK)
