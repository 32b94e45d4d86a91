"""A generator that adapts itself: examples out of recordings, a change of them seen and learnt, the adapter in use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from genmote.cli import main
from genmote.errors import ModelFileError, SpecError
from genmote.generator import adapt, calibrate
from genmote.generator.model import Generator
from genmote.models.write_lora import merge
from genmote.signals.header import END
from genmote.signals.kinds import Series
from genmote.tune.examples import Examples
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer
from tests.generator.conftest import wave

CONTEXT = 64


def together(model: Generator, signals: list[Series], context: int = CONTEXT) -> Examples:
    pieces = adapt.stretches(model, signals, context)
    return Examples.of([adapt.example(model.layout, rows) for rows in pieces], np.int32)


def test_examples_are_the_recordings_in_their_order(model: Generator) -> None:
    signals = [model.fitted(wave(90 + n, 100)) for n in range(2)]
    pieces = adapt.stretches(model, signals, CONTEXT)
    head = len(model.layout.header(signals[0]))
    assert all(len(rows) <= CONTEXT for rows in pieces)
    said = np.concatenate([rows.tokens[head:] for rows in pieces])
    whole = np.concatenate([model.layout.rows(signal).tokens for signal in signals])
    np.testing.assert_array_equal(said[said != END], whole)
    tokens, learnt = adapt.example(model.layout, pieces[0])
    np.testing.assert_array_equal(tokens[:, 0], pieces[0].tokens)
    np.testing.assert_array_equal(tokens[:-1, 1:], pieces[0].asks[1:])
    assert not learnt[:head].any() and learnt[head:].all() and (tokens[-1, 1:] == -1).all()


def test_a_loss_is_the_surprise_that_the_generator_tells(model: Generator) -> None:
    """Against `calibrate.nats`, which runs the decoder plainly."""
    some = together(model, [model.fitted(wave(91, 120))])
    trainer = Trainer(model.decoder, Tuning(context=CONTEXT, rows=3 * CONTEXT))
    for n in range(len(some)):
        plain = calibrate.nats(model, some[n][0][None])
        assert trainer.judge(some.take([n])) == pytest.approx(plain, rel=1e-4)


def test_a_step_goes_down_the_gradient(model: Generator) -> None:
    some = together(model, [model.fitted(wave(92, 200, "fast"))])
    trainer = Trainer(model.decoder, Tuning(context=CONTEXT, rows=4 * CONTEXT, steps=20, rate=4e-3, rank=4))
    before = trainer.judge(some)
    for step in range(1, 21):
        trainer.step(some, [n % len(some) for n in range(4 * step, 4 * step + 4)], step)
    assert trainer.judge(some) < before


def test_a_context_without_room_is_refused(model: Generator) -> None:
    with pytest.raises(SpecError, match=r"context=12: a stretch has \d+ tokens of a header; use \d+ or more"):
        adapt.stretches(model, [model.fitted(wave(1))], 12)


def odd(seed: int, steps: int) -> Series:
    """Another wearer: the same channels, in steps."""
    values = np.repeat(np.random.default_rng(seed).uniform(-1, 1, (steps // 5, 2)), 5, axis=0)
    return Series(f"odd-{seed}", values.astype(np.float32), 20.0, ("a", "b"), ("mV", "mV"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the old wearer's recordings, and then the new one's."""
    folder = tmp_path_factory.mktemp("recordings")
    known, strange = [wave(200 + n, 700, "slow") for n in range(4)], [odd(n, 700) for n in range(4)]
    for n, one in enumerate([*known, *strange]):
        rows = "\n".join(f"{t / 20:.2f},{a:.4f},{b:.4f}" for t, (a, b) in enumerate(one.values))
        (folder / f"{n}.csv").write_text(f"time (s),a (mV),b (mV)\n{rows}\n")
    return folder


def test_the_whole_way(trained: Path, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, picture, record = tmp_path / "state", tmp_path / "p.svg", tmp_path / "r.jsonl"
    words = ["adapt", str(trained), str(recordings), "--state", str(state), "--threads", "1", "--context", "64"]
    words += ["--enough", "24", "--recent", "60", "--steps", "30", "--guard-loss", "0.4", "--json"]
    assert main([*words, "--plot", str(picture), "--record", str(record)]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["changes"] >= 1 and result["accepted"] >= 1 and "a new adapter is taken; " in said.err
    changed = result["examples"] // 2
    first = next(event for event in result["events"] if event["what"] == "drift")
    assert 0 <= first["example"] - changed <= 24 and abs(first["since"] - changed) <= 8
    assert picture.read_text().count("<circle") == result["accepted"] and "accepted at" in picture.read_text()
    assert json.loads(record.read_text())["values"]["training_tokens"] == result["training_tokens"] > 0

    adapter = result["adapter"]
    strange = str(recordings / "7.csv")
    scores = {}
    for name, more in (("base", []), ("adapted", ["--adapter", adapter])):
        table = tmp_path / f"{name}.csv"
        given = ["signal", "detect", str(trained), strange, "--threshold", "9", "-o", str(table), *more]
        assert main([*given, "--threads", "1"]) == 0
        scores[name] = np.loadtxt(table, delimiter=",", skiprows=1, usecols=3).mean()
    assert scores["adapted"] < scores["base"]
    merge(trained, adapter, tmp_path / "whole.gguf", type="F32")
    own = [Generator.load(trained, threads=1, adapter=adapter), Generator.load(tmp_path / "whole.gguf", threads=1)]
    some = together(own[0], [own[0].fitted(odd(9, 120))])
    one, other = (calibrate.nats(each, some[0][0][None]) for each in own)
    assert one == pytest.approx(other, rel=0.02)

    assert main([*words]) == 0, "it goes on after the last stretch"
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["examples"] == 0 and again["adapter"] == adapter
    assert main([*words[:2], strange, *words[3:]]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] > 0, "another recording is read from its beginning"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-"], "is a generator of signals: give a recording, or a folder of them, not -"),
        (["no-such.csv"], "no-such.csv"),
    ],
)
def test_the_verb_tells_faults(
    words: list[str], told: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["adapt", str(trained), *words, "--state", str(tmp_path / "s")]) == 2
    assert told in capsys.readouterr().err


def test_an_adapter_of_another_shape_is_refused(trained: Path, of_rows: Generator, tmp_path: Path) -> None:
    from genmote.models.write_lora import write_lora

    path = tmp_path / "other.gguf"
    numbers = {"blk.0.attn_q.weight.lora_a": np.ones((2, 64), np.float32)}
    numbers["blk.0.attn_q.weight.lora_b"] = np.ones((96, 2), np.float32)
    write_lora(path, of_rows.decoder.config.architecture, numbers, 4.0)
    with pytest.raises(ModelFileError, match="do not fit the model's .*; use the adapter's own base"):
        Generator.load(trained, adapter=path)
    source = tmp_path / "one.csv"
    source.write_text("time (s),a (mV),b (mV)\n" + "\n".join(f"{n / 20:.2f},0.1,0.2" for n in range(40)) + "\n")
    with pytest.raises(ModelFileError, match="do not fit the model's"):
        adapt.adapt(trained, [source], tmp_path / "state", Tuning(context=64), adapter=path, threads=1)
    assert not (tmp_path / "state" / "state.json").exists()
