"""Models with fewer tokens: the tokens, texts and logits of the whole one, on vocabularies real and drawn at random."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genmote import Engine
from genmote import ops as op_sets
from genmote.errors import ModelFileError, OpsError, SpecError
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.models.prune_vocabulary import TABLES, most_used, prune_vocabulary
from genmote.models.tokenizer import Tokenizer, load_tokenizer
from genmote.models.weights import GgufWeights
from genmote.ops.protocol import Span
from tests.models.test_make_model import told_by_llama_cpp
from tests.models.test_tokenizer import TEXTS, byte_level_oracle, spm_oracle

COUNTED = 100_000  # characters of the text that says what is used
COMMON = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Pruned:
    source: Path
    path: Path
    whole: Tokenizer
    part: Tokenizer
    place: dict[int, int]  # old id → new

    def check(self, text: str) -> bool:
        """Hold a text's tokens to the promises; whether all of the old ones stayed."""
        old, new = self.whole.encode(text, bos=False), self.part.encode(text, bos=False)
        assert self.part.join(new, special=True) == self.whole.join(old, special=True)
        stayed = self.place.keys() >= set(old)
        if stayed:
            assert new == [self.place[token] for token in old], text
        return stayed


def pruned(source: Path, path: Path, keep: Any) -> Pruned:
    kept = prune_vocabulary(source, path, keep)
    whole, part = (load_tokenizer(ModelFile.open(p)) for p in (source, path))
    assert part.vocab_size == len(kept) < whole.vocab_size
    return Pruned(source, path, whole, part, {int(old): new for new, old in enumerate(kept)})


# -- real vocabularies ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["smollm2-135m", "gemma3-270m", "gpt-2", "llama-spm"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metadata of a real model, without its tensors."""
    if request.param in ("gpt-2", "llama-spm"):
        shared: Path = request.getfixturevalue("shared_data")
        return shared / f"gguf_vocabs/ggml-vocab-{request.param}.gguf"
    model = ModelFile.open(request.getfixturevalue("find_model")(request.param))
    path = tmp_path_factory.mktemp("vocabulary") / f"{request.param}.gguf"
    write_gguf(path, model.typed_metadata(), [])
    return path


