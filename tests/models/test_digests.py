"""What is remembered of whole files: read once, read again when anything about the file differs, never believed when
damaged."""

from __future__ import annotations

import json
import os
import shutil
import time
from hashlib import sha256
from pathlib import Path

import pytest

from genmote import digest, home
from genmote.errors import ModelFileError
from genmote.models import digests, packed
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model


@pytest.fixture
def carried(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that was packed elsewhere and copied here, some time ago."""
    native = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here")
    make_model("tiny-llama", "q4_0", tmp_path / "there.gguf", seed=1)
    monkeypatch.setenv("GENMOTE_HOME", str(tmp_path / "workbench"))
    made = packed.loader(ModelFile.open(tmp_path / "there.gguf"), native.create(threads=1))
    assert isinstance(made, packed.Packed)
    monkeypatch.setenv("GENMOTE_HOME", str(own_home))
    shutil.copy(tmp_path / "there.gguf", tmp_path / "here.gguf")
    shutil.copy(made.file, tmp_path / "here.packed")
    later(monkeypatch)
    return tmp_path / "here.gguf"


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(digests.time, "time_ns", lambda: now + 10_000_000_000)


@pytest.fixture
def read_whole(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read whole."""
    found: list[str] = []
    real = digest.of_file

    def spy(file):
        found.append(Path(file.name).name)
        return real(file)

    monkeypatch.setattr(digest, "of_file", spy)
    return found


def load(path: Path) -> packed.InMemory | None:
    from genmote.ops import native_ops

    return packed.loader(ModelFile.open(path), native_ops.create(threads=1))


def test_a_packed_file_that_was_carried_here_has_its_model_read_whole_once(
    carried: Path, read_whole: list[str]
) -> None:
    for _ in range(3):
        found = load(carried)
        assert found is not None and found.path == carried.with_suffix(".packed")
    assert read_whole == ["here.gguf"]


def test_another_time_or_size_or_path_is_read_again(carried: Path, read_whole: list[str]) -> None:
    want = digests.sha256(ModelFile.open(carried))
    os.utime(carried, ns=(1, 1))
    assert digests.sha256(ModelFile.open(carried)) == want
    with open(carried, "ab") as file:
        file.write(b"more")
    os.utime(carried, ns=(1, 1))
    assert digests.sha256(ModelFile.open(carried)) != want
    shutil.copy(carried, carried.with_name("other.gguf"))
    digests.sha256(ModelFile.open(carried.with_name("other.gguf")))
    assert read_whole == ["here.gguf"] * 3 + ["other.gguf"]


def test_a_change_is_seen_although_the_digest_before_it_is_remembered(carried: Path) -> None:
    assert load(carried).path == carried.with_suffix(".packed")
    model = ModelFile.open(carried)
    info = max(model.tensors.values(), key=lambda info: info.nbytes)
    whole = bytearray(carried.read_bytes())
    whole[info.offset + info.nbytes // packed.SAMPLES - 5] ^= 1  # where no sample is taken
    carried.write_bytes(whole)
    assert load(carried).path == packed.path_of(ModelFile.open(carried))


def test_a_file_that_may_still_change_is_not_remembered(
    carried: Path, read_whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    carried.write_bytes(carried.read_bytes())
    now = carried.stat().st_mtime_ns + 1_000_000_000
    monkeypatch.setattr(digests.time, "time_ns", lambda: now)
    digests.sha256(ModelFile.open(carried))
    digests.sha256(ModelFile.open(carried))
    assert len(read_whole) == 2


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"PATH": 3}', b'{"PATH": [SIZE, TIME, "sha"]}', b'{"PATH": [SIZE, TIME]}'],
)
def test_damage_is_not_believed_and_mended(carried: Path, read_whole: list[str], damage: bytes) -> None:
    want = digests.sha256(ModelFile.open(carried))
    status = carried.stat()
    told = damage.replace(b"PATH", os.fsencode(carried)).replace(b"SIZE", b"%d" % status.st_size)
    digests._file().write_bytes(told.replace(b"TIME", b"%d" % status.st_mtime_ns))
    for _ in range(2):
        assert digests.sha256(ModelFile.open(carried)) == want
    assert len(read_whole) == 2


def test_it_stays_small(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MOST", 3)
    for number in range(5):
        shutil.copy(carried, carried.with_name(f"{number}.gguf"))
        digests.sha256(ModelFile.open(carried.with_name(f"{number}.gguf")))
    told = json.loads((home.cache_dir() / "digests.json").read_text())
    assert [Path(path).stem for path in told] == ["2", "3", "4"]


def test_where_nothing_can_be_written_it_is_read_each_time(
    carried: Path, read_whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENMOTE_HOME", "/proc/nowhere")
    assert load(carried) is not None and load(carried) is not None
    assert read_whole == ["here.gguf"] * 2


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_took_the_model_s_place_is_not_given_its_digest(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    path, other = tmp_path / "m.gguf", tmp_path / "other.gguf"
    make_model("tiny-llama", "q4_0", path, seed=1)
    make_model("tiny-llama", "q4_0", other, seed=2)
    later(monkeypatch)
    old = ModelFile.open(path)
    if known:  # of itself, before its place was taken
        first = old.sha256()
    os.replace(other, path)
    if known:
        assert digests.sha256(old) == first
    else:
        with pytest.raises(ModelFileError, match="has changed since it was opened; open it again"):
            digests.sha256(old)
    assert digests._read() == {}
    new = ModelFile.open(path)
    assert digests.sha256(new) == sha256(path.read_bytes()).hexdigest()
    path.unlink()
    assert digests.sha256(new) == new.sha256()
    with pytest.raises(ModelFileError, match="cannot be read any more"):
        digests.sha256(gone(tmp_path))


def gone(folder: Path) -> ModelFile:
    make_model("tiny-llama", "q4_0", folder / "gone.gguf", seed=1)
    file = ModelFile.open(folder / "gone.gguf")
    (folder / "gone.gguf").unlink()
    return file


def test_a_file_from_after_the_clock_is_not_remembered(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model("tiny-llama", "q4_0", tmp_path / "m.gguf", seed=1)
    monkeypatch.setattr(digests.time, "time_ns", lambda: 1_000_000_000)
    digests.sha256(ModelFile.open(tmp_path / "m.gguf"))
    assert digests._read() == {}
