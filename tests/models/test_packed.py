"""The cache of re-laid weights: the same model with it and without, made once, made again when anything is wrong."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from genmote import home
from genmote.errors import OpsError, SpecError
from genmote.models import packed
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.models.weights import GgufWeights
from genmote.ops.protocol import Span

native = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)


@pytest.fixture
def ops():
    return native.create(threads=1)


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("GENMOTE_HOME", str(tmp_path / "home"))


@pytest.fixture
def model_path(tmp_path) -> Path:
    make_model("tiny-llama", "q4_0", tmp_path / "m.gguf", seed=1)
    return tmp_path / "m.gguf"


def logits(model: ModelFile, ops, loader) -> np.ndarray:
    weights = GgufWeights(model, ops, loader)
    decoder = Decoder(weights.config, weights, ops)
    return decoder.forward(np.arange(5, dtype=np.int32), [Span(decoder.cache(32), 0, 5)])


def files() -> list[Path]:
    return sorted((home.cache_dir() / "packed").glob("*"))


def test_made_once_then_mapped(model_path, ops):
    model = ModelFile.open(model_path)
    want = logits(model, ops, packed.InMemory(ops, model))
    told: list[tuple[str, int, int]] = []
    first = packed.loader(model, ops, progress=lambda *step: told.append(step))
    assert isinstance(first, packed.Packed)
    assert told[-1][1] == told[-1][2] > 0  # progress ends at all of it
    stamp = first.path.stat().st_mtime_ns
    assert np.array_equal(logits(model, ops, first), want)
    again = packed.loader(ModelFile.open(model_path), ops)
    assert isinstance(again, packed.Packed) and again.path == first.path and again.path.stat().st_mtime_ns == stamp
    assert np.array_equal(logits(model, ops, again), want)


def test_the_model_s_digest_comes_with_it(model_path, ops, monkeypatch):
    want = ModelFile.open(model_path).sha256()
    packed.loader(ModelFile.open(model_path), ops)
    monkeypatch.setattr("genmote.digest.of_file", lambda file: "read anew")
    model = ModelFile.open(model_path)
    packed.loader(model, ops)
    assert model.sha256() == want != ModelFile.open(model_path).sha256()


@pytest.mark.parametrize("shape", ["tiny-mixtral", "tiny-olmoe"])
def test_experts_of_a_three_dimensional_tensor(tmp_path, ops, shape):
    make_model(shape, "q8_0", tmp_path / "e.gguf", seed=2)
    model = ModelFile.open(tmp_path / "e.gguf")
    assert np.array_equal(logits(model, ops, packed.loader(model, ops)), logits(model, ops, None))


def test_another_op_set_takes_the_file_as_it_is(model_path):
    from genmote.ops import load

    assert packed.loader(ModelFile.open(model_path), load("numpy")) is None


@pytest.mark.parametrize("damage", ["truncated", "longer", "magic", "header", "empty", "length"])
def test_a_damaged_file_is_made_again(model_path, ops, damage):
    model = ModelFile.open(model_path)
    path = packed.loader(model, ops).path
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-1],
        "longer": whole + b"x",
        "magic": b"x" + whole[1:],
        "header": whole[:30] + b"\xff\xff" + whole[32:],
        "empty": b"",
        "length": whole[:16] + b"\xff" * 8 + whole[24:],
    }[damage]
    path.write_bytes(broken)
    found = packed.loader(model, ops)
    assert isinstance(found, packed.Packed) and found.path.read_bytes() == whole


def test_a_changed_model_is_packed_again_and_the_old_file_goes(model_path, ops):
    old = packed.loader(ModelFile.open(model_path), ops).path
    make_model("tiny-llama", "q4_0", model_path, seed=9)
    model = ModelFile.open(model_path)
    new = packed.loader(model, ops)
    assert new.path != old and files() == [new.path]
    assert np.array_equal(logits(model, ops, new), logits(model, ops, None))


def test_a_folder_that_cannot_be_written(model_path, ops, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("a file where the home should be")
    monkeypatch.setenv("GENMOTE_HOME", str(blocked / "home"))
    model = ModelFile.open(model_path)
    found = packed.loader(model, ops)
    assert isinstance(found, packed.InMemory)
    assert np.array_equal(logits(model, ops, found), logits(model, ops, None))


def test_a_full_disk_leaves_nothing(model_path, ops, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1000))
    model = ModelFile.open(model_path)
    assert isinstance(packed.loader(model, ops), packed.InMemory) and files() == []
    with pytest.raises(SpecError, match=r"0 MB free, the packed weights take \d+; free some or set GENMOTE_HOME"):
        packed.pack(model, ops)


def test_a_write_that_fails_half_way_leaves_nothing(model_path, ops, monkeypatch):
    model = ModelFile.open(model_path)
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return type(ops).pack(ops, *args)

    monkeypatch.setattr(ops, "pack", failing)
    with pytest.raises(OSError, match="No space left"):
        packed.pack(model, ops, packed.path_of(model)) if home.usable(home.cache_dir() / "packed") else None
    assert files() == []


@pytest.mark.parametrize(
    "type_name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "f16"]
)
def test_size_and_slices(tmp_path, ops, type_name, monkeypatch):
    """At most 1.05 times the original, and the same bytes whatever the slice it is re-laid by."""
    make_model("tiny-llama-256", type_name, tmp_path / "t.gguf", seed=3)
    model = ModelFile.open(tmp_path / "t.gguf")
    whole = packed.loader(model, ops)
    matrices = sum(info.nbytes for info in model.tensors.values() if len(info.shape) > 1)
    assert whole.path.stat().st_size <= 1.05 * matrices + 16384  # the header and tiny matrices' padding
    before = whole.path.read_bytes()
    monkeypatch.setattr(packed, "SLICE_BYTES", 1)
    os.unlink(whole.path)
    assert packed.loader(model, ops).path.read_bytes() == before


def test_made_on_the_workbench_taken_on_the_device(model_path, ops, tmp_path, monkeypatch):
    """A packed file travels with its model: beside it, under another folder and time, with a home that is not there."""
    made = packed.loader(ModelFile.open(model_path), ops)
    device = tmp_path / "device"
    device.mkdir()
    shutil.copy(model_path, device / "other.gguf")
    shutil.copy(made.path, device / "other.packed")
    monkeypatch.setenv("GENMOTE_HOME", "/proc/nowhere")
    found = packed.loader(ModelFile.open(device / "other.gguf"), ops)
    assert isinstance(found, packed.Packed) and found.path == device / "other.packed"
    model = ModelFile.open(model_path)
    assert np.array_equal(logits(ModelFile.open(device / "other.gguf"), ops, found), logits(model, ops, None))


def test_a_change_between_the_samples_is_seen(model_path, ops):
    packed.loader(ModelFile.open(model_path), ops)
    model = ModelFile.open(model_path)
    info = max(model.tensors.values(), key=lambda info: info.nbytes)
    key = packed._key(model)
    whole = bytearray(model_path.read_bytes())
    whole[info.offset + info.nbytes // packed.SAMPLES - 5] ^= 1  # the last bytes before a sample
    model_path.write_bytes(whole)
    os.utime(model_path, ns=(1, 1))
    changed = ModelFile.open(model_path)
    assert packed._key(changed) == key  # the sample does not show it
    assert np.array_equal(logits(changed, ops, packed.loader(changed, ops)), logits(changed, ops, None))


@pytest.mark.parametrize(
    ("names", "says"),
    [(["x[1"], "does not use"), (["x]"], "does not use"), (["x", "x[0]"], "does not use")],
)
def test_a_model_that_is_refused_leaves_no_file(tmp_path, ops, names, says):
    """Whatever its tensors are called."""
    from genmote.errors import ModelFileError
    from genmote.models.gguf_write import write_gguf

    make_model("tiny-llama", "q4_0", tmp_path / "m.gguf", seed=1)
    model = ModelFile.open(tmp_path / "m.gguf")
    tensors = [(n, i.type, i.shape, model.raw(n)) for n, i in model.tensors.items()]
    for at, name in enumerate(names):
        shape = (2, 4, 32) if len(names) == 2 and at == 0 else (4, 32)
        tensors.append((name, "F32", shape, np.ones(shape, np.float32)))
    write_gguf(tmp_path / "odd.gguf", model.typed_metadata(), tensors)
    with pytest.raises(ModelFileError, match=says):
        packed.loader(ModelFile.open(tmp_path / "odd.gguf"), ops)
    assert files() == []


def test_a_changed_bit_is_found(model_path, ops):
    found = packed.loader(ModelFile.open(model_path), ops)
    assert packed.intact(found)
    whole = bytearray(found.path.read_bytes())
    whole[len(whole) // 2] ^= 4
    found.path.write_bytes(whole)
    again = packed.loader(ModelFile.open(model_path), ops)
    assert not packed.intact(again)
    assert packed.intact(packed.pack(again.model, ops, again.path))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="what is mapped is read where Linux tells it")
def test_loading_and_packing_touch_no_page_of_the_map(model_path, ops):
    """One page may bring 2 MB with it (`ModelFile.read_into`)."""

    def mapped() -> int:
        parts = Path("/proc/self/smaps").read_text().split(f"{model_path}\n")
        return sum(int(part.split("Rss:")[1].split()[0]) for part in parts[1:])

    model = ModelFile.open(model_path)
    assert mapped() > 0
    model.release(0, -(-model.nbytes // 4096) * 4096)
    assert mapped() == 0
    found = packed.loader(model, ops)
    GgufWeights(model, ops, found)
    assert packed.intact(found) and mapped() == 0