@pytest.fixture(scope="session")
def real(vocabulary: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """What a text of 100 kB uses, to a vocabulary of 9000."""
    text = (shared_data / "wikitext2_raw/wikitext-test.txt").read_text(encoding="utf-8")
    whole = load_tokenizer(ModelFile.open(vocabulary))
    counts = np.bincount(whole.encode(text[:COUNTED], bos=False), minlength=whole.vocab_size)
    ids = most_used(vocabulary, counts, 9000)
    assert len(ids) == 9000
    found = pruned(vocabulary, tmp_path_factory.mktemp("pruned") / "m.gguf", ids)
    assert len(found.place) == 9000
    return found


@pytest.fixture(scope="session")
def words(real: Pruned) -> list[str]:
    return [real.part.join([token]).decode("utf-8", "replace") for token in range(300, 9000)]


@COMMON
@given(data=st.data())
def test_what_stays_encodes_as_before(real: Pruned, words: list[str], data: st.DataObject) -> None:
    text = data.draw(st.one_of(st.text(), st.lists(st.sampled_from([*words, *TEXTS]), max_size=8).map("".join)))
    real.check(text)


def test_a_long_text_encodes_as_before(real: Pruned, shared_data: Path) -> None:
    text = (shared_data / "wikitext2_raw/wikitext-test.txt").read_text(encoding="utf-8")
    assert real.check(text[:COUNTED])  # what was counted is all there
    words = text[300_000:900_000].split(" ")
    pieces = [" " + " ".join(words[at : at + 4]) for at in range(0, len(words), 4)]
    stayed = sum(map(real.check, [*pieces, *TEXTS]))
    assert 0.1 * len(pieces) < stayed < len(pieces)  # neither nothing nor everything was compared


@pytest.mark.slow
def test_it_is_the_library_s(real: Pruned) -> None:
    spm = ModelFile.open(real.path).metadata["tokenizer.ggml.model"] == "llama"
    prefix = real.part.space_prefix
    oracle = spm_oracle(real.path, prefix) if spm else byte_level_oracle(real.path, "smollm2" in real.source.name)
    for text in TEXTS:
        marks = "▁" in text or (prefix and (text.startswith((" ", "\u200b")) or "<s>" in text or "</s>" in text))
        if not marks and "\x00" not in text:
            assert real.part.encode(text, bos=False, special=not prefix) == oracle.encode(text).ids, text


def test_what_must_stay_stays(vocabulary: Path, tmp_path: Path) -> None:
    """Of no token asked for: bytes, marks, and what the keys name; not the places that nobody used."""
    found = pruned(vocabulary, tmp_path / "m.gguf", [])
    whole, part = found.whole, found.part
    for text in TEXTS:
        found.check(text)
    assert part.decode(part.encode("Grüße, 你好!")) == "Grüße, 你好!"
    for name in ("bos_id", "eos_id"):
        token = getattr(whole, name)
        assert (token is None) == (getattr(part, name) is None)
        if token is not None:
            assert part.token_bytes(getattr(part, name)) == whole.token_bytes(token)
    assert {part.token_bytes(token) for token in part.eog_ids} == {whole.token_bytes(token) for token in whole.eog_ids}
    free = whole.token_id("<unused7>")
    if free is not None:
        assert free not in found.place
        assert free in prune_vocabulary(vocabulary, tmp_path / "more.gguf", [free])
    strings = set(ModelFile.open(found.path).metadata["tokenizer.ggml.tokens"].strings())
    assert {"<start_of_turn>", "<end_of_turn>"} <= strings or "gemma" not in vocabulary.name


def test_a_token_comes_with_what_it_is_made_of_and_no_more(smollm2: Path, tmp_path: Path) -> None:
    whole = load_tokenizer(ModelFile.open(smollm2))
    token = whole.token_id(" information")
    assert token is not None
    bare = set(prune_vocabulary(smollm2, tmp_path / "bare.gguf", []).tolist())
    more = set(prune_vocabulary(smollm2, tmp_path / "more.gguf", [token]).tolist()) - bare
    assert token in more and all(whole.token_bytes(part) in b" information" for part in more)
    merges = ModelFile.open(tmp_path / "more.gguf").metadata["tokenizer.ggml.merges"].strings()
    assert len(merges) == len(more)  # each is made in one way
    assert load_tokenizer(ModelFile.open(tmp_path / "more.gguf")).encode(" information") == [
        sorted(bare | more).index(token)
    ]


# -- vocabularies drawn at random -------------------------------------------------------------------------------------

LETTERS = "ab"


@st.composite
def byte_pairs(draw: st.DrawFn) -> dict[str, Any]:
    """Merges of what came before, some of one text in several ways, some that no text ever comes to."""
    tokens, merges = ["<|end|>", *LETTERS], []
    for _ in range(draw(st.integers(1, 14))):
        left, right = (draw(st.sampled_from(tokens[1:])) for _ in range(2))
        if len(left + right) <= 6 and (left, right) not in merges:
            merges.append((left, right))
            tokens += [left + right] if left + right not in tokens else []
    order = draw(st.permutations(merges))  # of ranks: a part may come later than what it is a part of
    types = [3] + [1] * (len(tokens) - 1)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": draw(st.sampled_from(["gpt-2", "llama-bpe"])),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in order] or ["a a"],
        "tokenizer.ggml.eos_token_id": 0,
    }


@st.composite
def pieces(draw: st.DrawFn) -> dict[str, Any]:
    """Any pieces with any scores, equal ones too; letters that are no piece become bytes."""
    drawn = draw(st.lists(st.text("ab▁", min_size=1, max_size=5), min_size=1, max_size=16, unique=True))
    scores = draw(st.lists(st.integers(-6, 0), min_size=len(drawn), max_size=len(drawn)))
    tokens = ["<unk>", *(f"<0x{ord(c):02X}>" for c in "ab "), *drawn]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 4 + scores, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 6, 6, 6] + [1] * len(drawn), np.int32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }


