"""What a group writes and reads in version 2, and each of its refusals, on plain folders in place of the kernel's. What
the real kernel does with version 1 is in test_jail.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from genmote.device import cgroup, jail
from genmote.device.cgroup import Group, Limits
from genmote.device.hierarchy import CONTROLLERS, Mounts, Place
from genmote.errors import NoJailError

MIB = 1 << 20


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beneath which groups of version 2 are made, with every controller."""
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(cgroup, "mounts", lambda inside=None: Mounts({}, root, {}, root))
    monkeypatch.setattr(cgroup, "places", lambda wanted, found: {name: Place(2, root) for name in wanted})
    return root


def made(root: Path) -> Path:
    (folder,) = root.glob("genmote-jail-*")
    return folder


def test_limits_of_version_2_and_their_short_period(unified: Path) -> None:
    Group.make(Limits(150 * MIB, 0.5, 40_000_000, "0"), ["254:0"])
    folder = made(unified)
    assert (folder / "memory.max").read_text() == str(150 * MIB)
    assert (folder / "cpu.max").read_text() == "5000 10000"  # of 10 ms
    assert (folder / "io.max").read_text() == "254:0 rbps=40000000"
    assert (folder / "cpuset.cpus").read_text() == "0"
    names = {CONTROLLERS[key][1] for key in ("memory", "cpu", "disk", "cores")}
    assert {word[1:] for word in (folder / "cgroup.subtree_control").read_text().split()} == names
    assert (folder / "run").is_dir()  # processes go one level down


def test_swap_is_shut_where_it_is_counted(unified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Group._create

    def with_swap(self: Group) -> None:
        create(self)
        (made(unified) / "memory.swap.max").write_text("max")

    monkeypatch.setattr(Group, "_create", with_swap)
    Group.make(Limits(memory_bytes=64 * MIB), [])
    assert (made(unified) / "memory.swap.max").read_text() == "0"


def test_counts_of_version_2(unified: Path) -> None:
    group = Group.make(Limits(memory_bytes=64 * MIB), [])
    folder, page = made(unified), os.sysconf("SC_PAGE_SIZE")
    files = {
        "memory.peak": "60000000\n",
        "memory.current": "50000000\n",
        "memory.events": "low 0\nhigh 0\nmax 17\noom 1\noom_kill 2\n",
        "memory.stat": "anon 1\nworkingset_refault_anon 9\nworkingset_refault_file 300\npgscan 400\npgmajfault 5\n",
        "io.stat": "254:0 rbytes=1000 wbytes=20 rios=1\n254:16 rbytes=5 wbytes=6\n",
        "cpu.stat": "usage_usec 2500000\nnr_throttled 3\nthrottled_usec 750000\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    usage = group.usage()
    assert (usage.peak_bytes, usage.limit_hits, usage.oom_kills) == (60_000_000, 17, 2)
    assert (usage.refault_bytes, usage.scanned_bytes, usage.major_faults) == (300 * page, 400 * page, 5)
    assert (usage.read_bytes, usage.written_bytes) == (1005, 26)
    assert (usage.cpu_s, usage.throttled_s) == (2.5, 0.75)
    assert group.current_bytes() == 50_000_000 and group.versions == [2]
    assert group.entrances() == [folder / "run/cgroup.procs"]


def test_what_no_controller_is_there_for_is_told(unified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "places", lambda wanted, found: {"memory": Place(2, unified)})
    group = Group.make(Limits(64 * MIB, 0.5, 10**6, "0"), ["254:0"])
    assert group.not_limited == [
        "cores: no cpuset controller",
        "processors: no cpu controller",
        "disk: no io controller",
    ]
    usage = group.usage()
    assert (usage.read_bytes, usage.cpu_s, usage.throttled_s, usage.peak_bytes) == (None, None, None, None)


def test_a_folder_that_cannot_be_written_is_a_refusal(unified: Path) -> None:
    unified.rmdir()
    unified.write_text("a file")
    with pytest.raises(NoJailError, match=r"no jail can be made here: .*cgroup: .*run it as root, or name one with"):
        Group.make(Limits(memory_bytes=64 * MIB), [])


def test_a_limit_that_the_kernel_did_not_take_is_a_refusal_and_leaves_no_group(
    unified: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "remove", lambda folder, tries: left.append(folder))
    monkeypatch.setattr(cgroup, "_number", lambda path: 999)
    left: list[Path] = []
    with pytest.raises(NoJailError, match="the kernel set a memory limit of 999 B, wanted 67108864 B: no jail can be"):
        Group.make(Limits(memory_bytes=64 * MIB), [])
    assert len(left) == 1
    read = cgroup._read
    monkeypatch.setattr(cgroup, "_read", lambda path: "max 100000" if path.name == "cpu.max" else read(path))
    with pytest.raises(NoJailError, match=r"the kernel set a CPU share of \[None, 100000\], wanted \[5000, 10000\] us"):
        Group.make(Limits(cpus=0.5), [])
    assert len(left) == 2


def test_a_group_that_takes_no_process_is_a_refusal(unified: Path) -> None:
    with pytest.raises(NoJailError, match=r"no process may be put into .*cgroup.procs \(No such file or directory\)"):
        jail.run(["true"], Limits(memory_bytes=64 * MIB))  # a plain folder has no such file


def test_a_process_that_cannot_enter_does_not_run(
    unified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full to be refused by")
    monkeypatch.setattr(Group, "entrances", lambda self: [full])
    mark = tmp_path / "ran"
    with pytest.raises(
        NoJailError, match="the command could not be put into its control group: run it as root, or name"
    ):
        jail.run(["touch", str(mark)], Limits(memory_bytes=64 * MIB))
    assert not mark.exists()


@pytest.mark.usefixtures("cgroups")
def test_files_whose_pages_cannot_be_seen_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genmote.device.pages.cached_bytes", lambda path: None)  # as for another user's file
    (tmp_path / "file").write_bytes(b"x" * 4096)
    told: list[str] = []
    jail.run(["true"], Limits(memory_bytes=64 * MIB), drop=[tmp_path / "file"], told=told.append)
    assert told == ["1 files of another user: whether their pages went cannot be seen"]
