"""The tensor types of a GGUF file: their names, ids and sizes.

A type stores a row of numbers as blocks: ``block_size`` numbers in ``block_bytes`` bytes. A plain type such as F16 has
blocks of one number. Ids and sizes are those of the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), except for our own types, which only genmote reads
(`levels32.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from genmote.errors import SpecError


@dataclass(frozen=True)
class TensorType:
    """One way to store numbers; ``codec`` is False for types that a model may only carry along (integers, F64)."""

    name: str
    ggml_id: int
    block_size: int
    block_bytes: int
    codec: bool = True

    @property
    def bits_per_weight(self) -> float:
        """Mean bits that one number takes, scales included.

        >>> TYPES["Q4_0"].bits_per_weight
        4.5
        """
        return 8 * self.block_bytes / self.block_size


OWN = 0x4700  # ids from here on are genmote's own ("G"): far from GGML's, which other engines refuse

TYPES: dict[str, TensorType] = {
    kind.name: kind
    for kind in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("Q4_0", 2, 32, 18),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q8_0", 8, 32, 34),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("Q4_K", 12, 256, 144),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q6_K", 14, 256, 210),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("I8", 24, 1, 1, codec=False),
        TensorType("I16", 25, 1, 2, codec=False),
        TensorType("I32", 26, 1, 4, codec=False),
        TensorType("I64", 27, 1, 8, codec=False),
        TensorType("F64", 28, 1, 8, codec=False),
        TensorType("BF16", 30, 1, 2),
        TensorType("GM2_32", OWN + 2, 32, 9),
        TensorType("GM3_32", OWN + 3, 32, 13),
        TensorType("GM4_32", OWN + 4, 32, 17),
    )
}

# Types of other engines that this one does not read; known by name so that the message can say which one it met.
UNSUPPORTED: dict[int, str] = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}

_BY_ID = {kind.ggml_id: kind for kind in TYPES.values()}


def by_id(ggml_id: int) -> TensorType:
    """The type of a GGML id; ``SpecError`` for one that is unknown or not supported.

    >>> by_id(2).name
    'Q4_0'
    """
    kind = _BY_ID.get(ggml_id)
    if kind is None:
        known = UNSUPPORTED.get(ggml_id)
        what = f"tensor type {known} (id {ggml_id})" if known else f"tensor type id {ggml_id}"
        raise SpecError(f"{what} is not supported; use a file with one of {', '.join(codec_names())}")
    return kind


def by_name(name: str) -> TensorType:
    """The type of a name in any case; ``SpecError`` for an unknown one.

    >>> by_name("q4_k").block_size
    256
    """
    kind = TYPES.get(name.upper())
    if kind is None:
        raise SpecError(f"tensor type {name!r} is unknown; use one of {', '.join(codec_names())}")
    return kind


def codec_names() -> list[str]:
    """Names of the types that hold weights, from most to fewest bits.

    >>> codec_names()[0], codec_names()[-1]
    ('F32', 'GM2_32')
    """
    kinds = sorted((kind for kind in TYPES.values() if kind.codec), key=lambda kind: (-kind.bits_per_weight, kind.name))
    return [kind.name for kind in kinds]


def nbytes(type_name: str, shape: Sequence[int]) -> int:
    """Bytes that a tensor takes; rows (the last axis) must be whole blocks, else ``SpecError``.

    >>> nbytes("Q8_0", (2, 64))
    136
    """
    kind = by_name(type_name)
    cols = shape[-1] if shape else 1
    if cols % kind.block_size:
        raise SpecError(
            f"rows of {cols} numbers do not fit {kind.name}, which stores blocks of {kind.block_size}; "
            f"use {fallback(kind.name, cols)}"
        )
    return math.prod(shape) // kind.block_size * kind.block_bytes


def fallback(type_name: str, cols: int) -> str:
    """The type itself where rows of ``cols`` numbers fit its blocks, else the nearest that fits.

    The ladder is llama.cpp's, so that files made here and there agree: two- and three-bit types become IQ4_NL, Q4_K
    becomes Q5_0, Q5_K becomes Q5_1, Q6_K becomes Q8_0, and what is no multiple of 32 becomes F16.

    >>> fallback("Q4_K", 512), fallback("Q4_K", 576), fallback("q4_0", 40)
    ('Q4_K', 'Q5_0', 'F16')
    """
    kind = by_name(type_name)
    if cols % kind.block_size == 0:
        return kind.name
    smaller = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}.get(kind.name)
    return fallback(smaller, cols) if smaller else "F16"
