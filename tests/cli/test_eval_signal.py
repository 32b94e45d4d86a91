"""`genmote eval signal`: five verbs over the same recordings, the model a stand-in of which all is known."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.generator.evaluate.model import Maker
from genmote.signals.kinds import Signal
from tests.cli.conftest import Genmote
from tests.generator.standin import Bootstrap


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is trained, or loaded, is a bootstrap; gives what it was made with."""
    seen: dict[str, Any] = {}

    def make(self: Maker, signals: Sequence[Signal], labels: tuple[str, ...] = ()) -> Bootstrap:
        seen.update(maker=self, signals=signals, labels=labels)
        return Bootstrap(signals, labels)

    monkeypatch.setattr(Maker, "__call__", make)
    return seen


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two recordings, a room that is empty or not, the second with the other's noise."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        state = (np.arange(1280) // 320) % 2
        values = np.round(20 + 5 * state + rng.standard_normal(1280), 2)
        rows = zip(range(1280), values, rng.integers(0, 9, 1280), state, strict=True)
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["time (s)", "warm (°C)", "spare", "there"], *rows])
    return ["--train", str(tmp_path / "a.csv"), "--test", str(tmp_path / "b.csv"), "--drop", "spare"]


def test_generate(genmote: Genmote, stand_in: dict[str, Any], files: list[str], tmp_path: Path) -> None:
    words = ["eval", "signal", "generate", *files, "--label", "there", "--steps", "32", "--no-networks"]
    ran = genmote(
        *words, "--json", "--seed", "3", "--output", str(tmp_path / "i.jsonl"), "--svg", str(tmp_path / "g.svg")
    )
    assert ran.status == 0, ran.err
    told = ran.json
    assert (told["job"], told["steps"], told["label"], told["seed"]) == ("generate", 32, "there", 3)
    assert told["trained_on"]["real"]["accuracy"] > 0.9 and told["leakage"]["closer_to_train"] == 1
    assert told["windows"] == {"train": 40, "test": 40, "synthetic": 40} and len(told["items"]) == 80
    assert stand_in["labels"] == ("there",) and stand_in["maker"].seed == 3
    lines = [json.loads(line) for line in (tmp_path / "i.jsonl").read_text("utf-8").splitlines()]
    assert lines == told["items"]
    assert (tmp_path / "g.svg").read_text("utf-8").startswith("<svg")
    again = genmote(*words, "--json", "--seed", "3").json
    for key in ("trained_on", "leakage", "autocorrelation", "discriminative_rocket", "items"):
        assert again[key] == told[key], "the seed fixes it"
    text = genmote(*words).out
    assert "trained on, accuracy" in text and "real against real" in text and "membership, by likelihood" in text


