"""The compress set's plumbing: what is kept, what is made anew, both sides learn from one text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compress, process, run
from benchmarks.bench import Bench
from benchmarks.compress import eighty, gemma, q4, sides
from benchmarks.process import ContestantError, Ran
from benchmarks.record import AT_MOST, Row
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sides, "FOLDER", tmp_path / "kept")
    monkeypatch.setattr(sides, "RECIPES", tmp_path / "recipes")
    (tmp_path / "recipes").mkdir()
    return tmp_path


@pytest.fixture
def model(folder: Path) -> Path:
    make_model("tiny-llama", "F16", folder / "tiny.gguf", 1)
    return folder / "tiny.gguf"


@pytest.fixture
def bench() -> Bench:
    return Bench(quick=True)


def test_every_measure_is_found() -> None:
    assert run.available("compress") == ["agree", "cost", "eighty", "gemma", "q4", "structured"]
    assert run.SETS["compress"] is compress


def test_a_file_is_made_once_and_anew_where_the_recipe_or_the_code_changes(
    model: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = process.python

    def counting(*words: str, **options: object) -> Ran:
        made.append(words)
        return real(*words, **options)

    monkeypatch.setattr(process, "python", counting)
    words = ["--method", "rtn", "--type", "Q4_0"]
    first = sides.ours(bench, str(model), "a", words)
    assert ModelFile.open(first.path).tensors["blk.0.attn_q.weight"].type == "Q4_0"
    assert first.seconds > 0 and first.peak_rss_bytes > 10_000_000 and first.told["steps"][0]["use"] == "rtn"
    assert sides.ours(bench, str(model), "a", words) == first
    assert len(made) == 1
    assert sides.ours(bench, str(model), "a", [*words[:3], "Q8_0"]).path != first.path
    monkeypatch.setattr(sides, "code", lambda: "other code")
    assert sides.ours(bench, str(model), "a", words).path != first.path
    assert len(made) == 3


def test_a_recipe_of_a_files_types_gives_those_types(folder: Path, bench: Bench) -> None:
    make_model("tiny-llama", "Q8_0", folder / "peer.gguf", 1)
    make_model("tiny-llama", "F16", folder / "tiny.gguf", 1)
    types = sides.types_of(folder / "peer.gguf")
    text = sides.toml_of(types).replace("gptq", "rtn")
    (folder / "recipes" / "same.toml").write_text(text)
    made = sides.with_recipe(bench, str(folder / "tiny.gguf"), "same")
    ours = sides.types_of(made.path)
    assert ours == types | {name: "F16" for name in ours if name == "token_embd.weight" and "output.weight" in ours}


def test_a_perplexity_is_kept(model: Path, bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = folder / "text.txt"
    text.write_text("It was a dark and stormy night. " * 400)
    monkeypatch.setattr(sides, "corpus", lambda: text)
    monkeypatch.setattr(sides, "CONTEXT", 64)
    found = sides.perplexity(bench, model)
    assert found > 1
    monkeypatch.setattr(sides, "ours_of", lambda *_: pytest.fail("measured again"))
    assert sides.perplexity(bench, model) == found


def test_what_is_missing_is_a_row_with_the_reason(bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Path:
        raise ContestantError("no such model here")

    monkeypatch.setattr(bench, "file", absent)
    for module, count in ((q4, 4), (gemma, 6)):
        rows = list(module.measure(bench))
        assert len(rows) == count
        assert all(row.value is None and row.note for row in rows)


def test_a_recipe_that_is_too_large_does_not_count(bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"54mb-single-a": 53e6, "54mb-combined-b": 55e6, "54mb-combined-c": 53.9e6}
    values = {"54mb-single-a": 1.3, "54mb-combined-c": 1.2}
    for name, size in sizes.items():
        (sides.RECIPES / f"{name}.toml").write_text("")
        path = folder / f"{name}.gguf"
        with path.open("wb") as file:
            file.truncate(int(size))

    def made(bench: Bench, source: str, name: str) -> sides.Made:
        return sides.Made(folder / f"{name}.gguf", 1.0, 1, {})

    def row(bench: Bench, source: str, name: str, made: sides.Made, asked: float | None) -> Row:
        return Row(name, "compress_eighty", values[made.path.stem], "x", asked, AT_MOST)

    monkeypatch.setattr(sides, "with_recipe", made)
    monkeypatch.setattr(eighty, "row", row)
    monkeypatch.setattr(eighty, "about", lambda name: {})
    found = {each.name: each for each in eighty.measure(bench)}
    too_large = next(each for name, each in found.items() if "combined-b" in name)
    assert too_large.value is None and too_large.note == "the recipe makes 55.00 MB"
    last = list(found.values())[-1]
    assert last.value == pytest.approx(1.2 / 1.3) and last.met is True


def test_the_peers_importance_matrix_reads_the_text_that_we_learn_from(
    model: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.compress.calibration import Calibration

    monkeypatch.setattr(Calibration.__init__, "__defaults__", (4, 32, 0, None, None))
    monkeypatch.setattr(bench, "peer", lambda name: type("P", (), {"program": staticmethod(lambda name: name)}))
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        Path(command[command.index("-o") + 1]).write_bytes(b"a matrix")

    monkeypatch.setattr(process, "run", run)
    text = sides.own_text(bench, str(model))
    made = sides.importance(bench, str(model))
    assert made.read_bytes() == b"a matrix" and not list(made.parent.glob("*.part.gguf"))
    assert commands[0][commands[0].index("-f") + 1] == str(text)
    assert len(text.read_text(encoding="utf-8")) > 100
    assert json.dumps(commands)  # plain words
