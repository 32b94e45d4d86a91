"""A describing model as it runs, and the TOML that names its parts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from genmote import spec
from genmote.describe import file as parts_of
from genmote.describe import prompt
from genmote.describe.file import Part, Task
from genmote.describe.model import Describer, hidden
from genmote.errors import ModelFileError, ModelNameError, SpecError
from genmote.models import encoder
from genmote.models.gguf import ModelFile
from genmote.models.patches import BINS
from genmote.runtime.prompt import Rows
from genmote.runtime.sample import token_logprobs
from genmote.signals.kinds import Field, Records
from tests.describe.tiny import TASK, form, model, wave


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("describe")


@pytest.fixture(scope="module")
def one(folder: Path) -> Describer:
    return Describer.load(model(folder), threads=1)


def test_embeddings_stand_between_the_texts(one: Describer) -> None:
    series = [wave(), wave(1, 60)]
    found = one.prompt(series, "Which is livelier?")
    texts = ["".join(one.engine.tokenizer.decode(part)) for part in found if isinstance(part, list)]
    assert texts[0].endswith("Signal 1: level, speed in m, 40 Hz, 10 s\n") and texts[-1].endswith("\nAnswer:")
    assert np.array_equal(found[1], one.encoder.embed(series[0])) and len(found[1]) == 7
    assert np.array_equal(found[3], one.encoder.embed(series[1])) and len(found[3]) == 1
    begins = one.engine.begin_token
    assert begins is None or (found[0][0] == begins and begins not in found[2])


def test_the_answer_streams_and_depends_on_the_signal(one: Describer) -> None:
    stream = one.stream([wave()], "What is it?", max_tokens=12, ignore_eos=True)
    pieces = [piece.text for piece in stream]
    assert len(pieces) == 12 and "".join(pieces) == stream.result.text
    options = {"max_tokens": 12, "ignore_eos": True}
    assert one.ask([wave()], "What is it?", **options) == stream.result.text.strip()
    assert one.ask([wave(7, 300, ("x",))], "What is it?", **options) != stream.result.text.strip()


def test_numpy_says_the_same(folder: Path, one: Describer) -> None:
    with Describer.load(folder / "model.toml", ops="numpy") as other:
        said = other.ask([wave()], "What is it?", max_tokens=6, ignore_eos=True)
        assert said == one.ask([wave()], "What is it?", max_tokens=6, ignore_eos=True)
        assert np.array_equal(other.label_nats([wave()], TASK), one.label_nats([wave()], TASK))


def test_likelihoods_are_those_of_the_tokens_one_by_one(one: Describer) -> None:
    segments = one.prompt([wave()], TASK.question)
    answers = [prompt.answer(one.engine.tokenizer, label) for label in TASK.labels]
    found = one.likelihoods(segments, answers)
    for nats, tokens in zip(found, answers, strict=True):
        session, total = one.engine.session(), 0.0
        logits = session.prefill(one.engine.rows(segments))
        for token in tokens:
            total += float(token_logprobs(logits[None], np.array([token]))[0])
            logits = session.step(token)
        assert nats == pytest.approx(total, abs=1e-9)


def test_labels_have_probabilities(one: Describer) -> None:
    found = one.classify([wave()], TASK, confidence=0.0)
    assert sum(found.probabilities.values()) == pytest.approx(1) and list(found.probabilities) == list(TASK.labels)
    assert found.label == max(found.probabilities, key=lambda name: found.probabilities[name]) and not found.calibrated
    nats = one.label_nats([wave()], TASK)
    warm = one.classify([wave()], replace(TASK, temperature=4.0, examples=9))
    shares = np.exp(nats / 4 - np.logaddexp.reduce(nats / 4))
    assert np.allclose(list(warm.probabilities.values()), shares) and warm.calibrated and warm.confidence == 0.5
    assert one.classify([wave()], replace(TASK, temperature=1e5)).label is None  # all alike: none reaches a half


def test_tasks_by_name(one: Describer) -> None:
    assert one.task(None) == one.task("kind") == TASK
    with pytest.raises(SpecError, match="no task is called 'king': this model knows kind; choose one with --task"):
        one.task("king")
    parts = one.parts
    try:
        one.parts = replace(parts, tasks=(TASK, replace(TASK, about="other")))
        with pytest.raises(SpecError, match="several tasks, and none is named: this model knows kind, other"):
            one.task(None)
        one.parts = replace(parts, tasks=())
        with pytest.raises(SpecError, match="this model was taught no labels: name some with --labels"):
            one.task(None)
    finally:
        one.parts = parts


def test_evidence_is_what_an_answer_loses_without_a_stretch(one: Describer) -> None:
    series = [wave(), wave(1, 100)]
    found = one.evidence(series, "What is it?", "calm", spans=4)
    assert len(found) == 8 and [e.nats for e in found] == sorted((e.nats for e in found), reverse=True)
    first = sorted((e for e in found if e.signal == 0), key=lambda e: e.start_s)
    assert first[0].start_s == 0 and first[-1].stop_s == pytest.approx(10)
    assert all(a.stop_s == pytest.approx(b.start_s) for a, b in pairwise(first))
    seen = [one.encoder.patches(signal) for signal in series]
    said = [prompt.answer(one.engine.tokenizer, "calm")]
    whole = one.likelihoods(one.prompt(series, "What is it?"), said)[0]
    without = one.prompt(series, "What is it?", [hidden(seen[0], 0, 4), seen[1]])
    assert first[0].nats == pytest.approx(whole - one.likelihoods(without, said)[0])
    assert one.evidence(series, "What is it?", "calm", spans=4) == found


def test_what_is_hidden_cannot_be_told_from_another_stretch_that_is_hidden(one: Describer) -> None:
    """Of the slots that are hidden nothing is left but that they are, and what they are part of."""
    series = wave(samples=640)
    other = series.values.copy()
    other[40:80] = other[40:80][::-1]  # of the same samples, in another order
    seen = [hidden(one.encoder.patches(replace(series, values=x)), 0, 4) for x in (series.values, other)]
    whole = slice(2 * BINS + 33, 2 * BINS + 77)  # how the channel moves as a whole, and with the others
    own = [np.delete(x.rows[:, :4], whole, axis=2) for x in seen]
    assert np.allclose(own[0], own[1], atol=1e-5) and (seen[0].rows[:-1, :4, : 2 * BINS] == 0).all()
    assert np.array_equal(seen[0].rows[-1], one.encoder.patches(series).rows[-1])


def test_a_model_with_facts_has_them_in_its_prompts(folder: Path) -> None:
    with Describer.load(model(folder, facts=True, name="told"), threads=1) as told:
        parts = told.prompt([wave()], "Mean of level?")
        text = "".join(told.engine.tokenizer.decode(part) for part in parts if isinstance(part, list))
    assert "\nFacts: duration 10.0 s" in text and "level: unit m, mean 20." in text


def test_it_runs_without_pytorch(folder: Path, one: Describer) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from genmote.describe.model import Describer\nfrom tests.describe.tiny import TASK, wave\n"
        f"with Describer.load({str(folder / 'model.toml')!r}, threads=1) as one:\n"
        "    one.ask([wave()], 'What?', max_tokens=2); one.classify([wave()], TASK)\n"
        "    one.evidence([wave()], 'What?', 'calm', spans=2)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr


# -- the TOML ----------------------------------------------------------------------------------------------------------


def test_the_toml_is_read_as_it_was_written(folder: Path, one: Describer) -> None:
    assert parts_of.read(folder / "model.toml") == one.parts and one.parts.tasks == (TASK,)


def test_parts_that_are_wrong_are_told(tmp_path: Path) -> None:
    path = model(tmp_path)
    good = path.read_text()
    with pytest.raises(
        ModelNameError, match="none.toml: no such file; give the .toml that genmote describe-train made"
    ):
        Describer.load(tmp_path / "none.toml")
    with pytest.raises(ModelFileError, match="wanted the .toml that names a model's parts, not one of them"):
        Describer.load(tmp_path / "model-encoder.gguf")
    path.write_text(good.replace("version = 1", "version = 3", 1))
    with pytest.raises(ModelFileError, match="version=3: this genmote reads 1"):
        Describer.load(path)
    path.write_text(good.replace('title = "model"', "titel = 1"))
    with pytest.raises(ModelFileError, match="titel is no setting, did you mean title"):
        Describer.load(path)
    wrong = spec.from_toml(parts_of.Parts, _with(path, good))
    parts_of.write(path, replace(wrong, encoder=Part(file="gone.gguf", sha256="0" * 64)))
    with pytest.raises(
        ModelFileError, match="gone.gguf: the model's encoder is not there; keep a model's files in one"
    ):
        Describer.load(path)
    parts_of.write(path, replace(wrong, encoder=replace(wrong.encoder, sha256="0" * 64)))
    with pytest.raises(
        ModelFileError, match="is not the encoder that the model was made with .SHA-256 .*, wanted 0000"
    ):
        Describer.load(path)
    parts_of.write(path, replace(wrong, language=replace(wrong.language, sha256="0" * 64)))
    with pytest.raises(ModelFileError, match="is not the language model that the model was made with"):
        Describer.load(path)
    parts_of.write(path, replace(wrong, adapter=wrong.encoder))
    with pytest.raises(ModelFileError, match="is not a LoRA adapter"):
        Describer.load(path)


def _with(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_models_of_the_package_are_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heart").mkdir()
    model(tmp_path / "heart", name="heart")
    monkeypatch.setattr(parts_of.store, "ZOO", tmp_path)
    assert parts_of.names() == ["heart"] and parts_of.store.zoo() == []  # an encoder alone is no model to run
    assert parts_of.find("heart").parts.title == "heart"
    with pytest.raises(ModelNameError, match="hart: no such file; give the .toml .*; models of genmote are heart"):
        Describer.load("hart")


def test_a_model_is_chosen_by_the_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_of.store, "ZOO", tmp_path)
    with pytest.raises(ModelNameError, match="no model comes with this package: name one with -m, made by genmote des"):
        parts_of.meant_for(wave())
    for name, channels in {
        "heart": ("I", "II"),
        "all": ("I", "II", "level", "speed"),
        "rows": ("port", "bytes"),
    }.items():
        (tmp_path / name).mkdir()
        path = model(tmp_path / name, name=name)
        parts_of.write(path, replace(parts_of.read(path), channels=channels))
    assert parts_of.meant_for(wave(channels=("II", "i"))) == "heart"  # both know them: the one with fewer others
    assert parts_of.meant_for(wave(channels=("II", "level"))) == "all"
    assert parts_of.meant_for(wave(channels=("port", "bytes", "more"))) == "rows"
    assert parts_of.meant_for(wave(channels=("port", "never", "heard of"))) == "all"  # the most channels
    fields = tuple(Field(name, "number", "") for name in ("Port", "bytes"))
    assert parts_of.meant_for(Records("r", fields, (np.arange(3.0), np.arange(3.0)))) == "rows"


def test_an_encoder_for_another_language_model_is_told(tmp_path: Path) -> None:
    path = model(tmp_path)
    wide = form(256)
    encoder.write(
        tmp_path / "wide.gguf", wide, encoder.fresh(wide, 0), "F16", encoder.metadata(wide, "w", "0" * 64, "other")
    )
    parts = parts_of.read(path)
    digest = ModelFile.open(tmp_path / "wide.gguf").sha256()
    parts_of.write(path, replace(parts, encoder=Part(file="wide.gguf", sha256=digest)))
    with pytest.raises(ModelFileError, match=r"wide.gguf gives embeddings of 256 numbers, language.gguf takes \d+"):
        Describer.load(path, threads=1)


def test_faults_of_what_the_toml_says() -> None:
    assert list(Part(file="a", sha256="XY").faults()) == ["sha256='XY': wanted 64 hexadecimal digits"]
    assert list(Task(about="a", question="?", labels=("x", "x"), temperature=0).faults()) == [
        "labels=('x', 'x'): wanted at least two, each once",
        "temperature=0: wanted more than 0",
    ]
    part = Part(file="a", sha256="0" * 64)
    parts = parts_of.Parts(version=1, title="a", language=part, encoder=part, confidence=1.5)
    assert list(parts.faults()) == ["confidence=1.5: wanted 0 to 1"]


def test_rows_of_embeddings_are_known_again(one: Describer) -> None:
    """A second question about the same signal goes on from what was read of it."""
    first, second = (one.engine.rows(one.prompt([wave()], text)) for text in ("How high?", "How fast?"))
    shared = next(n for n, (a, b) in enumerate(zip(first.ids, second.ids, strict=False)) if a != b)
    assert shared > len(one.encoder.embed(wave())) and isinstance(first, Rows)
