"""Generators made smaller by what they learn from recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.cli import main
from genmote.cli.signal._series import fitting
from genmote.compress import Recipe, calibration, compress
from genmote.errors import SignalError, SpecError
from genmote.generator import calibrate, material
from genmote.generator.layout import ASKS
from genmote.generator.model import Generator
from genmote.generator.windows import Windows, recordings
from genmote.ops.protocol import Span
from genmote.signals.kinds import Series
from tests.generator.conftest import doors, wave

TYPE = "GM2_32"


def test_rows_are_embedded_as_sums(model: Generator) -> None:
    """Ids (N, A) are the sum of their embeddings, -1 none; and one that there is not is told."""
    decoder = model.decoder
    table = decoder.ops.numpy(decoder.embed(np.arange(decoder.config.vocab_size)))
    ids = np.array([[3, -1, 7], [9, 2, -1], [4, -1, -1]])
    wanted = np.stack([table[3] + table[7], table[9] + table[2], table[4]])
    assert np.array_equal(decoder.ops.numpy(decoder.embed(ids)), wanted)
    for wrong in ([[-1, 2]], [[1, decoder.config.vocab_size]], [[1, -2]]):
        with pytest.raises(SpecError, match="the vocabulary has"):
            decoder.embed(np.array(wrong))


def test_stretches_are_what_the_model_reads(model: Generator) -> None:
    """Two halves of no stretch in common, each a beginning of one that training would see; judged as training does."""
    found = [model.fitted(wave(seed)) for seed in (101, 102, 103)]
    learnt, others = calibrate.stretches(model, found, 4, 512)
    rows = learnt.shape[1]
    assert learnt.shape[1:] == others.shape[1:] == (rows, 1 + ASKS) and len(learnt) == 4
    every = Windows(model.layout, recordings(model.layout, found, [])).fixed(1 << 30)
    assert rows == sorted(len(stretch) for stretch in every)[len(every) // 2] - 1  # few are shorter, and left out
    seen = {stretch.tokens[:rows].tobytes() for stretch in every}
    both = [part[:, 0].tobytes() for part in (*learnt, *others)]
    assert len(set(both)) == len(both) and set(both) <= seen
    window = learnt[0]
    x = model.decoder.embed(window)
    logits = model.decoder.forward(x, [Span(model.decoder.cache(rows), 0, rows)], logits="all")
    assert logits is not None
    shares = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    head = model.codec.head.size
    plain = [-shares[n, token] for n, token in enumerate(window[1:, 0].tolist()) if token >= head]
    assert calibrate.nats(model, learnt[:1]) == pytest.approx(float(np.mean(plain)), abs=1e-5)


def test_what_cannot_be_learnt_from(model: Generator, tmp_path: Path) -> None:
    short = [model.fitted(wave(1, steps=3))]
    with pytest.raises(SignalError, match="wanted 16 or more to learn from"):
        calibrate.stretches(model, short, 4, 512)
    other = tmp_path / "other.csv"
    other.write_text("time,x\n" + "".join(f"{n / 20},{n % 7}\n" for n in range(50)))
    with pytest.raises(SignalError, match="knows no channel of these recordings"):
        calibrate.read(model, [other], [])


def test_channels_that_the_model_does_not_know_are_left_out(model: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = wave(5)
    more = np.column_stack([plain.values, plain.values[:, :1]])
    wide = replace(plain, values=more, channels=("a", "b", "c"), units=("mV",) * 3)
    monkeypatch.setattr(material, "read", lambda *_, **__: [wide])
    notes: list[str] = []
    (found,) = calibrate.read(model, [Path("wide")], notes)
    assert isinstance(found, Series) and found.channels == ("a", "b")
    assert np.array_equal(found.values, plain.values) and "channels that the model does not know" in notes[0]


def leads(series: Series) -> Series:
    """Both channels with one name, as two leads of an amplifier may have, and one that no model knows before them."""
    values = np.column_stack([series.values[:, 0] * 9, series.values])
    return replace(series, values=values, channels=("c", "a", "a"), units=("V", "mV", "mV"))


def test_channels_of_one_name_stay_apart(
    model: Generator, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where one of that name has a unit that the model does not know."""
    plain = wave(6)
    two = leads(plain)
    units = replace(two, channels=("a", "a", "b"), units=("V", "mV", "mV"))
    monkeypatch.setattr(material, "read", lambda *_, **__: [two, units])
    found = calibrate.read(model, [tmp_path], [])
    assert [one.channels for one in found if isinstance(one, Series)] == [("a", "a"), ("a", "b")]
    assert all(isinstance(one, Series) and np.array_equal(one.values, plain.values) for one in found)
    fitted = fitting(model, two)
    assert isinstance(fitted, Series) and np.array_equal(fitted.values, plain.values)


