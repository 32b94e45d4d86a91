"""Rotary position tables: the angle of each pair of dimensions, with the same bits on every machine.

Powers and logarithms go through `decimal` at 40 digits and are rounded once: `pow` of two C libraries may differ in
the last bit. Sources: RoFormer (Su et al. 2021, arXiv 2104.09864); YaRN (Peng et al. 2023, arXiv 2309.00071); the
scale factors of Llama 3.1 come ready-made in the file's tensor rope_freqs.weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genmote.errors import ModelFileError

if TYPE_CHECKING:
    from genmote.models.config import Keys

_EXACT = Context(prec=40)
_TWO_PI = Decimal("6.283185307179586476925286766559005768394")


@dataclass(frozen=True, eq=False)
class RopeTable:
    """Row at position p turns pair i by p * inv_freq[i]; cos and sin are multiplied by `scale` (YaRN, else 1)."""

    inv_freq: NDArray[np.float64]  # (rot/2,)
    scale: float = 1.0

    @property
    def dims(self) -> int:
        """Leading dimensions of a head that turn (the rest pass through)."""
        return 2 * len(self.inv_freq)


def frequencies(base: float, dims: int) -> NDArray[np.float64]:
    """base ** (-2i / dims) for i in 0 .. dims/2 - 1.

    >>> frequencies(10000.0, 8).tolist()
    [1.0, 0.1, 0.01, 0.001]
    """
    exact = Decimal(base)
    powers = [_EXACT.power(exact, _EXACT.divide(Decimal(-2 * i), Decimal(dims))) for i in range(dims // 2)]
    return np.array([float(power) for power in powers])


def llama3_factors(
    head_dim: int, base: float, factor: float, low: float, high: float, context: float
) -> NDArray[np.float32]:
    """By how much Llama 3.1 and later slow down each pair of dimensions: rope_freqs.weight. -> (head_dim / 2,)

    Wavelengths beyond the original context are stretched by the whole factor, short ones not at all, and those
    between by a mixture (Grattafiori et al., "The Llama 3 herd of models", 2024, and its published code).
    """
    pairs = np.arange(0, head_dim, 2) / head_dim
    turns = context * base**-pairs / (2 * np.pi)  # in the original context
    mix = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - mix) / factor + mix)).astype(np.float32)


def rope_table(keys: Keys, head_dim: int) -> RopeTable:
    """The table that a file's rope.* keys (and its rope_freqs tensor) describe."""
    dims = keys.integer("rope.dimension_count", head_dim, low=2, high=head_dim)
    if dims % 2:
        raise ModelFileError(f"{keys.architecture}.rope.dimension_count = {dims}: wanted an even number; wrong file")
    base = keys.number("rope.freq_base", 10000.0, low=2.0)
    inv_freq, scale = frequencies(base, dims), 1.0

    kind = keys.text("rope.scaling.type", "none")
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    if factor < 1.0:
        raise ModelFileError(f"rope scaling factor {factor}: wanted at least 1; the file is damaged")
    if kind == "linear" or (kind == "none" and keys.has("rope.scale_linear")):
        inv_freq = inv_freq / factor
    elif kind == "yarn":
        inv_freq, scale = _yarn(keys, inv_freq, base, factor)
    elif kind != "none":
        raise ModelFileError(f"rope scaling {kind!r} is not supported: there are none, linear, yarn; use another model")

    if keys.rope_factors is not None:
        factors = np.asarray(keys.rope_factors, dtype=np.float64).reshape(-1)
        if len(factors) != dims // 2 or not np.all(np.isfinite(factors)) or factors.min() <= 0:
            raise ModelFileError(f"rope_freqs.weight: wanted {dims // 2} positive factors; the file is damaged")
        inv_freq = inv_freq / factors
    return RopeTable(inv_freq, scale)


def _yarn(keys: Keys, inv_freq: NDArray[np.float64], base: float, factor: float) -> tuple[NDArray[np.float64], float]:
    """Stretch slow pairs by `factor`, keep fast ones, blend between: "NTK by parts" and the attention temperature."""
    dims = 2 * len(inv_freq)
    original = keys.integer("rope.scaling.original_context_length", high=1 << 30)
    fast = keys.number("rope.scaling.yarn_beta_fast", 32.0, low=1e-3)
    slow = keys.number("rope.scaling.yarn_beta_slow", 1.0, low=1e-3)

    def pair(turns: float) -> Decimal:  # the pair that turns this often within the original context
        wave = _EXACT.divide(Decimal(original), _EXACT.multiply(Decimal(turns), _TWO_PI))
        return _EXACT.divide(_EXACT.multiply(Decimal(dims // 2), _EXACT.ln(wave)), _EXACT.ln(Decimal(base)))

    low, high = max(math.floor(pair(fast)), 0), min(math.ceil(pair(slow)), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)  # 0: keep, 1: stretch
    temperature = 1.0 + 0.1 * float(_EXACT.ln(Decimal(factor))) if factor > 1.0 else 1.0
    own = keys.number("rope.scaling.attn_factor", 0.0) or keys.number("rope.scaling.yarn_attn_factor", 0.0) or 1.0
    return inv_freq * (1.0 - ramp) + inv_freq / factor * ramp, temperature * own
