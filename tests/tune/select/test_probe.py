"""What a model measures of examples, against plain sums over its logits; the choice on the way of a whole training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.cli import main
from genmote.errors import SpecError, TrainingError
from genmote.models.decoder import Decoder
from genmote.ops.protocol import Span
from genmote.runtime.engine import Engine
from genmote.tune import examples
from genmote.tune.batches import passes
from genmote.tune.choosing import chosen
from genmote.tune.examples import Examples
from genmote.tune.run import tune
from genmote.tune.select._base import UNMEASURED, Reading, choose, names
from genmote.tune.select._probe import DecoderProbe, Pilot, _Sketch
from genmote.tune.settings import Tuning
from genmote.tune.trainer import Trainer

PILOT = Pilot(steps=6, stages=2, held_out=8, numbers=256)
TUNING = Tuning(context=32, rank=2, batch=4, rate=1e-2)


def drawn(count: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(count):
        tokens = rng.integers(3, 250, rng.integers(4, 14))
        parts.append((tokens, np.arange(len(tokens)) >= 2))
    return Examples.of(parts, np.uint16)


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Engine:
    return Engine.load(tiny, threads=1)


def logits_of(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    logits = decoder.forward(tokens, [Span(decoder.cache(len(tokens)), 0, len(tokens))], logits="all")
    assert logits is not None
    return logits.astype(np.float64)


def test_a_reading_against_plain_sums(engine: Engine) -> None:
    some = drawn(9)
    of = np.array([7, 2, 5])
    reading = DecoderProbe(engine.decoder, some, drawn(4, 1), TUNING, PILOT).read(of)
    for n, index in enumerate(of):
        tokens, learnt = some[int(index)]
        logits = logits_of(engine.decoder, tokens[:-1].astype(np.int32))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        at = np.flatnonzero(learnt[1:])
        came = np.eye(logits.shape[1])[tokens[1:][at]]
        assert reading.losses[n] == pytest.approx(-np.log(probabilities[at, tokens[1:][at]]).mean(), rel=1e-5)
        assert reading.errors[n] == pytest.approx(np.linalg.norm(probabilities[at] - came, axis=1).mean(), rel=1e-5)
        assert reading.right[n] == all(probabilities[at].argmax(axis=1) == tokens[1:][at])
        rows = len(tokens) - 1
        hidden = engine.decoder.hidden(tokens[:-1].astype(np.int32), [Span(engine.decoder.cache(rows), 0, rows)])
        assert np.allclose(reading.hidden[n], hidden.mean(axis=0), atol=1e-5)
        kept = at[np.linspace(0, len(at) - 1, min(len(at), 4)).round().astype(int)]
        states = hidden[kept] / np.linalg.norm(hidden[kept], axis=1, keepdims=True)
        assert np.allclose(reading.states[n, : len(kept)], states, atol=1e-3)
        assert reading.said[n].tolist() == [*tokens[1:][kept].tolist(), *[-1] * (4 - len(kept))]


def test_a_pilot_learns_and_leaves_the_model_as_it_is(engine: Engine) -> None:
    some = drawn(12)
    of = np.arange(12)
    probe = DecoderProbe(engine.decoder, some, drawn(4, 1), TUNING, PILOT)
    readings = probe.follow(of)
    assert len(readings) == 3
    assert readings[0].losses.mean() > readings[1].losses.mean() > readings[2].losses.mean()
    assert np.array_equal(probe.read(of).losses, readings[0].losses)
    again = DecoderProbe(engine.decoder, some, drawn(4, 1), TUNING, PILOT).follow(of)
    assert all(np.array_equal(a.losses, b.losses) for a, b in zip(readings, again, strict=True))


def test_gradients_against_the_trainer_s_own(engine: Engine) -> None:
    """A sketch keeps the angles of the gradients that a training would take, of the last layers."""
    some, held_out = drawn(6), drawn(3, 1)
    probe = DecoderProbe(engine.decoder, some, held_out, TUNING, Pilot(steps=6, numbers=1 << 14, held_out=8))
    here, there = probe.gradients(np.arange(6))
    assert here.shape == (6, 1 << 14) and there.shape == (3, 1 << 14)
    trainer = probe._piloted
    assert isinstance(trainer, Trainer)
    whole = []
    for n in range(6):
        found: dict[str, np.ndarray] = {}
        batch = next(passes(some, [n], 64, 1.0))
        trainer.backward.step(batch, lambda name, g, found=found: found.__setitem__(name, g.reshape(-1).astype(float)))
        whole.append(np.concatenate([found[name] for name in sorted(found)]))
    like = here @ here.T / np.outer(*[np.linalg.norm(here, axis=1)] * 2)
    plain = np.array(whole) @ np.array(whole).T / np.outer(*[np.linalg.norm(whole, axis=1)] * 2)
    assert np.abs(like - plain).max() < 0.1


def test_a_sketch_keeps_angles() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40000)).astype(np.float32)
    c = 0.6 * a + 0.8 * b
    sketch, rows = _Sketch("x", 40000, 2048), np.zeros((3, 2048))
    for row, gradient in zip(rows, (a, b, c), strict=True):
        sketch.add(row, gradient)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows[0] @ rows[1] == pytest.approx(0, abs=0.08)
    assert rows[0] @ rows[2] == pytest.approx(0.6, abs=0.08)


@pytest.mark.parametrize("way", names())
def test_every_way_with_a_real_model(engine: Engine, way: str) -> None:
    some = drawn(24)
    told: list[str] = []
    progress: list[str] = []

    def measured() -> DecoderProbe:
        return DecoderProbe(
            engine.decoder, some, drawn(6, 1), TUNING, PILOT, lambda what, done, total: progress.append(what)
        )

    first = choose(some, 6, way, seed=2, probe=measured())
    second = choose(some, 6, way, seed=2, probe=measured())
    assert len(set(first.indices.tolist())) == 6 and np.array_equal(first.indices, second.indices)
    assert told == [] and bool(progress) == (way not in UNMEASURED)


def test_choosing_for_a_training(engine: Engine) -> None:
    some, told = drawn(40), list[str]()
    tuning = Tuning(context=32, rank=2, select="coreset", keep=0.25)
    kept = chosen(engine.decoder, some, tuning, told.append, lambda *at: None)
    assert len(kept) == 10 and told[-1].startswith("10 of 40 examples are chosen by coreset in ")
    rows = {some[n][0].tobytes() for n in range(40)}
    assert all(kept[n][0].tobytes() in rows for n in range(10))
    assert len(chosen(engine.decoder, some, Tuning(select="random", keep=1), told.append, lambda *at: None)) == 40
    with pytest.raises(
        SpecError, match="keep=40: 40 of 40 examples, but gradients holds out 4 to compare to: keep few"
    ):
        chosen(engine.decoder, some, Tuning(select="gradients", keep=40), told.append, lambda *at: None)
    with pytest.raises(
        SpecError, match="select=auto reads the examples with all weights in memory, weights=disk keeps"
    ):
        chosen(engine.decoder, some, Tuning(select="auto", weights="disk"), told.append, lambda *at: None)
    with pytest.raises(SpecError, match="keep=0.5: 1 of 1 examples, but gradients holds out 0 to compare to"):
        chosen(engine.decoder, some.take([0]), Tuning(select="gradients", keep=0.5), told.append, lambda *at: None)


def test_a_pilot_has_its_own_rate_whatever_the_method(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of passes forward alone, 0.02, is a part of the residual stream's length: no rate for a way back."""
    rates: list[float] = []
    step = Trainer.step

    def seen(trainer: Trainer, *args: Any) -> float:
        rates.append(trainer.tuning.highest_rate)
        return step(trainer, *args)

    monkeypatch.setattr(Trainer, "step", seen)
    for method, rate, wanted in (
        ("forward", None, 5e-4),
        ("forward", 0.1, 5e-4),
        ("full", 1e-5, 5e-4),
        ("backward", 0.1, 0.1),
    ):
        tuning = Tuning(context=32, rank=2, select="curves", keep=0.5, method=method, rate=rate)
        chosen(engine.decoder, drawn(12), tuning, lambda line: None, lambda *at: None)
        assert set(rates) == {wanted}
        rates.clear()


