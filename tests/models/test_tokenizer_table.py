"""The token table: both builders make the same bytes, the cache keeps them, damage never gets further than an error."""

from __future__ import annotations

import functools
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genmote import home
from genmote.errors import ModelFileError
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.tokenizer import build as build_module
from genmote.models.tokenizer import cache, core, load_tokenizer, table, twin
from genmote.models.tokenizer.build import build
from genmote.models.tokenizer.vocabulary import Outline, Vocabulary

TEXT = "Hello wörld 123 \n\n  🦙 <|im_start|>x<s> ▁ \x00" * 5


@pytest.fixture(autouse=True, scope="module")
def _compile_once() -> Iterator[None]:
    """The Unicode table takes most of the time of building a tiny vocabulary, and is the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "compile_stages", functools.cache(build_module.compile_stages))
        yield


@pytest.fixture
def native() -> Any:
    module = core.native_module()
    if module is None:
        pytest.skip("the compiled module is not built: run `make native`")
    return module


@pytest.fixture(params=["gpt-2", "llama-spm"])
def vocabulary_file(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    return shared_data / f"gguf_vocabs/ggml-vocab-{request.param}.gguf"


def settle(path: Path) -> Path:
    """Make a file look older than the grain of its clock."""
    os.utime(path, (1e9, 1e9))
    return path


# -- the builders


def test_builders_make_the_same_table(native: Any, vocabulary_file: Path) -> None:
    outline = Outline(ModelFile.open(vocabulary_file))
    assert build(outline.read(), outline.key(), native) == build(outline.read(), outline.key())


def test_builders_make_the_same_table_of_real_models(native: Any, smollm2: Path, gemma3: Path) -> None:
    for path in (smollm2, gemma3):
        outline = Outline(ModelFile.open(path))
        assert build(outline.read(), outline.key(), native) == build(outline.read(), outline.key())


def strings(items: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(item)) + item for item in items)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Vocabularies that nobody would train: repeated and empty tokens, bytes that are no text, marks of all kinds."""
    kind = draw(st.sampled_from([table.BPE, table.SPM]))
    word = st.one_of(
        st.text("ab \u2581Ġ<", max_size=5).map(str.encode),
        st.binary(max_size=4),
        st.sampled_from([b"<0x41>", b"<0x4g>"]),
    )
    tokens = draw(st.lists(word, min_size=1, max_size=40))
    types = bytes(draw(st.lists(st.integers(1, 6), min_size=len(tokens), max_size=len(tokens))))
    merges = draw(st.lists(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)), max_size=20))
    spelt = [left + b" " + right for left, right in merges if left]
    ranks = draw(st.lists(st.integers(0, 2**32 - 2), min_size=len(tokens), max_size=len(tokens)))
    return Vocabulary(
        kind=kind,
        stages=(r"\s+|\S+".replace(r"\S", r"[^\s]"),) if kind == table.BPE else (),
        flags=draw(st.sampled_from([0, table.IGNORE_MERGES])),
        unknown=draw(st.integers(-1, len(tokens) - 1)),
        tokens=len(tokens),
        token_strings=strings(tokens),
        types=types,
        priority=np.array(ranks, dtype="<u4").tobytes() if kind == table.SPM else b"",
        merges=len(spelt) if kind == table.BPE else 0,
        merge_strings=strings(spelt) if kind == table.BPE else b"",
    )


@settings(deadline=None, max_examples=60)
@given(vocabularies(), st.lists(st.text("ab <\u2581é0x4", max_size=60), max_size=5))
def test_twins_agree_on_any_vocabulary(vocabulary: Vocabulary, texts: list[str]) -> None:
    module = core.native_module()
    if module is None:
        pytest.skip("the compiled module is not built: run `make native`")
    built = build(vocabulary, bytes(32), module)
    assert built == build(vocabulary, bytes(32))
    memory = np.frombuffer(built, dtype=np.uint8)
    fast, plain = module.TokenTable(memory), twin.TokenTable(memory)
    for text in texts:
        utf8 = text.encode()
        assert fast.find(utf8) == plain.find(utf8)
        for special in (False, True):
            for prefix in (False, True):
                assert fast.encode(utf8, special, prefix) == plain.encode(utf8, special, prefix)


