"""What compressing cost, against plain sums over all logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote import Engine
from genmote.compress.evaluate import compare, sizes
from genmote.errors import ContextError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.models.requantise import convert_type
from genmote.ops.protocol import Span

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind. " * 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    make_model("tiny-llama", "F32", folder / "a.gguf", 1)
    convert_type(folder / "a.gguf", folder / "b.gguf", "Q4_0", embedding_type="Q4_0")
    return folder / "a.gguf", folder / "b.gguf"


def logprobs(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Of all tokens at all places, (T, V)."""
    cache = engine.decoder.cache(len(tokens))
    logits = engine.decoder.forward(np.array(tokens), [Span(cache, 0, len(tokens))], logits="all")
    assert logits is not None
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_the_figures_are_the_definitions(models: tuple[Path, Path]) -> None:
    with Engine.load(models[0]) as a, Engine.load(models[1]) as b:
        found = compare(a, b, TEXT, context=32, windows=3)
        tokens = a.tokenizer.encode(TEXT, bos=False)
        losses: list[list[float]] = [[], []]
        kl, agreed, count = [], [], 0
        for start in (0, 32, 64):
            ids = tokens[start : start + 32]
            count += len(b"".join(a.tokenizer.token_bytes(token) for token in ids[17:]))
            if a.begin_token is not None:
                ids = [a.begin_token, *ids[1:]]
            p, q = logprobs(a, ids)[16:31], logprobs(b, ids)[16:31]
            kl += list((np.exp(p) * (p - q)).sum(axis=1))
            agreed += list(p.argmax(axis=1) == q.argmax(axis=1))
            for side, both in enumerate((p, q)):
                losses[side] += list(-both[np.arange(15), ids[17:]])
        for side, loss in enumerate((found.original, found.compressed)):
            assert loss.perplexity == pytest.approx(np.exp(np.mean(losses[side])), rel=1e-5)
            assert loss.bits_per_byte == pytest.approx(np.sum(losses[side]) / np.log(2) / count, rel=1e-5)
            assert loss.tokens == 45
        assert found.kl == pytest.approx(np.mean(kl), rel=1e-4) and found.kl > 1e-4
        assert found.agreement == pytest.approx(np.mean(agreed))
        assert found.perplexity_ratio == found.compressed.perplexity / found.original.perplexity
        assert found.original.perplexity == pytest.approx(a.perplexity(TEXT, context=32, chunks=3).value, rel=1e-6)
        assert (found.windows, found.context) == (3, 32)


def test_other_vocabularies_are_compared_on_the_same_bytes(models: tuple[Path, Path], tmp_path: Path) -> None:
    make_model("tiny-gemma3", "F32", tmp_path / "other.gguf", 1)
    with Engine.load(models[0]) as a, Engine.load(tmp_path / "other.gguf") as b:
        found = compare(a, b, TEXT, context=32, windows=2)
        same = compare(a, a, TEXT, context=32, windows=2)
    assert found.kl is None and found.agreement is None
    assert found.original.bits_per_byte == pytest.approx(same.original.bits_per_byte, rel=0.1)
    assert found.compressed.bits_per_byte > 0 and same.kl == 0 and same.agreement == 1


def test_where_the_bytes_are(models: tuple[Path, Path]) -> None:
    model = ModelFile.open(models[1])
    found = sizes(model)
    assert found.total == models[1].stat().st_size
    assert sum(found.parts.values()) == sum(info.nbytes for info in model.tensors.values())
    assert found.parts["embedding"] == model.tensors["token_embd.weight"].nbytes
    assert set(found.parts) == {"embedding", "attention", "feed-forward", "norms"}, "the head is the embedding"
    assert found.parts["attention"] == sum(
        i.nbytes for n, i in model.tensors.items() if ".attn_" in n and "norm" not in n
    )
    assert found.parts["norms"] == sum(i.nbytes for n, i in model.tensors.items() if n.endswith("_norm.weight"))
    assert 4.5 < found.bits_per_weight < 5


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"context": 3}, ContextError, "context=3: use windows of 4 to"),
        ({"context": 32, "windows": 0}, SpecError, "windows=0: use at least 1"),
    ],
)
def test_settings_that_cannot_be(models: tuple[Path, Path], settings: dict, error: type, message: str) -> None:
    with Engine.load(models[0]) as engine, pytest.raises(error, match=message):
        compare(engine, engine, TEXT, **settings)


def test_a_text_that_is_too_short(models: tuple[Path, Path]) -> None:
    with Engine.load(models[0]) as engine, pytest.raises(SpecError, match="one window takes 32: give a longer text"):
        compare(engine, engine, "short", context=32)