ALL_TEXTS = ["".join(some) for length in range(1, 8) for some in itertools.product("ab", repeat=length)]
ALL_TEXTS += ["".join(some) for length in range(1, 6) for some in itertools.product("ab ", repeat=length)]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.one_of(byte_pairs(), pieces()), data=st.data())
def test_every_text_of_any_vocabulary(metadata: dict[str, Any], data: st.DataObject, tmp_path: Path) -> None:
    count = len(metadata["tokenizer.ggml.tokens"])
    keep = data.draw(st.lists(st.integers(0, count - 1), max_size=4))
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama", **metadata}, [])
    kept = prune_vocabulary(tmp_path / "a.gguf", tmp_path / "b.gguf", keep)
    whole, part = (load_tokenizer(ModelFile.open(tmp_path / name)) for name in ("a.gguf", "b.gguf"))
    assert set(keep) <= set(kept.tolist())
    found = Pruned(tmp_path / "a.gguf", tmp_path / "b.gguf", whole, part, {int(t): i for i, t in enumerate(kept)})
    for text in ALL_TEXTS:
        found.check(text)


# -- models -----------------------------------------------------------------------------------------------------------


def logits(path: Path, ops: Any, ids: list[int]) -> np.ndarray:
    weights = GgufWeights(ModelFile.open(path), ops)
    decoder = Decoder(weights.config, weights, ops)
    found = decoder.forward(ids, [Span(decoder.cache(len(ids)), 0, len(ids))], logits="all")
    assert found is not None
    return found