def test_strings_that_lie(native: Any) -> None:
    good = Vocabulary(table.BPE, (r"\s+",), 0, -1, 2, strings([b"a", b"b"]), b"\x01\x01", b"", 1, strings([b"a b"]))
    for module in (native, None):
        for key, value, message in (
            ("token_strings", strings([b"a"]), "tokenizer.ggml.tokens ends inside entry 1"),
            ("token_strings", struct.pack("<Q", 2**63) + b"a" * 9, "tokenizer.ggml.tokens ends inside entry 0"),
            ("merge_strings", b"", "tokenizer.ggml.merges ends inside entry 0"),
            ("merge_strings", strings([b"ab"]), "tokenizer.ggml.merges: entry 0 is not two parts"),
        ):
            with pytest.raises(ValueError, match=message):
                build(Vocabulary(**{**vars(good), key: value}), bytes(32), module)


# -- the cache


def test_a_table_is_made_once(vocabulary_file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelFile.open(vocabulary_file)
    wanted = load_tokenizer(model).encode(TEXT)
    assert sorted(path.suffix for path in cache.folder().iterdir()) == [".key", ".tokens"]
    monkeypatch.setattr(cache, "build", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(Outline, "key", lambda _: pytest.fail("the file's vocabulary was read again"))
    assert load_tokenizer(model).encode(TEXT) == wanted


def test_equal_vocabularies_share_a_table(vocabulary_file: Path, own_home: Path, tmp_path: Path) -> None:
    metadata = ModelFile.open(vocabulary_file).typed_metadata()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, {**metadata, "general.name": name}, [])
        load_tokenizer(ModelFile.open(tmp_path / name))
    assert len(list(cache.folder().glob("*.tokens"))) == 1
    # A file this young may yet change within the grain of its clock, so nothing is remembered of it.
    assert not list(cache.folder().glob("*.key"))


def test_a_file_that_was_replaced_is_read_again(shared_data: Path, own_home: Path, tmp_path: Path) -> None:
    metadata = ModelFile.open(shared_data / "gguf_vocabs/ggml-vocab-llama-spm.gguf").typed_metadata()
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, [])
    before = load_tokenizer(ModelFile.open(settle(path))).token_id("ing")
    tokens = metadata["tokenizer.ggml.tokens"].strings()
    one, other = tokens.index("ing"), tokens.index("ers")
    tokens[one], tokens[other] = tokens[other], tokens[one]
    write_gguf(path, {**metadata, "tokenizer.ggml.tokens": tokens}, [])
    assert (before, load_tokenizer(ModelFile.open(settle(path))).token_id("ing")) == (one, other)