def test_recordings_of_another_kind_are_left_out(
    model: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(material, "read", lambda *_, **__: [doors(1), wave(5)])
    notes: list[str] = []
    assert [one.name for one in calibrate.read(model, [tmp_path], notes)] == [wave(5).name]
    assert notes == ["door-1: is of records, the model of series: left out"]


def test_recordings_help(model: Generator, trained: Path, tmp_path: Path) -> None:
    """What learns from recordings loses less on others than what only rounds."""
    learnt, others = calibrate.stretches(model, [model.fitted(wave(seed)) for seed in range(50, 62)], 16, 512)
    tokens = tmp_path / "windows.npy"
    np.save(tokens, learnt)
    before, lost = calibrate.nats(model, others), {}
    for method in ("rtn", "gptq"):
        recipe = Recipe.of({"calibration": {"tokens": tokens}, "step": [{"use": method, "type": TYPE}]})
        made = compress(trained, tmp_path / f"{method}.gguf", recipe)
        assert made.size_bytes < 0.6 * made.source_bytes
        lost[method] = calibrate.nats(Generator.load(made.path, threads=1), others) - before
    assert lost["gptq"] < 0.7 * lost["rtn"], lost


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (np.zeros((2, 3)), "wanted windows of token ids"),
        (np.zeros(4, np.int32), "wanted windows"),
        (np.full((2, 32), 1 << 40), "1099511627776 is no token of the model, whose ids are 0 to "),
        (np.full((2, 32), -1), "-1 is no token of the model"),
        (np.full((2, 32, 2), -2), "-2 is no token of the model"),
        (np.zeros((1, 1 << 14), np.int32), "windows of 16384 tokens, the model's context is "),
        ("no windows", "wanted"),
        ("", "wanted"),
        ("cut", "wanted"),
        ("archive", "wanted"),
    ],
)
def test_windows_that_are_none(held: object, told: str, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "windows.npy"
    if not isinstance(held, str):
        np.save(path, held)
    elif held == "cut":
        np.save(path, np.zeros((2, 32), np.int32))
        path.write_bytes(path.read_bytes()[:-5])
    elif held == "archive":
        np.savez(path.with_suffix(".npz"), a=np.zeros((2, 32), np.int32))
        path.with_suffix(".npz").rename(path)
    else:
        path.write_text(held)
    recipe = Recipe.of({"calibration": {"tokens": path}, "step": [{"use": "gptq"}]})
    with pytest.raises(SpecError, match=told):
        compress(trained, tmp_path / "out.gguf", recipe)
    assert not [each for each in tmp_path.iterdir() if each.name.startswith("out.gguf")]


def test_windows_that_are_not_there_or_go_with_text(trained: Path, tmp_path: Path) -> None:
    recipe = Recipe.of({"calibration": {"tokens": tmp_path / "none.npy"}, "step": [{"use": "gptq"}]})
    with pytest.raises(SpecError, match="cannot be read"):
        compress(trained, tmp_path / "out.gguf", recipe)
    with pytest.raises(SpecError, match="both say what is learned from"):
        Recipe.of({"calibration": {"tokens": "a.npy", "text": "b.txt"}, "step": [{"use": "gptq"}]})
    np.save(tmp_path / "some.npy", np.zeros((1, 32), np.int32))
    text = Recipe.of({"calibration": {"tokens": tmp_path / "some.npy"}, "step": [{"use": "distill"}]})
    with pytest.raises(SpecError, match="distill learns from text, not from signals"):
        compress(trained, tmp_path / "out.gguf", text)


def test_ids_of_windows() -> None:
    assert calibration.ids(np.zeros((2, 3), np.int32)).shape == (2, 3)
    assert calibration.ids(np.arange(12, dtype=np.int32).reshape(1, 3, 4)).tolist() == [[0, 4, 8]]


def test_on_the_command_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = tmp_path / "wave.csv"
    lines = [f"{n / 20},{a:.4f},{b:.4f}" for n, (a, b) in enumerate(wave(70, 1200).values.tolist())]
    recording.write_text("time [s],a [mV],b [mV]\n" + "\n".join(lines) + "\n")
    words = ["compress", str(trained), "-o", str(tmp_path / "small.gguf"), "--type", "Q4_0", "--json"]
    assert main([*words, "--signals", str(recording)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["judged_windows"] >= 1 and abs(told["nats"] - told["nats_before"]) < 0.2
    assert Generator.load(tmp_path / "small.gguf").forecast(wave(71), 5).samples.shape[1:] == (5, 2)
    assert main(words) == 2
    assert "name recordings to learn from with --signals" in capsys.readouterr().err
    plain = [word for word in words if word not in ("--type", "Q4_0")]
    text = tmp_path / "text.txt"
    text.write_text("of no use")
    for flag, value in (
        ("--target", "1MB"),
        ("--report", str(tmp_path / "report.html")),
        ("--text", str(text)),
        ("--text-out", str(tmp_path / "written.txt")),
    ):
        for method in ((), ("--method", "rtn")):
            assert main([*plain, *method, flag, value]) == 2
            line = capsys.readouterr().err
            assert f"is a generator of signals, which reads no text, as {flag} would have it: leave that out" in line
            assert len(line.splitlines()) == 1
    for given in ([], ["--signals", str(recording)]):  # nobody is told first to name recordings
        assert main([*plain, *given, "--method", "distill"]) == 2
        assert "distill learns from text, not from signals" in capsys.readouterr().err
    assert main([*words, "--signals", str(recording), "--target", "1MB"]) == 2
    assert "target: is about text" in capsys.readouterr().err
    recording.write_text(recording.read_text().replace("a [mV],b", "p [mV],q"))
    assert main([*words, "--signals", str(recording)]) == 2
    assert "knows no channel of these recordings" in capsys.readouterr().err
    assert main([*words, "--signals", str(recording), "--names", "a", "b"]) == 0
    assert json.loads(capsys.readouterr().out)["nats"] == told["nats"]
    assert main([*words, "--names", "a", "b"]) == 2
    assert "are said of recordings: name them with --signals" in capsys.readouterr().err
    recording.write_text(recording.read_text().replace("p [mV],q", "a [mV],b"))
    before = sorted(tmp_path.iterdir())
    assert main([*words, "--signals", str(recording), "--method", "round"]) == 2
    assert "round learns from text, not from signals" in capsys.readouterr().err
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[step]]\nuse = "gptq"\ntypes = ["*none*=Q4_0"]\n')
    assert main([*plain, "--signals", str(recording), "--recipe", str(recipe)]) == 2
    assert "types: no matrix fits *none*" in capsys.readouterr().err
    recipe.unlink()
    assert sorted(tmp_path.iterdir()) == before  # no work folder either
    assert main([*words, "--signals", str(recording), "--samples", "1000"]) == 0
    assert json.loads(capsys.readouterr().out)["judged_windows"] >= 1
