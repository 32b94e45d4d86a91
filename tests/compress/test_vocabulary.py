"""The step that takes tokens out; what it stands on is tested in tests/models/test_prune_vocabulary.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genmote import Engine
from genmote.compress import Calibration, Recipe, compress
from genmote.compress.steps.distill import Distill
from genmote.compress.steps.vocabulary import Vocabulary
from genmote.errors import SpecError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.tokenizer import load_tokenizer
from genmote.runtime.measures import text_logits
from genmote.runtime.session import Session

SMALL = Calibration(windows=4, length=32)
TABLE = "token_embd.weight"


def test_what_a_text_uses_stays_and_reads_as_before(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmote.compress.calibration.windows", None)  # no other text is made
    text = tmp_path / "text.txt"
    text.write_text("the cat and the other cat are there " * 20, encoding="utf-8")
    made = compress(llama, tmp_path / "out.gguf", Recipe((Vocabulary(size=290, text=text),), SMALL))
    figures = made.steps[0]["figures"]
    assert figures == {"tokens": 290, "of": 320, "covered": 1.0, "covered_elsewhere": 1.0}
    assert "note" not in made.steps[0]
    before, after = (load_tokenizer(ModelFile.open(path)) for path in (llama, made.path))
    line = "the cat and the other cat"
    assert len(before.encode(line, bos=False)) == len(after.encode(line, bos=False))
    with Engine.load(llama) as original, Engine.load(made.path) as smaller:
        assert smaller.config.vocab_size == 290
        assert smaller.perplexity(line * 20, context=64, chunks=1).tokens > 0
        assert original.config.vocab_size == 320


def test_the_calibration_text_counts_where_no_other_is_named(llama: Path, tmp_path: Path) -> None:
    recipe = Recipe((Vocabulary(size=300), Vocabulary(size=285)), SMALL)
    made = compress(llama, tmp_path / "out.gguf", recipe)
    first, second = (step["figures"] for step in made.steps)
    assert (first["tokens"], first["of"]) == (300, 320) and (second["tokens"], second["of"]) == (285, 300)
    assert first["covered"] >= second["covered"] > 0.5
    ids = np.asarray(ModelFile.open(made.path).metadata["genmote.vocabulary.ids"])
    assert np.array_equal(
        ModelFile.open(made.path).tensor("token_embd.weight"), ModelFile.open(llama).tensor("token_embd.weight")[ids]
    )


def test_a_text_too_short_to_choose_by_is_told(llama: Path, tmp_path: Path) -> None:
    """Half of it has words that the other has not: what stays, stays by chance."""
    text = tmp_path / "text.txt"
    tokenizer = load_tokenizer(ModelFile.open(llama))
    words = [tokenizer.decode([token]) for token in range(300, 320)]
    found = []
    for often in (1, 40):
        text.write_text(" ".join(words[:10] * often) + " " + " ".join(words[10:] * often), encoding="utf-8")
        made = compress(llama, tmp_path / "out.gguf", Recipe((Vocabulary(size=290, text=text),), SMALL))
        found.append((made.steps[0]["figures"]["covered_elsewhere"], made.steps[0].get("note")))
    share, note = found[0]
    assert share < 0.9 and "little to choose by: what half of it would keep is " in note
    assert f"of that half and {share:.1%} of the other; give more of it (text in the recipe's step" in note
    assert found[1][0] > share and found[1][1] is None


@pytest.fixture
def padded(llama: Path, tmp_path: Path) -> Path:
    """The model with more rows of its embedding than its tokenizer has tokens, as some published ones are."""
    file, path = ModelFile.open(llama), tmp_path / "padded.gguf"
    rows = np.concatenate([file.tensor(TABLE), np.random.default_rng(0).standard_normal((12, 64), np.float32)])
    tensors = [(info.name, info.type, info.shape, file.raw(info.name)) for info in file.tensors.values()]
    tensors = [(TABLE, "F32", rows.shape, rows) if tensor[0] == TABLE else tensor for tensor in tensors]
    write_gguf(path, {**file.typed_metadata(), "llama.vocab_size": np.uint32(len(rows))}, tensors)
    return path


@pytest.mark.parametrize("size", [290, 320])
@pytest.mark.parametrize("named", [False, True])
def test_rows_that_are_no_tokens_go(padded: Path, tmp_path: Path, size: int, named: bool) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat and the other cat are there " * 20, encoding="utf-8")
    step = Vocabulary(size=size, text=text if named else None)
    made = compress(padded, tmp_path / "out.gguf", Recipe((step,), SMALL))
    assert (made.steps[0]["figures"]["tokens"], made.steps[0]["figures"]["of"]) == (size, 320)
    file, whole = ModelFile.open(made.path), ModelFile.open(padded)
    kept = np.asarray(file.metadata["genmote.vocabulary.ids"])
    assert file.metadata["llama.vocab_size"] == size == len(kept) and kept.max() < 320
    assert np.array_equal(file.tensor(TABLE), whole.tensor(TABLE)[kept])
    with Engine.load(padded) as original, Engine.load(made.path) as smaller:
        assert (original.config.vocab_size, smaller.config.vocab_size) == (332, size)
        old = original.tokenizer.encode("the cat")
        new = smaller.tokenizer.encode("the cat")
        assert kept[new].tolist() == old
        assert np.array_equal(logits(smaller, new), logits(original, old)[:, kept])
        assert smaller.generate("the cat", max_tokens=4).text


def logits(engine: Engine, ids: list[int]) -> np.ndarray:
    return np.concatenate([part for _, part in text_logits(engine, ids, 1, Session(engine))])


def test_a_model_whose_tokens_were_taken_out_before_loses_more(llama: Path, tmp_path: Path) -> None:
    """Its text is in its own tokens, not in those that the file's key names."""
    compress(llama, tmp_path / "first.gguf", Recipe((Vocabulary(size=300),), SMALL))
    made = compress(tmp_path / "first.gguf", tmp_path / "out.gguf", Recipe((Vocabulary(size=285),), SMALL))
    figures = made.steps[0]["figures"]
    assert (figures["tokens"], figures["of"]) == (285, 300) and figures["covered"] > 0.5
    file = ModelFile.open(made.path)
    ids = np.asarray(file.metadata["genmote.vocabulary.ids"])
    assert np.array_equal(file.tensor(TABLE), ModelFile.open(llama).tensor(TABLE)[ids])


