"""Which files a jailed command finds cold."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genmote import home
from genmote.cli import jail
from genmote.models import packed, store
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model


def dropped(*words: str) -> list[Path]:
    return jail._files(jail.Settings(command=("genmote", *words), memory="64MB"))


@pytest.fixture
def model(tmp_path: Path, own_home: Path) -> Path:
    make_model("tiny-llama", "q4_0", tmp_path / "m.gguf", seed=1)
    return tmp_path / "m.gguf"


def test_what_a_load_maps_is_cold_also_where_it_lies_beside_the_model(model: Path) -> None:
    native = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here")
    ops = native.create(threads=1)
    cached = packed.loader(ModelFile.open(model), ops)
    assert isinstance(cached, packed.Packed) and cached.file in dropped("generate", str(model))
    shutil.move(cached.file, model.with_suffix(".packed"))
    beside = packed.loader(ModelFile.open(model), ops)
    assert isinstance(beside, packed.Packed) and beside.file == model.with_suffix(".packed")
    assert dropped("generate", str(model), "--prompt", "x" * 5000)[:2] == [model, beside.file]


def test_however_a_model_is_named_it_is_cold(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = home.models_dir() / "hf" / "org" / "repo" / "q4.gguf"
    stem = home.models_dir() / "mine.gguf"
    for place in (hub, stem):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model, place)
    assert dropped("generate", "hf:org/repo/q4.gguf") == [hub]
    assert dropped("chat", "mine") == [stem]
    assert dropped("plan", "mixture-16x") == [store.ZOO / "mixture-16x" / "mixture-16x.gguf"]
    assert dropped("generate", "--draft=mine", f"--adapter={model}:0.5") == [stem, model]
    monkeypatch.setattr(store, "find", lambda name: stem if name == "smollm2-135m" else None)
    assert dropped("generate", "smollm2-135m") == [stem]


def test_words_that_name_no_file_drop_nothing(model: Path) -> None:
    assert dropped("generate", "hf:nonsense", "~nobody-here", "", "--memory=", "a" * 5000) == []
