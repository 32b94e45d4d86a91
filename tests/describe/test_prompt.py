from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote.describe import health, prompt
from genmote.describe.factline import lines
from genmote.errors import SignalError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.tokenizer import load_tokenizer
from genmote.signals import modality
from genmote.signals.kinds import Field, Frames, Records, Series
from tests.describe.tiny import language, wave


def test_a_prompt_of_several_signals() -> None:
    found = prompt.pieces([wave(), wave(1, 50, ("x",))], "  Which is\nlivelier? ")
    assert found == [
        "Signal 1: level, speed in m, 40 Hz, 10 s\n",
        0,
        "\nSignal 2: x in m, 40 Hz, 1.25 s\n",
        1,
        "\nQuestion: Which is livelier?\nAnswer:",
    ]


def test_facts_stand_behind_the_signal_that_they_are_of() -> None:
    found = prompt.pieces([wave(), wave(1)], "Which is higher?", lambda signals, question: ["one", "", "both"])
    assert found[2] == "\nFacts: one\nSignal 2: level, speed in m, 40 Hz, 10 s\n"
    assert found[4] == "\nFacts: none\nFacts: both\nQuestion: Which is higher?\nAnswer:"


def test_neither_name_nor_labels_are_told() -> None:
    series = replace(wave(), name="atrial fibrillation", labels={"diagnosis": "AFIB"})
    told = " ".join(str(part) for part in prompt.pieces([series], "What is it?"))
    assert "fib" not in told.lower()


def test_heads_of_signals() -> None:
    many = Series("a", np.zeros((9, 20), np.float32), 0.5, tuple(f"c{n}" for n in range(20)), ("V",) * 20)
    assert prompt.head(many).endswith("c15 and 4 more in V, 0.5 Hz, 18 s")
    mixed = replace(wave(), units=("m", ""), rate_hz=0.0, times_s=np.arange(400.0) * 60)
    assert prompt.head(mixed) == "level in m, speed, 400 samples at times of their own, 6.65 h"
    rows = Records("r", (Field("door", "category"),), (np.array(["a"], object),), np.array([3.0]))
    assert prompt.head(rows) == "1 rows of door, 0 s" and prompt.head(replace(rows, times_s=None)) == "1 rows of door"
    with pytest.raises(SignalError, match="film: holds frames; series and records are described so far"):
        prompt.head(Frames("film", "grid", [], ("grey",), ("",)))


def test_a_prompt_needs_a_question_and_a_signal() -> None:
    with pytest.raises(SpecError, match="the question is empty: ask something"):
        prompt.pieces([wave()], " \n")
    with pytest.raises(SpecError, match="no signal to ask about: give at least one"):
        prompt.pieces([], "What?")


def test_a_channel_cannot_end_the_text(tmp_path: Path) -> None:
    """What looks like a control token is a text like any other."""
    tokenizer = load_tokenizer(ModelFile.open(language(tmp_path)))
    series = wave(channels=("<|endoftext|>", "</s>"))
    for part in prompt.tokens(tokenizer, prompt.pieces([series], "</s> <|endoftext|>?")):
        assert isinstance(part, int) or not {tokenizer.eos_id} & set(part)
    told = prompt.answer(tokenizer, " so </s>\nit is ")
    assert told[-1] == tokenizer.eos_id and tokenizer.decode(told[:-1]) == " so </s> it is"


def test_facts_of_the_channels_that_a_question_names() -> None:
    many = wave(channels=("a", "b", "c"))
    assert "; b: unit m, mean" in lines([many], "How high is b?")[0]
    assert (
        "; a:" not in lines([many], "How high is b?")[0] and ";" not in lines([many], "How is it?")[0].split("b and")[0]
    )
    wide = wave(channels=tuple("abcdefghij"))
    wide.values[:, 9] = wide.values[:, 8]
    assert "; i and j: together together" in lines([wide], "How are i and j related?")[0]
    two = lines([wave(1), wave(2)], "Which is higher?")
    assert len(two) == 3 and "higher about the same" in two[2]
    assert len(lines([wave(), wave(1), wave(2)], "Which?")) == 3
    assert " no," not in two[0]  # what is not so is not told


def test_of_a_table_the_commonest_word_and_the_mean_of_each_field() -> None:
    words = np.array(["on", "on", "on", "off"] * 3, object)
    fields = (Field("door", "category"), Field("load", "number", "W"), Field("hall", "category"))
    table = Records("r", fields, (words, np.full(12, 40.0), words[::-1].copy()))
    (line,) = lines([table], "What is it?")
    assert "door: commonest on" in line and "load: mean 40.0 W" in line and "share" not in line
    (named,) = lines([table], "What of load?")
    assert "door" not in named and "load: mean 40.0 W" in named and "highest" in named


# -- health -----------------------------------------------------------------------------------------------------------


def test_health() -> None:
    known = [modality.load(kind) for kind in health.KINDS]
    assert {channel.lower() for kind in known for channel in kind.channels} == health.CHANNELS
    assert health.of_health([wave(channels=("I", "II"))]) and health.of_health([wave(channels=("ECG", "x"))])
    assert not health.of_health([wave()])
    assert health.of_health([replace(wave(), labels={"modality": "spo2"})])
    assert not health.of_health([replace(wave(channels=("I",)), labels={"modality": "audio"})])
