"""The default number of threads, on made-up machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from genmote.errors import SpecError
from genmote.runtime.threads import checked_threads, default_threads


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which the tests are run with


def machine(root: Path, cores: list[tuple[int, int]], cgroup: str = "", files: dict[str, str] | None = None) -> Path:
    for cpu, (package, core) in enumerate(cores):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    if cgroup:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in (files or {}).items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PAIRS = [(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0), (1, 1), (1, 1)]  # two packages, two cores, two threads each


def test_physical_cores_are_counted(tmp_path: Path) -> None:
    assert default_threads(machine(tmp_path, PAIRS), range(8)) == 4
    assert default_threads(tmp_path, [0, 1, 2]) == 2  # pinned to one core and a half


def test_without_topology_each_cpu_counts(tmp_path: Path) -> None:
    assert default_threads(tmp_path, range(4)) == 4


@pytest.mark.parametrize(
    ("limit", "threads"), [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("?", 4)]
)
def test_quota_of_cgroup_2(tmp_path: Path, limit: str, threads: int) -> None:
    root = machine(tmp_path, PAIRS, "0::/box/inner\n", {"box/cpu.max": limit, "box/inner/cpu.max": "max 100000"})
    assert default_threads(root, range(8)) == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 4), ("300000", 3), ("50000", 1)])
def test_quota_of_cgroup_1(tmp_path: Path, quota: str, threads: int) -> None:
    files = {"cpu/box/cpu.cfs_quota_us": quota, "cpu/box/cpu.cfs_period_us": "100000"}
    root = machine(tmp_path, PAIRS, "5:memory:/\n4:cpu,cpuacct:/box\n", files)
    assert default_threads(root, range(8)) == threads


@pytest.mark.parametrize(
    ("asked", "threads"), [("1", 1), ("3", 3), ("99", 4), ("0", 1), ("", 4), ("2,1", 4), ("-1", 4)]
)
def test_the_environment_asks_for_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert default_threads(machine(tmp_path, PAIRS), range(8)) == threads
    assert checked_threads(3) == 3


def test_a_number_of_ones_own() -> None:
    assert checked_threads(3) == 3
    assert checked_threads(None) == default_threads() >= 1
    for wrong in (0, -1, 1.5, True, 4096):
        with pytest.raises(SpecError, match="use a whole number from 1 to 1024; this machine suits"):
            checked_threads(wrong)  # type: ignore[arg-type]
