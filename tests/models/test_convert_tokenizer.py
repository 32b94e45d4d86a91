"""A folder's tokenizer becomes a file's: the same tokens as the `tokenizers` library, and every fault is named."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from genmote.errors import ModelFileError
from genmote.models.checkpoints._folder import Folder
from genmote.models.checkpoints._sentencepiece import read_pieces
from genmote.models.checkpoints._tokenizer import tokenizer
from genmote.models.gguf import MetaArray, ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_vocabulary import sentence_piece
from genmote.models.tokenizer import Tokenizer, load_tokenizer
from genmote.models.tokenizer.variants import VARIANTS
from tests.models.peers import byte_level, edit_json, write_json
from tests.models.test_tokenizer import TEXTS, byte_level_oracle, spm_oracle

library = pytest.importorskip("tokenizers")
ROWS = 400


def converted(folder: Path, rows: int = ROWS) -> ModelFile:
    """A file with nothing but the folder's tokenizer."""
    metadata, _ = tokenizer(Folder(folder), rows)
    write_gguf(folder / "tokenizer.gguf", metadata, [])
    return ModelFile.open(folder / "tokenizer.gguf")


def loaded(folder: Path, rows: int = ROWS) -> Tokenizer:
    return load_tokenizer(converted(folder, rows))


def put(folder: Path, made: Any, **config: Any) -> None:
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)


# -- byte-level BPE ---------------------------------------------------------------------------------------------------

level = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(*names: str, behavior: str = "isolated", invert: bool = False) -> Any:
    """Cuts by a variant's expressions."""
    stages = [stage for name in names for stage in VARIANTS[name].stages]
    cuts = [library.pre_tokenizers.Split(library.Regex(stage), behavior, invert) for stage in stages]
    return library.pre_tokenizers.Sequence([*cuts, level])


def digits(individual: bool) -> Any:
    return library.pre_tokenizers.Digits(individual_digits=individual)


