"""A model in the tiers of an accelerator says what it says when all of it is resident. On the processor, which stands
in for one; on CUDA too, where there is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genmote import Engine
from genmote.cli import main
from genmote.errors import BudgetError, ModelFileError, OpsError, SpecError
from genmote.models.gguf import ModelFile
from genmote.models.make_model import load_shape, make_model

torch = pytest.importorskip("torch")
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")),
]
MODELS = [("tiny-llama", "q4_0"), ("tiny-gemma3", "q8_0"), ("tiny-mixtral", "q5_1"), ("tiny-opt", "f16")]
MODELS += [("tiny-deci", "q4_0"), ("tiny-low-rank", "q8_0")]
PROMPT = list(range(3, 40))


def make(shape: str, kind: str, path: Path) -> Path:
    """A tiny model of nine layers: of two there would be nothing to stream."""
    with pytest.MonkeyPatch.context() as patch:
        form = load_shape(shape)
        each = {name: value * 3 for name, value in vars(form).items() if name.startswith("layer_")}  # they have three
        deep = replace(form, layers=9, **each)
        patch.setattr("genmote.models.make_model.load_shape", lambda name: deep)
        make_model(shape, kind, path, seed=2)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("tiny-llama", "q4_0", tmp_path_factory.mktemp("tiers") / "tiny.gguf")


def least(path: Path) -> int:
    """The least device memory, as the refusal tells it."""
    with pytest.raises(BudgetError) as fault:
        Engine.load(path, accelerator="cpu", device_memory=1)
    return int(str(fault.value).split(" bytes there")[0].split()[-1])


def logits(engine: Engine) -> list[np.ndarray]:
    session = engine.session()
    found = [session.extend(engine.rows(PROMPT), 0, len(PROMPT), 1)]
    found += [session.step(token) for token in (5, 9, 5)]
    return [np.asarray(row).reshape(-1) for row in found]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "kind"), MODELS)
def test_the_logits_are_those_of_the_resident_model(device: str, shape: str, kind: str, tmp_path: Path) -> None:
    path = make(shape, kind, tmp_path / "model.gguf")
    with Engine.load(path, accelerator=device) as whole:
        assert whole.tiers is not None and whole.tiers.values()["disk_layers"] == 0
        assert whole.tiers.values()["device_layers"] == whole.config.n_layers
        wanted = logits(whole)
    for host in (1 << 30, 1):
        with Engine.load(path, accelerator=device, device_memory=least(path), host_memory=host) as engine:
            assert engine.tiers is not None
            told = engine.tiers.values()
            assert told["device_layers"] < engine.config.n_layers
            assert (told["ram_layers"] if host > 1 else told["disk_layers"]) > 0
            for one, other in zip(logits(engine), wanted, strict=True):
                assert np.array_equal(one, other)
            after = engine.tiers.values()
            assert after["copied_bytes"] > 0 and (after["disk_read_bytes"] > 0) == (host == 1)
            assert after["demanded_layers"] == 1  # all others were on their way
            assert after["stand_in"] == (device == "cpu")


def test_texts_in_a_batch_and_adapters_are_those_of_the_resident_model(file: Path) -> None:
    from genmote.runtime.scheduler import Scheduler

    def texts(engine: Engine) -> list[list[int]]:
        with Scheduler(engine) as scheduler:
            handles = [scheduler.submit(engine.request([3, 4, 5 + i], max_tokens=6)) for i in range(3)]
            return [handle.result(60).tokens for handle in handles]

    with Engine.load(file, ops="torch") as whole:
        wanted = texts(whole)
    with Engine.load(file, device_memory=least(file), host_memory="1MB") as engine:
        assert texts(engine) == wanted


def test_a_file_that_is_cut_or_replaced_under_the_reader_is_told(tmp_path: Path) -> None:
    path = make("tiny-llama", "q4_0", tmp_path / "model.gguf")
    with Engine.load(path, device_memory=least(path), host_memory=1) as engine:
        wanted = engine.generate([3, 4, 5], max_tokens=5).tokens
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelFileError, match="has changed since it was opened"):
            engine.generate([7, 8, 9], max_tokens=5)
        path.unlink()
        with pytest.raises(ModelFileError, match="cannot be read any more"):
            engine.generate([7, 8, 9], max_tokens=5)
    path.write_bytes(whole)
    with Engine.load(path, device_memory=least(path), host_memory=1) as engine:
        assert engine.generate([3, 4, 5], max_tokens=5).tokens == wanted


def test_a_read_beyond_the_end_is_told(file: Path) -> None:
    model = ModelFile.open(file)
    with pytest.raises(ModelFileError, match=r"ends before byte \d+; it was truncated: fetch it again"):
        model.read_into(file.stat().st_size - 10, np.empty(20, np.uint8))
    tail = np.empty(10, np.uint8)
    model.read_into(file.stat().st_size - 10, tail)
    assert tail.tobytes() == file.read_bytes()[-10:]


def test_what_cannot_be_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpsError, match="ops='native': only the torch op set computes on an accelerator; use torch"):
        Engine.load(file, ops="native", accelerator="cpu")
    with pytest.raises(OpsError, match="isa='avx2': an accelerator has no such instruction set; leave isa out"):
        Engine.load(file, isa="avx2", device_memory="1GB")
    with pytest.raises(OpsError, match="device 'teapot' cannot be used by this PyTorch; try cpu"):
        Engine.load(file, accelerator="teapot")
    with pytest.raises(SpecError, match="device_memory 'much': wanted an amount above 0 such as 150MB"):
        Engine.load(file, device_memory="much")
    with pytest.raises(SpecError, match="host_memory=0: wanted bytes, or an amount such as 2GB"):
        Engine.load(file, host_memory=0)
    with pytest.raises(BudgetError, match="device memory of 1000 bytes: .* allow as much, or run it on the processor"):
        Engine.load(file, device_memory=1000)
    monkeypatch.setenv("GENMOTE_OPS", "numpy")
    with pytest.raises(OpsError, match="ops='numpy': only the torch op set"):
        Engine.load(file, accelerator="cpu")


def test_the_command_line_tells_where_the_layers_lie(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(file), "-p", "a", "-n", "3", "--device-memory", str(least(file)), "--host-memory", "1MB"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    tiers = json.loads(capsys.readouterr().out)["tiers"]
    layers = tiers["device_layers"] + tiers["ram_layers"] + tiers["disk_layers"]
    assert layers == 9 and tiers["accelerator"] in ("cpu", "cuda") and tiers["copied_bytes"] > 0
    assert main([*words, "--stats"]) == 0
    told = capsys.readouterr().err
    if not torch.cuda.is_available():
        assert "layers on the processor, which stands in for an accelerator: " in told
