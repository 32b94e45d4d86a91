"""The native kernels' layout of a weight matrix, in NumPy: the plain twin of `native/layout.cpp`. Nothing runs on it.

Sixteen rows make a *panel*, and panels follow one another; rows that the last panel lacks are zeros. In a panel the
rows lie side by side: whatever a row has (the codes of four columns, a scale, a number) is a *cell*, and the sixteen
rows' cells stand next to each other. So lane r of a vector is row r, and no dot product ends in a sum over lanes.

A panel of plain numbers (F32, F16, BF16) has for each column one cell a row. A quantised panel is, in this order:

1. Codes, for each group of 32 columns. A group is 8 quads of columns; a quad's sixteen cells of four codes fill a
   vector of 64 bytes. A plane of b bits takes b vectors: quad q is in vector q mod b, shifted left by b * (q div b).
   Codes of 5 bits are a plane of 4 bits and one of 1, of 6 bits 4 and 2, Q3_K's of 3 bits 2 and 1, low bits first. They
   have no sign: `Kind.zero` is added to a signed code. GM3_32's plane of 3 bits: quad q < 6 is in vector q mod 3,
   shifted left by 4 * (q div 3); bit v of quad 6 is bit 3 of vector v, and of quad 7 bit 7. So half a byte is an index
   into a table of 16 in which the bit on top makes no difference.
2. d as float16 for each block of the GGUF type (32 or 256 columns), or its byte of scale (GM2_32 and its kin); then the
   offset's m or dmin as float16, if any.
3. In types of 256 the groups' factors, a byte each: first the scale's, then the offset's. Q2_K has both in one byte.

Nothing is rounded or lost, `unpack` gives back the very bytes; one layout serves every instruction set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import OpsError
from genmote.ops import quant
from genmote.ops.quant import blocks32, blocks256, levels32
from genmote.ops.quant.layout import Blocks, nibbles, planes, to_nibbles, to_planes

PANEL = 16  # rows of a panel
GROUP = 32  # columns of a group
PLAIN = ("F32", "F16", "BF16")

Bytes = NDArray[Any]  # uint8 in truth: to NumPy's type stubs, arithmetic with an int literal would widen it


@dataclass(frozen=True)
class Kind:
    """How one quantised type is re-laid."""

    blocks: Any  # the GGUF type's blocks, a member of `quant.layout.Layout`
    planes: tuple[int, ...]  # bits of each plane of codes
    zero: int = 0  # the code that means 0
    offset: str = ""  # the float16 field beside the scale, if there is one
    factors: tuple[int, ...] = ()  # how many of the scale, and of the offset, a block has

    @property
    def fields(self) -> tuple[tuple[str, int], ...]:
        """The blocks' own scale, and offset if there is one: (field, bytes)."""
        scale = ("scale", 1) if "scale" in self.blocks.record.names else ("d", 2)
        return (scale, (self.offset, 2)) if self.offset else (scale,)


KINDS: dict[str, Kind] = {
    kind.blocks.name: kind
    for kind in (
        Kind(blocks32.Q8_0(), (8,), 128),
        Kind(blocks32.Q4_0(), (4,), 8),
        Kind(blocks32.Q4_1(), (4,), 0, "m"),
        Kind(blocks32.Q5_0(), (4, 1), 16),
        Kind(blocks32.Q5_1(), (4, 1), 0, "m"),
        Kind(blocks32.IQ4_NL(), (4,)),  # codes are indices into the table of levels
        Kind(blocks256.Q2_K(), (2,), 0, "dmin", (16,)),
        Kind(blocks256.Q3_K(), (2, 1), 4, "", (16,)),
        Kind(blocks256.Q4_K(), (4,), 0, "dmin", (8, 8)),
        Kind(blocks256.Q5_K(), (4, 1), 0, "dmin", (8, 8)),
        Kind(blocks256.Q6_K(), (4, 2), 32, "", (16,)),
        Kind(levels32.GM2_32(), (2,)),  # indices, as IQ4_NL's
        Kind(levels32.GM3_32(), (3,)),
        Kind(levels32.GM4_32(), (4,)),
    )
}


