"""How many threads to use: one for each physical core that this process may run on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from genmote.errors import SpecError


def default_threads(root: Path = Path("/"), cpus: Iterable[int] | None = None) -> int:
    """Physical cores within the process's affinity and its control group's CPU quota, at least 1; no more than the
    environment's OMP_NUM_THREADS, where it is a number, as NumPy's libraries and PyTorch have it.

    Two hardware threads of a core share its multipliers, so the second adds contention and no speed.
    `root` and `cpus` stand in for the machine in tests.
    """
    if cpus is None:
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    allowed = set(cpus)
    cores = {_core(root, cpu) for cpu in allowed}
    quota = _quota(root)
    asked = os.environ.get("OMP_NUM_THREADS", "").strip()
    return max(1, min(len(cores), math.ceil(quota or len(cores)), int(asked) if asked.isdecimal() else len(cores)))


def checked_threads(threads: int | None) -> int:
    """The user's number, or the default for None."""
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise SpecError(
            f"threads={threads!r}: use a whole number from 1 to 1024; this machine suits {default_threads()}"
        )
    return threads


def _core(root: Path, cpu: int) -> tuple[str, str]:
    """(package, core) of a CPU, or the CPU itself where the kernel does not say."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        return (topology / "physical_package_id").read_text().strip(), (topology / "core_id").read_text().strip()
    except OSError:
        return "cpu", str(cpu)


def _quota(root: Path) -> float | None:
    """CPUs that the control groups above this process grant, or None without a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, read = root / "sys/fs/cgroup", _quota_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _quota_v1
        else:
            continue
        folder = base / path.strip("/")
        while True:  # a parent's limit binds its children
            value = read(folder)
            if value:
                quotas.append(value)
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 and period > 0 else None
    except (OSError, ValueError):
        return None
