"""A tiny model with plain numbers, examples of it, and gradients by PyTorch's own differentiation of the whole pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from genmote.models.decoder import Decoder  # noqa: E402
from genmote.models.gguf import ModelFile  # noqa: E402
from genmote.models.make_model import make_model  # noqa: E402
from genmote.models.weights import GgufWeights  # noqa: E402
from genmote.ops import torch_ops  # noqa: E402
from genmote.ops.protocol import Span  # noqa: E402
from genmote.tune import batches  # noqa: E402
from genmote.tune.examples import Examples  # noqa: E402
from genmote.tune.workbench._base import vectors  # noqa: E402

Gradients = Callable[[ModelFile, Examples, list[int]], tuple[float, dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """A tiny llama in F32."""
    path = tmp_path_factory.mktemp("plain") / "plain.gguf"
    make_model("tiny-llama", "F32", path, seed=5)
    return ModelFile.open(path)


@pytest.fixture(scope="session")
def some() -> Examples:
    """Examples of other lengths, of which a part is to be learnt."""
    rng = np.random.default_rng(3)
    parts = [(rng.integers(0, 200, n), [False] * 3 + [True] * (n - 3)) for n in (9, 14, 6, 11)]
    return Examples.of(parts, np.uint16)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Gradients:
    """The loss of some examples, the model's tensors by name, and their gradients: the op set as it is, one graph of
    the whole pass, without the roundings that a training on a workbench leaves out."""
    monkeypatch.setattr(torch_ops, "round_half", lambda x: x)

    def compute(file: ModelFile, examples: Examples, which: list[int]) -> tuple[float, dict[str, Any], dict[str, Any]]:
        ops, tensors = torch_ops.create(round_inputs=False), dict[str, Any]()

        def load(name: str, info: Any) -> Any:
            raw = file.raw(info.name)
            if name.endswith("]"):
                raw = raw.reshape(info.shape[0], -1)[int(name.rpartition("[")[2][:-1])]
            matrix = ops.matrix(info.type, tuple(info.shape[-2:]), raw)
            matrix.weight = tensors[name] = matrix.weight.clone().requires_grad_()
            return matrix

        weights = GgufWeights(file, ops, load)
        tensors |= {name: vector.requires_grad_() for name, vector in vectors(weights).items()}
        decoder = Decoder(weights.config, weights, ops)
        (batch,) = batches.passes(examples, which, 1 << 20, 1 / batches.learnt_tokens(examples, which))
        spans, start = [], 0
        for length in batch.lengths:
            spans.append(Span(decoder.cache(length), start, length))
            start += length
        logits = decoder.head(decoder.run(batch.tokens, spans))
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(batch.targets).long(), reduction="none")
        loss = (each * torch.tensor(batch.weights)).sum()
        loss.backward()
        return float(loss.detach()), tensors, {name: x.grad for name, x in tensors.items()}

    return compute
