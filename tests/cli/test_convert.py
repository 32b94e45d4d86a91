from __future__ import annotations

from pathlib import Path

import pytest

from genmote.models.gguf import ModelFile
from tests.cli.conftest import Genmote
from tests.models.peers import edit_json, random_peer, save

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as transformers saves it, with something that is told."""
    pytest.importorskip("safetensors")
    made = save(random_peer("mistral"), tmp_path_factory.mktemp("folder") / "tiny")
    edit_json(made / "config.json", sliding_window=32)
    return made


def test_convert_writes_a_model(genmote: Genmote, folder: Path, tmp_path: Path) -> None:
    ran = genmote("convert", str(folder), "-o", str(tmp_path / "a.gguf"), "--type", "q8_0", "--json")
    told = ran.json
    assert ran.status == 0 and "its sliding window of 32 tokens is left out" in ran.err
    assert told["architecture"] == "llama" and told["type"] == "Q8_0" and told["tensors"] == 21
    assert told["path"] == str(tmp_path / "a.gguf") and told["source"] == str(folder)
    assert told["size_bytes"] == (tmp_path / "a.gguf").stat().st_size
    assert told["notes"] == ["its sliding window of 32 tokens is left out: a longer text attends to all of itself"]
    assert ModelFile.open(tmp_path / "a.gguf").tensors["blk.0.attn_q.weight"].type == "Q8_0"

    ran = genmote("convert", str(tmp_path / "a.gguf"), "-o", str(tmp_path / "b.gguf"), "--type", "q4_0")
    assert ran.status == 0 and "b.gguf: llama, Q4_0, 21 tensors (" in ran.out
    said = genmote("generate", str(tmp_path / "b.gguf"), "--prompt", "The sensor", "-n", "4", "--ops", "numpy")
    assert said.status == 0 and said.out


def test_types_of_the_embedding(genmote: Genmote, folder: Path, tmp_path: Path) -> None:
    words = ("--type", "q4_0", "--embedding-type", "f16")
    assert genmote("convert", str(folder), "-o", str(tmp_path / "a.gguf"), *words).status == 0
    tensors = ModelFile.open(tmp_path / "a.gguf").tensors
    assert (tensors["token_embd.weight"].type, tensors["output.weight"].type) == ("F16", "F16")


def test_faults_are_one_line(genmote: Genmote, folder: Path, tmp_path: Path) -> None:
    for words, message in (
        ([str(folder)], "--out"),
        ([str(folder), "-o", str(tmp_path / "no/a.gguf")], "is no folder; make it first"),
        ([str(folder), "-o", str(tmp_path)], "is a folder; name the file to write in it"),
        ([str(tmp_path), "-o", str(tmp_path / "a.gguf")], "has no config.json"),
        ([str(tmp_path / "x"), "-o", str(tmp_path / "a.gguf")], "is not there: check the path"),
        ([str(folder), "-o", str(tmp_path / "a.gguf"), "--type", "q9"], "tensor type 'q9' is unknown"),
    ):
        ran = genmote("convert", *words)
        assert ran.status == 2 and message in ran.err and ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_model_yet(genmote: Genmote, folder: Path) -> None:
    ran = genmote("info", str(folder))
    assert ran.status == 2 and "is a Hugging Face folder: make a model file of it with genmote convert" in ran.err
