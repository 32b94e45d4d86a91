"""How a channel of a block is made small and large again (`container.py`): planes of whole numbers, and bytes that say
what they are."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genmote.signals import adaptive
from genmote.signals.kinds import MISSING

Integers = NDArray[np.int64]
MOST_BYTES = 1 << 28  # of one chunk, or of what is unpacked of it: more is damage
# A channel may be coded by its values' numbers where it has few, far apart: what one channel tells of another is lost.
TABLE, SPARSE = 4096, 16
CONSTANT, PLAIN, NUMBERED, WIDE = 0, 1, 2, 3
HOLES = 4  # added where samples are missing: a plane of 1 where they are comes first


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def zigzag(number: int) -> bytes:
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    found = unpacker.decompress(packed, MOST_BYTES // 16)
    if unpacker.unconsumed_tail:
        raise ValueError("it unpacks to too much")
    return found


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("a number has more than 64 bits")

    def zigzag(self) -> int:
        number = self.varint()
        return -(number >> 1) - 1 if number & 1 else number >> 1

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("it is too short")
        self.at += count
        return self.data[self.at - count : self.at]


def planed(values: Integers, origin: int | None = None) -> tuple[bytes, list[Integers]]:
    """How a channel is made small, and the planes of numbers that are coded of it. `origin`: what plain numbers are
    told from, where they fit (None: the first).

    Missing samples are told apart; what all samples have in common (an offset, a factor) is told once; a channel that
    has few values of a wide range is coded by their numbers; one whose numbers need more than 47 bits in two halves.
    """
    gone = values == MISSING
    planes: list[Integers] = []
    holes = 0
    if gone.any():
        holes = HOLES
        planes.append(gone.astype(np.int64))
        there = values[~gone]
        if not len(there):
            return bytes([holes + CONSTANT]) + zigzag(0), planes
        last = np.maximum.accumulate(np.where(gone, -1, np.arange(len(values))))
        values = np.where(last < 0, there[0], values[np.maximum(last, 0)])  # the last that was there
    base = int(values[0]) if len(values) else 0
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if low == high:
        return bytes([holes + CONSTANT]) + zigzag(base), planes
    if high - low >= adaptive.LIMIT:
        wide = values.astype(np.uint64)
        halves = [(wide >> np.uint64(32)).astype(np.int64), (wide & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        return bytes([holes + WIDE]), [*planes, *halves]
    different = np.unique(values)
    factor = int(np.gcd.reduce(np.diff(different)))
    spread = (high - low) // factor + 1
    saved = len(values) * np.log2(spread / len(different)) / 8
    steps = (np.diff(different) // factor).tolist()
    table = zlib.compress(b"".join(map(varint, steps)), 9)
    if spread >= SPARSE * len(different) and len(different) <= TABLE and saved > 2 * len(table) + 8:
        said = [bytes([holes + NUMBERED]), zigzag(low), varint(factor), varint(len(table)), table]
        return b"".join(said), [*planes, np.searchsorted(different, values).astype(np.int64)]
    if origin is not None:
        near = origin + (base - origin) % factor
        if max(abs(low - near), abs(high - near)) // factor < adaptive.LIMIT:
            base = near
    return bytes([holes + PLAIN]) + zigzag(base) + varint(factor), [*planes, (values - base) // factor]


@dataclass(frozen=True, eq=False)
class How:
    """How a channel was made small."""

    kind: int
    holes: int  # 1: a plane of where samples are missing comes first
    base: int
    factor: int
    table: Integers

    @property
    def planes(self) -> int:
        return self.holes + {CONSTANT: 0, PLAIN: 1, NUMBERED: 1, WIDE: 2}[self.kind]

    def made(self, planes: list[Integers], rows: int) -> Integers:
        """The channel's samples."""
        own = planes[self.holes :]
        if self.kind == CONSTANT:
            values = np.full(rows, self.base, np.int64)
        elif self.kind == PLAIN:
            values = self.base + self.factor * own[0]
        elif self.kind == NUMBERED:
            values = self.table[own[0]]
        else:
            values = ((own[0].astype(np.uint64) << np.uint64(32)) | own[1].astype(np.uint64)).astype(np.int64)
        return np.where(planes[0] != 0, MISSING, values) if self.holes else values

    def placed(self, at: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Where places among the samples lie in the plane of values; None where there is no such plane."""
        if self.kind == NUMBERED:
            return np.searchsorted(self.table, at).astype(np.float64) - 0.5
        return None if self.kind == WIDE else (at - float(self.base)) / float(self.factor)


def how(data: Reader) -> How:
    """What `planed` said of a channel."""
    kind = data.take(1)[0]
    holes, kind = kind // HOLES, kind % HOLES
    if holes > 1:
        raise ValueError("a channel of an unknown kind")
    base, factor, table = 0, 1, np.zeros(0, np.int64)
    if kind in (CONSTANT, PLAIN, NUMBERED):
        base = data.zigzag()
    if kind in (PLAIN, NUMBERED):
        factor = data.varint()
        if not 0 < factor < 1 << 63:
            raise ValueError("a factor that is none")
    if kind == NUMBERED:
        steps, inner = [0], Reader(unpacked(data.take(data.varint())))
        while inner.at < len(inner.data):
            steps.append(inner.varint())
        table = base + factor * np.cumsum(np.array(steps, np.int64))
    return How(kind, holes, base, factor, table)
