"""The model's part of the tour, here and in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest

from genmote.device import profile
from genmote.errors import GenmoteError, UserError
from genmote.fetch import quiet
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.recipes import answers, tour
from genmote.recipes.answers import Request

QUESTION = "How warm is it?\n\nMeasurements:\nTemperature: 21 degrees"
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture
def model(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model with a chat format."""
    make_model("tiny-llama-256", "q4_0", tmp_path / "bare.gguf", 0)
    bare = ModelFile.open(tmp_path / "bare.gguf")
    metadata = bare.typed_metadata() | {"tokenizer.chat_template": TEMPLATE}
    tensors = [(info.name, info.type, info.shape, bare.raw(info.name)) for info in bare.tensors.values()]
    write_gguf(tmp_path / "tiny.gguf", metadata, tensors)
    monkeypatch.setattr(tour, "CONTEXT", 256)
    monkeypatch.setattr(tour, "SYSTEM", "Be short.")
    return tmp_path / "tiny.gguf"


def test_answers_here(model: Path) -> None:
    said: list[str] = []
    found = answers.run(
        Request(os.fspath(model), (QUESTION, QUESTION), max_tokens=4, threads=1),
        lambda text, end="\n": said.append(text + end),
        lambda: nullcontext(quiet),
    )
    assert len(found.texts) == len(found.prompts) == 2 and found.tokens == (4, 4)
    assert found.model_path == os.fspath(model) and found.figures["decode_tokens"] == 8
    told = "".join(said)
    assert "Question  How warm is it?\n   Answer    " in told and told.count("   Check     ") == 2
    assert "Temperature" not in told
    assert answers.read(json.loads(json.dumps(asdict(found)))) == found
    assert found.allowed.total_bytes == sum(found.budget.values())


def test_a_process_of_its_own(model: Path, tmp_path: Path) -> None:
    """The context of the tour is longer than what this model takes: that is told, and is the exit status."""
    asked = Request(os.fspath(model), (QUESTION,), max_tokens=2, loud=False, told=os.fspath(tmp_path / "told.json"))
    (tmp_path / "request.json").write_text(json.dumps(asdict(asked)))
    words = [sys.executable, "-m", "genmote.recipes.answers", os.fspath(tmp_path / "request.json")]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and ran.stderr == "genmote demo: context=512: this model takes 1 to 256 tokens\n"
    assert not (tmp_path / "told.json").exists()
    assert answers.main(os.fspath(tmp_path / "request.json")) == 0  # here, where the context is shorter
    assert answers.read(json.loads((tmp_path / "told.json").read_text())).tokens == (2,)


def test_a_process_that_fails_in_its_jail_is_told(model: Path) -> None:
    device = profile.load("pi-zero-2w")
    try:
        with pytest.raises(GenmoteError, match="the model's process ended with status 2: see what it said above"):
            answers.in_jail(Request(os.fspath(model), (QUESTION,)), device, model, lambda line: None)
    except UserError as fault:
        pytest.skip(f"no jail can be made here: {fault}")
