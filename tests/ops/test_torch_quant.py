"""PyTorch takes every tensor type apart into the very numbers that NumPy does, also from bytes that no encoder made."""

from __future__ import annotations

import numpy as np
import pytest

from genmote.ops import quant

torch = pytest.importorskip("torch")
torch_quant = pytest.importorskip("genmote.ops.torch_quant")


@pytest.mark.parametrize("type_name", quant.codec_names())
def test_the_numbers_are_those_of_numpy(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_quant, "PIECE", 1 << 10)  # several pieces, the last one short
    rng = np.random.default_rng(3)
    kind = quant.by_name(type_name)
    encoded = quant.quantize(type_name, rng.standard_normal((9, 512)).astype(np.float32))
    bits = rng.integers(0, 256, 9 * 512 // kind.block_size * kind.block_bytes, np.uint8)
    for raw in (encoded, bits):
        wanted = quant.dequantize(type_name, raw, (9 * 512,))
        out = torch.full((9 * 512,), 7.0)
        torch_quant.dequantize_into(type_name, torch.from_numpy(raw), out)
        same = (out.numpy().view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(wanted) & np.isnan(out.numpy()))
        assert same.all()
        rounded = torch.empty(9 * 512, dtype=torch.bfloat16)
        torch_quant.dequantize_into(type_name, torch.from_numpy(raw), rounded)
        assert torch.equal(rounded.nan_to_num(), torch.from_numpy(wanted).bfloat16().nan_to_num())
