"""describe, ask, classify and describe-train, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.cli import main
from genmote.describe import examples as told_by
from genmote.describe import file as parts_of
from genmote.describe.health import NOTICE
from genmote.signals import container, writing
from genmote.signals.kinds import Series
from tests.describe import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("describe")
    tiny.model(path)
    table(path / "wave.csv", tiny.wave())
    flat = Series("flat", np.full((400, 2), 4, np.float32), 40.0, ("a", "b"), ("V", "V"))
    table(path / "flat.csv", flat)
    return path


def table(path: Path, series: Series) -> None:
    writing.write(path, [series])


def told(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json", "--threads", "1"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err


def test_describe_tells_a_report_and_what_it_took(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "describe", folder / "wave.csv", "-m", folder / "model.toml", "-n", 9)
    assert found["by"] == "model" and found["question"] == "Describe this recording." and found["notice"] is None
    assert found["decode_tokens"] <= 9 and found["first_token_ms"] > 0 and found["peak_rss_bytes"] > 10**7
    assert main(["describe", str(folder / "wave.csv"), "-m", str(folder / "model.toml"), "-n", "9"]) == 0
    assert capsys.readouterr().out.strip() == found["text"]


def test_ask_depends_on_question_and_recording(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "model.toml"
    one = told(capsys, "ask", folder / "wave.csv", "How high?", "-m", model, "-n", 20)
    assert one["question"] == "How high?" and one["prompt_tokens"] > 30
    other = told(capsys, "ask", folder / "wave.csv", "How high?", "-m", model, "-n", 20, "--start", 5, "--seconds", 2)
    assert other["text"] != one["text"]
    both = told(capsys, "ask", folder / "wave.csv", "Which?", "-m", model, "--also", folder / "wave.csv")
    assert both["prompt_tokens"] > one["prompt_tokens"] + 8


def test_no_more_is_read_than_is_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from genmote.signals import reading

    whole = reading.read(folder / "wave.csv")[0]
    given: list[int] = []

    def pieces(*path: object, **settings: object) -> Any:
        for start in range(0, 400, 100):
            given.append(start)
            yield whole.part(start, start + 100)
        yield tiny.wave(5)

    monkeypatch.setattr(reading, "pieces", pieces)
    words = ["describe", folder / "wave.csv", "-m", folder / "model.toml", "-n", 2]
    told(capsys, *words, "--start", 1, "--seconds", 3)
    assert given == [0, 100]  # 4 s of 40 Hz
    notes = told(capsys, *words)["notes"]
    assert notes == [f"{folder / 'wave.csv'}: has more than one signal, the first is looked at: {whole.name}"]
    monkeypatch.setattr(reading, "pieces", lambda *path, **settings: iter(()))
    assert "wave.csv: holds no signal" in refused(capsys, *words)


def test_a_flat_line_is_told_by_a_rule(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, flat = folder / "model.toml", folder / "flat.csv"
    for words in (("describe", flat), ("ask", flat, "How many beats?")):
        found = told(capsys, *words, "-m", model)
        assert found["text"] == "I cannot tell: the signal is a flat line." and found["by"] == "rule"
    found = told(capsys, "classify", flat, "-m", model)
    assert found["label"] is None and found["why"] == "the signal is a flat line" and found["labels"] == {}
    assert told(capsys, "describe", flat, "-m", model, "--no-check", "-n", 3)["by"] == "model"


def test_classify_tells_labels_and_abstains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "model.toml"
    found = told(capsys, "classify", folder / "wave.csv", "-m", model, "--confidence", "0")
    shares = list(found["labels"].values())
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    assert found["label"] == next(iter(found["labels"])) and found["calibrated"] is False
    sure = told(capsys, "classify", folder / "wave.csv", "-m", model, "--confidence", "1")
    assert sure["label"] is None and sure["why"] == "no label reaches 100%"
    own = told(capsys, "classify", folder / "wave.csv", "-m", model, "--labels", "up, down", "--question", "Where to?")
    assert set(own["labels"]) == {"up", "down"} and own["task"] == "own"
    assert main(["classify", str(folder / "wave.csv"), "-m", str(model), "--confidence", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("cannot tell: no label reaches 100%\n") and "not calibrated" in captured.err


def test_evidence_and_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = folder / "wave.svg"
    found = told(capsys, "ask", folder / "wave.csv", "Why?", "-m", folder / "model.toml", "-n", 9, "--plot", plot)
    spans = found["evidence"]
    assert len(spans) == 8 and spans[0]["nats"] >= spans[-1]["nats"] and found["plot"] == str(plot)
    shaded = plot.read_text().count('class="shade"')
    helping = sum(span["nats"] > 0 for span in spans)
    assert shaded == 2 * min(3, helping)  # a panel for each channel
    labels = told(capsys, "classify", folder / "wave.csv", "-m", folder / "model.toml", "--evidence", 4)
    assert len(labels["evidence"]) == 4


def test_health_is_no_diagnosis(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(folder / "heart.csv", tiny.wave(channels=("I", "II")))
    found = told(capsys, "describe", folder / "heart.csv", "-m", folder / "model.toml", "-n", 3)
    assert found["notice"] == NOTICE
    tiny.model(folder, name="doctor", health=True)
    assert told(capsys, "classify", folder / "wave.csv", "-m", folder / "doctor.toml")["notice"] == NOTICE
    assert main(["describe", str(folder / "heart.csv"), "-m", str(folder / "model.toml"), "-n", "3"]) == 0
    assert NOTICE in capsys.readouterr().err


def test_a_model_is_chosen_where_none_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "follow: say with -m which model, as what will come is not known yet" in refused(
        capsys, "describe", folder / "wave.csv", "--follow"
    )
    (tmp_path / "waves").mkdir()
    tiny.model(tmp_path / "waves", name="waves")
    monkeypatch.setattr(parts_of.store, "ZOO", tmp_path)
    assert main(["ask", str(folder / "wave.csv"), "How high?", "-n", "3"]) == 0
    assert "model: waves" in capsys.readouterr().err
    assert told(capsys, "classify", folder / "wave.csv")["task"] == "kind"


def test_channels_and_a_lead_that_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = tiny.wave(channels=("a", "b", "c"))
    series.values[:, 1] = 7
    container.write(folder / "lead.gmsc", [series], max_error=1e-3)
    model = folder / "model.toml"
    found = told(capsys, "ask", folder / "lead.gmsc", "Is b regular?", "-m", model, "-n", 3)
    assert found["text"] == "I cannot tell: b is a flat line." and found["unusable"] == {"b": "is a flat line"}
    assert told(capsys, "ask", folder / "lead.gmsc", "What of a?", "-m", model, "-n", 3)["by"] == "model"
    assert told(capsys, "ask", folder / "lead.gmsc", "What?", "-m", model, "--channels", "c", "-n", 3)["unusable"] == {}
    assert "has no channel 'd': it has a, b, c; choose among them" in refused(
        capsys, "ask", folder / "lead.gmsc", "What?", "-m", model, "--channels", "d"
    )


def test_settings_that_cannot_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wave, model = folder / "wave.csv", folder / "model.toml"
    for words, fault in {
        ("describe", wave, "--start", "-1"): "start=-1.0: use 0 or more seconds",
        ("describe", wave, "--seconds", "0"): "seconds=0.0: use more than 0, or leave it out",
        ("describe", wave, "--start", "99"): "has no sample from second 99 on; use a smaller --start",
        ("describe", wave, "--evidence", "99"): "evidence=99: use 0 to 48 stretches",
        ("describe", wave, "--plot", folder): "is a folder: name a file in it with --plot",
        ("describe", wave, "--follow", "--window", "0"): "window=0.0, reports=0, rate=0.0: use such as 60, 0 and 0",
        ("describe", wave, "--follow", "--evidence", "3"): "leave out --also, --plot and --evidence",
        ("describe", wave, "--reports", "1"): "reports, rate: go with --follow; add it, or leave them out",
        ("describe", folder / "none.csv", "--follow"): "none.csv: cannot be read (No such file or directory): wanted",
        ("describe", "mqtt://localhost/x"): "file=mqtt://localhost/x: a topic is described with --follow",
        ("classify", wave, "--labels", "a,b"): "labels and question go together: give both, or neither",
        ("classify", wave, "--confidence", "7"): "confidence=7.0: use 0 to 1, or a percentage",
        ("classify", wave, "--labels", "a,b", "--question", "?", "--task", "kind"): "task: is the model's own",
        ("classify", wave, "--labels", "a", "--question", "?"): "labels=('a',): wanted at least two, each once",
        ("classify", wave, "--task", "king"): "no task is called 'king': this model knows kind",
        ("ask", wave, " "): "the question is empty: ask something",
    }.items():
        assert fault in refused(capsys, *words, "-m", model)
    rows = folder / "rows.jsonl"
    rows.write_text('{"what": "on"}\n{"what": "off"}\n')
    message = refused(capsys, "describe", rows, "-m", model, "--seconds", "3")
    assert "its rows have no times, which --start and --seconds count by; leave these out" in message


# -- as it comes -------------------------------------------------------------------------------------------------------


def test_a_file_that_grows_is_described_window_by_window(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "grows.csv"
    line = "{:.2f},{:.3f}\n"
    rows = [line.format(n / 20, np.sin(n / 7)) for n in range(90)]
    path.write_text("time (s),level (m)\n" + "".join(rows[:50]))
    words = ["describe", str(path), "-m", str(folder / "model.toml"), "--follow", "--window", "2", "--reports", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "genmote.cli", *words, "-n", "4", "--threads", "1", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        first = json.loads(process.stdout.readline())
        assert first["event"] == "report" and (first["from_s"], first["to_s"]) == (0.0, 2.0)
        with open(path, "a") as out:
            out.write("".join(rows[50:]))
        rest = [json.loads(text) for text in process.stdout]
        assert process.wait(60) == 0, process.stderr.read()
    assert rest[0]["from_s"] == pytest.approx(2.0) and rest[0]["topic"] == "grows.csv"
    assert rest[-1] == {"event": "summary", "reports": 2}


def test_a_flat_window_of_a_file_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "still.csv"
    path.write_text("time (s),level (m)\n" + "".join(f"{n / 20:.2f},5\n" for n in range(90)))
    words = ["describe", str(path), "-m", str(folder / "model.toml"), "--follow", "--window", "2", "--reports", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out == "0.000 s  still.csv: I cannot tell: level is a flat line.\n1 reports\n"


# -- training ----------------------------------------------------------------------------------------------------------


def test_train_and_use(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    told_by.write(tmp_path / "ex.npz", [e for e in tiny.examples(60) if e.about == "label"])
    small = "--width 64 --ffn 64 --bridge 64 --slots 16 --encoder-steps 6 --projector-steps 2 --steps 3 --batch 2"
    made = told(
        capsys, "describe-train", tmp_path / "ex.npz", "-o", tmp_path / "m.toml", "--language",
        tiny.language(folder), *small.split(), "--drawn", "0", "--no-facts", "--licence", "CC0",
    )  # fmt: skip
    assert made["examples"] == 54 and made["adapter"]["steps"] == 3 and "CC0" in (tmp_path / "m.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "ex.npz", "m.toml", "m.md", "m-encoder.gguf", "m-adapter.gguf",
    }  # fmt: skip
    table(tmp_path / "up.csv", tiny.examples(2)[2].signals[0])  # type: ignore[arg-type]
    found = told(capsys, "classify", tmp_path / "up.csv", "-m", tmp_path / "m.toml")
    assert found["calibrated"] and set(found["labels"]) == {"rising", "falling"}
    assert "wanted a name that ends in .toml" in refused(capsys, "describe-train", "-o", tmp_path / "m.gguf")
    missing = refused(capsys, "describe-train", tmp_path / "none.npz", "-o", tmp_path / "n.toml")
    assert "none.npz: cannot be read" in missing


def test_folders_are_learnt_from_but_for_what_judges(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    home = tmp_path / "home"
    home.mkdir()
    rows = ["file,label,group"]
    for n in range(20):
        table(home / f"{n}.csv", tiny.wave(n, 100))
        rows.append(f"{n}.csv,{'calm' if n % 2 else 'wild'},{n // 2}")
    (home / "labels.csv").write_text("\n".join(rows) + "\n")
    small = (
        "--width 64 --ffn 64 --bridge 64 --slots 16 --encoder-steps 2 --projector-steps 0 --steps 0 --each 1 --no-facts"
    )
    words = ["describe-train", home, f"{home}:csv", "-o", tmp_path / "m.toml", "--language", tiny.language(folder)]
    made = told(capsys, *words, *small.split(), "--folds", "9")
    assert made["notes"].count(f"{home}: 4 of 20 recordings are left to genmote eval describe") == 2
    assert made["about"]["label"] >= 24 and made["tasks"][0]["labels"] == ["calm", "wild"]
    assert "no layout is called" not in refused(capsys, "describe-train", "none:csv", "-o", tmp_path / "n.toml")
    assert "each=-1: use 0 or more" in refused(capsys, *words, "--each", "-1")


def test_a_topic_is_described(folder: Path, broker: Any) -> None:
    words = [
        "describe",
        broker.url("room"),
        "-m",
        str(folder / "model.toml"),
        "--follow",
        "--window",
        "1",
        "--rate",
        "20",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "genmote.cli", *words, "--reports", "1", "-n", "4", "--threads", "1", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["event"] == "note" and "listening to room" in first["note"]
        time.sleep(0.2)
        broker.publish(iter([("room", f'{{"heat": {20 + np.sin(n / 5):.3f}}}'.encode()) for n in range(60)]))
        report, summary = (json.loads(line) for line in process.stdout)
        assert process.wait(60) == 0
    assert report["topic"] == "room" and report["to_s"] - report["from_s"] == pytest.approx(1.0)
    assert summary == {"event": "summary", "reports": 1}


def test_a_sensor_that_is_not_there_is_told_by_a_rule(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = folder / "model.toml"
    table(folder / "room.csv", tiny.wave(channels=("temperature", "humidity")))
    words = ("ask", folder / "room.csv", "What is the heart rate?", "-m", model, "-n", 3)
    found = told(capsys, *words)
    wanted = "I cannot tell: the recording measures no heart beat: it has temperature, humidity."
    assert found["text"] == wanted and found["by"] == "rule"
    assert told(capsys, *words, "--also", folder / "wave.csv")["by"] == "rule"
    assert told(capsys, *words, "--no-check")["by"] == "model"
    found = told(
        capsys, "classify", folder / "room.csv", "-m", model, "--labels", "a,b", "--question", "Which exercise?"
    )
    assert found["label"] is None and found["why"].startswith("the recording measures no movement of a person")


def test_a_model_of_health_tells_nothing_of_a_room(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.model(folder, name="heart", health=True, channels=("I", "II"))
    table(folder / "hall.csv", tiny.wave(channels=("temperature", "humidity")))
    for words in (("describe",), ("ask", "Is it normal?"), ("classify",)):
        found = told(capsys, words[0], folder / "hall.csv", *words[1:], "-m", folder / "heart.toml")
        why = "the model was trained on other channels (I, II): the recording has temperature, humidity"
        assert found["by"] == "rule" and why in (found.get("text") or found["why"])
    told_too = told(
        capsys, "classify", folder / "hall.csv", "-m", folder / "heart.toml", "--labels", "a,b", "--question", "Why?"
    )
    assert told_too["by"] == "rule"  # it is of health all the same
    tiny.model(folder, name="motion", channels=("ax", "ay"))
    assert told(capsys, "describe", folder / "hall.csv", "-m", folder / "motion.toml", "-n", 2)["by"] == "model"
    assert told(capsys, "classify", folder / "hall.csv", "-m", folder / "motion.toml")["by"] == "rule"
