"""What compressing cost, against plain sums over all logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote import Engine
from genmote.compress.evaluate import compare, sizes
from genmote.errors import ContextError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
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


WIDE = "Grüße aus Zürich, 東京から, 🙂🙃 и привет! " * 20


@pytest.mark.parametrize("order", [1, -1])
def test_bits_per_byte_of_other_vocabularies_are_a_plain_count(
    models: tuple[Path, Path], tmp_path: Path, order: int
) -> None:
    """Characters of several bytes, which tokens cut in two, against a count by characters."""
    make_model("tiny-gemma3", "F32", tmp_path / "other.gguf", 1)
    with Engine.load(models[0]) as one, Engine.load(tmp_path / "other.gguf") as two:
        a, b = (one, two)[::order]
        found = compare(a, b, WIDE, context=32, windows=5)
        tokens = a.tokenizer.encode(WIDE, bos=False)
        nats, counted, scored_tokens = [0.0, 0.0], 0, [0, 0]
        for start in range(0, 160, 32):
            ids = tokens[start : start + 32]
            # All characters whose first byte the window has, and whose last, with the token that holds the first.
            data, owner = b"", []
            for number, token in enumerate(ids):
                data += a.tokenizer.token_bytes(token)
                owner += [number] * len(a.tokenizer.token_bytes(token))
            before, scored, at = "", "", 0
            while at < len(data):
                for size in (1, 2, 3, 4):
                    try:
                        character = data[at : at + size].decode()
                    except UnicodeDecodeError:
                        continue
                    if character:
                        before, scored = (
                            (before + character, scored) if owner[at] < 17 else (before, scored + character)
                        )
                        at += size - 1
                        break
                at += 1
            counted += len(scored.encode())
            for side, engine in enumerate((a, b)):
                head, rest = (engine.tokenizer.encode(part, bos=False, start=False) for part in (before, scored))
                assert b"".join(map(engine.tokenizer.token_bytes, rest)) == scored.encode()
                whole = [*head, *rest]
                if engine.begin_token is not None:
                    whole[0] = engine.begin_token
                table = logprobs(engine, whole)
                nats[side] -= float(table[np.arange(len(head) - 1, len(whole) - 1), whole[len(head) :]].sum())
                scored_tokens[side] += len(rest)
    for side, loss in enumerate((found.original, found.compressed)):
        assert loss.bits_per_byte == pytest.approx(nats[side] / np.log(2) / counted, rel=1e-5)
        assert loss.tokens == scored_tokens[side]
    assert found.perplexity_ratio is None and found.kl is None


def test_a_text_that_is_longer_in_other_tokens_fits(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Windows as long as the context, which the smaller vocabulary spells in more tokens than that."""
    from genmote.models.prune_vocabulary import most_used, prune_vocabulary

    file = ModelFile.open(models[0])
    count = file.tensors["token_embd.weight"].shape[0]
    prune_vocabulary(models[0], tmp_path / "small.gguf", most_used(file, np.zeros(count, np.int64), 262))
    with Engine.load(models[0]) as a, Engine.load(tmp_path / "small.gguf") as b:
        text = a.tokenizer.decode(range(300, 306)) * 300
        context = min(a.context, b.context)
        assert len(b.tokenizer.encode(text, bos=False)) > 1.2 * len(a.tokenizer.encode(text, bos=False)) > context
        found = compare(a, b, text, context=context, windows=1)
    assert found.compressed.tokens > found.original.tokens and found.perplexity_ratio is None


def test_a_window_without_a_whole_character_is_told(models: tuple[Path, Path], tmp_path: Path) -> None:
    make_model("tiny-gemma3", "F32", tmp_path / "other.gguf", 1)
    told = "no whole character of the text is scored: use a larger context"
    with Engine.load(models[0]) as a, Engine.load(tmp_path / "other.gguf") as b, pytest.raises(SpecError, match=told):
        compare(a, b, "🙂" * 4, context=4, windows=1)


@pytest.mark.parametrize(("broken", "name"), [(0, "the original"), (1, "the compressed model")])
def test_a_model_that_computes_no_numbers_is_told(
    models: tuple[Path, Path], tmp_path: Path, broken: int, name: str
) -> None:
    file, tensors = ModelFile.open(models[0]), []
    for info in file.tensors.values():
        values = file.tensor(info.name).copy()
        if info.name == "output_norm.weight":
            values[3] = np.nan
        tensors.append((info.name, info.type, info.shape, values))
    write_gguf(tmp_path / "nan.gguf", file.typed_metadata(), tensors)
    told = f"{name} predicts this text with no finite numbers: it is damaged, or a step broke it"
    sides = [models[0], models[0]]
    sides[broken] = tmp_path / "nan.gguf"
    with Engine.load(sides[0]) as a, Engine.load(sides[1]) as b, pytest.raises(SpecError, match=told):
        compare(a, b, TEXT, context=32)


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
