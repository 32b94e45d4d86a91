from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest

from genmote.cli import main
from genmote.signals import modality, recordings
from genmote.signals.kinds import Series


def sound(path: Path, count: int = 800) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(np.arange(count, dtype="<i2").tobytes())
    return path


def test_the_group_s_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["signal"], ["signal", "--help"], ["signal", "help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "usage: genmote signal VERB" in shown and "  show " in shown and "  modalities " in shown


def test_verbs_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signal", "shw"]) == 2
    assert "genmote signal shw: no verb of signal is called 'shw', did you mean show?" in capsys.readouterr().err
    for words in (["Signal"], ["EVAL", "signal"]):  # names are found in capitals, too
        assert main(words) == 0 and f"usage: genmote {' '.join(words)} VERB" in capsys.readouterr().out
    assert main(["Eval", "Signal", "forcast"]) == 2
    assert "no verb of Eval Signal is called 'forcast', did you mean forecast?" in capsys.readouterr().err
    assert main(["signal", "--json", "show"]) == 2
    assert "--json stands before any verb of signal: write genmote signal VERB" in capsys.readouterr().err


def test_modalities(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signal", "modalities", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["modalities"]
    assert [one["name"] for one in told] == modality.names()
    assert main(["signal", "modalities"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(told)
    assert main(["signal", "modalities", "ecg"]) == 0
    assert "genmote signal show ecg" in capsys.readouterr().out
    assert main(["signal", "modalities", "eeg"]) == 2
    assert "no modality is called 'eeg', did you mean ecg?" in capsys.readouterr().err


def test_show_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sound(tmp_path / "a b.wav", 100_000)  # more than one piece
    assert main(["signal", "show", str(path), "--svg", str(tmp_path / "a.svg"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (one,) = told["signals"]
    assert (one["name"], one["kind"], one["count"], one["rate_hz"], one["exact"]) == (
        "a b",
        "series",
        100_000,
        8000,
        True,
    )
    whole = np.arange(100_000, dtype="<i8").astype("<i2") / 2**15
    (channel,) = one["channels"]
    assert channel["there"] == 100_000
    for key, value in (("lowest", whole.min()), ("highest", whole.max()), ("mean", whole.mean())):
        assert channel[key] == pytest.approx(value, abs=1e-6)
    assert (tmp_path / "a.svg").read_text("utf-8").startswith("<svg")
    path.write_bytes(path.read_bytes()[:-3])
    assert main(["signal", "show", str(path)]) == 0
    shown = capsys.readouterr()
    assert "series of 99998 samples, 8000 Hz, 12.5 s" in shown.out and "ends 3 bytes early" in shown.err


def test_show_a_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["signal", "show", "authentication"]) == 0
    shown = capsys.readouterr()
    assert "a synthetic sample: drawn, not measured" in shown.err and "6 words" in shown.out
    assert main(["signal", "show", "radar", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signals"][0]["kind"] == "frames"
    assert main(["signal", "show", "radar", "--sample-rate", "5"]) == 2
    assert "radar is a modality: leave out --group, --names, --sample-rate" in capsys.readouterr().err


def test_show_a_real_sample(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Series("office", np.ones((9, 2), np.float32), 1.0, ("temperature", "relative humidity"), ("°C", "%"))
    monkeypatch.setattr(recordings, "read", lambda name, progress: [whole] if name == "office" else [])
    assert main(["signal", "show", "humidity", "--json"]) == 0
    shown = capsys.readouterr()
    (one,) = json.loads(shown.out)["signals"]
    assert [channel["name"] for channel in one["channels"]] == ["relative humidity"]
    assert "a real recording, CC-BY-4.0, out of the package river 0.26.1: Temperature, humidity, light" in shown.err
    assert main(["signal", "modalities", "humidity"]) == 0
    assert "recording office: genmote signal show humidity" in capsys.readouterr().out


def test_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sound(tmp_path / "a.wav")
    for words, message in (
        (["absent"], "absent: cannot be read (No such file or directory): wanted a recording"),
        ([str(path), "--reader", "wax"], "no reader is called 'wax', did you mean wav?"),
        ([str(path), "--number", "0"], "number=0: use 1 or more"),
        ([str(path), "--number", "2"], "has 1 signals"),
        ([str(path), "--svg", str(tmp_path)], "is a folder: name a file in it with --svg"),
    ):
        assert main(["signal", "show", *words]) == 2
        assert message in capsys.readouterr().err


def test_compress_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sound(tmp_path / "a.wav", 5000)
    assert main(["signal", "compress", str(path), "-o", str(tmp_path / "a.gmsc"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["samples"] == 5000 and told["size_bytes"] == (tmp_path / "a.gmsc").stat().st_size < 1000
    assert main(["signal", "decompress", str(tmp_path / "a.gmsc"), "-o", str(tmp_path / "b.wav")]) == 0
    assert (tmp_path / "b.wav").read_bytes() == path.read_bytes()
    assert "b.wav (10.0 kB, 5000 samples)" in capsys.readouterr().out
    assert main(["signal", "decompress", str(tmp_path / "a.gmsc"), "-o", str(tmp_path / "b.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == [5000]


def test_compress_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, made = sound(tmp_path / "a.wav"), str(tmp_path / "a.gmsc")
    for verb, words, message in (
        ("compress", [str(path), "-o", made, "--max-error", "-1"], "max_error=-1.0: use 0 (exact) or more"),
        ("compress", [str(path), "-o", made, "--threads", "0"], "threads=0: use 1 or more"),
        ("compress", [str(path), "-o", str(path)], "is the recording itself: name another file"),
        ("compress", [str(path), "-o", str(tmp_path / "l.zip")], "l.zip: wanted a name that ends in .gmsc"),
        ("compress", [str(tmp_path / "absent"), "-o", made], "cannot be read (No such file or directory)"),
        ("decompress", [str(path), "-o", str(tmp_path / "b.txt")], "wanted a name that ends in .csv or .wav"),
        ("decompress", [str(path), "-o", str(tmp_path / "b.csv")], "is no compressed signal"),
        ("decompress", [str(path), "-o", str(path)], "is the compressed signal itself: name another file"),
    ):
        assert main(["signal", verb, *words]) == 2
        assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_compress_with_a_model_that_practised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from genmote.generator.file import Form
    from genmote.generator.layout import Layout
    from genmote.generator.train import first_model
    from genmote.signals import coding, reading

    draw = np.random.default_rng(2)
    paths = [tmp_path / f"{name}.wav" for name in "abc"]
    for path in paths:
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, 8000, 0, "NONE", ""))
            swing = 300 * np.sin(np.arange(700) / draw.uniform(5, 9)) + draw.normal(0, 9, 700)
            out.writeframes(swing.astype("<i2").tobytes())
    codec = coding.fit("bins", reading.read(paths[0]), bins=16)
    first_model(tmp_path / "m.gguf", Form(32, 1, 32), Layout(codec, False, 64), "m", 1)
    bare, small, back = tmp_path / "m.gguf", tmp_path / "p.gguf", tmp_path / "back.wav"
    words = ["signal", "practise", str(paths[0]), str(paths[1]), "--model", str(bare)]
    assert main([*words, "-o", str(small), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["channels"] == list(codec.head.channels)
    packed = tmp_path / "c.gmsc"
    assert main(["signal", "compress", str(paths[2]), "-o", str(packed), "--model", str(small), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(small)
    assert main(["signal", "decompress", str(packed), "-o", str(back)]) == 2
    assert "was compressed with a model: give the file 'p.gguf' with --model" in capsys.readouterr().err
    assert main(["signal", "decompress", str(packed), "-o", str(back), "--model", str(bare)]) == 2
    assert "'m.gguf' has " in capsys.readouterr().err
    assert main(["signal", "decompress", str(packed), "-o", str(back), "--model", str(small)]) == 0
    assert back.read_bytes() == paths[2].read_bytes()
    for bad, told in (
        ([*words, "-o", str(bare)], "is the model itself; name another file"),
        ([*words, "-o", str(tmp_path / "p.txt")], "wanted a name that ends in .gguf"),
        (["signal", "compress", str(paths[2]), "-o", str(packed), "--model", str(paths[0])], "GGUF"),
        (["signal", "decompress", str(packed), "-o", str(back), "--threads", "0"], "threads=0: use 1 or more"),
    ):
        capsys.readouterr()
        assert main(bad) == 2
        assert told in capsys.readouterr().err


def test_a_terminal_obeys_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"t\x1b[31m": n, "b": 1}) + "\n" for n in range(5)))
    assert main(["signal", "show", str(path)]) == 0
    told = capsys.readouterr()
    assert "t?[31m" in told.out and "\x1b" not in told.out + told.err and "\nb " in told.out
    assert main(["signal", "show", str(path), "--json"]) == 0  # which has it as JSON writes it
    assert json.loads(capsys.readouterr().out)["signals"][0]["channels"][0]["name"] == "t\x1b[31m"
    assert main(["signal", "show", str(tmp_path / "\x1b[2J")]) == 2
    assert "\x1b" not in capsys.readouterr().err
