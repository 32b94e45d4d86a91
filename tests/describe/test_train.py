"""Training: it learns what it is taught, a seed makes the same model again, and a killed run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from genmote import home
from genmote.describe import file as parts_of
from genmote.describe import learning, prompt, train
from genmote.describe.examples import Example
from genmote.describe.material import Material, talks
from genmote.describe.model import Describer
from genmote.describe.settings import Training
from genmote.describe.train import split, tasks, temperature
from genmote.errors import ExamplesError, SpecError, TrainingError
from genmote.models.encoder import Form
from genmote.models.gguf import ModelFile
from genmote.signals.kinds import Series
from tests.describe.tiny import examples, language

QUICK = Training(
    width=64, ffn=64, bridge=64, slots=16, facts=False, drawn=0.0, encoder_steps=4, projector_steps=3, steps=4,
    encoder_batch=8, batch=2, threads=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def judged_by_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "JUDGED", {"encoder": 16, "projector": 8, "adapter": 8})


def quick(folder: Path, **settings: Any) -> Training:
    return replace(QUICK, language=str(language(folder)), **settings)


def weights(path: Path) -> dict[str, bytes]:
    file = ModelFile.open(path)
    return {name: file.raw(name).tobytes() for name in file.tensors}


def made(path: Path) -> list[dict[str, bytes]]:
    return [weights(path.with_name(f"{path.stem}-{part}.gguf")) for part in ("encoder", "adapter")]


def test_it_learns_what_a_signal_shows(tmp_path: Path) -> None:
    """The encoder alone, as that is quick: whether a series that was held out rises."""
    settings = quick(tmp_path, encoder_steps=80, encoder_batch=16, projector_steps=0, steps=0)
    card = train.train(examples(80), tmp_path / "m.toml", settings)
    assert card["examples"] == 144 and card["held_out"] == 16
    assert card["encoder"]["choices"] == 8 and card["encoder"]["choices_right"] == 1.0
    curve = [loss for _, loss in card["encoder"]["curve"]]
    assert curve[-1] < curve[0] - 0.1 and not (tmp_path / "m.toml.work").exists()
    table = ModelFile.open(language(tmp_path)).tensor("token_embd.weight")
    with Describer.load(tmp_path / "m.toml", threads=1) as one:
        # Embeddings lie where the language model has the word of the right label.
        ids = [one.engine.tokenizer.encode(f" {word}", bos=False, start=False) for word in ("rising", "falling")]
        words = [table[some].mean(axis=0) - table.mean(axis=0) for some in ids]
        judged = [example for example in split(examples(80), 0)[1] if example.about == "label"]
        for example in judged:
            own = one.encoder.embed(example.signals[0]).mean(axis=0)
            rises, falls = (float(own @ word / np.linalg.norm(word)) for word in words)
            assert (rises > falls) == (example.answer == "rising")


def test_all_stages_bring_the_answer_nearer_and_the_engine_agrees(tmp_path: Path) -> None:
    settings = quick(tmp_path, encoder_steps=30, projector_steps=10, steps=40, batch=4, rate=4e-3, type="F32")
    some = [example for example in examples(80) if example.about == "label"]
    card = train.train(some, tmp_path / "m.toml", settings)
    curve = [loss for _, loss in card["adapter"]["curve"]]
    assert curve[-1] < curve[0] and curve[-1] < card["projector"]["curve"][-1][1] - 0.5
    (task,) = card["tasks"]
    assert task["labels"] == ("falling", "rising") and task["examples"] == 8
    judged = split(some, 0)[1]
    with Describer.load(tmp_path / "m.toml", threads=1) as one:
        # What training judged by is what the engine computes, but for roundings.
        losses = whole = 0.0
        for example in judged:
            said = prompt.answer(one.engine.tokenizer, example.answer)
            nats = -float(one.likelihoods(one.prompt(example.signals, example.question), [said])[0])
            losses, whole = losses + nats / len(said) ** 0.5, whole + len(said) ** 0.5
        assert losses / whole == pytest.approx(card["adapter"]["held_out_nats"], abs=0.1)
        assert one.parts.tasks[0].temperature == task["temperature"]


def stop_at(stage: str, step: int) -> Callable[[str, int, int], None]:
    def stop(what: str, done: int, total: int) -> None:
        if what == f"training the {stage}" and done == step:
            raise KeyboardInterrupt

    return stop


def test_what_was_killed_in_each_stage_goes_on_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, some = quick(tmp_path, drawn=0.5), examples(12)
    train.train(some, tmp_path / "whole.toml", settings)
    monkeypatch.setattr(learning, "SAVE_S", -1.0)
    before = None
    for stage, step in (("encoder", 2), ("projector", 1), ("adapter", 3), (None, 0)):
        notes: list[str] = []
        if stage is None:
            train.train(some, tmp_path / "cut.toml", settings, notes=notes)
        else:
            with pytest.raises(KeyboardInterrupt):
                train.train(some, tmp_path / "cut.toml", settings, notes=notes, progress=stop_at(stage, step))
            assert not (tmp_path / "cut.toml").exists() and (tmp_path / "cut.toml.work").is_dir()
        assert before is None or any(line.startswith(f"goes on from the {before}, step") for line in notes)
        before = stage
    assert made(tmp_path / "cut.toml") == made(tmp_path / "whole.toml")
    train.train(some, tmp_path / "other.toml", replace(settings, seed=1))
    assert made(tmp_path / "other.toml") != made(tmp_path / "whole.toml")


def test_a_state_of_another_training_or_a_damaged_one(tmp_path: Path) -> None:
    settings, some = quick(tmp_path, projector_steps=0, steps=0), examples(12)
    with pytest.raises(KeyboardInterrupt):
        train.train(some, tmp_path / "m.toml", settings, progress=stop_at("encoder", 2))
    notes: list[str] = []
    other = replace(settings, seed=5)
    with pytest.raises(KeyboardInterrupt):
        train.train(some, tmp_path / "m.toml", other, notes=notes, progress=stop_at("encoder", 2))
    assert notes[0].endswith("of another training; this one begins anew")
    (tmp_path / "m.toml.work" / "state.pt").write_bytes(b"oops")
    with pytest.raises(TrainingError, match="state.pt: is damaged .*; take it away to begin anew"):
        train.train(some, tmp_path / "m.toml", settings)
    with home.held(tmp_path / "m.toml.work"), pytest.raises(SpecError, match="is in use by process"):
        train.train(some, tmp_path / "m.toml", settings)


def test_a_model_is_gone_on_from(tmp_path: Path) -> None:
    some = examples(12)
    train.train(some, tmp_path / "first.toml", quick(tmp_path, type="F32", steps=0))
    assert parts_of.read(tmp_path / "first.toml").tasks[0].examples == 0  # nothing that says a label was learnt
    again = quick(tmp_path, type="F32", base=tmp_path / "first.toml", encoder_steps=0, projector_steps=0, steps=0)
    train.train(some, tmp_path / "second.toml", again)
    first, second = made(tmp_path / "first.toml"), made(tmp_path / "second.toml")
    assert first[0]["blk.0.attn_q.weight"] == second[0]["blk.0.attn_q.weight"] and first[1] == second[1]
    with pytest.raises(SpecError, match="first-encoder.gguf has another form .* than is asked for"):
        train.train(some, tmp_path / "third.toml", replace(again, width=96))


def test_an_encoder_is_kept_for_several_models(tmp_path: Path) -> None:
    some = examples(12)
    train.train(some, tmp_path / "first.toml", quick(tmp_path))
    (tmp_path / "other").mkdir()
    again = quick(tmp_path, base=tmp_path / "first.toml", keep_encoder=True, encoder_steps=5)
    card = train.train(some, tmp_path / "other" / "second.toml", again)
    assert "encoder" not in card and "projector" not in card and card["adapter"]["steps"] == again.steps
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["second-adapter.gguf", "second.toml"]
    parts = parts_of.read(tmp_path / "other" / "second.toml")
    assert parts.encoder.file == str(Path("..") / "first-encoder.gguf")
    assert weights(tmp_path / "other" / "second-adapter.gguf") != weights(tmp_path / "first-adapter.gguf")
    with Describer.load(tmp_path / "other" / "second.toml", threads=1) as one:
        assert one.ask(some[0].signals, "Which way?", max_tokens=2) is not None
    assert list(replace(again, base=None).faults()) == ["keep_encoder: there is none to keep; say with --from whose"]


def test_questions_of_one_signal_are_one_talk(tmp_path: Path) -> None:
    """Later questions come after the answers before them, and the facts are those that any of them names."""
    form = Form(64, 64, 64, slots=4, join=2, bridge=64)
    series = Series("a", np.arange(96, dtype=np.float32).reshape(24, 4), 1.0, tuple("wxyz"), ("m",) * 4)
    asked = ("What is the mean of x?", "What is the mean of z?")
    talk = tuple(Example((series,), question, "yes", "mean") for question in asked)
    material = Material(talk, ModelFile.open(language(tmp_path)), form, Training(facts=True))
    said = material.said(talk)
    assert [answer for _, answer in said] == [False, False, False, True, False, True]
    text = material.tokenizer.decode([token for part, _ in said if isinstance(part, list) for token in part])
    first, then, last = text.partition("Question: " + asked[1])
    assert then and "x: unit m" in first and "z: unit m" in first and "w: unit m" not in first
    assert asked[0] in first and last.lstrip("\n").startswith("Answer:")
    assert material.rows(talk) == sum(1 if isinstance(part, int) else len(part) for part, _ in said)  # of two slots
    assert material.fitting(talk, material.rows(talk)) == talk
    assert material.fitting(talk, material.rows(talk) - 1) == talk[:1]
    assert material.fitting(talk, 3) == ()
    assert [len(one) for one in talks([*talk, replace(talk[0], signals=(replace(series),)), talk[0]])] == [2, 1, 1]


def test_time_that_is_over_ends_a_stage(tmp_path: Path) -> None:
    settings = quick(tmp_path, encoder_steps=10**6, projector_steps=0, steps=0, minutes=0.05)
    card = train.train(examples(12), tmp_path / "m.toml", settings)
    assert 0 < card["encoder"]["steps"] < 10**5 and card["encoder"]["seconds"] < 5


def test_no_files_but_drawn_examples(tmp_path: Path) -> None:
    card = train.train([], tmp_path / "m.toml", quick(tmp_path, drawn=0.5, projector_steps=0, steps=0))
    assert card["examples"] == 0 and card["encoder"]["steps"] == 4 and parts_of.read(tmp_path / "m.toml").tasks == ()


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning.Learning, "_learn", lambda self, name: float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan in step 1 of the encoder: use a lower rate"):
        train.train(examples(12), tmp_path / "m.toml", quick(tmp_path))


def test_a_step_that_fails_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: learning.Learning, name: str) -> float:
        raise FloatingPointError("the loss is inf")

    monkeypatch.setattr(learning.Learning, "_learn", fail)
    with pytest.raises(TrainingError, match="the loss is inf in step 1 of the encoder: use a lower rate"):
        train.train(examples(12), tmp_path / "m.toml", quick(tmp_path))


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mode: str = "wb") -> None:
        raise OSError(28, "No space left on device", str(path))

    settings = quick(tmp_path, projector_steps=0, steps=0)
    monkeypatch.setattr(learning.home, "atomic_write", full)
    with pytest.raises(TrainingError, match="state.pt cannot be written .No space left on device.: free space"):
        train.train(examples(12), tmp_path / "m.toml", settings)

    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(train.home, "held", denied)
    with pytest.raises(SpecError, match="m.toml.work cannot be written .Permission denied.* choose another --output"):
        train.train(examples(12), tmp_path / "m.toml", settings)


def test_examples_that_cannot_be_learnt_from(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match="3 examples: wanted at least 8; give more signals or questions"):
        train.train(examples(2)[:3], tmp_path / "m.toml", quick(tmp_path))
    with pytest.raises(ExamplesError, match="no example fits 64 tokens .the language model takes 256.: use a larger"):
        train.train(examples(12), tmp_path / "m.toml", quick(tmp_path, context=64, encoder_steps=0))
    every = [replace(example, held_out=True) for example in examples(6)]
    with pytest.raises(ExamplesError, match="0 examples to learn from and 12 to judge by: wanted some of each"):
        split(every, 0)


def test_groups_are_kept_together() -> None:
    some = examples(40)
    learnt, judged = split(some, 3)
    assert {e.group for e in learnt}.isdisjoint(e.group for e in judged) and len({e.group for e in judged}) == 4
    told = [replace(example, held_out=n == 0) for n, example in enumerate(learnt)]
    assert all(not example.held_out for example in split([*told, *judged], 3)[0])
    alone = [replace(example, group="") for example in some]
    assert [len(part) for part in split(alone, 3)] == [72, 8] and split(alone, 3)[1] == split(alone, 3)[1]


def test_tasks_are_questions_with_the_same_choices() -> None:
    some = examples(20)
    (task,) = tasks(some)
    assert task.about == "label" and task.labels == ("falling", "rising") and task.question == "Where does it go?"
    more: list[Example] = [replace(e, choices=("up", "down"), question="Up?") for e in some if e.about == "label"]
    assert [one.about for one in tasks([*some, *more])] == ["label-1", "label-2"]
    yes = [replace(e, choices=("yes", "no"), answer="yes") for e in some if e.about == "label"]
    assert tasks(yes) == [] and tasks([e for e in some if e.about == "mean"]) == []
    with pytest.raises(SpecError, match="task 'mean': no 8 examples have the same choices; name a kind whose choices"):
        tasks(some, ("mean",))


def test_the_temperature_makes_what_is_right_the_likeliest() -> None:
    draw = np.random.default_rng(1)
    right = draw.integers(3, size=400)
    honest = np.log(draw.dirichlet(np.ones(3), 400))
    right = np.array([draw.choice(3, p=np.exp(row)) for row in honest])
    assert temperature(honest, right) == pytest.approx(1.0, abs=0.2)
    assert temperature(honest * 5, right) == pytest.approx(5.0, abs=1.0)
    assert temperature(np.log(np.full((8, 2), 0.5)) + np.eye(2)[[0] * 8] * 4, np.zeros(8, int)) > 1  # few examples


def test_faults_of_settings() -> None:
    wrong = Training(
        encoder_steps=-1, drawn=2.0, minutes=0.0, rate=0.0, rank=0, context=8, confidence=2.0, seed=-1, threads=0
    )
    assert [fault.split("=")[0] for fault in wrong.faults()] == [
        "encoder_steps", "drawn", "minutes", "encoder_rate", "rank", "context", "confidence", "seed", "threads",
    ]  # fmt: skip
    assert list(Training().faults()) == []