WAYS = {
    "gpt-2": lambda: library.pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": lambda: library.pre_tokenizers.Sequence(
        [digits(True), library.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "dbrx": lambda: split("llama3"),
    "qwen2": lambda: split("qwen2"),
    "gpt-4o": lambda: split("gpt-4o", behavior="removed", invert=True),
    "deepseek-v3": lambda: split("deepseek-v3"),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_way_to_cut_is_recognised(tmp_path: Path, name: str) -> None:
    made = byte_level(WAYS[name]())
    put(tmp_path, made)
    model = converted(tmp_path)
    assert model.metadata["tokenizer.ggml.pre"] == name
    ours = load_tokenizer(model)
    for text in TEXTS:
        assert ours.encode(text) == made.encode(text).ids, text


@pytest.mark.parametrize(("way", "name"), [("llama3", "llama-bpe"), ("tekken", "tekken")])
def test_words_that_are_tokens(tmp_path: Path, way: str, name: str) -> None:
    """Llama 3 takes a word that is a token without merging it: such a token need not be what merges make."""
    made = json.loads(byte_level(split(way)).to_str())
    word = "unmergeable"
    made["model"] |= {"ignore_merges": True, "vocab": {**made["model"]["vocab"], word: 395}}
    made = library.Tokenizer.from_str(json.dumps(made))
    put(tmp_path, made)
    model = converted(tmp_path)
    assert model.metadata["tokenizer.ggml.pre"] == name
    ours = load_tokenizer(model)
    assert ours.encode(word) == made.encode(word).ids == [395]
    assert ours.encode(f"{word} {word}") == made.encode(f"{word} {word}").ids


def test_the_real_vocabulary(tmp_path: Path, smollm2: Path) -> None:
    made = byte_level_oracle(smollm2, digits=True)
    source = ModelFile.open(smollm2)
    tokens = source.metadata["tokenizer.ggml.tokens"].strings()
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {theirs: source.metadata[f"tokenizer.ggml.{ours}_token_id"] for theirs, ours in named.items()}
    put(
        tmp_path,
        made,
        add_prefix_space=False,
        chat_template=source.metadata["tokenizer.chat_template"],
        **{f"{name}_token": tokens[token] for name, token in ids.items()},
    )
    same_tokenizer(converted(tmp_path, len(tokens)), source)


def same_tokenizer(got: ModelFile, want: ModelFile, *but: str) -> None:
    for key, value in want.typed_metadata().items():
        if key.startswith("tokenizer.") and key not in but:
            other = got.typed_metadata()[key]
            if isinstance(value, MetaArray):
                assert (other.element_type, list(other)) == (value.element_type, list(value)), key
            else:
                assert (type(other), other) == (type(value), value), key


def test_added_tokens(tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens([library.AddedToken("MARK", special=False, normalized=False)])
    made.add_special_tokens(["[ctl]"])
    made.add_tokens([library.AddedToken("<|looks|>", special=False, normalized=False)])
    put(tmp_path, made)
    model = converted(tmp_path)
    types = dict(zip(model.metadata["tokenizer.ggml.tokens"], model.metadata["tokenizer.ggml.token_type"], strict=True))
    assert (types["MARK"], types["[ctl]"], types["<|looks|>"], types["!"]) == (4, 3, 3, 1)
    assert types[f"[PAD{ROWS - 1}]"] == 5
    ours = load_tokenizer(model)
    for text in ("a MARK[ctl]b<|looks|> MARKMARK", "[ctl"):
        assert ours.encode(text) == made.encode(text).ids


def test_added_tokens_of_the_other_files(tmp_path: Path) -> None:
    put(
        tmp_path,
        byte_level(),
        added_tokens_decoder={"395": {"content": "<a>", "special": True}, "x": {}, "9" * 5000: {}, "396": 5},
    )
    write_json(tmp_path / "added_tokens.json", {"<b>": 396, "<beyond>": 400, "<no>": "x"})
    metadata, notes = tokenizer(Folder(tmp_path), ROWS)
    assert metadata["tokenizer.ggml.tokens"][395:397] == ["<a>", "<b>"]
    assert metadata["tokenizer.ggml.token_type"][395:397].tolist() == [3, 4]
    assert notes == ["1 tokens beyond the embedding's 400 rows are left out"]


def test_gpt_2_s_files(tmp_path: Path) -> None:
    made = byte_level()
    made.model.save(str(tmp_path))
    write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": True, "bos_token": "</s>"})
    ours = loaded(tmp_path)
    for text in TEXTS:
        if "</s>" not in text:
            assert ours.encode(text) == [1, *made.encode(text).ids]


# -- which tokens begin and end a text ------------------------------------------------------------------------------


def with_template(single: str) -> Any:
    made = byte_level()
    made.post_processor = library.processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return made


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A </s>", "$A </s>", "$A"])
def test_a_template_puts_tokens_around(tmp_path: Path, single: str) -> None:
    made = with_template(single)
    # Where both say something, the post-processor is what encodes.
    put(tmp_path, made, bos_token="<s>", eos_token={"content": "</s>"}, add_bos_token=single == "$A")
    ours = loaded(tmp_path)
    assert ours.encode("Hello") == made.encode("Hello").ids
    assert (ours.bos_id, ours.eos_id) == (0, 1)


@pytest.mark.parametrize("flag", [True, False, None])
def test_flags_without_a_template(tmp_path: Path, flag: bool | None) -> None:
    put(tmp_path, byte_level(), bos_token="<s>", eos_token="</s>", add_bos_token=flag, add_eos_token=flag)
    ours = loaded(tmp_path)
    ids = byte_level().encode("Hello").ids
    assert ours.encode("Hello") == ([0, *ids, 1] if flag else ids)


def test_marks_of_the_other_files(tmp_path: Path) -> None:
    put(tmp_path, byte_level())
    write_json(tmp_path / "config.json", {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 400})
    write_json(tmp_path / "special_tokens_map.json", {"unk_token": {"content": "!"}})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [1, 7, 8]})
    metadata = converted(tmp_path).metadata
    marks = {key: value for key, value in metadata.items() if key.endswith("_token_id")}
    assert marks == {
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "tokenizer.ggml.eot_token_id": 7,
    }


def test_chat_templates(tmp_path: Path) -> None:
    put(tmp_path, byte_level(), chat_template="one")
    assert converted(tmp_path).metadata["tokenizer.chat_template"] == "one"
    (tmp_path / "chat_template.jinja").write_text("two", encoding="utf-8")
    assert converted(tmp_path).metadata["tokenizer.chat_template"] == "two"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("four", encoding="utf-8")
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    put(tmp_path, byte_level(), chat_template=named)
    metadata = converted(tmp_path).metadata
    assert metadata["tokenizer.chat_template.tool_use"] == "three"
    assert metadata["tokenizer.chat_template.rag"] == "four"
    assert list(metadata["tokenizer.chat_templates"]) == ["tool_use", "rag"]


# -- SentencePiece --------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def message(*parts: tuple[int, int | float | bytes]) -> bytes:
    """A protocol buffer: numbers as varint, floats in 32 bits, bytes with their length."""
    made = b""
    for number, value in parts:
        if isinstance(value, float):
            made += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            made += varint(number << 3) + varint(value)
        else:
            made += varint(number << 3 | 2) + varint(len(value)) + value
    return made


def pieces(metadata: Mapping[str, Any], *, prefix: bool = True, kind: int = 2) -> bytes:
    """A tokenizer.model with the vocabulary of a file."""
    keys = ("tokens", "scores", "token_type")
    rows = zip(*(metadata[f"tokenizer.ggml.{key}"] for key in keys), strict=True)
    parts = [(1, message((1, text.encode()), (2, float(score)), (3, int(kind)))) for text, score, kind in rows]
    return message(*parts, (2, message((3, kind), (4, 300), (35, 1))), (3, message((1, b"identity"), (3, int(prefix)))))


@pytest.fixture
def spm(shared_data: Path) -> ModelFile:
    return ModelFile.open(shared_data / "gguf_vocabs/ggml-vocab-llama-spm.gguf")


def test_a_tokenizer_model(tmp_path: Path, spm: ModelFile) -> None:
    (tmp_path / "tokenizer.model").write_bytes(pieces(spm.metadata))
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    model = converted(tmp_path, 32000)
    same_tokenizer(model, spm)
    assert model.metadata["tokenizer.ggml.add_bos_token"] is True


def test_a_converted_sentencepiece(tmp_path: Path, spm: ModelFile) -> None:
    """From the merges alone the tokens come out the same as from the scores."""
    made = spm_oracle(spm.path, prefix=True)
    put(tmp_path, made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    _, notes = tokenizer(Folder(tmp_path), 32000)
    model = converted(tmp_path, 32000)
    same_tokenizer(model, spm, "tokenizer.ggml.scores")
    ours, theirs = load_tokenizer(model), load_tokenizer(spm)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        if text and "<s>" not in text and "</s>" not in text:
            assert ours.encode(text, bos=False) == made.encode(text).ids
    assert notes == []


@pytest.mark.slow
def test_gemma_s(tmp_path: Path, gemma3: Path) -> None:
    put(tmp_path, spm_oracle(gemma3, prefix=False), bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
    source = ModelFile.open(gemma3)
    model = converted(tmp_path, 262144)
    assert model.metadata["tokenizer.ggml.add_space_prefix"] is False
    assert list(model.metadata["tokenizer.ggml.tokens"]) == list(source.metadata["tokenizer.ggml.tokens"])
    ours, theirs = load_tokenizer(model), load_tokenizer(source)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


def test_metaspace_and_added_tokens(tmp_path: Path) -> None:
    vocabulary = sentence_piece(380, ("<unk>", "<s>", "</s>"))
    (tmp_path / "tokenizer.model").write_bytes(pieces(vocabulary, prefix=False))
    write_json(tmp_path / "tokenizer_config.json", {"unk_token": "<unk>"})
    write_json(
        tmp_path / "tokenizer.json",
        {
            "model": {"type": "BPE", "byte_fallback": True},
            "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "first"},
            "added_tokens": [
                {"id": 0, "content": "<unk>", "special": True},
                {"id": 380, "content": "▁▁", "special": False},
            ],
        },
    )
    metadata, _ = tokenizer(Folder(tmp_path), ROWS)
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert (metadata["tokenizer.ggml.tokens"][380], metadata["tokenizer.ggml.token_type"][380]) == ("  ", 4)
    assert metadata["tokenizer.ggml.token_type"][0] == 2
    edit_json(tmp_path / "tokenizer.json", pre_tokenizer={"type": "Metaspace", "prepend_scheme": "never"})
    assert tokenizer(Folder(tmp_path), ROWS)[0]["tokenizer.ggml.add_space_prefix"] is False


def test_pieces_beyond_the_rows_are_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(pieces(sentence_piece(380, ("<unk>", "<s>", "</s>"))))
    metadata, notes = tokenizer(Folder(tmp_path), 378)
    assert len(metadata["tokenizer.ggml.tokens"]) == 378
    assert notes == ["2 pieces beyond the embedding's 378 rows are left out"]


def test_merges_that_are_no_sentencepiece_s_are_told(tmp_path: Path) -> None:
    """Merges a+b, c+d, ab+cd make abcd; SentencePiece would also make it of abc and d, which is a piece too."""
    texts = ["<unk>", "a", "b", "c", "d", "ab", "cd", "abc", "abcd"]
    merges = [["a", "b"], ["c", "d"], ["ab", "c"], ["ab", "cd"]]
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "merges": merges}
    vocab = {text: token for token, text in enumerate(texts)}
    write_json(tmp_path / "tokenizer.json", {"model": {**model, "vocab": vocab}})
    _, notes = tokenizer(Folder(tmp_path), 9)
    assert notes == ["1 joins of its vocabulary are no SentencePiece model's: some texts will be cut otherwise"]


# -- faults ---------------------------------------------------------------------------------------------------------


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no tokenizer \(tokenizer.json, tokenizer.model, or vocab.json with"):
        tokenizer(Folder(tmp_path), ROWS)


GPT2 = {"type": "ByteLevel"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no vocabulary": ({"model": {"vocab": {}}}, "has no model.vocab from texts to ids"),
    "id": ({"model": {"vocab": {"a": 400}}}, "token 'a' has id 400, but the model knows 0 to 399"),
    "no id": ({"model": {"vocab": {"a": "x"}}}, "token 'a' has id 'x'"),
    "shared id": ({"model": {"vocab": {"a": 1, "b": 1}}}, "2 tokens share 1 ids"),
    "no merges": ({"model": {"vocab": {"a": 1}}}, "has no merges; a byte-level BPE needs them"),
    "merges": ({"model": {"vocab": {"a": 1}, "merges": ["a b c"]}}, "has merges that are no pairs of texts"),
    "merge numbers": ({"model": {"vocab": {"a": 1}, "merges": [[1, 2]]}}, "has merges that are no pairs of texts"),
    "merge": ({"model": {"vocab": {"a": 1}, "merges": [5]}}, "has merges that are no pairs of texts"),
    "unigram": ({"model": {"type": "Unigram"}, "pre_tokenizer": None}, "is a tokenizer of kind 'Unigram': wanted"),
    "no model": ({"model": 5}, "is a tokenizer of kind None: wanted byte-level BPE or"),
    "unknown cut": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, GPT2]}},
        r"cuts words by \['.*: no known pre-tokenizer does",
    ),
    "unknown step": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, GPT2]}},
        "its pre-tokenizer's step {'type': 'Whitespace'} is not known",
    ),
    "prefix": ({"pre_tokenizer": {**GPT2, "add_prefix_space": True}}, "puts a space before every text"),
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, r"changes text before it cuts it \(Lowercase\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tokenizers_are_named(tmp_path: Path, case: str) -> None:
    edit, told = WRONG[case]
    sound = json.loads(byte_level().to_str())
    write_json(tmp_path / "tokenizer.json", {**sound, **edit})
    with pytest.raises(ModelFileError, match=told) as caught:
        tokenizer(Folder(tmp_path), ROWS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_composed_characters_are_told(tmp_path: Path) -> None:
    made = byte_level()
    made.normalizer = library.normalizers.NFC()
    put(tmp_path, made)
    assert "composes characters (NFC)" in tokenizer(Folder(tmp_path), ROWS)[1][0]


def test_merging_that_no_file_has_is_told(tmp_path: Path) -> None:
    made = json.loads(byte_level().to_str())
    made["model"]["ignore_merges"] = True
    write_json(tmp_path / "tokenizer.json", made)
    metadata, notes = tokenizer(Folder(tmp_path), ROWS)
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert notes == ["ignore_merges = True goes with no file of its pre-tokenizer, and is left out"]


def test_texts_must_be_utf_8(tmp_path: Path) -> None:
    put(tmp_path, byte_level())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFileError, match="chat_template.jinja: is no UTF-8 text"):
        tokenizer(Folder(tmp_path), ROWS)


def test_damaged_tokenizer_models_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    sound = pieces(sentence_piece(380, ("<unk>", "<s>", "</s>")))
    path.write_bytes(sound)
    assert len(read_pieces(path).texts) == 380
    for content, told in (
        (b"", "no pieces"),
        (b"\x08", "it ends inside a number"),
        (b"\xff" * 20, "a number at byte 10 has no end"),
        (b"\x0a\x7f", "a field of wire type 2 at byte 2 does not fit"),
        (b"\x0b", "a field of wire type 3 at byte 1 does not fit"),
        (b"\x08\x01", "a number where bytes were wanted"),
        (message((1, message((3, b"x")))), "bytes where a number was wanted"),
        (message((1, message((1, b"\xff")))), "utf-8"),
        (message((1, message((3, 9)))), "pieces of unknown type"),
        (pieces(sentence_piece(380, ("<unk>", "<s>", "</s>")), kind=1), "kind 1, only BPE"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=told):
            read_pieces(path)
    refused = 0
    for position in range(0, len(sound), 61):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x55]) + sound[position + 1 :])
        try:
            read_pieces(path)
        except ModelFileError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 5