def test_another_text_under_the_same_name_makes_another_file(llama: Path, tmp_path: Path) -> None:
    text, work = tmp_path / "text.txt", tmp_path / "work"
    found = []
    tokenizer = load_tokenizer(ModelFile.open(llama))
    for ids in (range(300, 306), range(312, 318)):
        text.write_text(" ".join(tokenizer.decode([token]) for token in ids) * 30, encoding="utf-8")
        recipe = Recipe((Vocabulary(size=280, text=text),), SMALL)
        compress(llama, tmp_path / "out.gguf", recipe, work=work)
        found.append(np.asarray(ModelFile.open(tmp_path / "out.gguf").metadata["genmote.vocabulary.ids"]).tolist())
    assert found[0] != found[1]


def test_too_small_a_vocabulary_is_told_before_any_text_is_made(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmote.compress.calibration.windows", None)
    with pytest.raises(SpecError, match="size=3: .* of which at least"):
        compress(llama, tmp_path / "out.gguf", Recipe((Vocabulary(size=3),), SMALL))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_told(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="size=0: use 1 or more"):
        Recipe.of({"step": [{"use": "vocabulary", "size": 0}]})
    with pytest.raises(SpecError, match="nowhere.txt: cannot be read"):
        compress(llama, tmp_path / "out.gguf", Recipe((Vocabulary(size=300, text=tmp_path / "nowhere.txt"),), SMALL))
    short = Distill(tokens=512, batch=2, length=32, measured=2)
    with pytest.raises(SpecError, match="distill: the model has 300 tokens and the original 320; put vocabulary after"):
        compress(llama, tmp_path / "out.gguf", Recipe((Vocabulary(size=300), short), SMALL))
