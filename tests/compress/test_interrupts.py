"""A run that is killed anywhere and started again ends in the same bytes, with the head among what is compressed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genmote.compress import Calibration, Recipe, compress, layers
from genmote.compress.steps.gptq import Gptq
from genmote.models.config import read_config
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model

TEXT = "the quick brown fox jumps over the lazy dog. " * 40
RULES = ("token_embd.weight=Q8_0",)


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-mixtral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose embedding is its head, and a mixture with a head of its own."""
    path = tmp_path_factory.mktemp("model") / f"{request.param}.gguf"
    make_model(request.param, "F32", path, 1)
    return path


@pytest.fixture(scope="module")
def recipe(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(TEXT)
    rules = () if "llama" in model.name else RULES
    return Recipe((Gptq(head_type="Q5_0", types=rules),), Calibration(windows=3, length=24, text=text))


@pytest.fixture(scope="module")
def whole(model: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Any]:
    made = compress(model, tmp_path_factory.mktemp("whole") / "out.gguf", recipe)
    return made.path.read_bytes(), made.steps[0]["figures"]


def killed_at(place: int) -> tuple[Callable[..., Any], list[str]]:
    """`layers.save` that dies before it writes file number `place`, or (negative) after it."""
    real, seen = layers.save, []

    def save(path: Path, *parts: Any) -> None:
        seen.append(path.name)
        if len(seen) == place:
            raise KeyboardInterrupt
        real(path, *parts)
        if len(seen) == -place:
            raise KeyboardInterrupt

    return save, seen


@pytest.mark.parametrize("place", [1, -1, 2, -2, 3])
def test_a_killed_run_ends_in_the_same_bytes(
    model: Path, recipe: Recipe, whole: tuple[bytes, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """The head's file comes first, then the blocks'."""
    out = tmp_path / "out.gguf"
    dies, seen = killed_at(place)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(layers, "save", dies)
        compress(model, out, recipe)
    assert not out.exists()
    again, done = killed_at(0)
    monkeypatch.setattr(layers, "save", again)
    made = compress(model, out, recipe)
    count = read_config(ModelFile.open(model)).n_layers
    names = ["head.gguf", *(f"block-{index:04}.gguf" for index in range(count))]
    finished = place - 1 if place > 0 else -place
    assert seen == names[: abs(place)]
    assert done == names[finished:]  # nothing is done twice
    assert out.read_bytes() == whole[0] and json.dumps(made.steps[0]["figures"]) == json.dumps(whole[1])
