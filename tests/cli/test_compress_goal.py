"""`compress` with a goal, a report, a frontier."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from genmote.compress import Recipe
from genmote.compress.report import load
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model

QUICK = ("--method", "rtn", "--samples", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_model("tiny-llama", "F16", path, 1)
    return path


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's context holds no window of 512."""
    from genmote.compress.calibration import Calibration

    monkeypatch.setattr(Calibration.__init__, "__defaults__", (4, 64, 0, None, None))


def test_a_target_a_report_and_a_frontier(genmote: Any, model: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "small.gguf", tmp_path / "small.html"
    ran = genmote("compress", str(model), "-o", str(out), "--target", "150kB", *QUICK, "--report", str(page), "--json")
    assert ran.status == 0, ran.err
    told = ran.json
    assert told["size_bytes"] == out.stat().st_size <= 150_000
    assert told["search"]["missed"] is None and told["search"]["goal"] == "at most 0.15 MB"
    recipe = Recipe.read(told["recipe"])
    again = genmote("compress", str(model), "-o", str(tmp_path / "again.gguf"), "--recipe", told["recipe"])
    assert again.status == 0, again.err
    ours, theirs = ModelFile.open(out), ModelFile.open(tmp_path / "again.gguf")
    assert all((ours.raw(name) == theirs.raw(name)).all() for name in ours.tensors)
    assert recipe.calibration.windows == 4
    html = page.read_text(encoding="utf-8")
    assert "text that tiny.gguf wrote with seed 2" in html and "at most 0.15 MB" in html
    figures = page.with_suffix(".json")
    drawn = genmote("compress", "--frontier", str(figures), "--frontier", str(figures), "-o", str(tmp_path / "f.html"))
    assert drawn.status == 0 and "2 results" in drawn.out
    assert "small.gguf" in (tmp_path / "f.html").read_text(encoding="utf-8")


def test_a_target_out_of_reach_is_written_as_near_as_can_be(genmote: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    ran = genmote("compress", str(model), "-o", str(out), "--target", "1kB", *QUICK)
    assert ran.status == 2
    assert "chosen    " in ran.out and "nats a token of KL divergence" in ran.out
    least = re.search(
        r"^([0-9.]+) MB is about the least that types can make of it, wanted 0.001 MB$", ran.err, re.MULTILINE
    )
    assert least and 0.9 < float(least[1]) * 1e6 / out.stat().st_size < 1.1
    last = ran.err.strip().splitlines()[-1]
    assert (
        "no choice of types takes less than" in last and "(--shapes channels lets a search take parts out, too)" in last
    )
    assert f"the best that can be is in {out}" in last
    assert ModelFile.open(out).nbytes < model.stat().st_size / 2
    assert (tmp_path / "small.gguf.toml").exists()


def test_types_of_our_own_are_told(genmote: Any, model: Path, tmp_path: Path) -> None:
    words = ("compress", str(model), "-o", str(tmp_path / "small.gguf"), "--target", "150kB", *QUICK)
    ran = genmote(*words, "--choices", "GM3_32,GM4_32")
    assert ran.status == 0, ran.err
    assert re.search(
        r"^GM\d_32.*: types of genmote's own, which other engines do not read; --choices", ran.err, re.MULTILINE
    )
    ran = genmote(*words, "--choices", "Q4_0,Q8_0")
    assert "genmote's own" not in ran.err


def test_with_shapes_a_smaller_target_is_met(genmote: Any, model: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "small.gguf", tmp_path / "small.html"
    words = ("compress", str(model), "-o", str(out), "--target", "60kB", *QUICK, "--choices", "Q8_0,Q4_0")
    ran = genmote(*words, "--shapes", "channels, ranks", "--report", str(page))
    assert ran.status == 0, ran.err
    assert out.stat().st_size <= 60_000
    assert "smaller   channels of " in ran.out and "tried     types, channels and ranks: " in ran.out
    assert "alone     no choice of types takes less than" in ran.out
    assert "to the original, measured" in ran.out
    assert "1, types, channels and ranks" in page.read_text(encoding="utf-8")
    again = genmote("compress", str(model), "-o", str(tmp_path / "again.gguf"), "--recipe", f"{out}.toml")
    assert again.status == 0, again.err
    assert (tmp_path / "again.gguf").read_bytes() == out.read_bytes()
    ran = genmote(*(word if word != "60kB" else "1kB" for word in words), "--shapes", "channels")
    assert ran.status == 2
    last = ran.err.strip().splitlines()[-1]
    assert "no choice of types and channels takes less than" in last and "--shapes" not in last


def test_a_pace_on_a_device_is_told(genmote: Any, model: Path, tmp_path: Path) -> None:
    words = ("compress", str(model), "-o", str(tmp_path / "x.gguf"), *QUICK, "--device", "pi-zero-2w")
    page = tmp_path / "x.html"
    ran = genmote(*words, "--pace", "10", "--report", str(page), "--json")
    assert ran.status == 0, ran.err
    found = ran.json["search"]
    assert found["device"] == "Raspberry Pi Zero 2 W"
    ours, before = found["expected_tokens_per_s"], found["original_expected_tokens_per_s"]
    # The model was small enough as it was: nothing is lost, and the file is no faster.
    assert ours == pytest.approx(before, rel=0.05) and ours >= 10
    line = (
        f"Expected: {ours:.3g} tokens/s on Raspberry Pi Zero 2 W, the original {before:.3g} tokens/s; by that machine's"
    )
    assert f"{line} figures, not measured." in html.unescape(page.read_text(encoding="utf-8"))
    ran = genmote(*words, "--pace", "1e9")
    assert ran.status == 2
    assert "tokens/s are expected of the smallest choice of types, wanted 1e+09" in ran.err
    assert re.search(r"^expected  \S+ tokens/s on Raspberry Pi Zero 2 W, the original \S+ tokens/s; ", ran.out, re.M)


def test_a_report_of_a_plain_recipe_on_a_text_of_ones_own(genmote: Any, model: Path, tmp_path: Path) -> None:
    text, page = tmp_path / "mine.txt", tmp_path / "r.html"
    text.write_text("A heart beats sixty times a minute at rest. " * 60, encoding="utf-8")
    words = ("compress", str(model), "-o", str(tmp_path / "x.gguf"), "--method", "rtn", "--report", str(page))
    ran = genmote(*words, "--eval-text", str(text))
    assert ran.status == 0, ran.err
    assert "mine.txt" in ran.out and "bits per byte" in ran.out and "peak memory" in ran.out
    assert "mine.txt" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("m", "--device", "pi-4b-4gb"), "device: say what is wanted of it: --target BYTES, --pace TOKENS or both"),
        (("m", "--choices", "Q4_0"), "choices: is for a search: give --target or --pace too"),
        (("m", "--ray", "auto"), "ray: is for a search"),
        (("m", "--shapes", "channels"), "shapes: is for a search: give --target or --pace too"),
        (("m", "--target", "1MB", "--type", "Q4_0"), "type: a search chooses it; leave out --type, or --target"),
        ((), "model: name one to compress, or give reports with --frontier, not both"),
        (("m", "--frontier", "a.json"), "model: name one to compress"),
        (("--frontier", "none.json"), "none.json: cannot be read"),
    ],
)
def test_flags_that_do_not_go_together(genmote: Any, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    ran = genmote("compress", *words, "-o", str(tmp_path / "x.gguf"))
    assert ran.status == 2
    assert message in ran.err and len(ran.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "much"), "target 'much': wanted an amount above 0"),
        (("--target", "75"), "target=75: that is bytes, too few for a model; give a unit, such as 75MB"),
        (("--target", "1MB", "--choices", "Q7"), "tensor type 'Q7' is unknown"),
        (
            ("--pace", "1", "--device", "pi-4b-4gb", "--choices", "F32"),
            "no matrix can be stored in fewer bits with F32",
        ),
        (("--target", "1MB", "--shapes", "width"), "shapes: 'width' is none; name some of channels, heads, ranks"),
        (("--target", "1MB", "--device", "toaster"), "toaster"),
        (("--pace", "0", "--device", "pi-zero-2w"), "pace=0: wanted tokens a second, above 0"),
    ],
)
def test_goals_that_are_none(genmote: Any, model: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    ran = genmote("compress", str(model), "-o", str(tmp_path / "x.gguf"), *QUICK, *words)
    assert ran.status == 2
    assert message in ran.err and len(ran.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--report", "none/r.html"), "none is no folder: make it first, or choose another --report"),
        (("--report", "r.html", "--eval-text", "none.txt"), "none.txt cannot be read"),
        (("--report", "r.json"), "report=r.json: is a page, beside which its figures get this name; end it in .html"),
        (("--eval-text", "none.txt"), "eval_text: is what --report measures on: give that too"),
        (("--report", "r.html", "--eval-text", "short.txt"), "short.txt has 5 tokens, one window takes 256: give a lo"),
        (("--report", "x.gguf"), "x.gguf is the file of --output and of --report: name another"),
        (("--report", "r.html", "--eval-text", "r.html"), "r.html is the file of --eval-text and of --report: name an"),
        (("--report", "x.html", "-o", "x.json"), "x.json is the file of --output and of --report (its figures): name"),
        (("--text-out", "./short.txt", "--text", "short.txt"), "short.txt is the file of --text and of --text-out: "),
        (("--target", "1MB", "--recipe", "x.gguf.toml"), "is the file of --recipe and of --output (its recipe): name"),
    ],
)
def test_a_report_that_cannot_be_made_is_told_before_the_work(
    genmote: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("short.txt", "x.gguf.toml", "r.html"):
        Path(name).write_text("short")
    before = set(tmp_path.rglob("*"))
    method = () if "--recipe" in words else ("--method", "rtn")
    ran = genmote("compress", str(model), "-o", "x.gguf", *method, *words)
    assert ran.status == 2
    assert message in ran.err and len(ran.err.strip().splitlines()) == 1
    assert set(tmp_path.rglob("*")) == before and Path("short.txt").read_text() == "short"


def test_the_model_is_no_place_for_a_report(genmote: Any, model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    ran = genmote("compress", str(model), "-o", str(tmp_path / "x.gguf"), "--report", str(model))
    assert ran.status == 2 and model.read_bytes() == before
    assert ran.err == f"genmote compress: {model} is the file of the model and of --report: name another\n"


def test_a_frontier_is_not_drawn_over_a_report(genmote: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    ran = genmote("compress", "--frontier", str(tmp_path / "a.json"), "-o", str(tmp_path / "a.json"))
    assert ran.status == 2 and (tmp_path / "a.json").read_text() == "{}"
    assert "a.json and of --output: name another" in ran.err


def test_a_folder_is_not_converted_for_a_report_that_has_no_place(
    genmote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmote.models.convert.open_source", None)
    folder = tmp_path / "folder"
    folder.mkdir()
    ran = genmote(
        "compress", str(folder), "-o", str(tmp_path / "x.gguf"), "--report", str(tmp_path / "none" / "r.html")
    )
    assert ran.status == 2 and "none is no folder: make it first" in ran.err


def test_a_report_is_measured_on_whole_windows_however_short_those_that_are_learned_from(
    genmote: Any, model: Path, tmp_path: Path, own_home: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[calibration]\nlength = 16\n[[step]]\nuse = "rtn"\n')
    page = tmp_path / "r.html"
    words = ("compress", str(model), "-o", str(tmp_path / "x.gguf"), "--recipe", str(recipe), "--report", str(page))
    assert genmote(*words).status == 0
    told = load(page.with_suffix(".json")).values
    assert told["windows"] >= 6 and told["context"] == ModelFile.open(model).metadata["llama.context_length"] < 512