@pytest.mark.parametrize("fault", ["unusable", "full"])
def test_without_a_folder_the_table_stays_in_memory(
    vocabulary_file: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    wanted = load_tokenizer(ModelFile.open(vocabulary_file)).encode(TEXT)
    for path in cache.folder().iterdir():
        path.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if fault == "full":
        monkeypatch.setattr(home, "atomic_write", full)
    else:
        monkeypatch.setattr(home, "usable", lambda _: False)
    assert load_tokenizer(ModelFile.open(vocabulary_file)).encode(TEXT) == wanted
    assert not list(cache.folder().iterdir())


def test_a_damaged_file_is_made_anew(vocabulary_file: Path, own_home: Path) -> None:
    model = ModelFile.open(vocabulary_file)
    wanted = load_tokenizer(model).encode(TEXT)
    (path,) = cache.folder().glob("*.tokens")
    good = path.read_bytes()
    for bad in (b"", good[:100], good[:-1], bytes(len(good)), good[:30] + b"\xff" + good[31:], good + b"\0"):
        path.write_bytes(bad)
        assert load_tokenizer(model).encode(TEXT) == wanted
        assert path.read_bytes() == good
    (memo,) = cache.folder().glob("*.key")
    for bad in (b"", bytes(32), bytes(7)):
        memo.write_bytes(bad)
        assert load_tokenizer(model).encode(TEXT) == wanted


# -- damage


@pytest.fixture
def memory(vocabulary_file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    outline = Outline(ModelFile.open(vocabulary_file))
    return np.frombuffer(build(outline.read(), outline.key(), core.native_module()), dtype=np.uint8)


def encoders() -> Iterator[Any]:
    yield twin.TokenTable
    if core.native_module() is not None:
        yield core.native_module().TokenTable


def test_what_is_no_whole_table_is_refused(memory: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    for make in encoders():
        make(memory)
        for at in range(0, table.HEADER_BYTES, 3):
            bad = memory.copy()
            bad[at] ^= 0x10
            with pytest.raises(ValueError, match="it is not a table|its header is damaged|its program is damaged"):
                make(bad)
        for size in (0, 8, table.HEADER_BYTES, len(memory) - 1):
            with pytest.raises(ValueError, match="it is shorter than a header|its sizes are wrong"):
                make(memory[:size].copy())


def test_sections_that_lie_are_refused(memory: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """A right checksum over a wrong header: each section's place, moved and resized in turn."""
    rng = random.Random(1)
    refused = 0
    for _ in range(200):
        bad = memory.copy()
        at = 72 + 8 * rng.randrange(2 * len(table.SECTIONS))
        bad[at : at + 8] = np.frombuffer(
            struct.pack("<Q", rng.choice([0, 64, 3, 2**63, len(memory), 2**64 - 64])), np.uint8
        )
        reseal(bad)
        for make in encoders():
            try:
                encoder = make(bad)
            except ValueError:
                refused += 1
            else:
                encoder.encode(TEXT.encode(), True, True)
    assert refused > 200


def reseal(bad: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    bad[36:40] = 0
    bad[36:40] = np.frombuffer(struct.pack("<I", zlib.crc32(bad[: table.HEADER_BYTES].tobytes())), np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_native_survives_garbage_behind_a_good_header(
    native: Any, memory: np.ndarray[Any, np.dtype[np.uint8]], seed: int
) -> None:
    """Nothing behind the header is checked at load time, so the encoder must bound all that it reads."""
    rng = np.random.default_rng(seed)
    for share in (0.001, 0.05, 1.0):
        for kept in (None, table.WORDS, table.PAIRS, table.SPECIALS, table.OFFSETS):
            bad = memory.copy()
            hit = rng.random(len(bad)) < share
            hit[: table.HEADER_BYTES] = False
            spans = [struct.unpack("<QQ", memory[72 + 16 * i : 88 + 16 * i]) for i in range(len(table.SECTIONS))]
            for section in (table.PROGRAM, table.PAGES, *([] if kept is None else [kept])):
                hit[spans[section][0] : sum(spans[section])] = False
            bad[hit] = rng.integers(0, 256, int(hit.sum()), dtype=np.uint8)
            encoder = native.TokenTable(bad)
            for text in (TEXT.encode(), bytes(range(256)) * 4, rng.integers(0, 256, 3000, dtype=np.uint8).tobytes()):
                encoder.encode(text, True, True)
                encoder.split(text)
                encoder.find(text[:5])


# -- metadata


def metadata(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab", "<s>"], "merges": ["a b"]}
    base |= {"token_type": np.array([1, 1, 1, 3], dtype=np.int32), "eos_token_id": 3}
    return {f"tokenizer.ggml.{key}": value for key, value in (base | changes).items() if value is not None}


def test_a_tiny_vocabulary(own_home: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata(), [])
    tokenizer = load_tokenizer(ModelFile.open(tmp_path / "m.gguf"))
    assert tokenizer.encode("abba<s>x") == [2, 1, 0, 3]  # there is no token for x
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eog_ids) == (None, 3, {3})


def test_types_may_be_absent(own_home: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata(token_type=None, pre=None), [])
    assert load_tokenizer(ModelFile.open(tmp_path / "m.gguf")).encode("a<s>") == [0, 3]


SPM = {"model": "llama", "merges": None, "pre": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert', genmote knows 'gpt2' and 'llama'; take a model with"),
        ({"model": None}, "tokenizer.ggml.model is None, genmote knows"),
        ({"pre": "klingon"}, "tokenizer.ggml.pre is 'klingon': genmote knows"),
        ({"tokens": None}, "has no array tokenizer.ggml.tokens; take a whole model file"),
        ({"tokens": [1, 2]}, "tokenizer.ggml.tokens holds int32, wanted strings"),
        ({"tokens": np.array([], dtype=np.int32)}, "tokenizer.ggml.tokens holds int32, wanted strings"),
        ({"merges": None}, "has no array tokenizer.ggml.merges"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges: entry 0 is not two parts; the file is damaged"),
        ({"token_type": ["a"]}, "tokenizer.ggml.token_type holds string, wanted numbers"),
        ({"token_type": [1, 1]}, "tokenizer.ggml.token_type has 2 entries for 4 tokens"),
        ({"token_type": [1, 1, 7, 1]}, "tokenizer.ggml.token_type of token 2 is 7, wanted 0 to 6"),
        ({"eos_token_id": 4}, "tokenizer.ggml.eos_token_id is 4, wanted 0 to 3"),
        ({"eos_token_id": "x"}, "tokenizer.ggml.eos_token_id is 'x', wanted 0 to 3"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1, wanted true or false"),
        ({**SPM}, "has no array tokenizer.ggml.scores"),
        ({**SPM, "scores": [0.0]}, "tokenizer.ggml.scores has 1 entries for 4 tokens"),
        ({**SPM, "scores": [0.0, 1.0, float("nan"), 0.0]}, "tokenizer.ggml.scores of token 2 is NaN"),
    ],
)
def test_metadata_that_makes_no_tokenizer(
    own_home: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_gguf(tmp_path / "m.gguf", metadata(**changes), [])
    with pytest.raises(ModelFileError, match=message):
        load_tokenizer(ModelFile.open(tmp_path / "m.gguf"))


def test_a_vocabulary_without_tokens(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf", metadata(), [])
    monkeypatch.setattr(table, "MAX_TOKENS", 3)
    with pytest.raises(ModelFileError, match="tokenizer.ggml.tokens has 4 entries, wanted 1 to 3"):
        load_tokenizer(ModelFile.open(tmp_path / "m.gguf"))


def test_a_file_that_was_cut_after_it_was_opened(own_home: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata(), [])
    model = ModelFile.open(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").unlink()
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(ModelFileError, match="has become shorter since it was opened; open it again"):
        load_tokenizer(model)


def test_scores_decide_which_pair_merges_first(own_home: Path, tmp_path: Path) -> None:
    tokens = ["<unk>", "a", "b", "c", "ab", "bc", "▁"]
    for scores, wanted in (([0, -9, -9, -9, 1.5, -1.5, -9], [4, 3]), ([0, -9, -9, -9, -2.0, -1.5, -9], [1, 5])):
        numbers = np.array(scores, dtype=np.float32)
        kinds = np.array([2, 1, 1, 1, 1, 1, 1], dtype=np.int32)
        changes = {**SPM, "tokens": tokens, "scores": numbers, "token_type": kinds, "unknown_token_id": 0}
        write_gguf(tmp_path / "m.gguf", metadata(**changes, add_space_prefix=False), [])
        tokenizer = load_tokenizer(ModelFile.open(tmp_path / "m.gguf"))
        assert tokenizer.encode("abc") == wanted
        assert tokenizer.encode("aé") == [1, 0]  # neither a token nor byte tokens
