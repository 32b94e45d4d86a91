"""`genmote compress`: flags, the recipe's file, what it prints, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genmote.cli import main
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_model("tiny-llama", "F32", path, 1)
    return path


def test_one_step_by_flags(model: Path, tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    words = ["compress", str(model), "-o", str(out), "--type", "Q5_1", "--head-type", "q8_0", "--samples", "2"]
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 200)
    assert main([*words, "--text", str(text), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = ModelFile.open(out)
    assert made.tensors["blk.0.attn_q.weight"].type == "Q5_1" and made.tensors["token_embd.weight"].type == "Q8_0"
    assert told["size_bytes"] == out.stat().st_size and told["path"] == str(out)
    assert told["steps"][0]["use"] == "gptq" and told["steps"][0]["settings"]["type"] == "Q5_1"
    figures = told["steps"][0]["figures"]["blk.1.ffn_down.weight"]
    assert figures["type"] == "Q5_1" and 0 < figures["error"] < 0.01


def test_learned_rounding_by_name_comes_after_gptq(tmp_path: Path) -> None:
    from genmote.cli.compress import Settings, recipe_of

    text = tmp_path / "text.txt"
    first, second = recipe_of(
        Settings(model="m", output=tmp_path / "o.gguf", method="round", type="Q5_0", text=text)
    ).values()["step"]
    assert (first["use"], first["type"]) == ("gptq", "Q5_0")
    assert (second["use"], second["train"], second["text"]) == ("round", "codes", text)


def test_a_step_that_reads_a_text_of_its_own_reads_the_one_given(tmp_path: Path) -> None:
    from genmote.cli.compress import Settings, recipe_of

    text = tmp_path / "text.txt"
    (step,) = recipe_of(Settings(model="m", output=tmp_path / "o.gguf", method="distill", text=text)).values()["step"]
    assert step["use"] == "distill" and step["text"] == text


def test_a_recipe_and_what_flags_add_to_it(
    model: Path, tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[step]]\nuse = "rtn"\ntype = "Q4_0"\n')
    out = tmp_path / "out.gguf"
    assert main(["compress", str(model), "-o", str(out), "--recipe", str(recipe), "--seed", "7"]) == 0
    assert "bits a weight)" in capsys.readouterr().out
    made = json.loads(ModelFile.open(out).metadata["genmote.compress.recipe"])
    assert made["calibration"]["seed"] == 7 and made["step"][0]["use"] == "rtn"


def test_the_text_that_is_learned_from_can_be_had(
    model: Path, tmp_path: Path, own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from genmote.compress import Calibration, calibration
    from genmote.models.tokenizer import load_tokenizer

    words = ["compress", str(model), "-o", str(tmp_path / "out.gguf"), "--samples", "2", "--seed", "3", "--json"]
    assert main([*words, "--text-out", str(tmp_path / "text.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == str(tmp_path / "text.txt")
    file = ModelFile.open(model)
    tokens, tokenizer = calibration.windows(model, file.sha256(), Calibration(windows=2, seed=3)), load_tokenizer(file)
    told = "\n".join(tokenizer.decode(row.tolist()) for row in tokens)
    assert (tmp_path / "text.txt").read_bytes() == told.encode() and len(told) > 100
    assert main([*words, "--text-out", str(tmp_path / "none" / "text.txt")]) == 2
    assert f"{tmp_path / 'none'} is no folder: make it first" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--text-out", "--report"])
def test_a_folder_in_place_of_a_file_is_told_before_the_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    words = ["compress", str(model), "-o", str(tmp_path / "out.gguf"), flag, str(tmp_path)]
    assert main(words) == 2
    assert capsys.readouterr().err == f"genmote compress: {tmp_path} is a folder: name a file in it with {flag}\n"
    assert not list(tmp_path.glob("out.gguf*"))


def test_what_a_step_has_to_say_is_told_once(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compress", str(model), "-o", str(tmp_path / "out.gguf"), "--method", "rtn", "--type", "Q4_K", "--json"]
    assert main(words) == 0
    said = capsys.readouterr()
    note = json.loads(said.out)["steps"][0]["note"]
    assert said.err.count(f"rtn: {note}\n") == 1 and "which Q4_K's blocks of 256 do not fit: stored as Q5_0" in note


def test_plain_numbers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, recipe = tmp_path / "m.gguf", tmp_path / "recipe.toml"
    make_model("tiny-llama", "F16", made, 1)
    prune = '[[step]]\nuse = "prune"\nmethod = "magnitude"\n'
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 200)
    words = ["compress", str(made), "--recipe", str(recipe), "--samples", "2", "--text", str(tmp_path / "text.txt")]
    for number, more in enumerate(("", '[[step]]\nuse = "rtn"\ntype = "Q4_0"\n')):
        recipe.write_text(prune + more)
        assert main([*words, "-o", str(tmp_path / f"{number}.gguf")]) == 0
        told = capsys.readouterr().err
        line = (
            "14 matrices are left as plain numbers (F32), such as blk.0.attn_q.weight: end the recipe with a step that"
        )
        assert (line in told) == (not more), told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "r.toml", "--type", "Q4_0"], "type: the recipe says it; leave out --recipe or --type"),
        (["--recipe", "none.toml"], "wanted a recipe in TOML"),
        (["--method", "nothing"], "no step is called 'nothing'"),
        (["--type", "Q7"], "tensor type 'Q7' is unknown"),
        (["--samples", "0"], "windows=0: use 1 or more"),
        (
            ["--method", "vocabulary"],
            "--method vocabulary takes size, which only a recipe can say: give one (--recipe)",
        ),
    ],
)
def test_bad_input_is_one_line(
    model: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", str(model), "-o", str(tmp_path / "out.gguf"), *flags]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_says_that_it_can_go_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from genmote.compress.steps.rtn import Rtn

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Rtn, "quantise", interrupted)
    assert main(["compress", str(model), "-o", str(tmp_path / "out.gguf"), "--method", "rtn"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()