def opset(name: str) -> Any:
    try:
        return op_sets.load(name)
    except OpsError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["numpy", "native"])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [("tiny-llama", "Q4_0"), ("tiny-gemma3", "Q8_0"), ("tiny-llama-256", "Q4_K"), ("tiny-low-rank", "Q8_0")],
)
def test_logits_of_what_stays_have_the_same_bits(name: str, shape: str, kind: str, tmp_path: Path) -> None:
    """Tied and untied, of low rank, in types of 32 and of 256."""
    ops = opset(name)
    make_model(shape, kind, tmp_path / "a.gguf", seed=5)
    whole = ModelFile.open(tmp_path / "a.gguf")
    asked = np.random.default_rng(1).choice(len(whole.metadata["tokenizer.ggml.tokens"]), 30, replace=False)
    kept = prune_vocabulary(tmp_path / "a.gguf", tmp_path / "b.gguf", asked)
    part = ModelFile.open(tmp_path / "b.gguf")
    for tensor, info in whole.tensors.items():
        rows = whole.raw(tensor).reshape(info.shape[0], -1)
        assert np.array_equal(part.raw(tensor).reshape(-1, rows.shape[1]), rows[kept] if tensor in TABLES else rows)
        assert part.tensors[tensor].type == info.type
    old = [int(token) for token in kept[:: max(1, len(kept) // 20)]]
    new = [kept.tolist().index(token) for token in old]
    assert np.array_equal(logits(tmp_path / "b.gguf", ops, new), logits(tmp_path / "a.gguf", ops, old)[:, kept])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_real_model_s_logits(name: str, find_model: Any, tmp_path: Path) -> None:
    ops, source = opset("native"), find_model(name)
    text = "The capital of France is Paris, and the capital of Italy is Rome."
    old = load_tokenizer(ModelFile.open(source)).encode(text)
    found = pruned(source, tmp_path / "m.gguf", old)
    new = found.part.encode(text)
    assert new == [found.place[token] for token in old]
    kept = list(found.place)
    assert np.array_equal(logits(tmp_path / "m.gguf", ops, new), logits(source, ops, old)[:, kept])


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-gemma3"])
def test_llama_cpp_says_the_same(shape: str, tmp_path: Path) -> None:
    """Greedy text of a model whose vocabulary was cut, here and in llama.cpp."""
    pytest.importorskip("xllamacpp")
    make_model(shape, "f32", tmp_path / "a.gguf")
    size = ModelFile.open(tmp_path / "a.gguf").tensors["token_embd.weight"].shape[0]
    prune_vocabulary(tmp_path / "a.gguf", tmp_path / "b.gguf", range(0, size, 3))
    told = [told_by_llama_cpp(tmp_path / name, "the rain in Spain stays") for name in ("a.gguf", "b.gguf")]
    assert told[0] != told[1]
    with Engine.load(tmp_path / "b.gguf", ops="numpy") as engine:
        assert engine.generate("the rain in Spain stays", max_tokens=10).text == told[1]


def test_what_the_file_says_of_it(tmp_path: Path) -> None:
    make_model("tiny-llama", "Q8_0", tmp_path / "a.gguf")
    first = prune_vocabulary(tmp_path / "a.gguf", tmp_path / "b.gguf", range(0, 320, 2))
    second = prune_vocabulary(tmp_path / "b.gguf", tmp_path / "c.gguf", [])
    whole, part, less = (ModelFile.open(tmp_path / f"{name}.gguf").metadata for name in "abc")
    assert part["llama.vocab_size"] == len(part["tokenizer.ggml.tokens"]) == len(first)
    assert list(part["genmote.vocabulary.ids"]) == first.tolist()
    assert list(less["genmote.vocabulary.ids"]) == first[second].tolist()  # of the first file, not of the second
    for key in ("bos", "eos", "padding"):
        name = f"tokenizer.ggml.{key}_token_id"
        assert whole["tokenizer.ggml.tokens"][whole[name]] == part["tokenizer.ggml.tokens"][part[name]]
    assert part["tokenizer.chat_template"] == whole["tokenizer.chat_template"]
    with pytest.raises(SpecError, match="token 300: the vocabulary has"):
        logits(tmp_path / "c.gguf", opset("numpy"), [300])


@pytest.mark.parametrize("kind", [np.float64, np.uint32, np.int64])
def test_counts_decide_what_stays(kind: type[Any], tmp_path: Path) -> None:
    make_model("tiny-llama", "Q8_0", tmp_path / "a.gguf")
    least = len(prune_vocabulary(tmp_path / "a.gguf", tmp_path / "b.gguf", []))
    counts = np.zeros(320, kind)
    counts[[310, 305, 300]] = 3, 2, 2
    for more, wanted in ((1, {310}), (2, {300, 310}), (3, {300, 305, 310}), (4, {259, 300, 305, 310})):
        ids = set(most_used(tmp_path / "a.gguf", counts, least + more).tolist())
        assert ids - set(range(259)) == wanted and len(ids) == least + more
    assert most_used(tmp_path / "a.gguf", counts, 320).tolist() == list(range(320))


# -- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    make_model("tiny-llama", "Q8_0", tmp_path / "a.gguf")
    yield tmp_path / "a.gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) in (["a.gguf"], ["a.gguf", "wrong.gguf"])


@pytest.mark.parametrize("token", [-1, 320, 2**40])
def test_a_token_that_there_is_not(token: int, tiny: Path) -> None:
    with pytest.raises(SpecError, match=f"token {token}: a.gguf has tokens 0 to 319"):
        prune_vocabulary(tiny, tiny.with_name("b.gguf"), [5, token])


@pytest.mark.parametrize("size", [0, 258, 321])
def test_a_size_that_cannot_be(size: int, tiny: Path) -> None:
    with pytest.raises(SpecError, match=f"size={size}: a.gguf has 320 tokens, of which at least 259 must stay"):
        most_used(tiny, np.ones(320), size)


@pytest.mark.parametrize(
    "counts", [np.ones(319), np.ones((320, 1)), -np.ones(320), np.full(320, np.nan), np.array(["a"] * 320)]
)
def test_counts_that_cannot_be(counts: np.ndarray, tiny: Path) -> None:
    with pytest.raises(SpecError, match=r"counts of .*: wanted \(320,\), a number from 0 up for each token"):
        most_used(tiny, counts, 300)


def test_a_file_that_is_no_model(tiny: Path) -> None:
    model = ModelFile.open(tiny)
    wrong, keys = tiny.with_name("wrong.gguf"), model.typed_metadata()
    write_gguf(wrong, {key: value for key, value in keys.items() if not key.startswith("tokenizer.")}, [])
    with pytest.raises(ModelFileError, match="tokenizer.ggml.model is None"):
        prune_vocabulary(wrong, tiny.with_name("b.gguf"), [])
    write_gguf(wrong, keys, [("token_embd.weight", "F32", (319, 4), np.zeros((319, 4), np.float32))])
    with pytest.raises(ModelFileError, match="token_embd.weight has 319 rows for 320 tokens; the file is damaged"):
        prune_vocabulary(wrong, tiny.with_name("b.gguf"), [])