def packed_bytes(type_name: str, shape: tuple[int, int]) -> int:
    """Size of a matrix (rows, cols) in this layout. Raises OpsError for a type or width that has none.

    >>> packed_bytes("Q4_0", (16, 32)) == 16 * 18, packed_bytes("Q4_0", (17, 32)) == 32 * 18
    (True, True)
    """
    rows, cols = shape
    type_ = quant.by_name(type_name)
    if not (type_.name in PLAIN or type_.name in KINDS) or rows < 1 or cols < 1 or cols % type_.block_size:
        raise OpsError(f"a {rows}x{cols} {type_.name} matrix has no packed layout; convert the model to another type")
    if type_.name in PLAIN:
        row_bytes = cols * type_.block_bytes
    else:
        row_bytes = cols * sum(KINDS[type_.name].planes) // 8
        row_bytes += cols // type_.block_size * sum(n * size for n, size in _scales(KINDS[type_.name]))
    return -(-rows // PANEL) * PANEL * row_bytes


def pack(type_name: str, shape: tuple[int, int], raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """GGUF bytes of a matrix (rows, cols) into the packed layout: (bytes,) → (packed_bytes,)."""
    packed_bytes(type_name, shape)  # is there one?
    rows, cols = shape
    name = quant.by_name(type_name).name
    if name in PLAIN:
        return _lanes(raw.reshape(rows, cols, -1)).reshape(-1)
    kind = KINDS[name]
    codes, *scales = _read(kind, np.ascontiguousarray(raw).reshape(-1).view(kind.blocks.record))
    parts = [_to_vectors(kind, _lanes(codes.reshape(rows, -1, 4), kind.zero))]
    parts += [_lanes(cells.reshape(rows, -1, size)) for cells, (_, size) in zip(scales, _scales(kind), strict=True)]
    return np.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=1).reshape(-1)


def unpack(type_name: str, shape: tuple[int, int], packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `pack`: the GGUF bytes, every bit of them."""
    panels = packed.reshape(-1, packed_bytes(type_name, (PANEL, shape[1])))  # (panels, bytes)
    rows, cols = shape
    name = quant.by_name(type_name).name
    if name in PLAIN:
        return _rows(panels.reshape(len(panels), cols, PANEL, -1), rows).reshape(-1)
    kind = KINDS[name]
    at = cols // 8 * sum(kind.planes) * PANEL
    codes = _rows(_to_quads(kind, panels[:, :at].reshape(len(panels), -1, 64)), rows)
    fields = []
    for n, size in _scales(kind):
        width = cols // quant.by_name(name).block_size * n * size * PANEL
        fields.append(_rows(panels[:, at : at + width].reshape(len(panels), -1, PANEL, size), rows))
        at += width
    return _write(kind, codes, fields).view(np.uint8)


# -- sixteen rows side by side ----------------------------------------------------------------------------------------


def _lanes(cells: Bytes, fill: int = 0) -> Bytes:
    """Rows of cells → panels of cells: (rows, cells, bytes) → (panels, cells, 16, bytes); missing rows are `fill`."""
    rows, n, size = cells.shape
    whole = np.full((-(-rows // PANEL) * PANEL, n, size), fill, np.uint8)
    whole[:rows] = cells
    return np.ascontiguousarray(whole.reshape(-1, PANEL, n, size).swapaxes(1, 2))


def _rows(cells: Bytes, rows: int) -> Bytes:
    """The inverse of `_lanes`."""
    panels, n, _, size = cells.shape
    return np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(panels * PANEL, n, size)[:rows]


def _to_vectors(kind: Kind, quads: Bytes) -> Bytes:
    """Codes into planes: (panels, quads, 16, 4) → (panels, groups, vectors * 64)."""
    left = quads.reshape(quads.shape[0], -1, 8, 64)  # (panels, groups, 8, 64): the bits that are still to be placed
    out = []
    if kind.planes == (3,):
        return _three_bits(left)
    for bits in kind.planes:
        low = (left & ((1 << bits) - 1)).reshape(*left.shape[:2], 8 // bits, bits, 64)
        shift = (bits * np.arange(8 // bits, dtype=np.uint8))[:, None, None]
        out.append(np.bitwise_or.reduce(low << shift, axis=2).reshape(*left.shape[:2], -1))
        left = left >> bits if bits < 8 else left
    return np.concatenate(out, axis=2)


def _to_quads(kind: Kind, vectors: Bytes) -> Bytes:
    """The inverse of `_to_vectors`: (panels, groups * vectors, 64) → (panels, quads, 16, 4)."""
    planes_of_group = vectors.reshape(len(vectors), -1, sum(kind.planes), 64)
    codes: Bytes = np.zeros((*planes_of_group.shape[:2], 8, 64), np.uint8)
    if kind.planes == (3,):
        codes[:, :, :6] = np.concatenate([planes_of_group & 7, planes_of_group >> 4 & 7], axis=2)
        for bit in range(3):
            codes[:, :, 6] |= (planes_of_group[:, :, bit] >> 3 & 1) << bit
            codes[:, :, 7] |= (planes_of_group[:, :, bit] >> 7) << bit
        return codes.reshape(len(vectors), -1, PANEL, 4)
    at = 0
    for bits in kind.planes:
        plane = planes_of_group[:, :, None, at : at + bits]  # (panels, groups, 1, bits, 64)
        shift = (bits * np.arange(8 // bits, dtype=np.uint8))[:, None, None]
        codes |= ((plane >> shift) & ((1 << bits) - 1)).reshape(codes.shape) << at
        at += bits
    return codes.reshape(len(vectors), -1, PANEL, 4)


def _three_bits(quads: Bytes) -> Bytes:
    """(panels, groups, 8, 64) → (panels, groups, 3 * 64)"""
    vectors = [
        quads[:, :, bit]
        | (quads[:, :, bit + 3] << 4)
        | ((quads[:, :, 6] >> bit & 1) << 3)
        | ((quads[:, :, 7] >> bit & 1) << 7)
        for bit in range(3)
    ]
    return np.concatenate(vectors, axis=2)


# -- what GGUF's blocks say -------------------------------------------------------------------------------------------


def _scales(kind: Kind) -> list[tuple[int, int]]:
    """What follows the codes, for one block: (cells, bytes of a cell) of each field."""
    return [(1, size) for _, size in kind.fields] + [(n, 1) for n in kind.factors]


def _read(kind: Kind, blocks: Blocks) -> list[Bytes]:
    """Blocks (n,) → codes without sign (n, block), then the fields of `_scales`, each (n, bytes)."""
    if kind.factors:
        codes = kind.blocks.codes(blocks).view(np.uint8) + np.uint8(kind.zero)
    elif isinstance(kind.blocks, levels32.Levels):
        codes = kind.blocks.codes(blocks)
    elif kind.blocks.name == "Q8_0":
        codes = blocks["codes"].view(np.uint8) + np.uint8(kind.zero)
    else:
        codes = nibbles(blocks["low"], 16)
        if kind.planes == (4, 1):
            codes |= planes(blocks["high"], 1, 1) << 4
    own = [np.ascontiguousarray(blocks[name]).view(np.uint8).reshape(-1, size) for name, size in kind.fields]
    if not kind.factors:
        return [codes, *own]
    found = blocks["factors"] if kind.blocks.name == "Q2_K" else kind.blocks.factors(blocks)
    return [codes, *own, *(f.view(np.uint8) for f in (found if isinstance(found, tuple) else (found,)))]


def _write(kind: Kind, codes: Bytes, fields: Sequence[Bytes]) -> Blocks:
    """The inverse of `_read`; codes and fields in any shape."""
    codes = codes.reshape(-1, quant.by_name(kind.blocks.name).block_size)
    blocks: Blocks = np.empty(len(codes), kind.blocks.record)
    for (name, _), field in zip(kind.fields, fields, strict=False):
        blocks[name] = np.ascontiguousarray(field).reshape(-1).view(kind.blocks.record[name])
    factors = [f.reshape(len(codes), -1) for f in fields[len(kind.fields) :]]
    if kind.blocks.name == "Q2_K":
        factors = [factors[0] & 15, factors[0] >> 4]
    if isinstance(kind.blocks, levels32.Levels):
        kind.blocks.store(blocks, codes)
    elif kind.blocks.name == "Q8_0":
        blocks["codes"] = (codes - np.uint8(kind.zero)).view(np.int8)
    elif not kind.factors:
        blocks["low"] = to_nibbles(codes & 15, 16)
        if kind.planes == (4, 1):
            blocks["high"] = to_planes(codes >> 4, 1, 1)
    elif kind.zero:  # signed codes and factors
        kind.blocks.store(blocks, factors[0].view(np.int8), (codes - np.uint8(kind.zero)).view(np.int8))
    else:
        kind.blocks.store(blocks, *factors, codes)
    return blocks