def test_the_ways_see_the_adapter_that_a_training_goes_on_from(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, adapter = tmp_path / "data.jsonl", tmp_path / "a.gguf"
    rows = [{"prompt": f"{n} =", "completion": f" {n % 3}"} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tune(tiny, data, adapter, replace(TUNING, steps=4), threads=1)
    read: list[np.ndarray] = []
    measured = DecoderProbe.read

    def seen(probe: DecoderProbe, of: np.ndarray) -> Reading:
        read.append((found := measured(probe, of)).losses)
        return found

    monkeypatch.setattr(DecoderProbe, "read", seen)
    on = replace(TUNING, base=adapter, select="coreset", keep=0.5)
    with Engine.load(tiny, threads=1) as engine, Engine.load(tiny, threads=1, adapter=adapter) as adapted:
        some = examples.read(data, engine, 32, [])
        chosen(engine.decoder, some, on, lambda line: None, lambda *at: None)
        whole = measured(DecoderProbe(adapted.decoder, some, some.take([]), TUNING), np.arange(30)).losses
        plain = measured(DecoderProbe(engine.decoder, some, some.take([]), TUNING), np.arange(30)).losses
    assert np.allclose(read[0], whole, rtol=1e-5) and not np.allclose(read[0], plain, rtol=1e-2)


def test_a_run_that_was_killed_goes_on_with_the_choice_that_it_made(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output, told = tmp_path / "data.jsonl", tmp_path / "a.gguf", list[str]()
    rows = [{"prompt": f"{n} =", "completion": f" {n % 3}"} for n in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuning = replace(TUNING, select="coreset", keep=0.5, steps=4, judge_every=2)
    whole = tune(tiny, data, tmp_path / "whole.gguf", tuning, threads=1)
    times: list[int] = []
    step, read = Trainer.step, DecoderProbe.read

    def killed(trainer: Trainer, *args: Any) -> float:
        if args[-1] == 3:
            raise KeyboardInterrupt
        return step(trainer, *args)

    def counted(probe: DecoderProbe, of: np.ndarray) -> Reading:
        times.append(len(of))
        return read(probe, of)

    monkeypatch.setattr(DecoderProbe, "read", counted)
    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(tiny, data, output, tuning, threads=1)
    monkeypatch.setattr(Trainer, "step", step)
    kept = tmp_path / "a.gguf.work" / "chosen.json"
    made = tune(tiny, data, output, tuning, threads=1, tell=told.append)
    assert len(times) == 1 and "14 of 27 examples were chosen by coreset before" in told
    assert "goes on after step 2 of 4" in told and not kept.exists()
    assert output.read_bytes()[-5000:] == whole.path.read_bytes()[-5000:] and made.after == whole.after

    def choice(run: str) -> None:
        with Engine.load(tiny, threads=1) as engine:
            some = examples.read(data, engine, 32, [])
            chosen(engine.decoder, some, tuning, told.append, lambda *at: None, kept=(kept, run))

    choice("one")
    for spoil in (lambda: None, lambda: kept.write_text("{"), lambda: kept.write_text("[]")):
        times.clear()
        spoil()
        choice("two")
        assert len(times) == 1  # another run's, or one that cannot be read, is made again
        choice("two")
        assert len(times) == 1
    shutil.rmtree(kept.parent)
    kept.parent.write_text("no folder")
    with pytest.raises(
        TrainingError, match=r"chosen.json cannot be written \(.*\): make room, or name another --output"
    ):
        choice("one")


def test_the_verb_chooses(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    words = "ab cd ef gh".split()
    rows = [{"prompt": f"{words[n % 4]} {n} =", "completion": " " + words[n % 4]} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tune", str(tiny), str(path), "-o", str(tmp_path / "a.gguf"), "--steps", "4", "--rank", "2"]
    command += ["--context", "32", "--threads", "1", "--json"]
    assert main([*command, "--select", "auto:of=40", "--keep", "20%"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["card"]["examples"] == 11 and result["card"]["settings"]["select"] == "auto:of=40"
    assert any(
        "right of 40 examples after a trial with 10 of them, by way: random " in line for line in result["notes"]
    )
    assert any(line.startswith("11 of 54 examples are chosen by auto:of=40 in ") for line in result["notes"])
    assert main([*command, "--select", "best"]) == 2
    assert "no way to choose examples is called 'best'" in capsys.readouterr().err
    assert main([*command, "--select", "random", "--keep", "1.5"]) == 2
    assert "keep=1.5: wanted a share such as 10%, or a whole number of examples" in capsys.readouterr().err
