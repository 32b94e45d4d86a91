from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genmote import home
from genmote.errors import SpecError


def test_home_is_where_the_variable_says(own_home: Path) -> None:
    assert home.home() == own_home
    assert home.models_dir() == own_home / "models"
    assert home.cache_dir() == own_home / "cache"
    assert not own_home.exists(), "asking for the home must not make it"


def test_what_tests_make_stays_out_of_the_user_s_cache() -> None:
    assert home.home().name.startswith("genmote-tests-")
    assert not (home.cache_dir() / "packed").is_symlink() and not home.cache_dir().is_symlink()


def test_home_without_the_variable_is_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GENMOTE_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert home.home() == tmp_path / "genmote"


def test_no_home_folder_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.delenv("GENMOTE_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(SpecError, match="set GENMOTE_HOME"):
        home.home()


def test_usable_makes_the_folder_and_the_layout(own_home: Path) -> None:
    assert home.usable(home.cache_dir())
    assert (own_home / "layout").read_text() == f"{home.LAYOUT}\n"
    home.check_layout()


def test_a_newer_layout_is_refused(own_home: Path) -> None:
    own_home.mkdir()
    (own_home / "layout").write_text("99\n")
    with pytest.raises(SpecError, match="layout 99, this genmote knows up to 1: update genmote"):
        home.check_layout()


def test_a_folder_that_another_process_sweeps_away_is_made_again(own_home: Path, monkeypatch: Any) -> None:
    folder, ask, swept = home.models_dir() / ".staging" / "tiny.gguf", os.access, []

    def sweep_first(path: Path, mode: int) -> bool:
        if path == folder and len(swept) < 3:
            folder.rmdir()
            folder.parent.rmdir()
            swept.append(path)
        return ask(path, mode)

    monkeypatch.setattr(os, "access", sweep_first)
    assert home.usable(folder) and folder.is_dir() and len(swept) == 3


def test_a_folder_that_cannot_be_made_is_not_usable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not home.usable(tmp_path / "file" / "cache")
    assert not home.usable(Path("/proc/genmote"))


def test_atomic_write_places_a_whole_file_with_the_users_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with home.atomic_write(path) as out:
        out.write(b"whole")
        assert not path.exists(), "the file may appear only when it is whole"
    assert path.read_bytes() == b"whole"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_atomic_write_leaves_the_old_file_when_the_block_raises(tmp_path: Path, fault: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(fault), home.atomic_write(path, "w") as out:
        out.write("half")
        raise fault
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_link_stays_one_and_what_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name in ("old.txt", "new.txt"):  # one names a file, one nothing yet
        (tmp_path / name).symlink_to(Path("other") / name)
    (tmp_path / "other" / "old.txt").write_text("old")
    for name in ("old.txt", "new.txt"):
        assert home.target(tmp_path / name) == tmp_path / "other" / name
        with home.atomic_write(tmp_path / name, "w") as out:
            out.write("written")
        assert (tmp_path / name).is_symlink() and (tmp_path / "other" / name).read_text() == "written"
    assert len(list(tmp_path.rglob("*"))) == 5, "no temporary file may stay in either folder"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))  # a whole path may be too long for a socket
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "device").symlink_to(os.devnull)
    (tmp_path / "round").symlink_to("round")
    before = {path: path.lstat() for path in tmp_path.iterdir()}
    for name, said in [
        ("pipe", "it is a pipe, not a file"),
        ("socket", "it is a socket, not a file"),
        ("link", "it is a pipe, not a file"),
        ("device", "it is a device, not a file"),
        ("folder", "Is a directory"),
        ("round", "Too many levels of symbolic links"),
    ]:
        with pytest.raises(OSError, match=said), home.atomic_write(tmp_path / name):
            pytest.fail("the block must not begin")
    assert {path: path.lstat() for path in tmp_path.iterdir()} == before


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from genmote.home import held\n"
        "with held(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read(); {end}"
    )
    folder = tmp_path / "work"

    def other(end: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(end=end), str(folder)],
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    for end, left in (("pass", False), ("import os; os.kill(os.getpid(), 9)", True)):
        process = other(end)
        (folder / "state").write_text("learnt")
        with pytest.raises(SpecError, match=f"work is in use by process {process.pid}: wait"), home.held(folder):
            pytest.fail("the block must not begin")
        process.communicate("")
        assert (folder / "lock").exists() == left and (folder / "state").read_text() == "learnt"
    with home.held(folder):  # of one that was killed
        assert (folder / "lock").read_text() == f"{os.getpid()}\n"
        (folder / "state").unlink()
    assert not folder.exists(), "an empty one is removed"


def test_room_is_asked_for_and_nothing_is_left(tmp_path: Path, full_disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home.check_room(tmp_path, 0)
    with full_disk(10_000):
        home.check_room(tmp_path, 10_000)
        with pytest.raises(OSError):
            home.check_room(tmp_path, 10_001)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    home.check_room(tmp_path, 10_001)
    with pytest.raises(OSError, match="No space left"):
        home.check_room(tmp_path, 1 << 62)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        home.check_room(tmp_path / "absent", 1)


def test_a_folder_on_a_full_disk_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be written there tells that the disk is full; no lock stays behind."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(SpecError, match="in use by process unknown: wait"),
        home.held(tmp_path / "work"),
        home.held(tmp_path / "work"),
    ):
        pytest.fail("the second block must not begin")
    assert not (tmp_path / "work").exists()


def test_a_folder_that_cannot_be_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileExistsError), home.held(tmp_path / "file"):
        pytest.fail("the block must not begin")
    (tmp_path / "taken" / "lock").mkdir(parents=True)
    with pytest.raises(IsADirectoryError), home.held(tmp_path / "taken"):
        pytest.fail("the block must not begin")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_takes_no_files_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError), home.held(tmp_path / "closed"):
        pytest.fail("the block must not begin")


def test_what_a_killed_writer_left_is_swept_and_a_living_writers_file_is_not(tmp_path: Path) -> None:
    code = (
        "import os, sys; from genmote.home import atomic_write\n"
        "with atomic_write(sys.argv[1]) as out:\n    out.write(b'half'); out.flush(); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "file.bin"
    subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False)
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    with home.atomic_write(path) as first:
        first.write(b"first")
        assert len(list(tmp_path.iterdir())) == 1, "the killed writer's file must be gone"
        with home.atomic_write(path) as second:
            second.write(b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]
    assert path.read_bytes() == b"first"
