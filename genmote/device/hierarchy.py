"""Which control groups a process may be put into here: cgroup v1, v2, or a mixture of both.

v1 has a tree of folders for each controller; a group is made beneath the caller's own. v2 has one tree, where a group
with limits may hold groups or processes but not both, so the place for a new group is the nearest folder above the
caller that hands out the wanted controllers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genmote.errors import NoJailError

#: The kernel's names of what we limit: (v1, v2).
CONTROLLERS = {"memory": ("memory", "memory"), "cpu": ("cpu", "cpu"), "disk": ("blkio", "io"), "cores": ("cpuset",) * 2}
PREFIX = "genmote-jail-"
LEAF = "run"


@dataclass(frozen=True)
class Place:
    """The folder beneath which a group with this controller can be made."""

    version: int
    folder: Path


@dataclass(frozen=True)
class Mounts:
    """What is mounted: the v1 folder of each kernel controller, the v2 folder, and this process's paths in them."""

    v1: dict[str, Path]
    v2: Path | None
    own_v1: dict[str, Path]
    own_v2: Path | None
    named: bool = False


def mounts(proc: Path = Path("/proc/self"), inside: str | None = None) -> Mounts:
    """Read the mounted hierarchies; `inside` (a path as in /proc/self/cgroup) stands in for the caller's own group."""
    paths: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):
        _, names, path = [*line.split(":", 2), "", ""][:3]
        paths |= dict.fromkeys(names.split(","), path)
    v1: dict[str, Path] = {}
    own_v1: dict[str, Path] = {}
    v2 = own_v2 = None
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, point = fields[3], Path(fields[4].replace("\\040", " "))
        if kind[0] == "cgroup2":
            v2, own_v2 = point, _within(point, root, inside or paths.get("", "/"), strict=inside is not None)
            continue
        for name in set(kind[2].split(",")) & {names[0] for names in CONTROLLERS.values()}:
            v1[name] = point
            own_v1[name] = _within(point, root, inside or paths.get(name, "/"), strict=inside is not None)
    return Mounts(v1, v2, own_v1, own_v2, inside is not None)


def _within(point: Path, root: str, path: str, *, strict: bool) -> Path:
    """Folder of the group `path` in a hierarchy that is mounted at `point` from its group `root` down."""
    if not strict and root != "/":  # a container: the mount starts at its own group
        path = path[len(root) :] if path.startswith(root) else "/"
    folder = point / path.strip("/")
    return folder if strict or folder.is_dir() else point


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def places(wanted: set[str], found: Mounts) -> dict[str, Place]:
    """Where groups with the `wanted` controllers (keys of CONTROLLERS) can be made; what is missing cannot be limited.

    Raises NoJailError where not even the memory of a group can be counted.
    """
    made: dict[str, Place] = {}
    for name in wanted:
        kernel = CONTROLLERS[name][0]
        if kernel in found.v1:
            made[name] = Place(1, found.own_v1[kernel])
    left = wanted - set(made)
    if left and found.v2 is not None and found.own_v2 is not None:
        base, given = _base(found.own_v2, found.own_v2 if found.named else found.v2, left)
        made |= {name: Place(2, base) for name in given}
    if "memory" in wanted and "memory" not in made:
        raise NoJailError(f"no jail can be made here: {_why_not(found)}")
    return made


def _why_not(found: Mounts) -> str:
    if not found.v1 and found.v2 is None:
        return (
            "no cgroup file system is mounted (wanted /sys/fs/cgroup); run it on the host, or in a privileged container"
        )
    own = found.own_v2 or found.v2
    if found.named:
        return f"{own} hands out no memory controller to this user, or is not there: name another one with --cgroup"
    return (
        f"no group at or above {own} hands out the memory controller to this user; run it as root, or in a group of "
        "your own: systemd-run --user --scope -p Delegate=yes genmote jail ..."
    )


def _base(own: Path, mount: Path, wanted: set[str]) -> tuple[Path, set[str]]:
    """The v2 folder for a new group, and which of the `wanted` it can have; memory comes first, then all it can."""
    chain = [own, *(folder for folder in own.parents if folder == mount or mount in folder.parents)]
    for i, folder in enumerate(chain):
        if folder.name.startswith(PREFIX):  # within a jail: never climb out of it
            chain = chain[: i + 1]
            break
    ladder = [wanted, wanted - {"cores"}, wanted & {"memory", "cpu"}, wanted & {"memory"}]
    for subset in [s for i, s in enumerate(ladder) if s and s not in ladder[:i]]:
        names = {CONTROLLERS[name][1] for name in subset}
        able = [f for f in chain if names <= set(_words(f / "cgroup.controllers")) and os.access(f, os.W_OK)]
        for folder in able:
            if names <= set(_words(folder / "cgroup.subtree_control")):
                return folder, subset
        for folder in able:
            if hand_out(folder, names) or (folder == own and _alone(folder) and _step_aside(folder, names)):
                return folder, subset
    return mount, set()


def hand_out(folder: Path, names: set[str]) -> bool:
    """Let the groups beneath `folder` have these controllers; False where the kernel or the owner forbids it."""
    try:
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(names)))
    except OSError:
        return False
    return names <= set(_words(folder / "cgroup.subtree_control"))


def _alone(folder: Path) -> bool:
    return _words(folder / "cgroup.procs") == [str(os.getpid())]


def _step_aside(folder: Path, names: set[str]) -> bool:
    """Move this process, alone in a group that was delegated to it, one level down, to make room for groups beside."""
    aside = folder / "genmote-outside"
    try:
        aside.mkdir(exist_ok=True)
        (aside / "cgroup.procs").write_text("0")
    except OSError:
        return False
    return hand_out(folder, names)


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
