"""eval describe, as it is typed: scores of a tiny model that has learnt nothing, and what cannot be judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.cli import main
from tests.describe import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judged")
    tiny.model(path)
    lines = ["file,label,report,group,fold"]
    for n in range(12):
        kind = ("calm", "wild")[n % 2]
        x = 20 + (1 + 4 * (n % 2)) * np.sin(np.arange(120) / 5 + n)
        rows = [f"{t / 10:.1f},{value:.3f}" for t, value in enumerate(x)]
        (path / f"{n}.csv").write_text("time,level (m)\n" + "\n".join(rows) + "\n")
        lines.append(f"{n}.csv,{kind},The {kind} sea.,buoy {n // 2},{1 + n // 4}")
    (path / "labels.csv").write_text("\n".join(lines) + "\n")
    return path


def told(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> dict[str, Any]:
    capsys.readouterr()
    command = ["eval", "describe", str(folder), "-m", str(folder / "model.toml"), "--draws", "20", "-n", "4", "--json"]
    assert main([*command, "--threads", "1", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_scores_and_every_prediction(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, folder, "--folds", "3", "--each", "2")
    assert found["recordings"] == {"train": 8, "test": 4, "groups": 2} and found["layout"] == "csv"
    assert set(found["reports"]) == {
        "model",
        "majority",
        "nearest",
        "numbers",
        "rouge_l_above_best",
        "meteor_above_best",
    }
    assert found["reports"]["nearest"]["rouge_l"]["value"] == 1, "the sea is as calm as its neighbour"
    assert 0 <= found["labels"]["model"]["auroc"] <= 1 and found["labels"]["nearest"]["macro_f1"]["value"] == 1
    assert found["labels"]["macro_f1_above_best"]["baseline"] == "nearest"
    assert set(found["answers"]) == {"model", "numbers"} and set(found["prompt_tokens"]) == {"model", "numbers"}
    predictions = found["predictions"]
    assert sum(one["about"] == "report" for one in predictions) == 4
    assert all({"recording", "group", "about", "wanted", "model"} <= set(one) for one in predictions)


def test_for_people_and_less_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "describe", str(folder), "-m", str(folder / "model.toml"), "--draws", "20", "-n", "2",
                 "--no-numbers", "--most", "2", "--each", "1", "--no-cannots"]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert text.startswith("2 recordings of ") and "METEOR (exact, stem)" in text and "macro-F1 above the best" in text
    assert "numbers" not in text


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--layout", "ptbxll"], "no layout is called 'ptbxll', did you mean ptbxl?"),
        (["--layout", "ptbxl"], "has no scp_statements.csv"),
        (["--draws", "0"], "draws=0: use 1 or more"),
        (["--each", "-1"], "each=-1: use 0 or more"),
        (["--folds", "9"], "no recording is in fold 9: there are folds 1, 2, 3"),
        (["--folds", "1", "2", "3"], "all recordings are in folds 1, 2, 3: leave some for the baselines to learn from"),
    ],
)
def test_what_cannot_be_judged(words: list[str], wanted: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "describe", str(folder), "-m", str(folder / "model.toml"), *words]) == 2
    assert wanted in capsys.readouterr().err
