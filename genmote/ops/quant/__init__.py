"""Tensor types: how weights are stored as few bits, and how they are read back. Pure NumPy, for every GGUF type here.

>>> import numpy as np
>>> x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
>>> raw = quantize("Q4_0", x)
>>> raw.size, float(np.abs(dequantize("Q4_0", raw, x.shape) - x).max()) < 0.08
(36, True)
"""

from __future__ import annotations

from genmote.ops.quant.codec import dequantize, dequantize_rows, layout, quantize, unpack
from genmote.ops.quant.layout import Layout, Parts, Scales
from genmote.ops.quant.types import TYPES, UNSUPPORTED, TensorType, by_id, by_name, codec_names, fallback, nbytes

__all__ = [
    "TYPES",
    "UNSUPPORTED",
    "Layout",
    "Parts",
    "Scales",
    "TensorType",
    "by_id",
    "by_name",
    "codec_names",
    "dequantize",
    "dequantize_rows",
    "fallback",
    "layout",
    "nbytes",
    "quantize",
    "unpack",
]
