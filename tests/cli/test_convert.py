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


@pytest.fixture
def mixture(genmote: Genmote, tmp_path: Path, own_home: Path) -> tuple[str, str]:
    """A small mixture, and a text of some hundred tokens."""
    assert genmote("make-model", "tiny-mixtral", str(tmp_path / "mix.gguf"), "--type", "q8_0").status == 0
    (tmp_path / "notes.txt").write_text("The sensor of the pump in the cellar reads 41 degrees. " * 30)
    return str(tmp_path / "mix.gguf"), str(tmp_path / "notes.txt")


def test_experts_that_matter_less_get_fewer_bits(genmote: Genmote, mixture: tuple[str, str], tmp_path: Path) -> None:
    model, text = mixture
    words = ("convert", model, "-o", str(tmp_path / "fewer.gguf"), "--expert-type", "q4_0", "--text", text)
    ran = genmote(*words, "--json")
    told = ran.json
    assert ran.err.endswith(f"text may change: 4 of 8 experts, those that change least on {text}, are stored as Q4_0\n")
    assert (told["experts"], told["experts_in_fewer_bits"], told["type"]) == (8, 4, "Q4_0")
    assert 256 <= told["tokens"] <= 8192 and told["size_bytes"] < told["source_bytes"]
    fewer = ModelFile.open(tmp_path / "fewer.gguf")
    lowered = {name for name, info in fewer.tensors.items() if ".ffn_" in name and info.type == "Q4_0"}
    assert len(lowered) == 3 * 4 and fewer.metadata["genmote.experts.fewer_bits.count"] == 4
    said = genmote("generate", str(tmp_path / "fewer.gguf"), "--prompt", "The sensor", "-n", "4", "--ops", "numpy")
    assert said.status == 0 and said.out

    ran = genmote(*words, "--expert-share", "1")
    assert "fewer.gguf: 8 of 8 experts as Q4_0 by " in ran.out
    ran = genmote(*words, "--expert-share", "0")
    assert "0 of 8 experts" in ran.out and "the text may change" not in ran.err  # nothing is lost


def test_the_model_itself_is_not_written_over(genmote: Genmote, mixture: tuple[str, str], tmp_path: Path) -> None:
    model, text = mixture
    before, link = Path(model).read_bytes(), tmp_path / "link.gguf"
    link.symlink_to(model)
    for out in (model, str(link)):
        for words in (("--expert-type", "q4_0", "--text", text), ("--type", "q4_0")):
            ran = genmote("convert", model, "-o", out, *words)
            assert (ran.status, ran.err) == (2, f"genmote convert: {out} is the model itself; name another file\n")
    assert Path(model).read_bytes() == before and link.is_symlink()


def test_faults_of_fewer_bits_are_one_line(genmote: Genmote, mixture: tuple[str, str], tmp_path: Path) -> None:
    model, text = mixture
    out, plain, short = (str(tmp_path / name) for name in ("out.gguf", "plain.gguf", "short.txt"))
    done = str(tmp_path / "done.gguf")
    assert genmote("make-model", "tiny-llama", plain).status == 0
    assert genmote("convert", model, "-o", done, "--expert-type", "q4_0", "--text", text).status == 0
    Path(short).write_text("too short")
    for source, words, message in (
        (model, ("--expert-type", "q4_0"), "text: name one of some thousand words with --text"),
        (model, ("--expert-share", "0.5", "--text", text), "expert_share: only with --expert-type; text: only with"),
        (model, ("--expert-type", "q4_0", "--text", text, "--type", "q8_0"), "type: not together with --expert-type"),
        (model, ("--expert-type", "q9", "--text", text), "tensor type 'q9' is unknown"),
        (
            model,
            ("--expert-type", "q8_0", "--text", text),
            "the experts are stored as Q8_0; use one of fewer bits: Q6_K",
        ),
        (model, ("--expert-type", "q4_k", "--text", text), "rows of 64 numbers do not fit Q4_K"),
        (model, ("--expert-type", "q4_0", "--text", text, "--expert-share", "1.5"), "share=1.5: wanted 0 to 1"),
        (
            model,
            ("--expert-type", "q4_0", "--text", short),
            "tokens: wanted 256; give a mixture and some thousand tokens",
        ),
        (model, ("--expert-type", "q4_0", "--text", "/no/such"), "/no/such cannot be read"),
        (plain, ("--expert-type", "q4_0", "--text", text), "plain.gguf: a model without experts; give a mixture"),
        (done, ("--expert-type", "q4_0", "--text", text), "experts are stored in fewer bits already; give the model"),
    ):
        ran = genmote("convert", source, "-o", out, *words)
        assert ran.status == 2 and message in ran.err and ran.err.count("\n") == 1, ran.err
    assert not Path(out).exists()
