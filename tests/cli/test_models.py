"""pull, models, info, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from genmote import home
from genmote.models.gguf_write import write_gguf
from genmote.models.store import find
from tests.cli.conftest import Genmote


@pytest.fixture
def tiny(own_home: Path) -> Path:
    """A model file in the models folder."""
    assert home.usable(home.models_dir())
    path = home.models_dir() / "tiny.gguf"
    metadata = {
        "general.architecture": "llama",
        "general.license": "mit",
        "llama.block_count": 2,
        "llama.context_length": 64,
        "tokenizer.ggml.tokens": [f"t{n}" for n in range(40)],
    }
    write_gguf(
        path,
        metadata,
        [("w", "F32", (4, 32), np.ones((4, 32), np.float32)), ("b", "F16", (32,), np.ones(32, np.float16))],
    )
    return path


def test_models_lists_what_is_here(genmote: Genmote, tiny: Path) -> None:
    (home.models_dir() / "broken.gguf").write_bytes(b"GGUF" + bytes(3))
    told = genmote("models", "--json").json
    broken, good = told["models"]
    assert good["name"] == "tiny" and good["architecture"] == "llama" and good["licence"] == "mit"
    assert good["path"] == str(tiny) and good["size_bytes"] == tiny.stat().st_size
    assert good["parameters"] == 160 and good["bits_per_weight"] == pytest.approx((128 * 32 + 32 * 16) / 160, abs=0.001)
    assert broken["name"] == "broken" and broken["fault"]
    assert {entry["name"] for entry in told["to_pull"]} == {"smollm2-135m", "gemma3-270m"}
    text = genmote("models").out
    assert "tiny" in text and "28.80" in text and "to fetch with genmote pull: gemma3-270m" in text


def test_models_of_an_empty_home(genmote: Genmote, own_home: Path) -> None:
    ran = genmote("models")
    assert ran.status == 0 and ran.out.startswith(f"no models in {own_home}/models")
    assert not own_home.exists()


def test_info(genmote: Genmote, tiny: Path) -> None:
    told = genmote("info", "tiny", "--json", "--tensors", "--metadata").json
    assert told["path"] == str(tiny) and told["layers"] == 2 and told["context"] == 64 and told["vocabulary"] == 40
    assert told["tensor_types"] == {"F32": 512, "F16": 64}
    assert told["tensors"][0] == {"name": "w", "type": "F32", "shape": [4, 32], "size_bytes": 512}
    assert told["metadata"]["tokenizer.ggml.tokens"] == "40 values"
    text = genmote("info", str(tiny), "--tensors").out
    assert "architecture" in text and "4x32" in text


def test_info_of_what_is_no_model(genmote: Genmote, own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model")
    ran = genmote("info", str(tmp_path / "x.gguf"))
    assert ran.status == 2 and "x.gguf" in ran.err and ran.err.count("\n") == 1
    ran = genmote("info", "tinny")
    assert ran.status == 2 and "no model is called 'tinny'" in ran.err


def test_pull_of_a_model_that_is_here(genmote: Genmote) -> None:
    path = find("smollm2-135m")
    if path is None:
        pytest.skip("the model smollm2-135m is not here")
    told = genmote("pull", "smollm2-135m", "--json").json
    assert told == {"models": [{"name": "smollm2-135m", "path": str(path), "size_bytes": 98362432, "fetched": False}]}


def test_pull_of_an_unknown_name(genmote: Genmote, own_home: Path) -> None:
    ran = genmote("pull", "smolm2-135m")
    assert ran.status == 2 and "did you mean smollm2-135m?" in ran.err


def test_pull_of_a_path(genmote: Genmote, own_home: Path, tiny: Path) -> None:
    ran = genmote("pull", str(tiny))
    assert ran.status == 2 and "is a path, there is nothing to pull" in ran.err
    assert "did you mean smollm2-135m?" in genmote("pull", "SMOLLM2-135M").err


def test_make_model_in_a_folder_that_is_not_there(genmote: Genmote, tmp_path: Path) -> None:
    ran = genmote("make-model", "tiny-llama", str(tmp_path / "no" / "x.gguf"))
    assert ran.status == 2 and f"{tmp_path / 'no'} is no folder; make it first" in ran.err
    ran = genmote("make-model", "tiny-llama", str(tmp_path))
    assert ran.status == 2 and f"{tmp_path} is a folder; name the file" in ran.err


def test_pull_when_offline(genmote: Genmote, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENMOTE_OFFLINE", "1")
    ran = genmote("pull", "smollm2-135m")
    assert ran.status == 2 and "GENMOTE_OFFLINE is set" in ran.err


def test_doctor(genmote: Genmote, tiny: Path) -> None:
    told = genmote("doctor", "--json").json
    assert told["home"]["path"] == str(home.home()) and told["home"]["from"] == "GENMOTE_HOME"
    assert told["home"]["models"] == {
        "path": str(home.models_dir()),
        "exists": True,
        "writable": True,
        "size_bytes": tiny.stat().st_size,
    }
    assert told["home"]["cache"]["exists"] is False
    assert told["models"] == ["tiny"] and told["threads"] >= 1 and told["device"]["cores"] >= 1
    assert set(told["sensors"]) == {"memory", "memory pressure", "processor", "temperature", "battery"}
    text = genmote("doctor").out
    assert "absent, writable" in text and "[server]" in text


def test_doctor_tells_of_kernels_that_are_not_here(
    genmote: Genmote, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmote.cli.doctor.importlib.util.find_spec", lambda name: None)
    ran = genmote("doctor")
    assert "none (not built: no working C++ compiler when genmote was installed); NumPy computes instead" in ran.out


def test_doctor_tells_of_kernels_that_do_not_load(
    genmote: Genmote, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmote.cli.doctor.importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "genmote.ops._native", None)
    assert genmote("doctor", "--json").json["kernels"] == {
        "native": False,
        "why": "built, but they cannot be loaded; reinstall genmote",
    }


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("GENMOTE_ISA", "foo", "GENMOTE_ISA=foo: this machine runs "),
        ("GENMOTE_OPS", "foo", "GENMOTE_OPS=foo: there are native, numpy, torch; choose one of these"),
    ],
)
def test_doctor_tells_of_settings_that_cannot_work(
    genmote: Genmote, own_home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    if name == "GENMOTE_ISA":
        pytest.importorskip("genmote.ops._native")
    monkeypatch.setenv(name, value)
    ran = genmote("doctor")
    assert ran.status == 2 and f"\nPROBLEM  {told}" in ran.out
    assert value not in ran.out.split("PROBLEM")[0], "a bad setting is not told as if it were used"


def test_doctor_tells_of_a_home_that_cannot_be(genmote: Genmote, own_home: Path) -> None:
    own_home.write_text("a file")
    ran = genmote("doctor")
    assert ran.status == 2 and f"PROBLEM  GENMOTE_HOME: {own_home} is a file, wanted a folder" in ran.out
    assert "absent, not writable" in ran.out


def test_doctor_tells_of_a_newer_layout(genmote: Genmote, own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "layout").write_text("2")
    ran = genmote("doctor", "--json")
    assert ran.status == 2 and len(ran.json["problems"]) == 1 and "has layout 2" in ran.json["problems"][0]


def test_doctor_says_that_an_instruction_set_has_no_effect_without_kernels(
    genmote: Genmote, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genmote.cli.doctor.importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("GENMOTE_ISA", "avx2")
    ran = genmote("doctor")
    assert ran.status == 2 and "GENMOTE_ISA=avx2 has no effect without the native kernels" in ran.out
