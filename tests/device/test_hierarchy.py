"""Finding the groups of v1, v2 and mixtures, on made-up trees; what the kernel does with them is in test_jail.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from genmote.device import hierarchy
from genmote.device.hierarchy import Place, mounts, places
from genmote.errors import NoJailError


class Tree:
    """A made-up /proc and cgroup mount."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        self.proc.mkdir()
        self.cgroup.mkdir()
        (self.proc / "cgroup").write_text("")
        (self.proc / "mountinfo").write_text("22 27 0:21 / /proc rw - proc proc rw\n")

    def mount(self, name: str, kind: str, options: str, root: str = "/") -> Path:
        point = self.cgroup / name
        point.mkdir(exist_ok=True)
        with open(self.proc / "mountinfo", "a") as file:
            file.write(f"31 23 0:28 {root} {point} rw,relatime shared:9 - {kind} cgroup rw,{options}\n")
        return point

    def own(self, *lines: str) -> None:
        (self.proc / "cgroup").write_text("\n".join(lines) + "\n")

    def v2(self, path: str, controllers: str, handed_out: str = "", processes: str = "") -> Path:
        folder = self.cgroup / "unified" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.controllers").write_text(controllers + "\n")
        (folder / "cgroup.subtree_control").write_text(handed_out + "\n")
        (folder / "cgroup.procs").write_text(processes)
        return folder


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


ALL = {"memory", "cpu", "disk"}


def test_v1_groups_are_made_beneath_the_callers_own(tree: Tree) -> None:
    memory = tree.mount("memory", "cgroup", "memory")
    both = tree.mount("cpu,cpuacct", "cgroup", "cpu,cpuacct")
    (memory / "user/box").mkdir(parents=True)
    tree.own("4:memory:/user/box", "2:cpu,cpuacct:/")
    assert places(ALL, mounts(tree.proc)) == {"memory": Place(1, memory / "user/box"), "cpu": Place(1, both)}


def test_in_a_container_the_mount_starts_at_its_own_group(tree: Tree) -> None:
    memory = tree.mount("memory", "cgroup", "memory", root="/docker/abc")
    (memory / "inner").mkdir()
    tree.own("4:memory:/docker/abc/inner")
    assert mounts(tree.proc).own_v1["memory"] == memory / "inner"
    tree.own("4:memory:/docker/abc")
    assert mounts(tree.proc).own_v1["memory"] == memory


def test_v2_takes_the_nearest_folder_that_hands_out_the_controllers(tree: Tree) -> None:
    tree.mount("unified", "cgroup2", "nsdelegate")
    tree.own("0::/slice/scope")
    tree.v2("", "cpu io memory", "cpu io memory")
    near = tree.v2("slice", "cpu io memory", "cpu io memory")
    tree.v2("slice/scope", "cpu io memory", "", "1\n2\n")
    assert places(ALL, mounts(tree.proc)) == {name: Place(2, near) for name in ALL}


def test_v2_does_without_what_is_not_handed_out_but_never_without_memory(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.mount("unified", "cgroup2", "nsdelegate")
    tree.own("0::/slice")
    tree.v2("", "memory pids", "memory")
    tree.v2("slice", "memory", "", "1\n")
    monkeypatch.setattr(hierarchy, "hand_out", lambda folder, names: False)
    assert set(places(ALL, mounts(tree.proc))) == {"memory"}
    tree.v2("", "pids", "pids")
    with pytest.raises(
        NoJailError, match=r"no jail can be made here: no group at or above .*slice hands out the memory"
    ):
        places(ALL, mounts(tree.proc))


def test_a_mixture_takes_each_controller_where_it_is(tree: Tree) -> None:
    memory = tree.mount("memory", "cgroup", "memory")
    unified = tree.mount("unified", "cgroup2", "nsdelegate")
    tree.own("4:memory:/", "0::/")
    tree.v2("", "cpu io", "cpu io")
    found = places(ALL, mounts(tree.proc))
    assert found == {"memory": Place(1, memory), "cpu": Place(2, unified), "disk": Place(2, unified)}


def test_a_jail_within_a_jail_never_climbs_out_of_it(tree: Tree) -> None:
    tree.mount("unified", "cgroup2", "nsdelegate")
    tree.own("0::/genmote-jail-1-ab/run")
    tree.v2("", "cpu io memory", "cpu io memory")
    jail = tree.v2("genmote-jail-1-ab", "cpu io memory", "cpu memory")
    tree.v2("genmote-jail-1-ab/run", "cpu memory", "", "7\n")
    assert {place.folder for place in places({"memory", "cpu"}, mounts(tree.proc)).values()} == {jail}


def test_alone_in_a_delegated_group_the_process_steps_aside(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.mount("unified", "cgroup2", "nsdelegate")
    tree.own("0::/user/scope")
    tree.v2("", "pids", "")
    tree.v2("user", "pids", "")
    scope = tree.v2("user/scope", "memory cpu", "", f"{os.getpid()}\n")
    aside = scope / "genmote-outside"
    # As the kernel has it: controllers are handed out only by a group without processes of its own.
    monkeypatch.setattr(hierarchy, "hand_out", lambda folder, names: (aside / "cgroup.procs").exists())
    found = places({"memory", "cpu"}, mounts(tree.proc))
    assert found == {"memory": Place(2, scope), "cpu": Place(2, scope)}
    assert (aside / "cgroup.procs").read_text() == "0"


def test_a_named_group_stands_in_for_the_own_one(tree: Tree) -> None:
    memory = tree.mount("memory", "cgroup", "memory")
    tree.own("4:memory:/user")
    assert mounts(tree.proc, inside="/other").own_v1["memory"] == memory / "other"


def test_a_named_group_is_taken_or_refused_but_never_one_above_it(tree: Tree) -> None:
    tree.mount("unified", "cgroup2", "nsdelegate")
    tree.own("0::/")
    tree.v2("", "cpu io memory", "cpu io memory")
    named = tree.v2("named", "cpu io memory", "cpu io memory")
    assert {place.folder for place in places(ALL, mounts(tree.proc, inside="/named")).values()} == {named}
    with pytest.raises(NoJailError, match=r"not/there hands out no memory controller to this user, or is not there"):
        places(ALL, mounts(tree.proc, inside="/not/there"))


def test_nothing_mounted_is_a_refusal(tree: Tree) -> None:
    with pytest.raises(NoJailError, match="no jail can be made here: no cgroup file system is mounted"):
        places(ALL, mounts(tree.proc))
    assert mounts(tree.proc / "not-there") == hierarchy.Mounts({}, None, {}, None)