@pytest.mark.slow
def test_generate_with_networks(
    genmote: Genmote, stand_in: dict[str, Any], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", "signal", "generate", *files, "--label", "there", "--steps", "16", "--windows", "30"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = genmote(*words)
    assert ran.status == 0 and "no PyTorch: the recurrent discriminator and context-FID are left out" in ran.err
    monkeypatch.undo()
    pytest.importorskip("torch")
    from genmote.generator.scores import networks

    monkeypatch.setattr(networks, "GRU_STEPS", 3)
    monkeypatch.setattr(networks, "ENCODER_STEPS", 3)
    monkeypatch.setattr(Maker, "__call__", lambda self, signals, labels=(): Bootstrap(signals, labels))
    told = genmote(*words, "--json").json
    assert set(told["discriminative"]) == {"train", "test", "real"} == set(told["context_fid"])
    assert "context-FID, against --train" in genmote(*words).out


def test_forecast(genmote: Genmote, stand_in: dict[str, Any], files: list[str], tmp_path: Path) -> None:
    words = [
        "eval",
        "signal",
        "forecast",
        *files,
        "--label",
        "there",
        "--season",
        "4",
        "--horizon",
        "8",
        "--context",
        "40",
    ]
    ran = genmote(*words, "--windows", "10", "--svg", str(tmp_path / "f.svg"), "--json")
    assert ran.status == 0, ran.err
    told = ran.json
    assert (told["windows"], told["season"], told["horizon"], told["stride"]) == (10, 4, 8, 8)
    assert set(told["sides"]) == {"model", "seasonal naive"} and set(told["sides"]["model"]["channels"]) == {"warm"}
    assert all(len(item["recording"]) and item["model"]["mase"] >= 0 for item in told["items"])
    assert stand_in["maker"].model is None and [s.channels for s in stand_in["signals"]] == [("warm",)]
    assert genmote(*words, "--windows", "3").out.splitlines()[0].split() == "MASE CRPS scaled covered ms".split()


def test_impute(genmote: Genmote, stand_in: dict[str, Any], files: list[str]) -> None:
    words = ["eval", "signal", "impute", *files, "--label", "there", "--gaps", "3", "12", "--windows", "4"]
    told = genmote(*words, "--json").json
    assert told["gaps"] == 8 and set(told["by_length"]) == {"3", "12"}
    assert set(told["by_length"]["3"]) == {"model", "linear", "last value"}
    assert genmote(*words).out.splitlines()[0].split() == "gap model linear last value".split()


def test_detect(genmote: Genmote, stand_in: dict[str, Any], files: list[str], tmp_path: Path) -> None:
    words = ["eval", "signal", "detect", *files, "--label", "there", "--smooth", "4", "--normal", "0"]
    ran = genmote(*words, "--json", "--svg", str(tmp_path / "d.svg"))
    assert ran.status == 0, ran.err
    told = ran.json
    assert (told["judged"], told["items"][0]["label"], told["unusual"]) == ("row", "0", 640)
    assert told["sides"]["z distance"]["auroc"] > 0.95
    assert "640 of 1280 rows" in genmote(*words).out


def test_many_items_are_left_to_the_output(
    genmote: Genmote, stand_in: dict[str, Any], files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmote.cli.eval.signal._shared.LISTED", 5)
    told = genmote(
        "eval", "signal", "detect", *files, "--label", "there", "--output", str(tmp_path / "d"), "--json"
    ).json
    assert len(told["items"]) == 5 and told["items_left_out"] == 1275
    assert len((tmp_path / "d").read_text("utf-8").splitlines()) == 1280


def test_compress(genmote: Genmote, files: list[str], tmp_path: Path) -> None:
    ran = genmote("eval", "signal", "compress", *files, "--json")
    assert ran.status == 0, ran.err
    told = ran.json
    assert set(told["sides"]) == {"ours", "xz", "bzip2"} and told["model_bytes"] == 0 and told["mb_per_s"] > 0
    assert told["items"][0]["recording"] == "b.csv"
    text = genmote("eval", "signal", "compress", *files, "--svg", str(tmp_path / "c.svg")).out
    assert "MB/s, there and back" in text and "J/MB" in text


def test_compress_with_a_model(genmote: Genmote, files: list[str], tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    words = ["signal", "train", str(tmp_path / "a.csv"), "-o", str(model), "--channels", "warm", "--size", "tiny"]
    assert genmote(*words, "--context", "64", "--bins", "32", "--steps", "8", "--batch", "256").status == 0
    ran = genmote("eval", "signal", "compress", *files[2:], "--drop", "there", "--model", str(model), "--json")
    assert ran.status == 0, ran.err
    assert ran.json["model_bytes"] == model.stat().st_size and ran.json["model"] == str(model)
    text = genmote("eval", "signal", "compress", *files[2:], "--drop", "there", "--model", str(model)).out
    assert "m.gguf has paid for itself after" in text
    assert genmote("eval", "signal", "compress", *files[2:], "--model", str(tmp_path / "none.gguf")).status == 2


def test_a_model_is_trained_once_or_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train = pytest.importorskip("genmote.generator.model"), pytest.importorskip("genmote.generator.train")
    seen: list[Any] = []
    monkeypatch.setattr(train, "train", lambda signals, output, training, progress: seen.append((output, training)))
    monkeypatch.setattr(model.Generator, "load", lambda path, threads: (path, threads))
    assert Maker(model=tmp_path / "m.gguf", threads=2)([]) == (tmp_path / "m.gguf", 2) and not seen
    path, _ = Maker(save=tmp_path / "s.gguf", size="tiny", steps=7, minutes=2, seed=5)([], ("a",))  # type: ignore[misc]
    ((output, training),) = seen
    assert path == output == tmp_path / "s.gguf"
    assert (training.size, training.steps, training.minutes, training.seed) == ("tiny", 7, 2, 5)
    assert training.labels == ("a",)


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        ("forecast", ["--season", "0"], "season=0: use 1 or more"),
        ("forecast", ["--season", "200"], "season=200: the seasonal naive forecast must see one; use a larger context"),
        ("forecast", ["--stride", "0"], "stride=0: use 1 or more"),
        ("forecast", ["--seed", "-1"], "seed=-1: use 0 to 4294967295"),
        ("forecast", ["--minutes", "0"], "minutes=0.0, training_steps=0: use more than 0, and 0 or more"),
        ("forecast", ["--threads", "0"], "threads=0: use 1 or more"),
        ("forecast", ["--model", "m", "--save", "s"], "save=s: no model is trained where --model is given"),
        ("forecast", ["--svg", "none/f.svg"], "none/f.svg cannot be written, "),
        ("impute", ["--gaps", "0"], "gaps=0: use 1 or more"),
        ("impute", ["--gaps", "8", "99"], "gaps=99: use at most half of context=128"),
        ("detect", ["--quantile", "1"], "quantile=1.0: use one between 0 and 1, such as 0.99"),
        ("detect", ["--smooth", "0"], "smooth=0: use 1 or more"),
        ("generate", ["--steps", "0"], "steps=0: use 1 or more"),
        ("generate", ["--windows", "0"], "windows=0: use 1 or more"),
        ("compress", ["--max-error", "-1"], "max_error=-1.0: use 0 (exact) or more, such as 0.01"),
        ("compress", ["--threads", "0"], "threads=0: use 1 or more"),
        ("detect", ["--label", "none"], "has no label 'none': it has warm, spare, there"),
    ],
)
def test_mistakes_are_one_line(
    job: str, words: list[str], message: str, genmote: Genmote, stand_in: dict[str, Any], files: list[str]
) -> None:
    ran = genmote("eval", "signal", job, *files, *words)
    assert (
        ran.status == 2 and ran.out == "" and message in ran.err and ran.err.startswith(f"genmote eval signal {job}: ")
    )
    assert len([line for line in ran.err.splitlines() if line.startswith("genmote")]) == 1


def test_verbs_of_verbs_of_verbs(genmote: Genmote) -> None:
    for words in (["eval"], ["eval", "--help"]):
        assert "usage: genmote eval VERB" in genmote(*words).out
    for words in (["eval", "signal"], ["eval", "signal", "help"]):
        ran = genmote(*words)
        assert "usage: genmote eval signal VERB" in ran.out and "  forecast  " in ran.out
    ran = genmote("eval", "signal", "forcast")
    assert ran.status == 2
    assert "genmote eval signal forcast: no verb of eval signal is called 'forcast', did you mean forecast" in ran.err
    ran = genmote("eval", "signal", "--json", "forecast")
    assert "--json stands before any verb of eval signal: write genmote eval signal VERB" in ran.err
    assert "no verb of eval is called 'nothing'" in genmote("eval", "nothing", "forecast").err
