"""The encoder over PyTorch is the encoder that runs without, within stated bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from genmote.describe.network import Heads, Network
from genmote.models import encoder
from genmote.models.encoder import Encoder
from genmote.models.gguf import ModelFile
from genmote.models.patches import patches
from genmote.ops import numpy_ops
from tests.describe.tiny import form, wave

# The furthest a number is off, in root mean squares of the embeddings: the network leaves out the roundings of inputs
# to 8 bits, and of keys and values to float16 (docs/numerics.md).
BOUNDS = {"F32": 0.01, "F16": 0.02, "Q8_0": 0.25}


@pytest.mark.parametrize("type", BOUNDS)
def test_the_network_is_the_encoder(tmp_path: Path, type: str) -> None:
    shape = form(96)
    numbers = encoder.fresh(shape, 2, 0.3)
    encoder.write(tmp_path / "e.gguf", shape, numbers, type, encoder.metadata(shape, "e", "0" * 64, "tiny"))
    one = Encoder.load(ModelFile.open(tmp_path / "e.gguf"), numpy_ops.create())
    signals = [wave(1, 700, ("a", "b", "c")), wave(2, 30, ("a",)), wave(3, 64, ("b", "c"))]
    there = Network(shape, numbers).embed([patches(s, shape.slots, shape.join) for s in signals]).detach().numpy()
    here = np.concatenate([one.embed(signal) for signal in signals])
    size = float(np.sqrt((here**2).mean()))
    assert np.abs(there - here).max() < BOUNDS[type] * size
    assert np.sqrt(((there - here) ** 2).mean()) < BOUNDS[type] / 4 * size


def test_every_number_learns() -> None:
    shape = form(96)
    network = Network(shape, encoder.fresh(shape, 2))
    found = network.embed([patches(wave(n, 200), shape.slots, shape.join) for n in range(2)])
    (
        found * torch.from_numpy(np.random.default_rng(0).standard_normal(found.shape).astype(np.float32))
    ).sum().backward()
    for name, parameter in network.held.items():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
    assert set(network.numbers()) == set(shape.shapes()) and len(network.bridge()) == 6


def test_heads_look_at_the_embeddings_of_their_own_question() -> None:
    shape = form(96)
    heads = Heads(shape, 0)
    draw = torch.Generator().manual_seed(1)
    some = [torch.randn(count, 96, generator=draw) for count in (3, 8, 1)]
    every = heads(some, ["How high?", "How fast?", "How long?"])
    assert torch.allclose(every[0], heads(some[:1], ["How high?"])[0], atol=1e-5)
    assert not torch.allclose(every[0], heads(some[:1], ["How low?"])[0], atol=1e-3)
    assert heads.choices(every[0], ["yes", "no", "I cannot tell"]).shape == (3,)
